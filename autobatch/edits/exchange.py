"""Renames that lose nothing: what is in the way is exchanged, or refused, never overwritten.

Between looking at a file and renaming another one to its name, an editor may save it. renameat2(2) closes that gap
where the file system has it: most on a disk do, NFS doesn't.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

_AT_FDCWD = -100
_NOREPLACE = 1
_EXCHANGE = 2

#: What a kernel or a file system without such renames answers.
_NOT_HERE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}


def create(source: Path, target: Path) -> bool:
    """Rename to a name that isn't taken; False where that can't be done so.

    Raises:
        OSError: FileExistsError when the name is taken; as os.rename.
    """
    return _rename(source, target, _NOREPLACE)


def exchange(source: Path, target: Path) -> bool:
    """Exchange two files; False where that can't be done. Raises OSError as os.rename."""
    return _rename(source, target, _EXCHANGE)


def exchange_back(source: Path, target: Path, ours: str, read: Callable[[Path], str]) -> None:
    """Undo an exchange, such that what was last saved as `target` is there afterwards.

    Args:
        source: holds what was in the place of `target`.
        target: holds `ours`, or what was saved since.
        ours: text that `exchange` put there.
        read: text of a file.

    Raises:
        OSError: as os.rename.
    """
    placed, held = ours, read(source)
    while True:
        exchange(source, target)
        found = read(source)
        if found == placed:
            return
        # Saved once more meanwhile: that is what belongs there.
        placed, held = held, found


def _rename(source: Path, target: Path, flag: int) -> bool:
    import ctypes

    # As os.rename does, so that who listens for renames hears of this one, too.
    sys.audit("os.rename", str(source), str(target), -1, -1)
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    if renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NOT_HERE:
        return False
    raise OSError(number, os.strerror(number), str(source), None, str(target))
