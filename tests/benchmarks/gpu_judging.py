"""What the measurements of the GPU benchmark say: the bars and the table. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median

from autobatch.records import Trial, Verdict
from autobatch.units import format_bytes, format_percent
from tests.benchmarks.plain import PlainRun

#: The probe's peak at its answer may differ from a training's by this fraction of the card.
PEAK_TOLERANCE = 0.005

HEADER = (
    "config", "batch_size", "trials", "sizes tried", "OOMs", "answer after s", "limit s", "start s",
    "reserved, probe", "allocated, probe", "device, probe", "reserved, tune run", "difference",
    "next size, tune run",
)  # fmt: skip


@dataclass(frozen=True)
class GpuMeasured:
    """What one case gave; what is still missing is None.

    Attributes:
        name: of the case.
        metric: the peak that was held against the target.
        capacity_bytes: of the card.
        target_bytes: what a peak may reach.
        batch_size: the probe's answer; None when it has none.
        limit: what keeps it from being larger.
        message: the probe's own words.
        seconds: from calling the probe to its answer.
        answer_within_s: bar for it.
        trials: the probe's.
        at_answer: plain `tune run` at the answer.
        at_next: plain `tune run` at the next size.
        error: why the case couldn't be carried to its end.
    """

    name: str
    metric: str
    capacity_bytes: int
    target_bytes: int
    batch_size: int | None
    limit: str | None
    message: str
    seconds: float
    answer_within_s: float | None
    trials: tuple[Trial, ...]
    at_answer: PlainRun | None = None
    at_next: PlainRun | None = None
    error: str = ""

    @property
    def complete(self) -> bool:
        """Nothing is left to measure."""
        return not self.error and self.batch_size is not None and self.at_next is not None

    @property
    def answer(self) -> Trial | None:
        """The trial at the answer."""
        return next((t for t in self.trials if t.batch_size == self.batch_size), None)

    @property
    def difference(self) -> float | None:
        """How far the probe's peak is above the training's, as a fraction of the card."""
        plain = self.at_answer.peaks_bytes.get(self.metric) if self.at_answer else None
        if self.answer is None or self.answer.peak_bytes is None or plain is None:
            return None
        return (self.answer.peak_bytes - plain) / self.capacity_bytes

    @property
    def start_seconds(self) -> float | None:
        """Median time to start a trial after the first."""
        later = [trial.start_seconds for trial in self.trials[1:] if trial.start_seconds is not None]
        return median(later) if later else None


def failed_gpu_bars(measured: GpuMeasured) -> list[str]:
    """What falls short, in words; empty when the case is as it should be."""
    failed = []
    if measured.error:
        failed.append(measured.error)
    if measured.batch_size is None:
        failed.append(f"the probe has no answer: {measured.message}")
    if measured.difference is not None and abs(measured.difference) > PEAK_TOLERANCE:
        failed.append(
            f"peak off by {100 * measured.difference:+.2f} % of the card (limit {100 * PEAK_TOLERANCE:g} %)"
        )
    if measured.at_answer is not None and measured.at_answer.out_of_memory:
        failed.append(f"tune run is out of memory at the answer, batch_size {measured.batch_size}")
    following = measured.at_next
    if following is not None and not following.out_of_memory:
        peak = following.peaks_bytes.get(measured.metric, 0)
        if peak <= measured.target_bytes and measured.limit == "memory":
            failed.append(
                f"batch_size {following.batch_size} fits as well: tune run takes "
                f"{format_percent(peak, measured.capacity_bytes)}"
            )
    if measured.answer_within_s is not None and measured.seconds > measured.answer_within_s:
        failed.append(f"answer after {measured.seconds:.1f} s (limit {measured.answer_within_s:g} s)")
    return failed


def gpu_row(measured: GpuMeasured) -> tuple[str, ...]:
    """The cells of one case, under `HEADER`."""
    peaks = measured.answer.peaks_bytes if measured.answer else {}
    plain = measured.at_answer
    return (
        measured.name,
        "-" if measured.batch_size is None else str(measured.batch_size),
        str(len(measured.trials)),
        " ".join(str(trial.batch_size) for trial in measured.trials),
        str(sum(trial.verdict is Verdict.OUT_OF_MEMORY for trial in measured.trials)),
        f"{measured.seconds:.1f}",
        "-" if measured.answer_within_s is None else f"{measured.answer_within_s:g}",
        "-" if measured.start_seconds is None else f"{measured.start_seconds:.2f}",
        _bytes(peaks.get(measured.metric)),
        _bytes(peaks.get("allocated")),
        _bytes(peaks.get("device")),
        _plain_cell(plain, measured),
        "-" if measured.difference is None else f"{100 * measured.difference:+.2f} %",
        _plain_cell(measured.at_next, measured),
    )


def _plain_cell(run: PlainRun | None, measured: GpuMeasured) -> str:
    if run is None:
        return "-"
    if run.out_of_memory:
        return f"{run.batch_size}: out of memory"
    peak = run.peaks_bytes[measured.metric]
    share = format_percent(peak, measured.capacity_bytes)
    return f"{run.batch_size}: {format_bytes(peak)}, {share}, {run.steps} steps"


def _bytes(size: int | None) -> str:
    return "-" if size is None else format_bytes(size)
