"""The lock on a cluster's directory: whoever holds it may start and end things there."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from slurm.devcluster.errors import AlreadyUp
from slurm.devcluster.layout import Layout

_POLL_S = 0.05


@contextmanager
def held(layout: Layout) -> Iterator[None]:
    """Hold the lock, which the kernel releases also when the process is killed.

    Raises:
        AlreadyUp: if another process holds it.
    """
    with layout.lock.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise already_up(layout) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def already_up(layout: Layout) -> AlreadyUp:
    """For an `up` where a cluster is up."""
    return AlreadyUp(
        f"{layout.directory}: a cluster is up here (process {holder(layout)}).\n"
        f'Use it:  eval "$(python3 -m slurm.devcluster env --dir {layout.directory})"\n'
        f"End it:  python3 -m slurm.devcluster down --dir {layout.directory}"
    )


def holder(layout: Layout) -> int | None:
    """The process that holds the lock, which may be the one that asks; None if it is free."""
    try:
        with layout.lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read() or 0) or None
    except FileNotFoundError:
        pass
    return None


def wait_free(layout: Layout, timeout_s: float) -> bool:
    """Wait until nobody holds the lock."""
    deadline = time.monotonic() + timeout_s
    while holder(layout) is not None:
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True
