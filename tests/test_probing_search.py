"""The search: exact sequences on known curves, and properties on curves that hypothesis makes up."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatch.probing.search import Answer, Cap, Try, fit_line, is_decisive, next_step
from autobatch.records import Fit, Limit, Trial, Verdict

CAPACITY = 1_000_000_000
TARGET = 700_000_000
MB = 1_000_000

Curve = Callable[[int], float]


@dataclass
class Outcome:
    """What a search did on a curve."""

    answer: int | None
    limit: Limit
    sizes: list[int]
    trials: list[Trial]

    @property
    def ooms(self) -> int:
        return sum(t.verdict is Verdict.OUT_OF_MEMORY for t in self.trials)


def search(
    curve: Curve,
    *,
    before: float | None,
    cap: int = 4096,
    limit: Limit = Limit.DATASET,
    guess: int | None = None,
    retries_from: int | None = None,
    known: Sequence[Trial] = (),
) -> Outcome:
    """Run the search on ``peak = curve(batch_size)``; beyond the capacity it is out of memory."""
    trials = list(known)
    for _ in range(200):
        step = next_step(trials, target_bytes=TARGET, cap=Cap(cap, limit), guess=guess)
        if isinstance(step, Answer):
            return Outcome(step.batch_size, step.limit, [t.batch_size for t in trials], trials)
        trials.append(_measure(curve, step.batch_size, before, retries_from))
    raise AssertionError(f"no end after {[t.batch_size for t in trials]}")


def _measure(curve: Curve, batch_size: int, before: float | None, retries_from: int | None) -> Trial:
    peak = int(curve(batch_size))
    in_use = None if before is None else int(before)
    if peak > CAPACITY:
        return Trial(batch_size, Verdict.OUT_OF_MEMORY, before_bytes=in_use)
    retries = 2 if retries_from is not None and batch_size >= retries_from else 0
    verdict = Verdict.FITS if peak <= TARGET and not retries else Verdict.OVER_TARGET
    return Trial(batch_size, verdict, peak_bytes=peak, before_bytes=in_use, alloc_retries=retries)


def line(answer: int, fixed: float = 150) -> Curve:
    """A line on which `answer` is the largest size that fits."""
    slope = (700 - fixed) / (answer + 0.5)
    return lambda b: (fixed + slope * b) * MB


@pytest.mark.parametrize(
    ("curve", "before", "sizes"),
    [
        pytest.param(line(1), 140 * MB, [1, 2], id="LoRA, answer 1"),
        pytest.param(line(7), 140 * MB, [1, 6, 7, 8], id="LoRA, answer 7"),
        pytest.param(line(37), 140 * MB, [1, 22, 37, 38], id="LoRA, answer 37"),
        pytest.param(line(200), 140 * MB, [1, 43, 188, 200, 201], id="LoRA, answer 200"),
        pytest.param(line(7, fixed=400), 100 * MB, [1, 2, 7, 8], id="full, answer 7"),
        pytest.param(line(37, fixed=400), 100 * MB, [1, 2, 8, 37, 38], id="full, answer 37"),
        pytest.param(line(7), None, [1, 2, 7, 8], id="memory before the first batch unknown"),
        pytest.param(
            lambda b: (300 + b if b <= 12 else 800 + b) * MB,
            280 * MB,
            [1, 20, 15, 8, 11, 13, 12],
            id="step",
        ),
        pytest.param(
            lambda b: (300 + b if b <= 12 else 1800 + b) * MB,
            280 * MB,
            [1, 20, 10, 15, 12, 13],
            id="step into out of memory",
        ),
        pytest.param(
            lambda b: max(400, 250 + 36 * b) * MB,
            100 * MB,
            [1, 2, 8, 15, 12, 13],
            id="convex, as full fine-tuning is",
        ),
    ],
)
def test_tries_exactly_these_sizes(curve: Curve, before: float | None, sizes: list[int]) -> None:
    outcome = search(curve, before=before)

    assert outcome.sizes == sizes
    assert outcome.limit is Limit.MEMORY
    assert outcome.answer == max(b for b in range(1, 300) if curve(b) <= TARGET)


@pytest.mark.parametrize(
    ("peaks", "cap", "size"),
    [
        pytest.param({8: 600, 10: 650, 30: 900}, 4096, 14, id="the line to the nearest peak over the target"),
        pytest.param({40: 1000, 20: 760, 10: 680}, 4096, 12, id="of two over it, to the nearer size"),
        pytest.param({20: 900, 10: 800, 2: 400, 1: 350}, 4096, 8, id="from the peak nearest the target"),
        pytest.param({1: 300, 20: 690, 60: 712}, 4096, 21, id="from it, though the next lies within noise"),
        pytest.param({1: 680, 2: 689, 8: 690}, 4096, 15, id="all within noise: the two furthest apart"),
        pytest.param({1: 680, 10: 695, 30: 712}, 4096, 15, id="the furthest, on whichever side"),
        pytest.param({1: 595, 2: 600, 32: 900}, 4096, 12, id="no limit to growth below a size that failed"),
        pytest.param({1: 110, 3: 130, 5: 150}, 4096, 60, id="three on a line are trusted beyond four times"),
        pytest.param({1: 110, 3: 130, 5: 152}, 4096, 57, id="three nearly on one, too"),
        pytest.param({1: 110, 3: 130, 5: 160}, 4096, 20, id="three off it are not"),
        pytest.param({1: 300, 40: 500, 100: 800, 80: 560}, 100, 90, id="off its line, below the cap: bisect"),
        pytest.param({1: 300, 40: 500, 200: 2000, 100: 2000}, 4096, 70, id="out of memory on it: bisect"),
        pytest.param({10: 300}, 4096, 20, id="one peak, memory before it unknown: twice the size"),
    ],
)
def test_the_next_size(peaks: dict[int, float], cap: int, size: int) -> None:
    trials = [_measure(lambda b: peaks[b] * MB, b, None, None) for b in peaks]

    assert next_step(trials, target_bytes=TARGET, cap=Cap(cap, Limit.DATASET)) == Try(size)


def test_a_first_batch_that_takes_nothing_says_nothing_of_larger_ones() -> None:
    assert search(lambda b: 300 * MB if b < 5 else 800 * MB, before=300 * MB).sizes[:2] == [1, 2]


def test_nothing_fits() -> None:
    outcome = search(lambda b: 800 * MB + b, before=100 * MB)

    assert (outcome.answer, outcome.limit, outcome.sizes) == (None, Limit.MEMORY, [1])


def test_out_of_memory_at_batch_size_1() -> None:
    outcome = search(lambda b: 1200 * MB, before=100 * MB)

    assert (outcome.answer, outcome.sizes, outcome.ooms) == (None, [1], 1)


@pytest.mark.parametrize(
    ("cap", "limit", "sizes"),
    [
        pytest.param(50, Limit.DATASET, [1, 21, 50], id="the dataset's packs"),
        pytest.param(3, Limit.MAX_BATCH_SIZE, [1, 3], id="--max-batch-size"),
        pytest.param(1, Limit.DATASET, [1], id="one pack"),
    ],
)
def test_everything_fits_up_to_the_cap(cap: int, limit: Limit, sizes: list[int]) -> None:
    outcome = search(lambda b: 300 * MB, before=280 * MB, cap=cap, limit=limit)

    assert (outcome.answer, outcome.limit, outcome.sizes) == (cap, limit, sizes)


@pytest.mark.parametrize(
    ("guess", "sizes"),
    [
        pytest.param(37, [37, 38], id="right"),
        pytest.param(9, [9, 35, 37, 38], id="a quarter"),
        pytest.param(148, [148, 1, 22, 37, 38], id="four times, out of memory"),
        pytest.param(40, [40, 37, 38], id="a little over"),
    ],
)
def test_a_guess_costs_trials_and_never_changes_the_answer(guess: int, sizes: list[int]) -> None:
    outcome = search(line(37), before=140 * MB, guess=guess)

    assert (outcome.answer, outcome.sizes) == (37, sizes)


def test_a_size_whose_allocator_was_flushing_does_not_fit() -> None:
    outcome = search(line(37), before=140 * MB, retries_from=30)

    assert outcome.answer == 29


@pytest.mark.parametrize("answer", [1, 7, 37, 200])
def test_noise_costs_few_trials(answer: int) -> None:
    curve = line(answer)
    trials = []
    for seed in range(100):
        noise = random.Random(seed)
        readings: dict[int, float] = {}

        def noisy(b: int, readings: dict[int, float] = readings, noise: random.Random = noise) -> float:
            return readings.setdefault(b, curve(b) * (1 + noise.uniform(-0.003, 0.003)))

        outcome = search(noisy, before=140 * MB)
        assert outcome.answer is not None
        assert abs(outcome.answer - answer) <= max(1, round(0.006 * answer))
        trials.append(len(outcome.sizes))

    assert sorted(trials)[50] <= 6
    assert max(trials) <= 8


@pytest.mark.parametrize("noise", [-0.4, 0.0, 0.4])
def test_three_sizes_on_one_level_say_nothing_of_larger_ones(noise: float) -> None:
    curve = {1: 300.0, 2: 300.2, 8: 300.3 + noise}

    outcome = search(lambda b: curve.get(b, 300 if b <= 12 else 1800) * MB, before=None)

    assert outcome.answer == 12
    assert outcome.sizes[:4] == [1, 2, 8, 32]


@st.composite
def rising_curves(draw: st.DrawFn) -> tuple[Curve, float]:
    """Any curve that doesn't fall: a start, and steps of any size at any place."""
    before = draw(st.integers(0, 600))
    start = before + draw(st.integers(0, 300))
    slope = draw(st.floats(0, 60, allow_nan=False))
    jumps = draw(st.lists(st.tuples(st.integers(2, 80), st.integers(0, 500)), max_size=4))

    def curve(b: int) -> float:
        return (start + slope * b + sum(height for at, height in jumps if b >= at)) * MB

    return curve, before * MB


