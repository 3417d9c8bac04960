"""A development cluster from outside: up, down, status, restart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from slurm.devcluster import daemons, errors, lock, packages, processes, teardown
from slurm.devcluster.conf import Options
from slurm.devcluster.errors import NotPossible, NotUp, StartFailed, UsageError
from slurm.devcluster.layout import Layout

#: The folder from which `python -m slurm.devcluster` works.
_CHECKOUT = Path(__file__).parents[2]

#: A take-down ends five daemons and the jobs, with 10 s of patience for each.
_DOWN_TIMEOUT_S = 90.0
_POLL_S = 0.2

#: What may not leak from a job or another cluster into this one's clients.
_FOREIGN = ("SLURM_", "SBATCH_", "SALLOC_", "SRUN_", "SQUEUE_", "SACCT_", "SINFO_", "SCANCEL_")


@dataclass(frozen=True)
class Cluster:
    """A cluster that is up."""

    layout: Layout

    @property
    def directory(self) -> Path:
        return self.layout.directory

    @property
    def exports(self) -> dict[str, str]:
        """The variables that make Slurm's commands speak to this cluster."""
        return {"SLURM_CONF": str(self.layout.slurm_conf)}

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment, turned to this cluster."""
        own = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
        return own | self.exports

    def processes(self) -> list[processes.Process]:
        """The keeper, the daemons, the jobs, and all that they have started."""
        return processes.of_cluster(self.layout)


@dataclass(frozen=True)
class Status:
    """What runs.

    Attributes:
        daemons: name -> process ids, in the order in which they were started.
        missing: daemons that should run and don't.
        nodes: node -> Slurm's state of it; None if slurmctld doesn't answer.
        jobs: state -> number of jobs that have not ended; None if slurmctld doesn't answer.
    """

    daemons: dict[str, list[int]]
    missing: list[str]
    nodes: dict[str, str] | None
    jobs: dict[str, int] | None


def up(directory: Path | str, options: Options, owner_pid: int | None = None) -> Cluster:
    """Bring a cluster up; it takes jobs on return.

    Args:
        directory: new, empty, or of an earlier cluster, whose data it loses.
        owner_pid: a process whose end ends the cluster too.

    Raises:
        AlreadyUp: a cluster runs in that directory.
        NotPossible: not root, or packages are missing.
        StartFailed: a daemon did not start; nothing is left running.
        UsageError: the directory or an option can't be used.
    """
    check(options)
    layout = Layout.of(directory)
    if lock.holder(layout) is not None:
        # The keeper would say so too, but then Ctrl-C here would end the other one.
        raise lock.already_up(layout)
    request = {"directory": str(layout.directory), "options": asdict(options), "owner_pid": owner_pid}
    try:
        keeper = subprocess.run(
            [sys.executable, "-m", "slurm.devcluster.keeper"],
            input=json.dumps(request),
            stdout=subprocess.PIPE,
            text=True,
            cwd="/",
            env=os.environ | {"PYTHONPATH": str(_CHECKOUT), processes.MARK: layout.cluster_name},
        )
    except KeyboardInterrupt:
        down(directory)
        raise
    try:
        answer = json.loads(keeper.stdout)
    except ValueError as error:
        raise StartFailed(
            f"the keeper of {layout.directory} ended without an answer; see {layout.logs}"
        ) from error
    if answer:
        raise getattr(errors, answer["error"])(answer["message"])
    return Cluster(layout)


def check(options: Options) -> None:
    """Whether this machine and this user can run such a cluster.

    Raises:
        NotPossible: if not, with what to do.
    """
    if not sys.platform.startswith("linux"):
        raise NotPossible(f"a development cluster needs Linux, this is {sys.platform}")
    missing = packages.missing(options.accounting)
    if missing:
        raise NotPossible(
            f"packages are missing: {', '.join(missing)}\n"
            "Install them:  python3 -m slurm.devcluster install\n"
            f"or by hand:    apt-get install {' '.join(missing)}"
        )
    if os.geteuid() != 0:
        raise NotPossible(f"a development cluster needs root, this is user id {os.geteuid()}")


def down(directory: Path | str) -> bool:
    """End the cluster in a directory, or what is left of one; False if there was nothing.

    Raises:
        StopFailed: if a process can't be ended.
    """
    layout = Layout.of(directory)
    keeper = lock.holder(layout)
    if keeper is not None:
        _signal(keeper, signal.SIGTERM)
        if not lock.wait_free(layout, _DOWN_TIMEOUT_S):
            _signal(keeper, signal.SIGKILL)
            lock.wait_free(layout, 5)
    left = processes.of_cluster(layout)
    if left:
        # The keeper was killed, or its directory was removed.
        layout.directory.mkdir(parents=True, exist_ok=True)
        with lock.held(layout):
            teardown.take_down(layout)
    return keeper is not None or bool(left)


def find(directory: Path | str) -> Cluster:
    """The cluster that is up in a directory.

    Raises:
        NotUp: if there is none.
    """
    layout = Layout.of(directory)
    if lock.holder(layout) is None:
        raise NotUp(
            f"{layout.directory}: no cluster is up here.\n"
            f"Start one:  python3 -m slurm.devcluster up --dir {layout.directory}"
        )
    return Cluster(layout)


def status(cluster: Cluster) -> Status:
    """What runs of a cluster that is up."""
    layout = cluster.layout
    accounting = ["mariadbd", "slurmdbd"] if layout.slurmdbd_conf.exists() else []
    running: dict[str, list[int]] = {name: [] for name in ["munged", *accounting, "slurmctld", "slurmd"]}
    for process in cluster.processes():
        if process.name in running:
            running[process.name].append(process.pid)
    nodes = daemons.client(layout, "sinfo", "--noheader", "--Node", "--partition=main", "--format=%N %T")
    jobs = daemons.client(layout, "squeue", "--noheader", "--format=%T")
    return Status(
        daemons=running,
        missing=[name for name, pids in running.items() if not pids],
        nodes=None if nodes is None else {line.split()[0]: line.split()[1] for line in nodes.splitlines()},
        jobs=None if jobs is None else dict(Counter(jobs.split())),
    )


def restart(cluster: Cluster, daemon: str, timeout_s: float = 60) -> None:
    """End a daemon (all slurmd, for "slurmd") and start it again, jobs and queue kept.

    Raises:
        UsageError: for an unknown daemon.
        StartFailed: if it doesn't come back.
    """
    known = status(cluster).daemons
    if daemon not in known:
        raise UsageError(f"{daemon}: no daemon of this cluster; it has {', '.join(known)}")
    old = known[daemon]
    processes.end((process for process in cluster.processes() if process.pid in old), 10)
    keeper = lock.holder(cluster.layout)
    if keeper is None:
        raise NotUp(f"{cluster.directory}: the cluster went down meanwhile")
    _signal(keeper, signal.SIGHUP)
    deadline = time.monotonic() + timeout_s
    while True:
        now = status(cluster)
        # slurmctld doesn't know for some seconds which nodes are there.
        known_nodes = now.nodes is not None and not any(
            state.startswith("unknown") for state in now.nodes.values()
        )
        if len(now.daemons[daemon]) >= max(1, len(old)) and known_nodes:
            return
        if time.monotonic() > deadline:
            raise StartFailed(
                f"{daemon} did not come back within {timeout_s:.0f} s; see {cluster.layout.logs}"
            )
        time.sleep(_POLL_S)


def _signal(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
