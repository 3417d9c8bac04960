"""A forked process becomes as resident as its parent; the memory of a dataset is told from libraries' code."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from autobatch.packing import build
from autobatch.probing.residence import touch_inherited_files

_SIZE = 4 * 2**20


def resident_of(path: Path) -> int:
    """Resident bytes of a file's mapping in this process."""
    smaps = Path("/proc/self/smaps").read_text(encoding="utf-8")
    found = re.search(rf"{re.escape(str(path))}\n(?:\w+: .*\n)*?Rss: +(\d+) kB", smaps)
    return int(found.group(1)) * 1024 if found else 0


def in_a_fork(answer: Callable[[], str]) -> str:
    """What `answer` says in a forked child."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, answer().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said


@pytest.fixture
def mapped(tmp_path: Path) -> tuple[Path, mmap.mmap]:
    """A file of 4 MiB, mapped and not yet read."""
    path = tmp_path / "library"
    path.write_bytes(b"x" * _SIZE)
    with path.open("rb") as file:
        return path, mmap.mmap(file.fileno(), _SIZE, prot=mmap.PROT_READ)


def test_a_child_touches_what_its_parent_has_resident(mapped: tuple[Path, mmap.mmap]) -> None:
    path, mapping = mapped
    # Read half of it, away from the border that the kernel's read-around would cross.
    assert mapping[: _SIZE // 2].count(b"x") == _SIZE // 2
    expected = resident_of(path)

    def before_and_after() -> str:
        before = resident_of(path)
        touch_inherited_files(os.getppid())
        return f"{before} {resident_of(path)}"

    before, after = map(int, in_a_fork(before_and_after).split())
    assert before == 0
    assert expected == _SIZE // 2
    assert after == expected


def test_without_the_parents_page_map_nothing_is_touched(mapped: tuple[Path, mmap.mmap]) -> None:
    path, _ = mapped
    touch_inherited_files(2**22 + 1)
    assert resident_of(path) == 0


def test_a_datasets_memory_is_its_allocations_and_data_files(mapped: tuple[Path, mmap.mmap]) -> None:
    _, mapping = mapped
    before = build._resident_bytes()
    # Mapped, since malloc may have room left that is resident already.
    allocated = mmap.mmap(-1, _SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for page in range(0, _SIZE, mmap.PAGESIZE):
        allocated[page] = mapping[page]
    held = build._resident_bytes() - before
    assert 2 * _SIZE <= held < 2 * _SIZE + 2**20