@given(rising_curves(), st.integers(1, 120), st.one_of(st.none(), st.integers(1, 500)))
def test_the_answer_is_exact_and_measured_on_any_rising_curve(
    made: tuple[Curve, float], cap: int, guess: int | None
) -> None:
    curve, before = made

    outcome = search(curve, before=before, cap=cap, guess=guess)

    fitting = [b for b in range(1, cap + 1) if int(curve(b)) <= TARGET]
    assert outcome.answer == max(fitting, default=None)
    assert len(set(outcome.sizes)) == len(outcome.sizes)
    if outcome.answer is not None:
        assert outcome.answer in outcome.sizes
        assert outcome.answer == cap or outcome.answer + 1 in outcome.sizes


@given(rising_curves(), st.sets(st.integers(1, 120)), st.floats(1, 1.4))
def test_trials_cut_short_for_another_target_never_change_the_answer(
    made: tuple[Curve, float], cut: set[int], first_step: float
) -> None:
    curve, before = made
    # Each is known to be over the target, and its peak to be at least what its first step took.
    known = [
        Trial(b, Verdict.OVER_TARGET, max(TARGET + 1, int(curve(b) / first_step)), cut_short=True)
        for b in sorted(cut)
        if int(curve(b)) > TARGET
    ]

    outcome = search(curve, before=before, cap=120, known=known)

    assert outcome.answer == max((b for b in range(1, 121) if int(curve(b)) <= TARGET), default=None)
    assert len(set(outcome.sizes)) == len(outcome.sizes)


