"""What is asked of an estimate, the answer, and why there is none."""

from __future__ import annotations

from dataclasses import dataclass, field

from autobatch.errors import Refused
from autobatch.records import Fit, Trial
from autobatch.world import World


class NoEstimate(Refused):
    """This run can't be estimated; the message says why, for people."""

    def __init__(self, why: str) -> None:
        super().__init__(why if why.startswith("no estimate") else f"no estimate: {why}")
        self.why = why.removeprefix("no estimate: ")


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        path: a run directory or a config.
        recipe: name or path; None takes it from finetune.slurm, or infers it.
        settings: ``key=value`` each, set in the config first.
        processes_per_node, nodes: of a distributed recipe; None takes them from finetune.slurm.
        gpu: the GPU to simulate, as `--gpu` names it.
        capacity_bytes: its memory, if not what such a GPU has.
        target_fraction: of its memory that the reserved peak may reach.
        batch_size: a further size to show.
        what_if: settings, ``key=value``, one a variant.
        timeout_s: for each of the config and its variants.
        fresh: simulate again though it is on file.
    """

    path: str
    recipe: str | None = None
    settings: tuple[str, ...] = ()
    processes_per_node: int | None = None
    nodes: int | None = None
    gpu: str = "h100-80gb"
    capacity_bytes: int | None = None
    target_fraction: float = 0.70
    batch_size: int | None = None
    what_if: tuple[str, ...] = ()
    timeout_s: float = 600.0
    fresh: bool = False


@dataclass(frozen=True)
class Fitting:
    """The largest batch_size on a GPU.

    Attributes:
        gpu: its name.
        capacity_bytes: its memory.
        batch_size: the largest whose peak is at most the target; 0 when none is, None where nothing is known.
        reserved_bytes: the peak at `batch_size`, or at 1 when that doesn't fit; None where it isn't known.
        simulated: `batch_size` and the next size were run on this GPU, simulated; else they lie on the line
            through the trials on another.
        why: nothing is known; else empty.
    """

    gpu: str
    capacity_bytes: int
    batch_size: int | None
    reserved_bytes: int | None
    simulated: bool = False
    why: str = ""


@dataclass(frozen=True)
class Variant:
    """What another setting would do.

    Attributes:
        settings: ``key=value``; empty for the config as it is.
        batch_size: of the peak.
        peak_bytes: reserved there; None where it runs out of memory.
        fitting: on the GPU; None when there is no estimate.
        why: there is no estimate; else empty.
    """

    settings: str
    batch_size: int
    peak_bytes: int | None
    fitting: Fitting | None
    why: str = ""


@dataclass(frozen=True)
class Estimate:
    """What a run takes on a simulated GPU.

    Attributes:
        config: path of the config.
        recipe: the recipe, and where its name came from.
        simulated: the GPU's name as the driver gives it. There is no such GPU: memory was counted.
        max_seq_len: tokens of a row.
        packed: whether rows are packs.
        world: the processes of a distributed recipe; the figures are those of its rank 0, the largest. None for
            one process.
        target_fraction: of the capacity.
        fitting: on the GPU that was asked about.
        batch_size: that the figures are for, of each rank.
        reserved_bytes: peak of PyTorch's caching allocator there; held against the target. None: out of memory.
        allocated_bytes: peak of live tensors there.
        parts: what `allocated_bytes` consists of.
        trials: every trial of the config as it is.
        fit: the line through their reserved peaks; None with fewer than two.
        gpus: other GPUs.
        what_if: the config as it is and each setting that was asked about.
        density: examples per pack, where a probe has counted them.
        notes: what the user should be told.
        seconds: that it took.
        reused: trials that were on file.
    """

    config: str
    recipe: str
    simulated: str
    max_seq_len: int
    packed: bool
    world: World | None
    target_fraction: float
    fitting: Fitting
    batch_size: int
    reserved_bytes: int | None
    allocated_bytes: int | None
    parts: dict[str, int]
    trials: tuple[Trial, ...]
    fit: Fit | None
    gpus: tuple[Fitting, ...] = ()
    what_if: tuple[Variant, ...] = ()
    density: float | None = None
    notes: tuple[str, ...] = field(default=())
    seconds: float = 0.0
    reused: int = 0
