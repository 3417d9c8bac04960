"""Edits of several files that happen together or not at all.

    edit_together([Edit(config, set_batch_size), Edit(plan, set_row, create="# runs\\n")])

Each file is changed as `edit_file` changes it. What can be refused (a file that can't be read or written, a
text that can't be edited) is refused before the first file is written; should a later one fail all the
same (a full disk), the earlier ones get their old text back. Only a process that is killed in between leaves
some files edited, each of them whole.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from autobatch.edits.files import Change, read_text, replace_file
from autobatch.edits.lock import Lock, locked
from autobatch.errors import EditError


@dataclass(frozen=True)
class Edit:
    """One file's part.

    Attributes:
        path: of the file.
        change: pure; what it raises leaves every file as it was.
        create: text to begin with when there is no file; None when there must be one.
    """

    path: Path
    change: Callable[[str], str]
    create: str | None = None


def edit_together(edits: Sequence[Edit], *, timeout_s: float = 60.0) -> list[Change]:
    """Change every file, or none.

    Args:
        edits: in the order in which they are written. Locks are taken in that order too, so callers that
            share files must name them in the same order.
        timeout_s: how long to wait for each lock.

    Returns:
        What was done to each file.

    Raises:
        EditError: a file can't be read, edited, locked or written, or an editor changed it in between.
    """
    with contextlib.ExitStack() as held:
        planned: list[tuple[Change, Lock]] = []
        for edit in edits:
            lock = held.enter_context(locked(edit.path, timeout_s))
            before, after = _texts(edit)
            planned.append((Change(edit.path, before, after, after != before), lock))
        for change, _ in planned:
            if change.changed:
                refuse_unwritable(change.path)
        written: list[tuple[Change, Lock]] = []
        try:
            for change, lock in planned:
                if change.changed:
                    replace_file(change.path, change.after, expected=change.before, lock=lock)
                    written.append((change, lock))
        except BaseException:
            for change, lock in reversed(written):
                _take_back(change, lock)
            raise
    return [change for change, _ in planned]


def refuse_unwritable(path: Path) -> None:
    """Raise an `EditError` if `replace_file` would refuse to write there, as far as can be told beforehand."""
    try:
        target = path.resolve()
        if target.exists() and not target.is_file():
            raise EditError(f"{path}: isn't a regular file, and autobatch writes one there: move it away")
        protected = next(
            (p for p in (target, target.parent) if p.exists() and not os.access(p, os.W_OK)), None
        )
    except (OSError, RuntimeError) as error:
        # Before Python 3.13, Path.resolve raises RuntimeError for a loop of links.
        why = getattr(error, "strerror", None) or str(error)
        raise EditError(f"{path}: can't be written ({why}): correct its path") from error
    if protected is not None:
        raise EditError(f"{protected}: is write-protected: make it writable (chmod u+w), then run again")


def _texts(edit: Edit) -> tuple[str, str]:
    if edit.create is not None and not edit.path.exists():
        return "", edit.change(edit.create)
    before = read_text(edit.path)
    return before, edit.change(before)


def _take_back(change: Change, lock: Lock) -> None:
    """Give a file its old text again, unless somebody has changed it since."""
    with contextlib.suppress(EditError, OSError):
        if change.before or read_text(change.path) != change.after:
            replace_file(change.path, change.before, expected=change.after, lock=lock)
        else:
            lock.confirm()
            change.path.unlink()
