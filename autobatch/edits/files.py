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
import os
import re
import secrets
import socket
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from autobatch.edits.exchange import create, exchange, exchange_back
from autobatch.edits.lock import Lock, locked, remove_abandoned
from autobatch.errors import EditError

_STALE_AFTER_S = 3600.0


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


def replace_file(
    path: str | os.PathLike[str], text: str, *, expected: str | None, lock: Lock | None = None
) -> None:
    """Puts `text` in the place of the file's content, whole or not at all; creates a missing file.

    Args:
        path: of the file; of a symbolic link, the file that it leads to is replaced.
        text: new content.
        expected: content that the file must still have, empty for a missing file; None to overwrite
            whatever is there.
        lock: of `path`, which the caller holds; None for a file that has one writer.

    Raises:
        EditError: the content isn't the expected one, the lock was lost, or the file can't be written. The file
            is as it was.
    """
    try:
        target = Path(path).resolve()
        status = _stat(target)
        if status is not None and not stat.S_ISREG(status.st_mode):
            raise EditError(f"{path}: isn't a regular file: give the path of a file")
        if status is not None and not os.access(target, os.W_OK):
            raise EditError(f"{path}: is write-protected: make it writable (chmod u+w), then run again")
        _replace(target, text, status, _Expected(target, path, expected), lock)
    except (OSError, RuntimeError) as error:
        if lock is not None:
            # That it was lost says more than that something isn't there.
            lock.confirm()
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


@dataclass(frozen=True)
class _Expected:
    """The text that a file must still have; None for any."""

    target: Path
    path: str | os.PathLike[str]
    text: str | None

    def refuse(self) -> EditError:
        return EditError(
            f"{self.path}: changed while autobatch was running: it is left as it is now; run again to edit it"
        )

    def check(self) -> None:
        if self.text is not None and (read_text(self.target) if self.target.exists() else "") != self.text:
            raise self.refuse()


def _replace(
    target: Path, text: str, status: os.stat_result | None, expected: _Expected, lock: Lock | None
) -> None:
    """Writes beside `target` and renames, unless `target` isn't as it is expected to be."""
    temporary = _beside(target) if lock is None else lock.temporary
    # Nobody else may read a protected file's new text before it has that file's mode.
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if status is None else 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
            file.flush()
            if status is not None:
                _copy_attributes(target, status, file.fileno())
            os.fsync(file.fileno())
        expected.check()
        if lock is not None:
            lock.confirm()
        if expected.text is None or not _put_in_place(temporary, text, status is not None, expected, lock):
            if lock is None:
                temporary.replace(target)
            else:
                lock.put_in_place(target)
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
    if lock is None:
        _remove_stale(target)
    else:
        remove_abandoned(lock, target)


def _put_in_place(temporary: Path, text: str, is_there: bool, expected: _Expected, lock: Lock | None) -> bool:
    """Renames, but never over a text that isn't the expected one; False where the file system can't."""
    try:
        if not is_there:
            return create(temporary, expected.target)
        if not exchange(temporary, expected.target):
            return False
    except (FileExistsError, FileNotFoundError) as error:
        if lock is not None:
            lock.confirm()
        # Made, or removed, since it was looked at.
        raise expected.refuse() from error
    try:
        was = read_text(temporary)
    except EditError:
        # Who broke the lock just now has removed it; the new text is in its place.
        return True
    if was != expected.text:
        exchange_back(temporary, expected.target, text, read_text)
        raise expected.refuse()
    temporary.unlink()
    return True


def _beside(target: Path) -> Path:
    prefix = f".{target.name}.autobatch-{socket.gethostname()}-"
    return target.with_name(f"{prefix}{os.getpid()}-{secrets.token_hex(4)}")


def _copy_attributes(target: Path, status: os.stat_result, descriptor: int) -> None:
    try:
        os.fchown(descriptor, status.st_uid, status.st_gid)
    except OSError:
        # Of another user's file the group may be ours to give all the same.
        with contextlib.suppress(OSError):
            os.fchown(descriptor, -1, status.st_gid)
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
    with locked(path, timeout_s) as lock:
        missing = create is not None and not path.exists()
        before = "" if missing else read_text(path)
        after = change(create if missing and create is not None else before)
        if after == before:
            return Change(path, before, after, False)
        replace_file(path, after, expected=before, lock=lock)
    return Change(path, before, after, True)
