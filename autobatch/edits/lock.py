"""One writer of a file at a time, among the threads, processes and hosts that see it.

    with locked(path) as lock:
        text = read_text(path)
        replace_file(path, changed(text), expected=text, lock=lock)

flock(2) isn't enough: NFS mounted with ``local_lock=flock`` and Lustre with ``-o localflock`` grant it on each
host separately, and say nothing. So the lock is made of what every file system decides in one place, its server:
the lock of ``NAME`` is a directory with an empty file in it, whose name says who holds it.

    .NAME.editing-TOKEN/ENTRY     made by everyone who wants the lock
    .NAME.editing/ENTRY           after rename(2), which succeeds if there is no such directory or an empty one
    .NAME.editing/ENTRY.new       new text of NAME, before it is renamed to NAME

Giving the lock back is removing ENTRY. So is breaking the lock of a holder that is dead: that name is nobody
else's, so a break that comes late, or twice, takes nothing from the next holder. A holder is dead when its process
is gone, which only its own host can tell, or when it hasn't touched ENTRY for LEASE_S on the clock of the process
that waits; clocks of two hosts are never compared.

A holder that was only slow writes nothing after its lock was broken. ``ENTRY.new`` must be there to be renamed,
and it must be gone before another one can have the lock, as no directory is renamed onto one that holds a file.

Not reentrant. Where names are answered from a cache for some time without asking the server, as sshfs does, no
lock can help: the text that is read under it may be old.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import stat
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from autobatch.edits.holder import NEW, Holder
from autobatch.errors import EditError

#: Seconds without a sign of life after which a holder on another host is dead. An edit takes milliseconds.
LEASE_S = 30.0

#: Signs of life in that time.
_BEATS = 3

#: Seconds between two attempts, drawn anew each time: processes that wait together mustn't poll together.
_POLL_S = (0.01, 0.04)

#: Seconds after which a directory of a process that got no lock is removed, if its host can't be asked.
_ABANDONED_AFTER_S = 3600.0

#: What rename(2) answers when the directory in the way isn't empty (POSIX allows both).
_HELD = {errno.ENOTEMPTY, errno.EEXIST}

#: What a file server answers for a file that is no more.
_GONE = {errno.ENOENT, errno.ESTALE}


@dataclass(frozen=True)
class Lock:
    """A lock that is held.

    Attributes:
        path: of the file, as given.
        directory: the lock; entry: its holder's file in it.
    """

    path: Path
    directory: Path
    entry: str

    @property
    def temporary(self) -> Path:
        """Where to write the file's new text."""
        return self.directory / f"{self.entry}{NEW}"

    def put_in_place(self, target: Path) -> None:
        """Rename what was written to `temporary` to `target`, unless the lock was lost.

        Raises:
            EditError: it was lost. `target` is as it was.
        """
        self.confirm()
        try:
            self.temporary.replace(target)
        except FileNotFoundError:
            self.confirm()
            raise

    def confirm(self) -> None:
        """Say that this process lives.

        Raises:
            EditError: the lock was lost.
        """
        try:
            # Unlike stat(2), never answered from a cache.
            os.utime(self.directory / self.entry)
        except OSError as error:
            if error.errno in _GONE:
                raise EditError(
                    f"{self.path}: is left as it is: this process gave no sign of life for so long that another "
                    "one broke its lock; run again"
                ) from error
            raise EditError(
                f"{self.path}: its lock can't be kept ({self.directory}: {error.strerror})"
            ) from error


@contextlib.contextmanager
def locked(
    path: str | os.PathLike[str],
    timeout_s: float = 60.0,
    *,
    lease_s: float = LEASE_S,
    holder: Holder | None = None,
) -> Iterator[Lock]:
    """Hold the lock for edits of `path`.

    Args:
        path: of the file, which need not be there, in a directory that must. Two links to one file have one lock.
        timeout_s: how long to wait for the lock.
        lease_s: seconds without a sign of life after which a holder on another host is dead; the same for all
            who use the lock.
        holder: who holds it; default: this process.

    Raises:
        EditError: the lock wasn't free within `timeout_s`, or can't be made.
    """
    target = Path(path)
    with contextlib.suppress(OSError, RuntimeError):
        target = target.resolve()
    holder = holder or Holder.this()
    directory = target.with_name(f".{target.name}.editing")
    lock = Lock(Path(path), directory, holder.entry)
    own = directory.with_name(f"{directory.name}-{holder.token}")
    acquired = False
    ended: threading.Event | None = None
    try:
        try:
            _make(own, holder.entry)
            _wait(own, lock, timeout_s, lease_s)
        except OSError as error:
            raise EditError(
                f"{path}: can't be locked ({error.filename2 or error.filename or directory}: {error.strerror}): "
                "check that its directory is there and writable, and that the disk has room"
            ) from error
        acquired = True
        ended = _keep_alive(directory / holder.entry, lease_s / _BEATS)
        yield lock
    finally:
        if ended is not None:
            ended.set()
        if not acquired:
            _remove(own, [holder.entry])
        # Also when an interrupt came between the rename and the next line.
        _remove(directory, [holder.entry])


