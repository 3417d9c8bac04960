"""What the measurements of the exactness benchmark say: the true answer, the bars, the table. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from autobatch.records import Trial, Verdict
from autobatch.units import format_bytes
from tests.benchmarks.plain import PlainRun

#: The probe's peak at its answer may differ from a plain run's by this fraction.
PEAK_TOLERANCE = 0.01
MAX_TRIALS = 5
#: A probe may take so many times its trials' optimizer steps, and so many seconds.
TIME_FACTOR = 1.5
TIME_SECONDS = 15.0
MAX_START_SECONDS = 1.5

HEADER = (
    "config", "capacity", "probe", "true", "exact", "peak, probe", "peak, plain", "difference", "trials",
    "sizes tried", "OOMs", "probe s", "steps s", "limit s", "start s",
)  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """What one case gave.

    Attributes:
        name: of the case.
        capacity_bytes: given to the probe.
        target_bytes: what a peak may reach.
        batch_size: the probe's answer; None when it has none.
        message: the probe's own words.
        seconds: from calling the probe to its answer.
        trials: the probe's.
        plain: plain runs at every size from 1 on, ascending.
    """

    name: str
    capacity_bytes: int
    target_bytes: int
    batch_size: int | None
    message: str
    seconds: float
    trials: tuple[Trial, ...]
    plain: tuple[PlainRun, ...]

    @property
    def true_batch_size(self) -> int | None:
        return true_answer(
            {run.batch_size: run.peaks_bytes.get("resident") for run in self.plain}, self.target_bytes
        )

    @property
    def probe_peak(self) -> int | None:
        """The probe's peak at its answer."""
        return next((t.peak_bytes for t in self.trials if t.batch_size == self.batch_size), None)

    @property
    def plain_peak(self) -> int | None:
        """A plain run's peak at the probe's answer."""
        return next(
            (r.peaks_bytes.get("resident") for r in self.plain if r.batch_size == self.batch_size), None
        )

    @property
    def difference(self) -> float | None:
        """How far the probe's peak is above the plain run's, as a fraction of the latter."""
        if self.probe_peak is None or self.plain_peak is None:
            return None
        return self.probe_peak / self.plain_peak - 1

    @property
    def out_of_memory(self) -> int:
        return sum(trial.verdict is Verdict.OUT_OF_MEMORY for trial in self.trials)

    @property
    def training_seconds(self) -> float:
        """Time that the probe's trials spent in optimizer steps."""
        return sum(trial.training_seconds for trial in self.trials)

    @property
    def limit_seconds(self) -> float:
        """The longest that the probe may take."""
        return TIME_FACTOR * self.training_seconds + TIME_SECONDS

    @property
    def start_seconds(self) -> float | None:
        """Median time to start a trial after the first."""
        later = [trial.start_seconds for trial in self.trials[1:] if trial.start_seconds is not None]
        return median(later) if later else None


def true_answer(peaks: Mapping[int, int | None], target_bytes: int) -> int | None:
    """The largest batch_size whose plain run fits; None when not even the smallest does.

    Args:
        peaks: bytes by batch_size; None where the run had too little memory.
        target_bytes: what a peak may reach.
    """
    fitting = [size for size, peak in peaks.items() if peak is not None and peak <= target_bytes]
    return max(fitting, default=None)


def failed_bars(measured: Measured) -> list[str]:
    """What falls short, in words; empty when the case is as it should be."""
    failed = []
    if measured.batch_size is None:
        failed.append(f"the probe has no answer: {measured.message}")
    elif measured.batch_size != measured.true_batch_size:
        failed.append(f"answer {measured.batch_size}, but {measured.true_batch_size} is right")
    if measured.difference is not None and abs(measured.difference) > PEAK_TOLERANCE:
        failed.append(f"peak off by {100 * measured.difference:+.2f} % (limit {100 * PEAK_TOLERANCE:g} %)")
    if len(measured.trials) > MAX_TRIALS:
        failed.append(f"{len(measured.trials)} trials (limit {MAX_TRIALS})")
    if measured.out_of_memory:
        failed.append(f"{measured.out_of_memory} trials out of memory (limit 0)")
    if measured.seconds > measured.limit_seconds:
        failed.append(f"{measured.seconds:.1f} s (limit {measured.limit_seconds:.1f} s)")
    if measured.start_seconds is not None and measured.start_seconds > MAX_START_SECONDS:
        failed.append(f"{measured.start_seconds:.2f} s to start a trial (limit {MAX_START_SECONDS} s)")
    return failed


def row(measured: Measured) -> tuple[str, ...]:
    """The cells of one case, under `HEADER`."""
    exact = measured.batch_size is not None and measured.batch_size == measured.true_batch_size
    return (
        measured.name,
        format_bytes(measured.capacity_bytes),
        _or_dash(measured.batch_size),
        _or_dash(measured.true_batch_size),
        "yes" if exact else "NO",
        "-" if measured.probe_peak is None else format_bytes(measured.probe_peak),
        "-" if measured.plain_peak is None else format_bytes(measured.plain_peak),
        "-" if measured.difference is None else f"{100 * measured.difference:+.2f} %",
        str(len(measured.trials)),
        " ".join(str(trial.batch_size) for trial in measured.trials),
        str(measured.out_of_memory),
        f"{measured.seconds:.1f}",
        f"{measured.training_seconds:.1f}",
        f"{measured.limit_seconds:.1f}",
        "-" if measured.start_seconds is None else f"{measured.start_seconds:.2f}",
    )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)
