"""The process behind a running cluster.

It starts the daemons as its children and adopts what they and their jobs leave behind, so that nothing
of a cluster is ever out of sight. It ends the cluster on SIGTERM, and when the process that the cluster
belongs to has ended, however that one ended. On SIGHUP it starts the daemons that are not running.

`up` starts it: a request as JSON on stdin; on stdout an empty object once jobs can be submitted, or
what went wrong, once nothing is left of the attempt.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import sys
import time
import traceback
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from slurm.devcluster import conf, daemons, lock, processes, teardown
from slurm.devcluster.errors import DevclusterError, StartFailed, UsageError
from slurm.devcluster.layout import Layout

#: How often to look whether `up` still waits.
_LOOK_S = 0.5


class _Stop(BaseException):
    """SIGTERM, or the owner has ended, or `up` before it had an answer."""


def main() -> None:
    request = json.load(sys.stdin)
    if os.fork() != 0:
        # Whoever called `up` need not wait for us, nor collect us.
        os._exit(0)
    os.setsid()
    with suppress(BrokenPipeError):
        # `up` was killed if it is raised: nobody waits for an answer.
        _answer(_attempt(request))


def _attempt(request: dict[str, Any]) -> dict[str, str]:
    """A cluster's whole life; what went wrong with it."""
    try:
        layout = Layout.of(request["directory"])
        _claim(layout)
        with lock.held(layout):
            _keep(layout, conf.Options(**request["options"]), request["owner_pid"])
    except _Stop:
        return {"error": "StartFailed", "message": "ended while it was starting"}
    except DevclusterError as error:
        return {"error": type(error).__name__, "message": str(error)}
    except Exception:
        return {"error": "StartFailed", "message": traceback.format_exc()}
    return {}


def _keep(layout: Layout, options: conf.Options, owner_pid: int | None) -> None:
    """Start the daemons, wait until told to stop, end them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGALRM, _stop_if_alone)
    signal.setitimer(signal.ITIMER_REAL, _LOOK_S, _LOOK_S)
    processes.adopt_orphans()
    with ExitStack() as stack:
        try:
            owner = _watch(owner_pid)
            teardown.sweep(layout)
            ports = _reserve_ports(options, stack)
            _write_files(layout, options, ports)
            running: dict[int, str] = {}
            _start_missing(layout, options, ports, running)
            daemons.wait_nodes(layout, options.nodes)
            signal.setitimer(signal.ITIMER_REAL, 0)
            _answer({})
            _log_to(layout)
            with suppress(_Stop):
                _wait(layout, options, ports, owner, running)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            teardown.take_down(layout, _sleep)
            # Else they stay as zombies until process 1 gets to them.
            processes.reap()


def _sleep(seconds: float) -> None:
    processes.reap()
    time.sleep(seconds)


def _stop(number: int, frame: FrameType | None) -> None:
    raise _Stop


def _stop_if_alone(number: int, frame: FrameType | None) -> None:
    """Nobody reads stdout any more: `up` was killed before it had an answer."""
    poll = select.poll()
    poll.register(1, 0)
    if poll.poll(0):
        raise _Stop


def _claim(layout: Layout) -> None:
    """Make the directory; what is not ours is not touched."""
    layout.directory.mkdir(parents=True, exist_ok=True)
    if not layout.lock.exists() and any(layout.directory.iterdir()):
        raise UsageError(f"{layout.directory} holds other files: choose an empty or a new --dir")


def _watch(owner_pid: int | None) -> int | None:
    """A descriptor that becomes readable when the owner has ended."""
    if owner_pid is None:
        return None
    try:
        return os.pidfd_open(owner_pid)
    except ProcessLookupError as error:
        raise UsageError(f"--owner {owner_pid}: no such process") from error


def _reserve_ports(options: conf.Options, stack: ExitStack) -> conf.Ports:
    """Free ports that nobody else gets as long as the cluster is up.

    A socket that is bound but doesn't listen keeps the kernel from giving its port to anyone; a daemon
    that sets SO_REUSEADDR, as Slurm's do, may listen on it all the same if this socket has it too. Set
    before bind it would let two clusters choose the same port.
    """

    def reserve() -> int:
        reserved = stack.enter_context(socket.socket())
        reserved.bind(("127.0.0.1", 0))
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return int(reserved.getsockname()[1])

    return conf.Ports(reserve(), reserve(), tuple(reserve() for _ in options.node_names))


def _write_files(layout: Layout, options: conf.Options, ports: conf.Ports) -> None:
    for folder in (*layout.transient, layout.logs):
        folder.mkdir(exist_ok=True)
    for log in layout.logs.iterdir():
        log.unlink()
    layout.munge_key.write_bytes(os.urandom(128))
    layout.munge_key.chmod(0o400)
    layout.gres_conf.write_text(conf.gres_conf(options))
    layout.epilog.write_text(conf.epilog(layout))
    layout.epilog.chmod(0o755)
    layout.slurmdbd_conf.unlink(missing_ok=True)
    if options.accounting:
        layout.slurmdbd_conf.touch(mode=0o600)
        layout.slurmdbd_conf.write_text(conf.slurmdbd_conf(layout, ports))
    layout.slurm_conf.write_text(conf.slurm_conf(layout, options, ports))


def _start_missing(layout: Layout, options: conf.Options, ports: conf.Ports, running: dict[int, str]) -> None:
    for daemon in daemons.in_order(layout, options, ports):
        if daemon.name not in running.values():
            running[daemons.start(layout, daemon)] = daemon.name


def _wait(
    layout: Layout, options: conf.Options, ports: conf.Ports, owner: int | None, running: dict[int, str]
) -> None:
    """Until the owner ends; collect ended children meanwhile, and start daemons when told to."""
    told_to_start: list[int] = []
    read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write_end)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.signal(signal.SIGHUP, lambda number, frame: told_to_start.append(number))
    # A child that ended before the handler stood sent its signal in vain.
    os.write(write_end, b"\0")
    while True:
        readable, _, _ = select.select([read_end] if owner is None else [read_end, owner], [], [])
        if owner in readable:
            raise _Stop
        os.read(read_end, 4096)
        for pid, status in processes.reap().items():
            if pid in running:
                _log(f"{running.pop(pid)} (process {pid}) ended with status {status}")
        if told_to_start:
            told_to_start.clear()
            try:
                _start_missing(layout, options, ports, running)
            except StartFailed as error:
                # The others run on; `status` says what is missing.
                _log(str(error))


def _log_to(layout: Layout) -> None:
    """Let go of the caller's terminal; what we still have to say goes to a file."""
    with layout.output("keeper").open("ab") as output, Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)


def _log(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {text}\n")
    sys.stderr.flush()


def _answer(answer: dict[str, Any]) -> None:
    os.write(1, json.dumps(answer).encode())


if __name__ == "__main__":
    main()
