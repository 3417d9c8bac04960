"""What a step allocates and frees, and what that takes at any batch_size. Pure.

A `Trace` is the order in which the storages of a recipe's tensors are made and dropped, at one batch_size. At
another batch_size the same recipe makes the same storages in the same order, and the size of each is
a line in batch_size: a weight doesn't grow, an activation grows by one sequence's worth. So two traces give
the size of every storage at any batch_size, and replaying them there gives the peak with all its bends:

    peak(b) = max over moments t of  sum over storages i alive at t of  (fixed_i + per_sequence_i * b)

which is convex and piecewise straight, as measured peaks are. One more trace checks it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from autobatch.estimate.allocator import CachingAllocator

_PAGE = 4096
#: As malloc is pinned for trials on CPU (`MALLOC_MMAP_THRESHOLD_`): a block from here on has pages of its own.
_MMAP_THRESHOLD = 65536
#: malloc's header and alignment of 64 bytes, which PyTorch asks for.
_HEAP_ALIGNMENT = 64


class Kind(str, Enum):
    """What a storage is for."""

    PARAMETERS = "parameters"
    GRADIENTS = "gradients"
    OPTIMIZER = "optimizer state"
    ACTIVATIONS = "activations"
    COLLECTIVES = "all-gather and reduce-scatter"
    OTHER = "other"


class NotAligned(Exception):
    """Two traces aren't of one sequence of allocations, so that neither says anything about a third size."""


@dataclass(frozen=True)
class Trace:
    """Storages in the order of their allocation.

    Attributes:
        batch_size: that it was recorded at.
        sizes: bytes of each storage.
        kinds: what each is for.
        on_host: whether each lies in the host's memory when the recipe trains on a card.
        events: ``i + 1`` when storage i is made, ``-(i + 1)`` when it is dropped.
        first_batch: number of events before the first batch was asked for.
        steps: number of events when each optimizer step was done.
        seconds: that recording it took.
        streams: on which CUDA stream each is made; empty for all on the default one, 0.
        emptied: number of events when the recipe handed its cache back to the driver; None if it never did.
    """

    batch_size: int
    sizes: tuple[int, ...]
    kinds: tuple[Kind, ...]
    on_host: tuple[bool, ...]
    events: tuple[int, ...]
    first_batch: int
    steps: tuple[int, ...]
    seconds: float = 0.0
    streams: tuple[int, ...] = ()
    emptied: int | None = None


@dataclass(frozen=True)
class Peak:
    """Predicted memory at one batch_size.

    Attributes:
        batch_size: sequences per micro-batch.
        allocated_bytes: peak of live storages, as the device's allocator counts them.
        reserved_bytes: on CUDA, what the caching allocator holds; on CPU the same as allocated.
        by_kind: bytes at the moment of the peak.
        before_bytes: live when the first batch is asked for.
        setup_bytes: highest until then.
        setup_reserved_bytes: the most reserved until then.
        training_bytes: highest from then on.
    """

    batch_size: int
    allocated_bytes: int
    reserved_bytes: int
    by_kind: dict[Kind, int]
    before_bytes: int
    setup_bytes: int
    setup_reserved_bytes: int
    training_bytes: int


