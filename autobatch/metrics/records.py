"""What was measured of a training: frozen dataclasses, a field each for what `runs_status.yaml` can hold.

None stands for what no source said. Memory is in GiB (2**30 bytes), as PyTorch and torchtune log it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Source(str, Enum):
    """Where a packing density comes from, best first."""

    PROBE = "probe"  # counted from the packs themselves
    STATED = "stated in the log"
    COUNTED = "counts in the log"
    ESTIMATE = "estimate"  # from nothing but the examples' length, or a rule of thumb


@dataclass(frozen=True)
class PackingMetrics:
    """How the dataset packed.

    Attributes:
        total_examples: examples in the dataset.
        total_sequences: packs.
        packing_density: examples per pack.
        packing_efficiency: percent of all tokens that aren't padding.
        source: where `packing_density` comes from; None when it is None.
    """

    total_examples: int | None = None
    total_sequences: int | None = None
    packing_density: float | None = None
    packing_efficiency: float | None = None
    source: Source | None = None


@dataclass(frozen=True)
class EpochMetrics:
    """One epoch, as the log tells it.

    Attributes:
        epoch: from 0.
        steps: optimizer steps that were logged.
        training_time_minutes: wall time.
        tokens_per_second: median over its steps.
        loss: of its last step.
        avg_gpu_memory_gb: mean of the card's memory in use, from gpu_metrics.csv.
        peak_gpu_memory_gb: the largest peak that was logged.
    """

    epoch: int
    steps: int = 0
    training_time_minutes: float | None = None
    tokens_per_second: float | None = None
    loss: float | None = None
    avg_gpu_memory_gb: float | None = None
    peak_gpu_memory_gb: float | None = None


@dataclass(frozen=True)
class LogMetrics:
    """What the logs of one training say.

    Attributes:
        files: that were read.
        recipe: class name in the line ``Running NAME with resolved config:``.
        config: the resolved config that the recipe printed there; empty when it didn't.
        packing: density and counts.
        steps: optimizer steps, as far as the log goes.
        epochs: each epoch that the log tells of.
        peak_memory_gib: largest logged peak by torchtune's kind: ``reserved``, ``alloc``, ``active``.
        tokens_per_second: median over the steps, the first left out when there are others.
        training_seconds: wall time in training, the sum over epochs of what the progress bars say.
        loss: of the last step.
        out_of_memory: the line that says so, in any of PyTorch's spellings; None when none does.
        error: the last line of the last traceback; None when there is none.
        slurm_end: why Slurm ended the job, as its log line says (``CANCELLED``, ``DUE TO TIME LIMIT``, ...).
    """

    files: tuple[str, ...] = ()
    recipe: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    packing: PackingMetrics = PackingMetrics()
    steps: int = 0
    epochs: tuple[EpochMetrics, ...] = ()
    peak_memory_gib: Mapping[str, float] = field(default_factory=dict)
    tokens_per_second: float | None = None
    training_seconds: float | None = None
    loss: float | None = None
    out_of_memory: str | None = None
    error: str | None = None
    slurm_end: str | None = None
