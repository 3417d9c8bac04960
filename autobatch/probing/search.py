"""The search over batch sizes: pure functions of the trials so far, no I/O and no torch.

Peak memory is nearly a line in batch_size, ``peak = fixed + slope * batch_size``, but not quite: full
fine-tuning is convex and piecewise, some curves have steps, and readings are noisy. So the line only
*proposes*; what counts is the bracket of measured sizes

    fits               does not fit
    |------------------|----------------> batch_size
    b                  b + 1              the answer is b: both were measured

Proposals, in order of preference:

1. Nothing measured yet: the estimate's guess if there is one, else 1.
2. One peak: the ray from the memory that was in use before the first batch through that peak. It
   overestimates the slope, since that peak also holds gradients and optimizer state, so the size it
   proposes is safe on any curve whose later slope isn't above that average.
3. Two peaks or more: the secant through the one nearest the target and another that is clear of noise.
   Beyond the largest size that fits, two points aren't trusted further than the ray or four times that
   size; three on one line are.
4. The last trial was off its line, or the line promises a size that ran out of memory: bisect.

Every proposal is clamped into the open bracket, so each trial closes it by at least one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from autobatch.records import Fit, Limit, Trial, Verdict

#: Sizes beyond the largest that fits are tried at most this many times larger on two points' word.
_GROWTH = 4

#: A peak this close to its prediction (as a fraction of the target) confirms the line.
_CONFIRMED = 0.01

#: Two peaks further apart than this (as a fraction of the target) differ by more than noise.
_SIGNAL = 0.05


@dataclass(frozen=True)
class Cap:
    """The largest batch_size worth trying, and what sets it.

    Attributes:
        batch_size: the cap itself, at least 1.
        limit: what to name as the limit when the cap fits.
    """

    batch_size: int
    limit: Limit


@dataclass(frozen=True)
class Try:
    """Measure this size next."""

    batch_size: int


@dataclass(frozen=True)
class Answer:
    """The search is over.

    Attributes:
        batch_size: the largest size that fits, measured; None when size 1 doesn't.
        limit: what keeps it from being larger.
    """

    batch_size: int | None
    limit: Limit


@dataclass(frozen=True)
class Bracket:
    """What is known: `fits` fits (0: nothing yet), `fails` doesn't (cap + 1: nothing yet)."""

    fits: int
    fails: int

    @property
    def width(self) -> int:
        return self.fails - self.fits


def bracket_of(trials: Sequence[Trial], cap: int) -> Bracket:
    """The bracket that `trials` leave, for sizes from 1 to `cap`."""
    fits = [t.batch_size for t in trials if t.verdict is Verdict.FITS]
    fails = [t.batch_size for t in trials if t.verdict in (Verdict.OVER_TARGET, Verdict.OUT_OF_MEMORY)]
    return Bracket(min(max(fits, default=0), cap), min([*fails, cap + 1]))


def next_step(
    trials: Sequence[Trial], *, target_bytes: int, cap: Cap, guess: int | None = None
) -> Try | Answer:
    """What to do after `trials`.

    Args:
        trials: those that ended with a verdict about memory (fits, over target, out of memory).
        target_bytes: what the peak may reach.
        cap: the largest size worth trying.
        guess: first size to try, from an estimate; a wrong one costs trials and never changes the answer.
    """
    bracket = bracket_of(trials, cap.batch_size)
    if bracket.fits == cap.batch_size:
        return Answer(bracket.fits, cap.limit)
    if bracket.width <= 1:
        return Answer(bracket.fits or None, Limit.MEMORY)
    if not trials:
        proposal = guess or 1
    elif _line_misleads(trials, cap.batch_size, target_bytes):
        proposal = (bracket.fits + bracket.fails) // 2
    else:
        proposal = _propose(trials, bracket, target_bytes)
    return Try(max(bracket.fits + 1, min(proposal, bracket.fails - 1)))


def fit_line(trials: Sequence[Trial]) -> Fit | None:
    """The least-squares line through the measured peaks; None with fewer than two sizes."""
    points = _points(trials)
    if len(points) < 2:
        return None
    slope, fixed = statistics.linear_regression(*zip(*points, strict=True))
    residual = max(abs(fixed + slope * b - peak) / peak for b, peak in points)
    return Fit(fixed, slope, residual)


def _points(trials: Sequence[Trial]) -> list[tuple[int, int]]:
    """(batch_size, peak), ascending; without trials that end or flush their allocator below their own peak."""
    return sorted(
        (t.batch_size, t.peak_bytes)
        for t in trials
        if t.peak_bytes is not None
        and not t.cut_short
        and t.alloc_retries == 0
        and t.verdict in (Verdict.FITS, Verdict.OVER_TARGET)
    )


