"""PyTorch's CUDA caching allocator, as far as it decides how much memory is reserved. Pure.

Followed from `c10/cuda/CUDACachingAllocator.cpp` (PyTorch 2.6-2.13) with the default settings of
`PYTORCH_CUDA_ALLOC_CONF`: no expandable segments, no max_split_size. What an empty card would do once it is full
(free its cache and try again) isn't here: a run that does so doesn't fit.

    request      ->  rounded to 512 B                                        round_size
    <= 1 MiB     ->  small pool, cut from segments of 2 MiB                  get_allocation_size
    <  10 MiB    ->  large pool, cut from segments of 20 MiB
    >= 10 MiB    ->  large pool, a segment of its own, rounded to 2 MiB
    best fit in the pool; the rest of a block stays free when it is          get_free_block, should_split
    at least 512 B (small) or more than 1 MiB (large)
    a freed block joins its free neighbours in the segment                   try_merge_blocks
    a stream's free blocks serve that stream alone                           BlockComparatorSize
    empty_cache: segments that are free as a whole go back to the driver     release_cached_blocks
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field
from typing import TypeAlias

_MIN_BLOCK = 512
_SMALL_SIZE = 2**20
_SMALL_SEGMENT = 2 * 2**20
_LARGE_SEGMENT = 20 * 2**20
_MIN_LARGE_REQUEST = 10 * 2**20
_ROUND_LARGE = 2 * 2**20


def rounded(size: int) -> int:
    """Bytes that the allocator counts as allocated for a request of `size`."""
    return max(_MIN_BLOCK, -(-size // _MIN_BLOCK) * _MIN_BLOCK)


def _segment_size(size: int) -> int:
    if size <= _SMALL_SIZE:
        return _SMALL_SEGMENT
    if size < _MIN_LARGE_REQUEST:
        return _LARGE_SEGMENT
    return -(-size // _ROUND_LARGE) * _ROUND_LARGE


@dataclass(eq=False)
class _Block:
    """A piece of a segment; `order` stands for its address, which breaks ties between equal sizes."""

    size: int
    order: tuple[int, int]
    pool: _Pool = field(repr=False)
    free: bool = False
    before: _Block | None = field(default=None, repr=False)
    after: _Block | None = field(default=None, repr=False)


#: Free blocks by size, then address.
_Pool: TypeAlias = list[tuple[int, tuple[int, int], _Block]]


class CachingAllocator:
    """Reserved and allocated bytes of a card, allocation by allocation.

    Attributes:
        allocated: bytes of blocks in use.
        reserved: bytes of segments.
        peak_reserved: the most that was reserved.
    """

    def __init__(self) -> None:
        self.allocated = 0
        self.reserved = 0
        self.peak_reserved = 0
        self._small: dict[int, _Pool] = {}
        self._large: dict[int, _Pool] = {}
        self._segments = 0

    def allocate(self, size: int, stream: int = 0) -> _Block:
        """A block for a request of `size` bytes on a stream, to be given to `release`."""
        size = rounded(size)
        small = size <= _SMALL_SIZE
        pool = (self._small if small else self._large).setdefault(stream, [])
        block = self._best_fit(pool, size) or self._new_segment(pool, _segment_size(size))
        rest = block.size - size
        if rest >= _MIN_BLOCK if small else rest > _SMALL_SIZE:
            segment, offset = block.order
            remaining = _Block(rest, (segment, offset + size), pool, True, block, block.after)
            if block.after is not None:
                block.after.before = remaining
            block.after, block.size = remaining, size
            insort(pool, (rest, remaining.order, remaining))
        block.free = False
        self.allocated += block.size
        return block

    def release(self, block: _Block) -> None:
        """Give a block back to the cache; its segment stays reserved."""
        self.allocated -= block.size
        for other in (block.before, block.after):
            if other is not None and other.free:
                self._remove(other)
                if other is block.before:
                    block.order, block.before = other.order, other.before
                    if block.before is not None:
                        block.before.after = block
                else:
                    block.after = other.after
                    if block.after is not None:
                        block.after.before = block
                block.size += other.size
        block.free = True
        insort(block.pool, (block.size, block.order, block))

    def empty_cache(self) -> None:
        """Hand back what is free: segments of which no part is in use."""
        for pool in (*self._small.values(), *self._large.values()):
            whole = [entry for entry in pool if entry[2].before is None and entry[2].after is None]
            for entry in whole:
                pool.remove(entry)
                self.reserved -= entry[0]

    def _best_fit(self, pool: _Pool, size: int) -> _Block | None:
        index = bisect_left(pool, (size,))
        return pool.pop(index)[2] if index < len(pool) else None

    def _new_segment(self, pool: _Pool, size: int) -> _Block:
        self._segments += 1
        self.reserved += size
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return _Block(size, (self._segments, 0), pool)

    def _remove(self, block: _Block) -> None:
        del block.pool[bisect_left(block.pool, (block.size, block.order))]
