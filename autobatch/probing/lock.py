"""One probe of a run at a time, on this machine at least.

The lock is flock(2), which ends at once with its process: a job that was preempted is often started anew on
another node within seconds. Where flock reaches one host only (NFS with ``local_lock``, Lustre ``localflock``), a
second probe on another host isn't kept from starting; `launch` asks Slurm before it submits one, and what both
write of the user's is locked by `edits.lock`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from autobatch.errors import UsageError


@contextmanager
def only_one(directory: Path, what: str = "probe") -> Iterator[None]:
    """Hold the lock of a run's `probe/` or of a directory in it, which the kernel drops when this process ends.

    Raises:
        UsageError: another one holds it, or the directory can't be written.
    """
    # Not at once: `is_held` takes it for a moment.
    lock = FileLock(directory / "lock", timeout=2)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise second_one(directory, what) from error
    except OSError as error:
        raise UsageError(
            f"{error.filename or directory}: can't be written ({error.strerror}); make the run writable, or move "
            "away what is in its place"
        ) from error
    try:
        yield
    finally:
        lock.release()


def second_one(directory: Path, what: str = "probe") -> UsageError:
    """What a second probe of a run is told."""
    how = " (autobatch cancel)" if what == "probe" else ""
    return UsageError(
        f"{directory}: another {what} of this run is under way; wait for it, or end it{how} and try again"
    )


def is_held(directory: Path) -> bool:
    """Whether a probe is under way in a run's `probe/`, as far as this machine can see.

    Only reads, so that whoever may look at a run may ask.
    """
    try:
        descriptor = os.open(directory / "lock", os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False
