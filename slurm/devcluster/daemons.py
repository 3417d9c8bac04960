"""How each daemon is started, and when it is ready."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from slurm.devcluster import packages, processes
from slurm.devcluster.conf import Options, Ports
from slurm.devcluster.errors import StartFailed
from slurm.devcluster.layout import Layout

_POLL_S = 0.05
#: MariaDB's first start and slurmdbd's tables take seconds on a busy machine.
_READY_TIMEOUT_S = 60.0
_COMMAND_TIMEOUT_S = 60.0
_LOG_LINES = 15


@dataclass(frozen=True)
class Daemon:
    """A daemon in the foreground, a child of the keeper.

    Attributes:
        name: "slurmd.n1": unique in the cluster.
        command: the program and its arguments.
        ready: answers whether others may rely on it.
        before: commands to run before it starts.
        after: commands to run once it is ready.
    """

    name: str
    command: tuple[str, ...]
    ready: Callable[[], bool]
    before: tuple[tuple[str, ...], ...] = ()
    after: tuple[tuple[str, ...], ...] = ()


def in_order(layout: Layout, options: Options, ports: Ports) -> list[Daemon]:
    """The cluster's daemons, each after those that it relies on."""
    accounting = _accounting(layout, ports) if options.accounting else []
    nodes = [_slurmd(name, port) for name, port in zip(options.node_names, ports.slurmd, strict=True)]
    slurmctld = Daemon("slurmctld", (_path("slurmctld"), "-D"), lambda: _listens_on_port(ports.slurmctld))
    return [_munged(layout), *accounting, slurmctld, *nodes]


def _munged(layout: Layout) -> Daemon:
    command = (
        _path("munged"),
        "--foreground",
        # Else it refuses a socket below a directory that others may not enter, as a test's is.
        "--force",
        "--num-threads=2",
        f"--key-file={layout.munge_key}",
        f"--socket={layout.munge_socket}",
        f"--pid-file={layout.munge / 'pid'}",
        f"--seed-file={layout.munge / 'seed'}",
    )
    return Daemon("munged", command, lambda: _listens_at(layout.munge_socket))


def _accounting(layout: Layout, ports: Ports) -> list[Daemon]:
    data = layout.database / "data"
    install = (
        "mariadb-install-db",
        "--no-defaults",
        f"--datadir={data}",
        "--user=root",
        "--auth-root-authentication-method=normal",
        "--skip-test-db",
    )
    command = (
        _path("mariadbd"),
        "--no-defaults",
        f"--datadir={data}",
        f"--socket={layout.database_socket}",
        f"--pid-file={layout.database / 'pid'}",
        "--user=root",
        # Reached through the socket in the cluster's directory only.
        "--skip-networking",
        "--skip-grant-tables",
        # Nothing here outlives the cluster, so nothing needs to reach the disk.
        "--skip-log-bin",
        "--innodb-flush-log-at-trx-commit=0",
        "--innodb-doublewrite=0",
    )
    # slurmctld refuses to start for a cluster that the database doesn't know.
    add_cluster = ("sacctmgr", "--immediate", "--quiet", "add", "cluster", layout.cluster_name)
    first = not data.exists()
    return [
        Daemon(
            "mariadbd",
            command,
            lambda: _listens_at(layout.database_socket),
            before=(install,) if first else (),
        ),
        Daemon(
            "slurmdbd",
            (_path("slurmdbd"), "-D"),
            lambda: _listens_on_port(ports.slurmdbd),
            after=(add_cluster,) if first else (),
        ),
    ]


def _slurmd(node: str, port: int) -> Daemon:
    return Daemon(f"slurmd.{node}", (_path("slurmd"), "-D", "-N", node), lambda: _listens_on_port(port))


def environment(layout: Layout) -> dict[str, str]:
    """Of the daemons, and of the clients that the keeper calls."""
    return {
        "PATH": os.pathsep.join([os.environ.get("PATH", os.defpath), *packages.SBIN]),
        "LC_ALL": "C.UTF-8",
        "SLURM_CONF": str(layout.slurm_conf),
        # slurmdbd has no setting for the socket; the client library reads this.
        "MYSQL_UNIX_PORT": str(layout.database_socket),
        processes.MARK: layout.cluster_name,
    }


def start(layout: Layout, daemon: Daemon) -> int:
    """Start a daemon, wait until it is ready, and return its process id.

    Raises:
        StartFailed: with the end of its log.
    """
    for command in daemon.before:
        _run(layout, command, daemon)
    with layout.output(daemon.name).open("ab") as output:
        process = subprocess.Popen(
            daemon.command,
            env=environment(layout),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        _wait_ready(layout, daemon, process)
        for command in daemon.after:
            _run(layout, command, daemon)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return process.pid


def _wait_ready(layout: Layout, daemon: Daemon, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while not daemon.ready():
        if process.poll() is not None:
            raise StartFailed(f"{daemon.name} ended with status {process.returncode}.{_tail(layout, daemon)}")
        if time.monotonic() > deadline:
            raise StartFailed(
                f"{daemon.name} was not ready after {_READY_TIMEOUT_S:.0f} s.{_tail(layout, daemon)}"
            )
        time.sleep(_POLL_S)


def client(layout: Layout, *command: str, timeout_s: float = 10) -> str | None:
    """What a Slurm command prints, or None if it fails or takes too long."""
    try:
        done = subprocess.run(
            command,
            env=environment(layout),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def wait_nodes(layout: Layout, nodes: int) -> None:
    """Wait until every node takes jobs.

    Raises:
        StartFailed: with the nodes' states, if they don't.
    """
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while True:
        states = (
            client(layout, "sinfo", "--noheader", "--Node", "--partition=main", "--format=%T") or ""
        ).split()
        if len(states) == nodes and all(state in ("idle", "mixed", "allocated") for state in states):
            return
        if time.monotonic() > deadline:
            raise StartFailed(
                f"the nodes are {', '.join(states) or 'unknown'} after {_READY_TIMEOUT_S:.0f} s; see {layout.logs}"
            )
        time.sleep(_POLL_S)


def _run(layout: Layout, command: tuple[str, ...], daemon: Daemon) -> None:
    with layout.output(daemon.name).open("ab") as output:
        done = subprocess.run(
            command,
            env=environment(layout),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            timeout=_COMMAND_TIMEOUT_S,
        )
    if done.returncode != 0:
        raise StartFailed(
            f"`{' '.join(command)}` failed with status {done.returncode}.{_tail(layout, daemon)}"
        )


def _path(program: str) -> str:
    return packages.find(program) or program


def _tail(layout: Layout, daemon: Daemon) -> str:
    output = layout.output(daemon.name)
    lines = output.read_text(errors="replace").splitlines()[-_LOG_LINES:]
    return "\n".join(["", f"The end of {output}:", *(f"  {line}" for line in lines)])


def _listens_on_port(port: int) -> bool:
    """Looked up, not tried: a daemon logs a connection that says nothing as an error."""
    sockets = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines())
    # proc(5): local address, remote address, state; 0A is TCP_LISTEN.
    return any(field[1].endswith(f":{port:04X}") and field[3] == "0A" for field in sockets)


def _listens_at(path: Path) -> bool:
    sockets = (line.split() for line in Path("/proc/net/unix").read_text().splitlines())
    # Flags with __SO_ACCEPTCON: it listens.
    return any(field[-1] == str(path) and int(field[3], 16) & 0x10000 for field in sockets)
