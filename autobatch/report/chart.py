"""What a picture of a probe shows: points, lines and words, in GiB. Pure; every form of picture draws the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum

from autobatch.records import ProbeResult, Status, Trial, Verdict
from autobatch.report.table import printable
from autobatch.units import format_bytes, format_percent

_GIB = 2**30

#: Room above the highest line and right of the last point, as a part of the axis.
_HEADROOM = 1.12

#: Ranges of batch_size that differ by more than this factor don't share a scale.
_SAME_RANGE = 8


class Mark(str, Enum):
    """What a point stands for; each has a shape of its own."""

    FITS = "fits"
    OVER_TARGET = "over target"
    AT_LEAST = "over target, at least this"
    OUT_OF_MEMORY = "out of memory"
    OTHER = "no peak to trust"
    ESTIMATE = "estimate"


_MARKS = {
    Verdict.FITS: Mark.FITS,
    Verdict.OVER_TARGET: Mark.OVER_TARGET,
    Verdict.OUT_OF_MEMORY: Mark.OUT_OF_MEMORY,
}


@dataclass(frozen=True)
class Point:
    """A trial, or the estimate.

    Attributes:
        batch_size: where on the x axis.
        gib: the peak. A trial without one is drawn at the line that it ran into (out of memory), else at 0.
        mark: its shape.
        tokens_per_second: of a trial.
    """

    batch_size: int
    gib: float
    mark: Mark
    tokens_per_second: float | None = None


@dataclass(frozen=True)
class Level:
    """A horizontal line.

    Attributes:
        name: ``target``, ``capacity`` (of the device), or ``planned`` (a smaller one, --capacity).
        gib: where.
        words: what it is, with its figure, on two lines.
    """

    name: str
    gib: float
    words: tuple[str, str]


@dataclass(frozen=True)
class Chart:
    """One probe as it is drawn.

    Attributes:
        run: name of the run, on one line.
        answer: what the probe found, in a few words.
        device: what was measured on; empty when that isn't known.
        peak_name: which peak, for the y axis.
        points: every trial.
        estimate: what had been predicted.
        levels: lines across, from below.
        fit: GiB at batch_size 0 and for each sequence.
        batch_size: the answer; None when there is none.
        right: end of the x axis, a batch_size.
        top: end of the y axis in GiB.
    """

    run: str
    answer: str
    device: str
    peak_name: str
    points: tuple[Point, ...]
    estimate: Point | None
    levels: tuple[Level, ...]
    fit: tuple[float, float] | None
    batch_size: int | None
    right: float
    top: float

    @property
    def marks(self) -> tuple[Mark, ...]:
        """The shapes that occur, in the order of `Mark`."""
        points = self.points if self.estimate is None else (*self.points, self.estimate)
        return tuple(mark for mark in Mark if any(point.mark is mark for point in points))

    @property
    def throughput(self) -> tuple[Point, ...]:
        """The trials with tokens per second, by batch_size."""
        measured = [point for point in self.points if point.tokens_per_second is not None]
        return tuple(sorted(measured, key=lambda point: point.batch_size))

    def fit_ends(self, right: float | None = None) -> tuple[tuple[float, float], tuple[float, float]] | None:
        """Where the fitted line enters and leaves the picture, as (batch_size, GiB)."""
        if self.fit is None:
            return None
        fixed, each = self.fit
        begin, end = 0.0, self.right if right is None else right
        if each > 0:
            begin, end = max(begin, -fixed / each), min(end, (self.top - fixed) / each)
        return ((begin, fixed + each * begin), (end, fixed + each * end)) if begin < end else None


def answer_words(result: ProbeResult) -> str:
    """``batch_size 24: 55.1 GiB, 68.9 % of 80.0 GiB``, or how the probe ended."""
    if result.status is not Status.DONE or result.batch_size is None:
        return result.status.value
    words = f"batch_size {result.batch_size}"
    if result.peak_bytes is None:
        return words
    words += f": {format_bytes(result.peak_bytes)}"
    if not result.capacity_bytes:
        return words
    share = format_percent(result.peak_bytes, result.capacity_bytes)
    return f"{words}, {share} of {format_bytes(result.capacity_bytes)}"


def chart_of(result: ProbeResult, run: str) -> Chart:
    """The picture of a result; what an older version didn't write isn't in it.

    Args:
        result: of the probe.
        run: name of the run; that in the result may be another's, or an older one.
    """
    levels = _levels(result)
    peaks = [trial.peak_bytes / _GIB for trial in result.trials if trial.peak_bytes is not None]
    ceiling = levels[-1].gib if levels else max(peaks, default=1.0)
    points = tuple(_point(trial, ceiling) for trial in result.trials)
    estimate = None
    prediction = result.prediction
    if (
        prediction is not None
        and prediction.peak_bytes is not None
        and prediction.peak_batch_size is not None
    ):
        estimate = Point(prediction.peak_batch_size, prediction.peak_bytes / _GIB, Mark.ESTIMATE)
    drawn = points if estimate is None else (*points, estimate)
    return Chart(
        run=printable(run),
        answer=answer_words(result),
        device=printable(result.device.label) if result.device is not None else "",
        peak_name=f"peak {result.metric.value} memory" if result.metric is not None else "peak memory",
        points=points,
        estimate=estimate,
        levels=levels,
        fit=None
        if result.fit is None
        else (result.fit.fixed_bytes / _GIB, result.fit.per_sequence_bytes / _GIB),
        batch_size=result.batch_size if result.status is Status.DONE else None,
        right=max((point.batch_size for point in drawn), default=1) * _HEADROOM + 0.5,
        top=max([*(point.gib for point in drawn), ceiling]) * _HEADROOM,
    )


def on_common_scales(charts: Sequence[Chart]) -> tuple[tuple[Chart, ...], bool]:
    """The charts such that those of one card can be compared.

    Returns:
        The charts, of which those with the same device and lines have one y axis and one x axis; and whether
        all of them share the x axis. Where one run takes many times the batch_size of another, each keeps
        its own: on one scale the smaller couldn't be read.
    """
    groups: dict[object, list[Chart]] = {}
    for chart in charts:
        groups.setdefault(_card(chart), []).append(chart)
    scaled = {}
    for card, group in groups.items():
        right = max(chart.right for chart in group)
        # One that has no answer may have tried batch_size 1 alone.
        answered = [chart.right for chart in group if chart.batch_size is not None]
        one_range = right <= _SAME_RANGE * min(answered, default=right)
        scaled[card] = (max(chart.top for chart in group), right if one_range else None)
    shared = len(groups) == 1 and all(right is not None for _, right in scaled.values())
    return tuple(_scaled(chart, *scaled[_card(chart)]) for chart in charts), shared


def _card(chart: Chart) -> object:
    return chart.device, chart.peak_name, chart.levels[-1].gib if chart.levels else None


def _scaled(chart: Chart, top: float, right: float | None) -> Chart:
    return replace(chart, top=top, right=chart.right if right is None else right)


def _point(trial: Trial, ceiling: float) -> Point:
    mark = Mark.AT_LEAST if trial.cut_short else _MARKS.get(trial.verdict, Mark.OTHER)
    gib = (trial.peak_bytes or 0) / _GIB
    if mark is Mark.OUT_OF_MEMORY:
        gib = ceiling
    return Point(trial.batch_size, gib, mark, trial.tokens_per_second)


def _levels(result: ProbeResult) -> tuple[Level, ...]:
    levels = []
    capacity = result.capacity_bytes
    if result.target_bytes:
        share = f" {100 * result.request.target_fraction:g} %" if capacity else ""
        levels.append(
            Level("target", result.target_bytes / _GIB, (f"target{share}", format_bytes(result.target_bytes)))
        )
    if capacity:
        device = result.device
        planned = device is not None and device.total_bytes > capacity
        name = "planned" if planned else "capacity"
        levels.append(Level(name, capacity / _GIB, (name, format_bytes(capacity))))
        above = [trial for trial in result.trials if _is_above(trial, capacity)]
        if device is not None and planned and above:
            # What a trial ran into was the device itself, not the smaller one that is planned for.
            total = device.total_bytes
            levels.append(Level("capacity", total / _GIB, ("capacity", format_bytes(total))))
    return tuple(sorted(levels, key=lambda level: level.gib))


def _is_above(trial: Trial, capacity: int) -> bool:
    if trial.verdict is Verdict.OUT_OF_MEMORY:
        return True
    return trial.peak_bytes is not None and trial.peak_bytes > capacity
