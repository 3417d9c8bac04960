"""What a probe asks, measures and answers: frozen dataclasses with a JSON form.

`to_json` and `from_json` convert any of them; `probe/result.json` is `to_json(ProbeResult)`, and each
line of `probe/trials.jsonl` is one of them under a key that says which.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

# Under these names too: whoever has a record wants its JSON.
from autobatch.json_form import from_json as from_json
from autobatch.json_form import to_json as to_json
from autobatch.world import World

#: Version of the JSON form of `ProbeResult`. A reader refuses a newer one.
SCHEMA_VERSION = 1


class Metric(str, Enum):
    """Which peak is held against the target."""

    RESERVED = "reserved"  # CUDA: held by PyTorch's caching allocator
    ALLOCATED = "allocated"  # CUDA: in live tensors
    DEVICE = "device"  # CUDA: used on the card by anybody (mem_get_info)
    RESIDENT = "resident"  # CPU: the process's peak resident set


class Verdict(str, Enum):
    """How a trial ended."""

    FITS = "fits"
    OVER_TARGET = "over target"
    OUT_OF_MEMORY = "out of memory"
    TIMED_OUT = "timed out"
    CRASHED = "crashed"
    UNSTABLE = "unstable"


class Status(str, Enum):
    """How a probe ended."""

    DONE = "done"
    NOTHING_FITS = "nothing fits"
    UNSTABLE = "unstable"
    OUT_OF_TIME = "out of time"
    TIMED_OUT = "timed out"
    CRASHED = "crashed"

    @property
    def exit_code(self) -> int:
        """0 done, 1 the answer is no, 3 the recipe crashed or hung."""
        refusals = (Status.NOTHING_FITS, Status.UNSTABLE, Status.OUT_OF_TIME)
        return 0 if self is Status.DONE else 1 if self in refusals else 3


class Limit(str, Enum):
    """What keeps batch_size from being larger."""

    MEMORY = "memory"
    DATASET = "dataset"
    MAX_BATCH_SIZE = "--max-batch-size"
    HOLD = "--hold-effective-batch"
    THROUGHPUT = "--prefer throughput"
    TIME = "the job's time limit"


class PackingMode(str, Enum):
    """Where `packed` comes from."""

    CONFIG = "config"  # finetune.yaml says packed: True
    PACK = "pack"  # --pack sets it
    UNPACKED = "unpacked"  # --unpacked probes with batches of the longest example


class Unit(str, Enum):
    """What an effective batch size counts."""

    SEQUENCES = "sequences"  # rows of the dataset: packs, or examples where nothing is packed
    EXAMPLES = "examples"


class Preference(str, Enum):
    """Which of the batch sizes that fit is the answer."""

    MEMORY = "memory"  # the largest
    THROUGHPUT = "throughput"  # the smallest within 3 % of the best tokens/s


@dataclass(frozen=True)
class ProbeRequest:
    """What the user asked of a probe; everything that the job on the node needs to know.

    Attributes:
        run_dir: absolute path of the run directory.
        recipe: name in torchtune's registry or path of a recipe file; None takes it from
            finetune.slurm, or infers it from the config.
        target_fraction: fraction of the capacity that the peak may reach.
        capacity_bytes: plan for a card of this size; None takes the size of the device.
        metric: the peak that counts on CUDA (on CPU it is always the resident set).
        max_batch_size: never go above.
        min_steps: optimizer steps of a trial, at least.
        trial_timeout_s: seconds after which a trial counts as hung.
        load_weights: read the real checkpoint in each trial, not a constant in its shapes.
        packing: where `packed` comes from.
        density_sample: estimate the density from this many examples instead of all.
        force: measure again though a valid result is on file.
        accept_partial: when the job's time limit ends the search, take the largest size measured to fit.
        estimate: begin with what an estimate says, not with 1.
        hold_effective_batch: choose batch_size and gradient_accumulation_steps for one effective batch size.
        effective_batch: that size; None takes the config's present one.
        effective_batch_in: what it counts.
        prefer: which of the batch sizes that fit is the answer.
        processes_per_node, nodes: of a distributed training; None takes them from finetune.slurm.
    """

    run_dir: str
    recipe: str | None = None
    target_fraction: float = 0.70
    capacity_bytes: int | None = None
    metric: Metric = Metric.RESERVED
    max_batch_size: int | None = None
    min_steps: int = 3
    trial_timeout_s: float = 600.0
    load_weights: bool = False
    packing: PackingMode = PackingMode.CONFIG
    density_sample: int | None = None
    force: bool = False
    accept_partial: bool = False
    estimate: bool = True
    hold_effective_batch: bool = False
    effective_batch: int | None = None
    effective_batch_in: Unit = Unit.SEQUENCES
    prefer: Preference = Preference.MEMORY
    processes_per_node: int | None = None
    nodes: int | None = None


@dataclass(frozen=True)
class Device:
    """The device that the probe measured on.

    Attributes:
        kind: ``cuda`` or ``cpu``.
        name: as the driver gives it, e.g. ``NVIDIA H100 80GB HBM3``.
        total_bytes: memory of the card; on CPU, of the cgroup or the machine.
        simulated: there is no such card: memory was counted and no kernel ran (`autobatch.simulated_gpu`).
    """

    kind: str
    name: str
    total_bytes: int
    simulated: bool = False

    @property
    def label(self) -> str:
        """The name, as it is shown."""
        return f"simulated {self.name}" if self.simulated else self.name


@dataclass(frozen=True)
class Density:
    """How the dataset packs.

    Attributes:
        packed: whether the rows are packs; if not, a row is one example.
        examples: examples in the dataset.
        packs: rows that the recipe will see (extrapolated when sampled).
        tokens: non-padding tokens in them (extrapolated when sampled).
        max_seq_len: tokens of a row; None when unpacked and unlimited.
        longest_example: tokens of the longest example (of those seen, when sampled).
        sampled_examples: how many examples were packed to estimate; None when all were.
        standard_error: of `examples_per_pack`, when sampled.
        seconds: time that packing took.
    """

    packed: bool
    examples: int
    packs: int
    tokens: int
    max_seq_len: int | None
    longest_example: int
    sampled_examples: int | None = None
    standard_error: float | None = None
    seconds: float = 0.0

    @property
    def examples_per_pack(self) -> float:
        """Packing density: examples per packed sequence."""
        return self.examples / self.packs if self.packs else 0.0

    @property
    def packs_at_least(self) -> int:
        """Packs that there are for certain: of a sampled density, three standard errors below the estimate."""
        if not self.packed or self.sampled_examples is None or self.sampled_examples >= self.examples:
            return self.packs
        error = 3 * self.standard_error if self.standard_error is not None else self.examples_per_pack
        return int(self.examples / (self.examples_per_pack + error))

    def packs_of_a_rank(self, ranks: int) -> int:
        """Packs that each of `ranks` processes gets: torch's DistributedSampler repeats some to make it even."""
        return -(-self.packs_at_least // ranks)

    @property
    def efficiency(self) -> float | None:
        """Non-padding tokens as a fraction of all; None when rows have no fixed length."""
        if not self.packed or not self.max_seq_len or not self.packs:
            return None
        return self.tokens / (self.packs * self.max_seq_len)


@dataclass(frozen=True)
class Trial:
    """A few optimizer steps of the recipe at one batch size, in a process of its own.

    Attributes:
        batch_size: sequences per micro-batch.
        verdict: how it ended.
        peak_bytes: the peak that counts; None when no step was completed.
        peaks_bytes: every peak that the meter gave, by metric.
        before_bytes: memory in use when the first batch was asked for: the fixed part that is there
            before any step.
        step_peaks_bytes: `peak_bytes` as it stood after each optimizer step.
        alloc_retries: times the CUDA allocator had to flush its cache; a trial with any doesn't fit.
        tokens_per_second: positions of all rows of an optimizer step, padding and prompts included, over the
            median of `step_seconds` after the first, which also warms up (the first counts only when alone).
            Of all devices together. Not the `tokens_per_second_per_gpu` of torchtune's log: most recipes count the
            labels that are trained on, so that it depends on which rows a batch happens to have.
        step_seconds: time of each optimizer step, without the reading of the meter.
        seconds: from asking for the process to its end.
        start_seconds: of that, until torchtune is imported and the recipe begins.
        training_seconds: of that, in optimizer steps.
        detail: for a trial that crashed or ran out of memory: the recipe's own error.
        log: file with the trial's output, relative to the run directory.
        cut_short: it was ended as soon as it was over the target, which was all there was to know: its peaks are
            the least that it takes.
        peaks_by_rank: `peaks_bytes` of each rank of a distributed trial, whose own are the largest of them.
    """

    batch_size: int
    verdict: Verdict
    peak_bytes: int | None = None
    peaks_bytes: dict[str, int] = field(default_factory=dict)
    before_bytes: int | None = None
    step_peaks_bytes: tuple[int, ...] = ()
    alloc_retries: int = 0
    tokens_per_second: float | None = None
    step_seconds: tuple[float, ...] = ()
    seconds: float = 0.0
    start_seconds: float | None = None
    training_seconds: float = 0.0
    detail: str = ""
    log: str = ""
    cut_short: bool = False
    peaks_by_rank: tuple[dict[str, int], ...] = ()


@dataclass(frozen=True)
class Fit:
    """The line ``peak = fixed + per_sequence * batch_size`` through the measured peaks.

    Attributes:
        fixed_bytes: memory that doesn't depend on batch_size.
        per_sequence_bytes: memory that each further sequence of a batch takes.
        max_residual_fraction: largest distance of a measured peak from the line, over that peak.
    """

    fixed_bytes: float
    per_sequence_bytes: float
    max_residual_fraction: float


@dataclass(frozen=True)
class Prediction:
    """What an estimate, trials on a simulated GPU, had said before anything was measured.

    Attributes:
        batch_size: the largest that would fit, where the search began.
        peak_batch_size: that `peak_bytes` is for: the probe's answer, or `batch_size` where there is none.
        peak_bytes: predicted there; None where the estimate's trials don't say.
    """

    batch_size: int | None
    peak_batch_size: int | None
    peak_bytes: int | None


@dataclass(frozen=True)
class EffectiveBatch:
    """What one update of the optimizer trains on.

    Attributes:
        batch_size: sequences of a micro-batch.
        gradient_accumulation_steps: micro-batches of an update, on each device.
        sequences: batch_size x gradient_accumulation_steps x world_size.
        examples: about how many those are, by the packing density.
        world_size: devices that train together.
    """

    batch_size: int
    gradient_accumulation_steps: int
    sequences: int
    examples: float
    world_size: int = 1


@dataclass(frozen=True)
class SharedFrom:
    """Trials that were measured for another run with the same fingerprint.

    Attributes:
        run: path of the run that they were measured for.
        measured: when the last of them was; UTC, ISO 8601.
        batch_sizes: which of the trials.
    """

    run: str
    measured: str
    batch_sizes: tuple[int, ...]


@dataclass(frozen=True)
class ProbeResult:
    """The answer of a probe, as `probe/result.json` holds it.

    Attributes:
        status: how the probe ended; only ``done`` comes with a batch_size.
        message: the answer or the refusal in a sentence, for people.
        request: what was asked.
        recipe: the recipe that ran, and where its name came from.
        device: what was measured on.
        metric: the peak that was held against the target.
        capacity_bytes: the memory that was planned for.
        target_bytes: what the peak may reach.
        batch_size: the answer, measured to fit; None unless done.
        largest_batch_size: the largest that was found to fit; above batch_size where that is held, or preferred
            for its throughput.
        batch_size_before: in finetune.yaml when the probe began.
        limit: what keeps batch_size from being larger.
        peak_bytes: measured at batch_size.
        gradient_accumulation_steps: that batch_size is for: the config's, or chosen with it.
        before, after: the config's effective batch, as it was and as it is; None until the density is known,
            and unless done.
        remarks: what else the answer means, in sentences.
        trials: every trial, in the order in which they ran.
        shared_from: where trials come from that weren't run for this run; the others were.
        fit: the line through the peaks; None with fewer than two.
        density: of the dataset.
        prediction: what an estimate had said; None when none was asked for.
        fingerprint: hash of everything that decides memory.
        versions: of autobatch, python, torch, torchtune, torchao.
        written: files that were changed, relative to the run directory.
        started, ended: UTC, ISO 8601.
        seconds: from the job's first line to the answer, over all attempts of a resumed probe.
        reused: this answer was on file already; nothing was measured.
        world: the processes of a distributed training; None where there is one without torchrun.
        schema_version: of this JSON form.
    """

    status: Status
    message: str
    request: ProbeRequest
    recipe: str = ""
    device: Device | None = None
    metric: Metric | None = None
    capacity_bytes: int | None = None
    target_bytes: int | None = None
    batch_size: int | None = None
    largest_batch_size: int | None = None
    batch_size_before: int | None = None
    limit: Limit | None = None
    peak_bytes: int | None = None
    gradient_accumulation_steps: int = 1
    before: EffectiveBatch | None = None
    after: EffectiveBatch | None = None
    remarks: tuple[str, ...] = ()
    trials: tuple[Trial, ...] = ()
    shared_from: tuple[SharedFrom, ...] = ()
    fit: Fit | None = None
    density: Density | None = None
    prediction: Prediction | None = None
    fingerprint: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    written: tuple[str, ...] = ()
    started: str = ""
    ended: str = ""
    seconds: float = 0.0
    reused: bool = False
    world: World | None = None
    schema_version: int = SCHEMA_VERSION
