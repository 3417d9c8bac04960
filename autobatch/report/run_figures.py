"""What is known of one run: from its config, its probe, and its entry in `runs_status.yaml`."""

from __future__ import annotations

from dataclasses import dataclass

from autobatch.metrics.records import Source

#: `packing_source` of a probe with --density-sample.
SAMPLED = f"{Source.PROBE.value}, sampled"

_ONE_BYTE_GB = 2.0**-30


@dataclass(frozen=True)
class RunFigures:
    """One run, a field for each figure; None where no source says it.

    The names are those of `runs_status.yaml`. Memory is in GiB (2**30 bytes), whatever a key's ending says.

    Attributes:
        run: name of the run directory.
        is_there: that directory exists.
        status: of its training: ``planned``, ``running``, ``completed``, ``failed``, ``cancelled``.
        failure: why it failed.
        probe: how its probe ended; None when there was none.
        probe_is_stale: the probe was of another config, recipe, environment or other versions.
        model: ``llama3_2_1b`` and the like.
        packed: whether the dataset is packed.
        max_seq_len: tokens of a row, at most.
        batch_size: sequences of a micro-batch: of the training where there was one, else of the config.
        measured_batch_size: the largest that the probe measured to fit.
        limit: what kept the probe from a larger one: ``memory``, ``dataset``, ``--max-batch-size``, ...
        gradient_accumulation_steps: micro-batches of an optimizer step.
        ranks: processes that take a batch each; None when that isn't known.
        effective_batch_size: sequences of an optimizer step.
        packing_density: examples per sequence.
        packing_source: where `packing_density` comes from.
        packing_efficiency: percent of the tokens that aren't padding.
        total_examples: examples in the dataset.
        dataset: what the config's dataset section reads, for telling datasets apart.
        gpu: the card that the probe measured on.
        capacity_gb: memory of the card that the probe planned for.
        target_gb: what the peak may reach.
        peak_gpu_memory_gb: peak of the training.
        predicted_peak_memory_gb: the probe's peak at `batch_size`.
        predicted_from: ``runs_status.yaml``, ``trial`` (measured at this batch_size) or ``fit`` (the line).
        stored_difference_pct: `peak_vs_predicted_pct` of `runs_status.yaml`.
        tokens_per_second: of a GPU in training, as torchtune counts them: without padding.
        training_time_minutes: wall time of the training.
        gpu_hours: GPUs times wall time.
        steps: optimizer steps of the training.
        final_loss: of its last step.
        remarks: what was wrong with a source, or will surprise.
    """

    run: str
    is_there: bool = True
    status: str | None = None
    failure: str | None = None
    probe: str | None = None
    probe_is_stale: bool = False
    model: str | None = None
    packed: bool | None = None
    max_seq_len: int | None = None
    batch_size: int | None = None
    measured_batch_size: int | None = None
    limit: str | None = None
    gradient_accumulation_steps: int | None = None
    ranks: int | None = 1
    effective_batch_size: int | None = None
    packing_density: float | None = None
    packing_source: str | None = None
    packing_efficiency: float | None = None
    total_examples: int | None = None
    dataset: str | None = None
    gpu: str | None = None
    capacity_gb: float | None = None
    target_gb: float | None = None
    peak_gpu_memory_gb: float | None = None
    predicted_peak_memory_gb: float | None = None
    predicted_from: str | None = None
    stored_difference_pct: float | None = None
    tokens_per_second: float | None = None
    training_time_minutes: float | None = None
    gpu_hours: float | None = None
    steps: int | None = None
    final_loss: float | None = None
    remarks: tuple[str, ...] = ()

    @property
    def has_figures(self) -> bool:
        """Whether a probe or a training left a figure."""
        return self.measured_batch_size is not None or any(
            value is not None
            for value in (
                self.packing_density,
                self.peak_gpu_memory_gb,
                self.predicted_peak_memory_gb,
                self.tokens_per_second,
                self.training_time_minutes,
                self.gpu_hours,
                self.final_loss,
            )
        )

    @property
    def effective_examples(self) -> float | None:
        """Examples of an optimizer step, about; None when the density isn't known."""
        if self.effective_batch_size is None:
            return None
        if self.packed is False:
            return float(self.effective_batch_size)
        return None if self.packing_density is None else self.effective_batch_size * self.packing_density

    @property
    def peak_of_capacity_pct(self) -> float | None:
        """The training's peak in percent of the card."""
        if self.peak_gpu_memory_gb is None or not self.capacity_gb:
            return None
        return 100 * self.peak_gpu_memory_gb / self.capacity_gb

    @property
    def peak_vs_predicted_pct(self) -> float | None:
        """How far the training's peak lies above the prediction, in percent of it."""
        predicted = self.predicted_peak_memory_gb
        if self.peak_gpu_memory_gb is None or predicted is None or predicted < _ONE_BYTE_GB:
            return self.stored_difference_pct
        return 100 * (self.peak_gpu_memory_gb / predicted - 1)

    @property
    def is_over_target(self) -> bool | None:
        """Whether the training's peak was over the target; None when either isn't known."""
        if self.peak_gpu_memory_gb is None or self.target_gb is None:
            return None
        return self.peak_gpu_memory_gb > self.target_gb

    @property
    def ran_out_of_memory(self) -> bool:
        """Whether the training died of it."""
        return self.status == "failed" and self.failure == "out of memory"

    @property
    def density_is_estimated(self) -> bool:
        """Whether the density wasn't counted over the whole dataset."""
        return self.packing_source in (Source.ESTIMATE.value, SAMPLED)