def is_decisive(trials: Sequence[Trial], batch_size: int) -> bool:
    """Whether all that the search wants to know of `batch_size` is if it fits; its peak it doesn't need.

    The size below is known to fit, and the line through the peaks has its two points. Between 1 and 2 nobody
    needs a line.
    """
    below = any(t.batch_size == batch_size - 1 and t.verdict is Verdict.FITS for t in trials)
    return below and (batch_size == 2 or len(_points(trials)) >= 2)


def _has_no_peak(trial: Trial) -> bool:
    return trial.peak_bytes is None or trial.cut_short


def _propose(trials: Sequence[Trial], bracket: Bracket, target_bytes: int) -> int:
    points = _points(trials)
    if not points:
        # Only out of memory so far: size 1 is the one that gives a point for certain.
        return 1
    if len(points) == 1:
        proposal = _ray(trials, points[0], target_bytes)
    else:
        one, anchor = _line(points, bracket, target_bytes)
        proposal = _secant(one, anchor, target_bytes)
        if points[-1][0] <= bracket.fits and not _confirmed(points, target_bytes):
            proposal = min(proposal, max(_ray(trials, anchor, target_bytes), _GROWTH * anchor[0]))
    ran_out = any(t.batch_size == bracket.fails and _has_no_peak(t) for t in trials)
    if ran_out and proposal >= bracket.fails:
        # The size above ran out of memory (or was cut short for another target), so there is no peak to
        # interpolate to, and the line says that it should have fitted: it knows nothing about this stretch.
        return (bracket.fits + bracket.fails) // 2
    return proposal


def _line(
    points: Sequence[tuple[int, int]], bracket: Bracket, target_bytes: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Two points to draw the line through; the second, its anchor, is the one nearest the target.

    The other is clear of noise (two peaks that lie closer would make a line of any slope) and on the
    target's other side if there is one.
    """
    nothing_failed = points[-1][0] <= bracket.fits
    anchor = points[-1] if nothing_failed else min(points, key=lambda point: abs(point[1] - target_bytes))
    others = [point for point in points if point != anchor]
    clear = [point for point in others if abs(point[1] - anchor[1]) >= _SIGNAL * target_bytes]
    if not clear:
        return max(others, key=lambda point: abs(point[0] - anchor[0])), anchor
    across = [point for point in clear if (point[1] > target_bytes) != (anchor[1] > target_bytes)]
    return min(across or clear, key=lambda point: abs(point[0] - anchor[0])), anchor


def _secant(one: tuple[int, int], two: tuple[int, int], target_bytes: int) -> int:
    """The largest size whose peak is at most the target on the line through two points."""
    slope = (two[1] - one[1]) / (two[0] - one[0])
    if slope <= 0:
        return max(one[0], two[0]) * _GROWTH
    return math.floor(two[0] + (target_bytes - two[1]) / slope)


def _ray(trials: Sequence[Trial], point: tuple[int, int], target_bytes: int) -> int:
    """The same on the line from the memory before the first batch, at size 0, through `point`."""
    batch_size, peak = point
    before = next(t.before_bytes for t in trials if t.batch_size == batch_size)
    if before is None or peak <= before:
        return batch_size * 2
    return _secant((0, before), point, target_bytes)


def _confirmed(points: Sequence[tuple[int, int]], target_bytes: int) -> bool:
    """Whether the largest of three points, clear of noise, lies on the line through the two before it."""
    if len(points) < 3:
        return False
    (b1, p1), (b2, p2), (b3, p3) = points[-3:]
    if p3 - p1 < _SIGNAL * target_bytes:
        # All three on one level: noise alone sets the slope, and with it how far the line reaches.
        return False
    predicted = p2 + (p2 - p1) / (b2 - b1) * (b3 - b2)
    return abs(predicted - p3) <= _CONFIRMED * target_bytes


def _line_misleads(trials: Sequence[Trial], cap: int, target_bytes: int) -> bool:
    """Whether the last trial, inside a bracket with both ends known, was off the line that it was meant for."""
    earlier, last = trials[:-1], trials[-1]
    bracket = bracket_of(earlier, cap)
    points = _points(earlier)
    if bracket.fails > cap or bracket.fits == 0 or len(points) < 2:
        return False
    if _has_no_peak(last):
        return True
    assert last.peak_bytes is not None
    one, two = _line(points, bracket, target_bytes)
    predicted = two[1] + (two[1] - one[1]) / (two[0] - one[0]) * (last.batch_size - two[0])
    return abs(predicted - last.peak_bytes) > _CONFIRMED * target_bytes