def remove_abandoned(lock: Lock, target: Path) -> None:
    """Remove what killed processes left beside `target` while they waited for its lock."""
    prefix = f".{target.name}.editing-"
    for left in target.parent.iterdir():
        if not left.name.startswith(prefix):
            continue
        with contextlib.suppress(OSError):
            entries = [path.name for path in left.iterdir()]
            holders = [Holder.parse(entry) for entry in entries]
            # Both times are the file server's.
            age_s = (lock.directory / lock.entry).stat().st_mtime - left.stat().st_mtime
            dead = bool(holders) and all(holder is not None and holder.is_dead for holder in holders)
            if dead or age_s > _ABANDONED_AFTER_S:
                _remove(left, entries)


def _make(own: Path, entry: str) -> None:
    own.mkdir()
    # Whoever may edit beside this process must be able to break its lock when it is dead.
    parent, mode = own.parent.stat().st_mode, stat.S_IMODE(own.stat().st_mode)
    shared = 0 if parent & stat.S_ISVTX else parent & (stat.S_IRWXG | stat.S_IRWXO)
    if shared & ~mode:
        own.chmod(mode | shared)
    (own / entry).touch(exist_ok=False)


def _wait(own: Path, lock: Lock, timeout_s: float, lease_s: float) -> None:
    """Rename `own` to the lock, as soon as that is free."""
    deadline = time.monotonic() + timeout_s
    watch = _Watch(lock.directory, lease_s)
    while True:
        try:
            own.rename(lock.directory)
            return
        except OSError as error:
            if error.errno in _GONE:
                if (lock.directory / lock.entry).exists():
                    # NFS: it was renamed, the answer was lost, and the second request found nothing to rename.
                    return
                if not own.exists():
                    raise
                # What it was to be renamed to was removed meanwhile, and the kernel still knew it.
            elif error.errno not in _HELD:
                raise
        may_be_free = watch.break_dead()
        if time.monotonic() >= deadline:
            raise EditError(
                f"{lock.directory}: held by {watch.who()}, for more than {timeout_s:g} s: wait until that process "
                "is done, or end it if it hangs, then run again; if it is gone, remove that directory"
            )
        if not may_be_free:
            time.sleep(random.uniform(*_POLL_S))


class _Watch:
    """What a waiting process has seen of the holder."""

    def __init__(self, directory: Path, lease_s: float) -> None:
        self._directory = directory
        self._lease_s = lease_s
        self._entries: list[str] = []
        self._signs: dict[str, int] = {}
        self._at = time.monotonic()

    def break_dead(self) -> bool:
        """Break the lock of a dead holder; whether the lock may be free now."""
        try:
            entries = sorted(path.name for path in self._directory.iterdir())
        except OSError as error:
            # Of another user's lock nothing may be known but that it is there.
            return error.errno in _GONE
        if not entries:
            # For a file system that renames to no directory at all, not even an empty one.
            return _remove(self._directory, [])
        dead = [entry for entry in entries if (holder := Holder.parse(entry)) and holder.is_dead]
        if dead:
            return _remove(self._directory, dead)
        now = time.monotonic()
        if entries == self._entries and now - self._at < self._lease_s:
            return False
        signs = {entry: _touched_ns(self._directory / entry) for entry in entries}
        if entries == self._entries and signs == self._signs:
            self._at = now
            return _remove(self._directory, entries)
        self._entries, self._signs, self._at = entries, signs, now
        return False

    def who(self) -> str:
        holders = [holder for entry in self._entries if (holder := Holder.parse(entry))]
        return str(holders[0]) if holders else "a process that left no name"


def _remove(directory: Path, entries: list[str]) -> bool:
    """Remove a holder's files and the directory, if that is all it holds; whether anything was removed."""
    removed = False
    # The new text last: a holder that is only slow looks for its entry before it puts the text in place.
    entries = [entry for entry in entries if not entry.endswith(NEW)] + [
        f"{entry.removesuffix(NEW)}{NEW}" for entry in entries
    ]
    for entry in entries:
        with contextlib.suppress(OSError):
            (directory / entry).unlink()
            removed = True
    with contextlib.suppress(OSError):
        directory.rmdir()
        removed = True
    return removed


def _keep_alive(entry: Path, every_s: float) -> threading.Event:
    """Touch `entry` again and again, until the event that is returned is set."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(every_s):
            with contextlib.suppress(OSError):
                os.utime(entry)

    # Where no thread can be had, an edit must be done within the lease.
    with contextlib.suppress(RuntimeError):
        threading.Thread(target=beat, name="lock of an edit", daemon=True).start()
    return ended


def _touched_ns(entry: Path) -> int:
    """When a file was touched, as its server has it, in ns; -1 when that can't be had."""
    try:
        # NFS asks its server when a file is opened, and not always for stat(2).
        descriptor = os.open(entry, os.O_RDONLY | os.O_NONBLOCK)
        try:
            return os.fstat(descriptor).st_mtime_ns
        finally:
            os.close(descriptor)
    except OSError:
        # Another user's may not be readable.
        with contextlib.suppress(OSError):
            return entry.stat().st_mtime_ns
        return -1
