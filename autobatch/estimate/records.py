"""An estimate, and why there is none."""

from __future__ import annotations

from dataclasses import dataclass, field

from autobatch.errors import Refused
from autobatch.world import World


class NoEstimate(Refused):
    """This run can't be estimated; the message says why, for people."""

    def __init__(self, why: str) -> None:
        super().__init__(f"no estimate: {why}")
        self.why = why


@dataclass(frozen=True)
class Fitting:
    """The largest batch_size on a card.

    Attributes:
        card: its name.
        capacity_bytes: its memory.
        batch_size: the largest whose predicted peak is at most the target; 0 when none is.
        lowest, highest: the same if the prediction were too low or too high by the margin.
        reserved_bytes: predicted at `batch_size`, or at 1 when that doesn't fit.
    """

    card: str
    capacity_bytes: int
    batch_size: int
    lowest: int
    highest: int
    reserved_bytes: int


@dataclass(frozen=True)
class Variant:
    """What another setting would do.

    Attributes:
        settings: ``key=value``; empty for the config as it is.
        batch_size: of the figures.
        peak_bytes: predicted there.
        fitting: on the card; None when there is no estimate.
        why: there is no estimate; else empty.
    """

    settings: str
    batch_size: int
    peak_bytes: int | None
    fitting: Fitting | None
    why: str = ""


@dataclass(frozen=True)
class Estimate:
    """Predicted memory of a run.

    Attributes:
        config: path of the config.
        recipe: the recipe, and where its name came from.
        device: ``cuda`` or ``cpu``.
        max_seq_len: tokens of a row.
        packed: whether rows are packs.
        world: the processes of a distributed recipe; the figures are those of its largest rank. None for one
            process.
        batch_size: that the figures are for, of each rank.
        allocated_bytes: predicted peak of live tensors.
        reserved_bytes: predicted for PyTorch's caching allocator; held against the target.
        by_kind: what `allocated_bytes` consists of, at the moment of the peak.
        before_bytes: in use before the first batch.
        workspace_bytes: of cuBLAS, counted in `reserved_bytes`, from PyTorch's source.
        target_fraction: of the capacity.
        margin_fraction: of the interval.
        fitting: on the card that was asked about.
        cards: on others.
        what_if: the config as it is and each setting that was asked about.
        off_line_fraction: how far a third batch_size was off what the first two say.
        density: examples per pack, where a probe has counted them.
        notes: what the user should be told.
        seconds: that it took; 0 when it was on file.
    """

    config: str
    recipe: str
    device: str
    max_seq_len: int
    packed: bool
    batch_size: int
    allocated_bytes: int
    reserved_bytes: int
    by_kind: dict[str, int]
    before_bytes: int
    workspace_bytes: int
    target_fraction: float
    margin_fraction: float
    fitting: Fitting
    world: World | None = None
    cards: tuple[Fitting, ...] = ()
    what_if: tuple[Variant, ...] = ()
    off_line_fraction: float = 0.0
    density: float | None = None
    notes: tuple[str, ...] = field(default=())
    seconds: float = 0.0