class Curve:
    """Peaks at any batch_size, from traces at two.

    Args:
        one, two: traces at different batch sizes.
        cuda: count as the CUDA caching allocator does, without what lies on the host; else as malloc does on CPU,
            where everything is in the memory of one process.

    Raises:
        NotAligned: the traces don't have one sequence of events.
    """

    def __init__(self, one: Trace, two: Trace, *, cuda: bool) -> None:
        if any(
            getattr(one, name) != getattr(two, name) for name in ("events", "kinds", "on_host", "streams")
        ):
            raise NotAligned(
                f"the recipe allocates {len(one.sizes)} storages at batch_size {one.batch_size} and "
                f"{len(two.sizes)} at {two.batch_size}, or in another order"
            )
        self.traces = (one, two)
        self._one = one
        self._growth = [
            (b - a) / (two.batch_size - one.batch_size) for a, b in zip(one.sizes, two.sizes, strict=True)
        ]
        self._cuda = cuda
        self._known: dict[int, Peak] = {}

    def check(self, trace: Trace) -> float:
        """How far a third trace, perhaps of fewer steps, is off the curve: a fraction of its own peak.

        Raises:
            NotAligned: its events aren't those of the other two.
        """
        if trace.events != self._one.events[: len(trace.events)]:
            raise NotAligned(f"the recipe allocates in another order at batch_size {trace.batch_size}")
        predicted = self._sizes(trace.batch_size)[: len(trace.sizes)]
        mine, ours = (
            replay(trace, sizes, trace.batch_size, cuda=self._cuda).allocated_bytes
            for sizes in (trace.sizes, predicted)
        )
        return abs(ours - mine) / mine

    def at(self, batch_size: int) -> Peak:
        """The predicted peak at `batch_size`."""
        if batch_size not in self._known:
            self._known[batch_size] = replay(self._one, self._sizes(batch_size), batch_size, cuda=self._cuda)
        return self._known[batch_size]

    def largest(self, fits: Callable[[Peak], bool], at_most: int = 2**20) -> int:
        """The largest batch_size whose peak `fits`; 0 when none does.

        Doubles, then bisects: memory grows with batch_size.
        """
        if not fits(self.at(1)):
            return 0
        low, high = 1, 2
        while high <= at_most and fits(self.at(high)):
            low, high = high, high * 2
        high = min(high, at_most + 1)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(self.at(middle)) else (low, middle)
        return low

    def _sizes(self, batch_size: int) -> list[int]:
        beyond = batch_size - self._one.batch_size
        return [
            max(0, round(size + growth * beyond))
            for size, growth in zip(self._one.sizes, self._growth, strict=True)
        ]


@dataclass
class _Pages:
    """What malloc gave out."""

    size: int


@dataclass
class _Host:
    """Resident memory of malloc'd storages."""

    allocated: int = 0
    peak_reserved: int = 0

    def allocate(self, size: int, stream: int = 0) -> _Pages:
        to = _PAGE if size >= _MMAP_THRESHOLD else _HEAP_ALIGNMENT
        taken = _Pages(-(-size // to) * to)
        self.allocated += taken.size
        self.peak_reserved = max(self.peak_reserved, self.allocated)
        return taken

    def release(self, taken: _Pages) -> None:
        self.allocated -= taken.size

    def empty_cache(self) -> None:
        """Nothing: malloc, as it is pinned, keeps nothing of this size."""


def replay(trace: Trace, sizes: Sequence[int], batch_size: int, *, cuda: bool) -> Peak:
    """Run the events of `trace` with `sizes`.

    The peak counts from the first batch on where torchtune starts PyTorch's counters anew once the model is made
    (`training.get_memory_stats`), and from the beginning on CPU, where nobody resets the kernel's. In distributed
    recipes it counts from the beginning, too: there every rank gets whole weights on its card to cut its part out.
    """
    memory: Any = CachingAllocator() if cuda else _Host()
    held: dict[int, Any] = {}
    taken: dict[int, int] = {}
    setup, training, training_at, setup_at, before, setup_reserved = 0, 0, 0, 0, 0, 0
    for position, event in enumerate(trace.events):
        if position == trace.emptied:
            memory.empty_cache()
        if position == trace.first_batch:
            before, setup_reserved = memory.allocated, memory.peak_reserved
        index = abs(event) - 1
        if cuda and trace.on_host[index]:
            continue
        if event < 0:
            memory.release(held.pop(index))
            continue
        held[index] = memory.allocate(sizes[index], trace.streams[index] if trace.streams else 0)
        taken[index] = held[index].size
        if position < trace.first_batch:
            if memory.allocated > setup:
                setup, setup_at = memory.allocated, position
        elif memory.allocated > training:
            training, training_at = memory.allocated, position
    resets = cuda and trace.emptied is None
    peak, peak_at = (training, training_at) if resets or training > setup else (setup, setup_at)
    by_kind = dict.fromkeys(Kind, 0)
    for index in _alive(trace.events[: peak_at + 1]):
        if not (cuda and trace.on_host[index]):
            by_kind[trace.kinds[index]] += taken[index]
    return Peak(batch_size, peak, memory.peak_reserved, by_kind, before, setup, setup_reserved, training)


def _alive(events: Iterable[int]) -> set[int]:
    alive: set[int] = set()
    for event in events:
        if event > 0:
            alive.add(event - 1)
        else:
            alive.remove(-event - 1)
    return alive
