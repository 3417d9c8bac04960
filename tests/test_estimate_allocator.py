"""PyTorch's caching allocator, imitated: sizes from its source, and what must hold of any sequence."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatch.estimate.allocator import CachingAllocator, rounded

KIB, MIB = 2**10, 2**20


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        pytest.param(0, 512, id="nothing"),
        pytest.param(1, 512, id="a byte"),
        pytest.param(512, 512, id="a block"),
        pytest.param(513, 1024, id="more than a block"),
    ],
)
def test_requests_are_rounded_to_512_bytes(size: int, expected: int) -> None:
    assert rounded(size) == expected


@pytest.mark.parametrize(
    ("size", "reserved"),
    [
        pytest.param(1, 2 * MIB, id="small"),
        pytest.param(MIB, 2 * MIB, id="largest small"),
        pytest.param(MIB + 1, 20 * MIB, id="smallest large"),
        pytest.param(10 * MIB - 512, 20 * MIB, id="just below 10 MiB"),
        pytest.param(10 * MIB, 10 * MIB, id="10 MiB"),
        pytest.param(11 * MIB, 12 * MIB, id="rounded to 2 MiB"),
    ],
)
def test_the_first_segment_of_a_size(size: int, reserved: int) -> None:
    allocator = CachingAllocator()

    allocator.allocate(size)

    assert allocator.reserved == reserved


def test_small_requests_share_a_segment_and_large_ones_another() -> None:
    allocator = CachingAllocator()

    for size in (512 * KIB, 512 * KIB, MIB, 4 * MIB, 9 * MIB):
        allocator.allocate(size)

    assert allocator.reserved == 2 * MIB + 20 * MIB
    assert allocator.allocated == 15 * MIB


def test_the_rest_of_a_large_block_is_kept_whole_up_to_1_mib() -> None:
    allocator = CachingAllocator()
    allocator.release(allocator.allocate(20 * MIB))

    block = allocator.allocate(19 * MIB)

    assert block.size == 20 * MIB
    assert allocator.allocated == 20 * MIB


def test_freed_neighbours_become_one_block() -> None:
    allocator = CachingAllocator()
    blocks = [allocator.allocate(6 * MIB) for _ in range(3)]
    for block in (blocks[0], blocks[2], blocks[1]):
        allocator.release(block)

    allocator.allocate(20 * MIB)

    assert allocator.reserved == 20 * MIB


def test_the_smallest_block_that_fits_is_taken() -> None:
    allocator = CachingAllocator()
    large, small = allocator.allocate(40 * MIB), allocator.allocate(30 * MIB)
    allocator.release(large)
    allocator.release(small)

    allocator.allocate(30 * MIB)
    allocator.allocate(40 * MIB)

    assert allocator.reserved == 70 * MIB


def test_what_lies_between_live_blocks_is_lost_to_larger_requests() -> None:
    allocator = CachingAllocator()
    blocks = [allocator.allocate(5 * MIB) for _ in range(4)]
    allocator.release(blocks[0])
    allocator.release(blocks[2])

    allocator.allocate(9 * MIB)

    assert allocator.allocated == 19 * MIB
    assert allocator.reserved == 40 * MIB


@given(st.lists(st.tuples(st.integers(0, 64 * MIB), st.booleans(), st.integers(0, 99)), max_size=80))
def test_any_sequence_adds_up(steps: list[tuple[int, bool, int]]) -> None:
    allocator = CachingAllocator()
    held: list[Any] = []
    for size, frees, which in steps:
        before = allocator.reserved
        if frees and held:
            allocator.release(held.pop(which % len(held)))
        else:
            held.append(allocator.allocate(size))
            assert held[-1].size >= rounded(size)
        assert allocator.allocated == sum(block.size for block in held)
        assert max(before, allocator.allocated) <= allocator.reserved
    places = sorted((block.order, block.size) for block in held)
    for ((segment, offset), size), ((following, start), _) in pairwise(places):
        assert segment != following or offset + size <= start

    reserved = allocator.reserved
    for block in held:
        allocator.release(block)
    assert (allocator.allocated, allocator.reserved) == (0, reserved)
