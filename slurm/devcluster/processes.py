"""The processes of a cluster: its daemons, its jobs, and what these have started."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from slurm.devcluster.layout import Layout

#: In the environment of the keeper and of every daemon.
MARK = "AUTOBATCH_DEVCLUSTER"

#: PR_SET_CHILD_SUBREAPER of <linux/prctl.h>.
_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.05


@dataclass(frozen=True)
class Process:
    """A line of ps; `ended` if it only waits for its parent to take note."""

    pid: int
    parent: int
    name: str
    ended: bool


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends, in the place of process 1."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def of_cluster(layout: Layout) -> list[Process]:
    """The cluster's processes, without the one that asks and those above it.

    The keeper and the daemons are known by `MARK`, a job by the cluster's name, which Slurm puts into its
    environment. A process that has emptied its environment is known if it descends from one of these:
    the keeper adopts what the others leave behind (`adopt_orphans`).
    """
    table = {process.pid: process for process in _table()}
    marks = {
        f"{MARK}={layout.cluster_name}".encode(),
        f"SLURM_CLUSTER_NAME={layout.cluster_name}".encode(),
    }
    found = {pid for pid in table if not marks.isdisjoint(_environment(pid))}
    members = {pid for pid in table if found.intersection(_line(pid, table))}
    members.difference_update(_line(os.getpid(), table))
    return [table[pid] for pid in sorted(members) if not table[pid].ended]


def end(processes: Iterable[Process], patience_s: float) -> None:
    """SIGTERM; SIGKILL to those that are still there after `patience_s`."""
    pids = {process.pid for process in processes}
    for number, seconds in ((signal.SIGTERM, patience_s), (signal.SIGKILL, patience_s)):
        for pid in pids:
            _kill(pid, number)
        pids = wait_gone(pids, seconds)


def wait_gone(pids: Collection[int], timeout_s: float) -> set[int]:
    """Wait until processes have ended; returns those that have not."""
    deadline = time.monotonic() + timeout_s
    left = {pid for pid in pids if _runs(pid)}
    while left and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        left = {pid for pid in left if _runs(pid)}
    return left


def sweep(layout: Layout, timeout_s: float) -> list[Process]:
    """Kill all of the cluster's processes, until none is left or the time is over; returns those left."""
    deadline = time.monotonic() + timeout_s
    while left := of_cluster(layout):
        for process in left:
            _kill(process.pid, signal.SIGKILL)
        if wait_gone([process.pid for process in left], 1) and time.monotonic() > deadline:
            return of_cluster(layout)
    return []


def reap() -> dict[int, int]:
    """Collect the children that have ended: pid -> exit status, negative for a signal."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if pid == 0:
            return ended
        ended[pid] = os.waitstatus_to_exitcode(status)


def _table() -> Iterable[Process]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (process := _read(int(entry.name))):
            yield process


def _read(pid: int) -> Process | None:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # The name stands in parentheses and may hold any character: proc(5).
    name, _, rest = stat.partition("(")[2].rpartition(")")
    fields = rest.split()
    state, parent, threads = fields[0], int(fields[1]), int(fields[17])
    # A process whose first thread has ended shows as a zombie while its other threads run.
    return Process(pid, parent, name, ended=state in "ZX" and threads <= 1)


def _environment(pid: int) -> frozenset[bytes]:
    try:
        return frozenset(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    except OSError:
        return frozenset()


def _line(pid: int, table: dict[int, Process]) -> list[int]:
    """A process, its parent, and so on up."""
    line = []
    while pid in table and pid not in line:
        line.append(pid)
        pid = table[pid].parent
    return line


def _runs(pid: int) -> bool:
    process = _read(pid)
    return process is not None and not process.ended


def _kill(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
