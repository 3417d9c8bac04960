"""Changes a file of the user's whole or not at all, one writer at a time.

    change = edit_file(path, lambda text: set_values(text, {("batch_size",): 24}, name=str(path)))
    change.changed, change.diff()

A file is replaced by a rename, so a reader finds the old text or the new one, whatever is killed when.
Its mode, its owner and its extended attributes are kept where that is permitted, and a symbolic link
stays one. A second hard link to the file keeps the old text.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import fcntl
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import SoftFileLock, Timeout

from autobatch.errors import EditError

_STALE_AFTER_S = 3600.0
_POLL_S = 0.02

#: What flock(2) answers where the file system has none, such as Lustre mounted without ``-o flock``.
_NO_FLOCK = {errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK}


@dataclass(frozen=True)
class Change:
    """What an edit did to a file.

    Attributes:
        path: as given.
        before: text of the file; empty if there was none.
        after: text of the file now.
        changed: whether the file was written.
    """

    path: Path
    before: str
    after: str
    changed: bool

    def diff(self) -> str:
        """Unified diff, empty when nothing changed; bytes that aren't UTF-8 show as U+FFFD."""
        before, after = (
            re.findall("[^\n]*\n|[^\n]+", text.encode("utf-8", "surrogateescape").decode("utf-8", "replace"))
            for text in (self.before, self.after)
        )
        return "".join(
            line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
            for line in difflib.unified_diff(before, after, str(self.path), str(self.path))
        )


def read_text(path: str | os.PathLike[str]) -> str:
    """Text of a file such that `replace_file` writes the same bytes, whatever they are.

    Line breaks aren't translated, and bytes that aren't UTF-8 become surrogates.

    Raises:
        EditError: it can't be read.
    """
    try:
        return Path(path).read_bytes().decode("utf-8", "surrogateescape")
    except OSError as error:
        raise EditError(
            f"{path}: can't be read ({error.strerror}): check that it is there and readable"
        ) from error


def replace_file(path: str | os.PathLike[str], text: str, *, expected: str | None) -> None:
    """Puts `text` in the place of the file's content, whole or not at all; creates a missing file.

    Args:
        path: of the file; of a symbolic link, the file that it leads to is replaced.
        text: new content.
        expected: content that the file must still have, empty for a missing file; None to overwrite
            whatever is there.

    Raises:
        EditError: the content isn't the expected one, or the file can't be written. The file is as it was.
    """
    try:
        target = Path(path).resolve()
        status = _stat(target)
        if status is not None and not stat.S_ISREG(status.st_mode):
            raise EditError(f"{path}: isn't a regular file: give the path of a file")
        if status is not None and not os.access(target, os.W_OK):
            raise EditError(f"{path}: is write-protected: make it writable (chmod u+w), then run again")
        _replace(target, text, status, lambda: _refuse_unexpected(target, path, expected))
    except (OSError, RuntimeError) as error:
        # Before Python 3.13, Path.resolve raises RuntimeError for a loop of links.
        why = getattr(error, "strerror", None) or str(error)
        raise EditError(
            f"{path}: can't be written ({why}): the file is as it was; make room and check the permissions "
            "of its directory, then run again"
        ) from error


def _stat(target: Path) -> os.stat_result | None:
    try:
        return target.stat()
    except FileNotFoundError:
        return None


def _refuse_unexpected(target: Path, path: str | os.PathLike[str], expected: str | None) -> None:
    if expected is not None and (read_text(target) if target.exists() else "") != expected:
        raise EditError(
            f"{path}: changed while autobatch was running: it is left as it is now; run again to edit it"
        )


def _replace(target: Path, text: str, status: os.stat_result | None, check: Callable[[], None]) -> None:
    """Writes beside `target`, calls `check`, and renames; `check` may raise to leave all as it was."""
    prefix = f".{target.name}.autobatch-{socket.gethostname()}-"
    temporary = target.with_name(f"{prefix}{os.getpid()}-{secrets.token_hex(4)}")
    # Nobody else may read a protected file's new text before it has that file's mode.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if status is None else 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
            file.flush()
            if status is not None:
                _copy_attributes(target, status, file.fileno())
            os.fsync(file.fileno())
        check()
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        # Some network file systems don't sync directories; the rename stands all the same.
        with contextlib.suppress(OSError):
            os.fsync(directory)
    finally:
        os.close(directory)
    _remove_stale(target)


