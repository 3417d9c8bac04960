"""One probe of a run at a time."""

from __future__ import annotations

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
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # Not at once: `is_held` takes it for a moment.
        with FileLock(directory / "lock", timeout=2):
            yield
    except Timeout as error:
        raise UsageError(
            f"{directory}: another {what} of this run is under way; wait for it, or end it and try again"
        ) from error
    except PermissionError as error:
        raise UsageError(
            f"{directory}: can't be written ({error.strerror}); make the run writable"
        ) from error


def is_held(directory: Path) -> bool:
    """Whether a probe is under way in a run's `probe/`, as far as this machine can see."""
    if not (directory / "lock").exists():
        return False
    try:
        with FileLock(directory / "lock", timeout=0):
            return False
    except (Timeout, OSError):
        return True
