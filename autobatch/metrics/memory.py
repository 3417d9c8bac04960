"""A training's peak memory, and what its probe predicted of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autobatch.metrics.gpu_samples import GpuSamples
from autobatch.records import Metric, ProbeResult, Verdict

#: Where a peak comes from, best first, and the probe's peak that it is to be compared with. Reserved is what
#: an out-of-memory error is decided by and sees every step; nvidia-smi sees the card every 30 s, with
#: the driver's own part, and is nearer to reserved than the others are.
KINDS: Mapping[str, Metric | None] = {
    "reserved": Metric.RESERVED,
    "nvidia-smi": Metric.DEVICE,
    "alloc": Metric.ALLOCATED,
    "active": None,
}


@dataclass(frozen=True)
class PeakMemory:
    """The peak of a training.

    Attributes:
        gib: measured; None when nothing told it.
        kind: of `KINDS`; None with `gib`.
        predicted_gib: by the probe, at the batch size that was trained with and of the same kind; None when
            it has no such peak.
        predicted_by: ``trial`` at that very batch size, or ``fit`` through those at others.
    """

    gib: float | None = None
    kind: str | None = None
    predicted_gib: float | None = None
    predicted_by: str | None = None

    @property
    def percent_of_prediction(self) -> float | None:
        """How much more than predicted was used, in percent."""
        if self.gib is None or not self.predicted_gib:
            return None
        return 100 * (self.gib / self.predicted_gib - 1)


def peak_memory(
    logged: Mapping[str, float], samples: GpuSamples, result: ProbeResult | None, batch_size: int | None
) -> PeakMemory:
    """The peak, and the prediction.

    Args:
        logged: torchtune's peaks by kind, GiB.
        samples: of nvidia-smi.
        result: of the run's probe, when it holds for what was trained.
        batch_size: that was trained with.
    """
    peaks = dict(logged)
    if samples.peak_memory_gib is not None:
        peaks["nvidia-smi"] = samples.peak_memory_gib
    kind = next((kind for kind in KINDS if kind in peaks), None)
    metric = KINDS[kind] if kind is not None else (result.metric if result is not None else None)
    predicted, by = _prediction(result, metric, batch_size)
    gib = predicted / 2**30 if predicted is not None else None
    return PeakMemory(peaks[kind] if kind is not None else None, kind, gib, by)


def _prediction(
    result: ProbeResult | None, metric: Metric | None, batch_size: int | None
) -> tuple[float | None, str | None]:
    if result is None or batch_size is None or metric in (None, Metric.RESIDENT):
        return None, None
    assert metric is not None
    for trial in result.trials:
        measured = trial.verdict in (Verdict.FITS, Verdict.OVER_TARGET) and not trial.cut_short
        if trial.batch_size == batch_size and measured and metric.value in trial.peaks_bytes:
            return trial.peaks_bytes[metric.value], "trial"
    if result.fit is not None and result.metric is metric:
        return result.fit.fixed_bytes + result.fit.per_sequence_bytes * batch_size, "fit"
    return None, None
