"""Making a forked process as resident as one started cold.

A fork copies the page tables of anonymous memory but not those of mapped files: the code of the libraries
that the fork server has imported is not in the child's resident set until the child runs it. A training
that starts cold has all of it there, about 100 MiB with torch and torchtune, so that the peak of a forked
trial would be too low by as much.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from pathlib import Path

_PAGE = os.sysconf("SC_PAGE_SIZE")

#: /proc/PID/pagemap holds eight bytes a page; the highest bit says that it is present.
_ENTRY_BYTES = 8
_PRESENT = re.compile(rb"[\x80-\xff]+")


def touch_inherited_files(parent: int) -> None:
    """Touch every page of a mapped file that is resident in the parent.

    Without pagemap (another system, a parent that hides it) nothing is touched. In a process that wasn't
    forked from `parent` no mapping lies where the parent's does, and nothing is touched either.

    Args:
        parent: process id of the process that this one was forked from.
    """
    try:
        shared = _file_mappings("self") & _file_mappings(str(parent))
        with Path(f"/proc/{parent}/pagemap").open("rb", buffering=0) as pagemap:
            for start, end, _ in shared:
                pagemap.seek(start // _PAGE * _ENTRY_BYTES)
                entries = pagemap.read((end - start) // _PAGE * _ENTRY_BYTES)
                for page in _present(entries):
                    ctypes.string_at(start + page * _PAGE, 1)
    except OSError:
        return


def _file_mappings(process: str) -> set[tuple[int, int, str]]:
    """(start, end, the rest of the line) of readable mappings of files, from /proc/PID/maps (proc(5))."""
    found = set()
    for line in Path(f"/proc/{process}/maps").read_text(encoding="utf-8").splitlines():
        addresses, rest = line.split(" ", 1)
        permissions, _, _, inode = rest.split()[:4]
        if permissions.startswith("r") and inode != "0":
            start, end = (int(address, 16) for address in addresses.split("-"))
            found.add((start, end, rest))
    return found


def _present(entries: bytes) -> Iterator[int]:
    """Indices of the pages that are present."""
    # Little-endian: the flags are the last byte of an entry.
    for run in _PRESENT.finditer(entries[_ENTRY_BYTES - 1 :: _ENTRY_BYTES]):
        yield from range(run.start(), run.end())
