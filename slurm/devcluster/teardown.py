"""Ending a cluster, from whatever state it is in."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable

from slurm.devcluster import daemons, processes
from slurm.devcluster.errors import StopFailed
from slurm.devcluster.layout import Layout

#: Each relies on those after it. Ending them leaves slurmstepd and the jobs: these end before, or are swept.
_DAEMONS = ("slurmd", "slurmctld", "slurmdbd", "mariadbd", "munged")
_PATIENCE_S = 10.0
_POLL_S = 0.1


def take_down(layout: Layout, sleep: Callable[[float], None] = time.sleep) -> None:
    """End the jobs, then the daemons in order, then whatever is left; remove the cluster's data.

    Configuration and logs stay. It is for the one who holds the lock.

    Args:
        sleep: waits for some seconds while the jobs end. The keeper collects its children meanwhile:
            Slurm takes an orphan of a job for alive until then.

    Raises:
        StopFailed: if a process can't be ended.
    """
    _end_jobs(layout, sleep)
    for name in _DAEMONS:
        processes.end(
            (process for process in processes.of_cluster(layout) if process.name == name), _PATIENCE_S
        )
    sweep(layout)
    for folder in layout.transient:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(layout: Layout) -> None:
    """Kill what is there of a cluster, without ceremony.

    Raises:
        StopFailed: if a process can't be ended.
    """
    left = processes.sweep(layout, _PATIENCE_S)
    if left:
        names = ", ".join(f"{process.name} ({process.pid})" for process in left)
        raise StopFailed(f"{layout.directory}: can't end {names}")


def _end_jobs(layout: Layout, sleep: Callable[[float], None]) -> None:
    """Give the jobs the end that Slurm gives them; one that takes too long is swept later."""
    if not any(process.name == "slurmctld" for process in processes.of_cluster(layout)):
        return
    if not layout.slurm_conf.exists():
        # Slurm's commands look for it for a minute.
        return
    # Else a cancelled job makes room for the next one.
    if daemons.client(layout, "scontrol", "update", "NodeName=ALL", "State=DRAIN", "Reason=down") is None:
        return
    for state in ("PENDING", "SUSPENDED", "RUNNING"):
        daemons.client(layout, "scancel", f"--state={state}")
    deadline = time.monotonic() + _PATIENCE_S
    while daemons.client(layout, "squeue", "--noheader") and time.monotonic() < deadline:
        sleep(_POLL_S)
