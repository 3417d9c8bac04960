"""Dividing an effective batch into batch_size x gradient_accumulation_steps x world_size. Pure.

    32 sequences, 11 fit  ->  batch_size 8 x gradient_accumulation_steps 4

The product is kept exactly and batch_size is the largest that divides it and fits. Where the product can't be had
(the dataset has fewer rows than one update would take, or the devices don't divide it), the nearest one below is
held, and a remark says so.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isqrt

from autobatch.records import EffectiveBatch, Unit

#: A trial runs at most so many micro-batches a step: with two the gradients are accumulated; more add no memory.
MAX_MICRO_BATCHES = 2


@dataclass(frozen=True)
class Hold:
    """An effective batch to hold.

    Attributes:
        sequences: the product that is held: of all devices, and the largest one possible up to what was asked.
        world_size: devices that train together.
        accumulates: False where the recipe can't accumulate gradients: one micro-batch is then all of it.
        cut_by_dataset: more was asked than the dataset has rows.
        remarks: how what was asked became `sequences`, in sentences.
    """

    sequences: int
    world_size: int = 1
    accumulates: bool = True
    cut_by_dataset: bool = False
    remarks: tuple[str, ...] = ()

    @property
    def per_device(self) -> int:
        """batch_size x gradient_accumulation_steps."""
        return self.sequences // self.world_size

    @property
    def micro_batches(self) -> int:
        """That a trial must run at least for its peak to cover every division of the product.

        Two also for the batch_size that makes up the product by itself and trains with one: an upper bound.
        """
        return min(MAX_MICRO_BATCHES, self.per_device) if self.accumulates else 1

    def batch_sizes(self, at_most: int) -> Sequence[int]:
        """Every batch_size up to `at_most` that can make up the product, ascending."""
        if not self.accumulates:
            return (self.per_device,) if 1 <= self.per_device <= at_most else ()
        sizes = divisors(self.per_device)
        return sizes[: bisect_right(sizes, at_most)]


def hold(
    asked: float,
    unit: Unit,
    *,
    examples_per_sequence: float,
    rows: int,
    world_size: int = 1,
    accumulates: bool = True,
) -> Hold:
    """The effective batch that `asked` comes to.

    Args:
        asked: size of an update, in `unit`.
        unit: what it counts.
        examples_per_sequence: packing density; 1 where nothing is packed.
        rows: of the dataset. With fewer than an update takes, torchtune would train zero steps and exit 0.
        world_size: devices that train together.
        accumulates: whether the recipe can accumulate gradients.
    """
    remarks = []
    wanted = round(asked)
    if unit is Unit.EXAMPLES and examples_per_sequence != 1:
        wanted = max(1, round(asked / examples_per_sequence))
        remarks.append(
            f"{asked:.4g} examples an update come to {wanted} sequences of {examples_per_sequence:.2f} examples, "
            f"about {wanted * examples_per_sequence:.0f}"
        )
    held = min(wanted, rows) // world_size * world_size
    if wanted > rows:
        remarks.append(
            f"{held} sequences an update, not {wanted}: the dataset has {rows}, and with more for one update "
            "torchtune would train zero steps"
        )
    elif held < wanted:
        remarks.append(f"{held} sequences an update, not {wanted}, which {world_size} devices don't divide")
    return Hold(held, world_size, accumulates, wanted > rows, tuple(remarks))


def largest_divisor(product: int, at_most: int) -> int:
    """The largest number up to `at_most` that divides `product`; both at least 1."""
    sizes = divisors(product)
    return sizes[bisect_right(sizes, at_most) - 1]


@lru_cache(maxsize=64)
def divisors(number: int) -> tuple[int, ...]:
    """What divides `number`, ascending; nothing for less than 1."""
    below = [d for d in range(1, isqrt(number) + 1) if number % d == 0] if number > 0 else []
    return (*below, *(number // d for d in reversed(below) if d * d != number))


def effective_batch(
    batch_size: int, gradient_accumulation_steps: int, examples_per_sequence: float, world_size: int = 1
) -> EffectiveBatch:
    """What an update trains on with these settings."""
    sequences = batch_size * gradient_accumulation_steps * world_size
    return EffectiveBatch(
        batch_size=batch_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        sequences=sequences,
        examples=sequences * examples_per_sequence,
        world_size=world_size,
    )
