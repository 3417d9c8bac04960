"""What is known of one run's training, from all sources together."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from autobatch.metrics.memory import PeakMemory
from autobatch.metrics.outcome import Outcome
from autobatch.metrics.records import EpochMetrics, PackingMetrics
from autobatch.metrics.trained_config import TrainedConfig


@dataclass(frozen=True)
class RunMetrics:
    """What is known of a run's training; None for what no source says.

    Attributes:
        run: the run directory.
        sources: the files and the job that were read; empty when there was nothing.
        last_written: when its logs last were.
        config: that was trained with.
        outcome: how it ended.
        job_id: Slurm's.
        started, completed: by the cluster's clock, without a zone.
        packing: density and counts.
        memory: peak and prediction.
        avg_memory_gib: mean of the cards' memory in use.
        utilization_pct: mean of the part of the time in which a kernel ran.
        training_seconds: in training, without setting up.
        gpu_hours: GPUs times wall time of the job.
        tokens_per_second: of a GPU, as torchtune logs it: tokens that have a label, padding and prompts apart.
        examples_per_second: over all GPUs.
        steps: optimizer steps.
        final_loss: of the last step; NaN or infinite where the training diverged.
        epochs: each epoch that the log tells of.
        notes: what the user should be told.
    """

    run: Path
    sources: tuple[str, ...] = ()
    last_written: datetime | None = None
    config: TrainedConfig = field(default_factory=TrainedConfig)
    outcome: Outcome = field(default_factory=Outcome)
    job_id: str | None = None
    started: datetime | None = None
    completed: datetime | None = None
    packing: PackingMetrics = field(default_factory=PackingMetrics)
    memory: PeakMemory = field(default_factory=PeakMemory)
    avg_memory_gib: float | None = None
    utilization_pct: float | None = None
    training_seconds: float | None = None
    gpu_hours: float | None = None
    tokens_per_second: float | None = None
    examples_per_second: float | None = None
    steps: int | None = None
    final_loss: float | None = None
    epochs: tuple[EpochMetrics, ...] = ()
    notes: tuple[str, ...] = ()
