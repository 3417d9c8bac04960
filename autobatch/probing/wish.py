"""What a request asks of one run beside that it fits: the effective batch to hold, and the largest size to try."""

from __future__ import annotations

from dataclasses import dataclass, replace

from autobatch.probing.effective_batch import Hold, effective_batch, hold, largest_divisor
from autobatch.probing.search import Cap
from autobatch.records import Density, EffectiveBatch, Limit, Preference, ProbeRequest, Unit
from autobatch.runs.directory import RunDirectory


@dataclass(frozen=True)
class Wish:
    """What is asked beside that it fits.

    Attributes:
        gradient_accumulation_steps: of the config; kept when nothing is held.
        hold: the effective batch to hold; None leaves it to batch_size.
        prefer: the largest, or the smallest that is as fast.
        world_size: processes that have rows of their own.
    """

    gradient_accumulation_steps: int
    hold: Hold | None = None
    prefer: Preference = Preference.MEMORY
    world_size: int = 1

    @property
    def accumulation_measured(self) -> int:
        """gradient_accumulation_steps whose memory covers every answer; a trial cuts it to two."""
        return self.gradient_accumulation_steps if self.hold is None else self.hold.micro_batches


def wish_of(request: ProbeRequest, run: RunDirectory, density: Density) -> Wish:
    """The wish behind a request; `density` as the run is probed."""
    steps, world_size = run.gradient_accumulation_steps, run.data_parallel
    if not request.hold_effective_batch:
        return Wish(steps, None, request.prefer, world_size)
    present = batch_before(run, density)
    asked: float | None = request.effective_batch
    if asked is None:
        in_examples = request.effective_batch_in is Unit.EXAMPLES
        asked = present.examples if in_examples else present.sequences
    held = hold(
        asked,
        request.effective_batch_in,
        examples_per_sequence=examples_per_row(density),
        rows=density.packs_of_a_rank(world_size) * world_size,
        world_size=world_size,
        accumulates=accumulates(run),
    )
    if density.packed and not run.packed and request.effective_batch_in is Unit.SEQUENCES:
        remark = (
            f"packing is new: {held.sequences} sequences an update take about "
            f"{held.sequences * density.examples_per_pack:.0f} examples (--in examples holds their number)"
        )
        held = replace(held, remarks=(*held.remarks, remark))
    return Wish(steps, held, request.prefer, world_size)


def cap_of(request: ProbeRequest, wish: Wish, density: Density) -> Cap:
    """The largest batch_size worth trying.

    torchtune drops the last incomplete update: with fewer rows than one takes it trains zero steps and exits 0.
    """
    if wish.hold is None:
        rows = density.packs_of_a_rank(wish.world_size)
        largest, limit = rows // wish.gradient_accumulation_steps, Limit.DATASET
    else:
        largest, limit = wish.hold.per_device, Limit.DATASET if wish.hold.cut_by_dataset else Limit.HOLD
    asked = request.max_batch_size
    if asked is None or asked >= largest:
        return Cap(largest, limit)
    if wish.hold is not None and wish.hold.accumulates:
        # Nothing between the largest divisor and what was asked can be the answer.
        asked = largest_divisor(largest, asked)
    return Cap(asked, Limit.MAX_BATCH_SIZE)


def batch_before(run: RunDirectory, density: Density) -> EffectiveBatch:
    """The effective batch of the config as it stands; `density` as the run is probed, packed or not."""
    per_row = examples_per_row(density) if run.packed else 1.0
    return effective_batch(run.batch_size, run.gradient_accumulation_steps, per_row, run.data_parallel)


def examples_per_row(density: Density) -> float:
    """Examples of a sequence: the packing density, 1 where nothing is packed."""
    return density.examples_per_pack if density.packed else 1.0


def accumulates(run: RunDirectory) -> bool:
    """Whether the recipe can accumulate gradients.

    With the optimizer in the backward pass torchtune refuses to (full_finetune_single_device.py, __init__).
    """
    return run.resolved().get("optimizer_in_bwd") is not True