@pytest.mark.parametrize(
    ("sizes", "batch_size", "decisive"),
    [
        pytest.param([1], 2, True, id="nothing lies between 1 and 2"),
        pytest.param([7], 8, False, id="a line wants its second point"),
        pytest.param([1, 7], 8, True, id="the line has two points"),
        pytest.param([1, 7], 9, False, id="the size below isn't known"),
        pytest.param([1, -8], 8, False, id="the size below isn't known to fit"),
        pytest.param([], 1, False, id="batch_size 1"),
        pytest.param([-2], 1, False, id="its peak says what wouldn't fit"),
    ],
)
def test_when_all_that_counts_is_whether_a_size_fits(
    sizes: list[int], batch_size: int, decisive: bool
) -> None:
    trials = [
        Trial(abs(b), Verdict.FITS if b > 0 else Verdict.OVER_TARGET, peak_bytes=100 * abs(b)) for b in sizes
    ]

    assert is_decisive(trials, batch_size) == decisive


def test_the_fitted_line() -> None:
    trials = [Trial(b, Verdict.FITS, peak_bytes=100 + 10 * b) for b in (1, 4, 9)]

    fit = fit_line([*trials, Trial(50, Verdict.OUT_OF_MEMORY)])

    assert fit is not None
    assert fit.fixed_bytes == pytest.approx(100)
    assert fit.per_sequence_bytes == pytest.approx(10)
    assert fit.max_residual_fraction == pytest.approx(0, abs=1e-9)
    assert fit_line(trials[:1]) is None
    assert fit_line(trials[:2]) == Fit(100, 10, 0)


def test_the_fitted_line_passes_between_peaks_that_are_off_it() -> None:
    fit = fit_line([Trial(b, Verdict.FITS, peak_bytes=peak) for b, peak in ((1, 100), (2, 240), (3, 200))])

    assert fit is not None
    assert fit.fixed_bytes == pytest.approx(80)
    assert fit.per_sequence_bytes == pytest.approx(50)
    assert fit.max_residual_fraction == pytest.approx(30 / 100)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(Trial(4, Verdict.OVER_TARGET, peak_bytes=999, alloc_retries=1), id="allocator flushing"),
        pytest.param(Trial(4, Verdict.UNSTABLE, peak_bytes=999), id="not at rest"),
        pytest.param(Trial(4, Verdict.OVER_TARGET, peak_bytes=999, cut_short=True), id="cut short"),
        pytest.param(Trial(4, Verdict.CRASHED), id="without a peak"),
    ],
)
def test_no_line_goes_through_a_peak_that_isnt_one(other: Trial) -> None:
    trials = [Trial(b, Verdict.FITS, peak_bytes=100 + 10 * b) for b in (1, 2)]

    assert fit_line([*trials, other]) == fit_line(trials)