def _copy_attributes(target: Path, status: os.stat_result, descriptor: int) -> None:
    with contextlib.suppress(OSError):
        os.fchown(descriptor, status.st_uid, status.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
    with contextlib.suppress(OSError):
        for attribute in os.listxattr(target):
            with contextlib.suppress(OSError):
                os.setxattr(descriptor, attribute, os.getxattr(target, attribute))


def _remove_stale(target: Path) -> None:
    """Removes what killed processes left beside `target`: old, or of a dead process of this host."""
    pattern = re.compile(rf"\.{re.escape(target.name)}\.autobatch-(.+)-(\d+)-[0-9a-f]{{8}}")
    for left in target.parent.iterdir():
        match = pattern.fullmatch(left.name)
        if match is None:
            continue
        host, pid = match.groups()
        with contextlib.suppress(OSError):
            is_old = time.time() - left.stat().st_mtime > _STALE_AFTER_S
            if is_old or (host == socket.gethostname() and not _is_alive(int(pid))):
                left.unlink()


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@contextlib.contextmanager
def locked(
    path: str | os.PathLike[str],
    timeout_s: float = 60.0,
    *,
    flock: Callable[[int, int], None] = fcntl.flock,
) -> Iterator[None]:
    """Holds the lock for edits of `path`: one holder among all processes and threads, and hosts.

    The lock is flock(2) on ``.NAME.lock`` beside the file; it ends with its process. The lock file stays:
    removing it would let two processes each hold a lock of that name. Where the file system has no flock,
    the lock is a file ``.NAME.lock.held`` that must not exist. Not reentrant.

    Raises:
        EditError: the lock wasn't free within `timeout_s`, or the lock file can't be written.
    """
    lock_path = Path(path)
    with contextlib.suppress(OSError, RuntimeError):
        # Two links to one file must meet at one lock.
        lock_path = lock_path.resolve()
    lock_path = lock_path.with_name(f".{lock_path.name}.lock")
    try:
        descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise EditError(
            f"{path}: can't be locked ({lock_path}: {error.strerror}): check that its directory is there "
            "and writable"
        ) from error
    try:
        release = _acquire(descriptor, lock_path, timeout_s, flock)
        try:
            yield
        finally:
            release()
    finally:
        os.close(descriptor)


def _acquire(
    descriptor: int, lock_path: Path, timeout_s: float, flock: Callable[[int, int], None]
) -> Callable[[], None]:
    """Waits for the lock; returns what gives it back."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise _timed_out(lock_path, timeout_s, os.pread(descriptor, 300, 0)) from None
            time.sleep(_POLL_S)
        except OSError as error:
            if error.errno in _NO_FLOCK:
                return _acquire_without_flock(lock_path, timeout_s)
            raise EditError(f"{lock_path}: can't be locked ({error.strerror})") from error

    def release() -> None:
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
        flock(descriptor, fcntl.LOCK_UN)

    # Who holds it is a help to people, not a part of the lock: a full disk may swallow it.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    return release


def _acquire_without_flock(lock_path: Path, timeout_s: float) -> Callable[[], None]:
    held = Path(f"{lock_path}.held")
    lock = SoftFileLock(str(held), timeout=timeout_s)
    try:
        lock.acquire()
    except Timeout:
        raise _timed_out(held, timeout_s, b"") from None
    return lock.release


def _timed_out(lock_path: Path, timeout_s: float, holder: bytes) -> EditError:
    by = f" by {holder.decode('utf-8', 'replace')}" if holder else ""
    return EditError(
        f"{lock_path}: held{by} for more than {timeout_s:g} s: wait until that process is done, "
        "or end it if it hangs, then run again"
    )


def edit_file(
    path: str | os.PathLike[str],
    change: Callable[[str], str],
    *,
    create: str | None = None,
    timeout_s: float = 60.0,
) -> Change:
    """Reads a file, changes its text and replaces it, under the file's lock.

    Args:
        path: of the file.
        change: pure; what it raises leaves the file as it was.
        create: text to begin with when there is no file; None when there must be one.
        timeout_s: how long to wait for the lock.

    Raises:
        EditError: the file can't be read, locked or written, or an editor changed it in between.
    """
    path = Path(path)
    with locked(path, timeout_s):
        missing = create is not None and not path.exists()
        before = "" if missing else read_text(path)
        after = change(create if missing and create is not None else before)
        if after == before:
            return Change(path, before, after, False)
        replace_file(path, after, expected=before)
    return Change(path, before, after, True)
