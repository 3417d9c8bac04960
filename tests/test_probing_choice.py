"""The stage after the search: exact sequences, and properties on curves that hypothesis makes up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatch.probing.choice import Choice, choose_measured, next_choice, throughput_remark
from autobatch.probing.effective_batch import Hold
from autobatch.probing.search import Answer, Cap, Try, next_step
from autobatch.probing.wish import Wish
from autobatch.records import Limit, Preference, Trial, Verdict

GIB = 2**30
TARGET = 1000
FAST = Preference.THROUGHPUT


def flat_from(knee: int) -> Callable[[int], float]:
    """tokens/s that rise with batch_size up to `knee`."""
    return lambda batch_size: 100.0 * min(batch_size, knee)


def trial(batch_size: int, largest: int, rate: Callable[[int], float] = float) -> Trial:
    peak = batch_size * TARGET // largest
    verdict = Verdict.FITS if batch_size <= largest else Verdict.OVER_TARGET
    return Trial(batch_size, verdict, peak_bytes=peak, before_bytes=0, tokens_per_second=rate(batch_size))


def search(largest: int, cap: Cap, rate: Callable[[int], float] = float) -> tuple[list[Trial], Answer]:
    """The search's own trials on a line of which `largest` still fits."""
    trials: list[Trial] = []
    while isinstance(step := next_step(trials, target_bytes=TARGET, cap=cap), Try):
        trials.append(trial(step.batch_size, largest, rate))
    return trials, step


def choose(
    trials: Sequence[Trial], answer: Answer, wish: Wish, largest: int, rate: Callable[[int], float] = float
) -> tuple[Choice | None, list[int]]:
    """The choice, and the sizes that were measured for it."""
    all_trials = list(trials)
    while isinstance(step := next_choice(all_trials, answer, wish, len(trials)), Try):
        all_trials.append(trial(step.batch_size, largest, rate))
    return step, [t.batch_size for t in all_trials[len(trials) :]]


@pytest.mark.parametrize(
    ("wish", "more", "choice"),
    [
        pytest.param(Wish(3), [], Choice(11, 3, Limit.MEMORY, 11), id="nothing else is asked"),
        pytest.param(
            Wish(1, Hold(32)),
            [8],
            Choice(8, 4, Limit.HOLD, 11, "11 fits too, and no size from 9 to 11 divides 32"),
            id="the largest that divides",
        ),
        pytest.param(Wish(1, Hold(33)), [], Choice(11, 3, Limit.MEMORY, 11), id="the largest divides"),
        pytest.param(
            Wish(1, Hold(40)),
            [10],
            Choice(10, 4, Limit.HOLD, 11, "11 fits too, and doesn't divide 40"),
            id="the next to the largest",
        ),
        pytest.param(
            Wish(1, Hold(37)),
            [],
            Choice(1, 37, Limit.HOLD, 11, "11 fits too, and no size from 2 to 11 divides 37"),
            id="a prime",
        ),
        pytest.param(
            Wish(1, Hold(64, world_size=2)),
            [8],
            Choice(8, 4, Limit.HOLD, 11, "11 fits too, and no size from 9 to 11 divides 32"),
            id="two devices",
        ),
        pytest.param(Wish(1, Hold(12, accumulates=False)), [], None, id="no accumulation, and too large"),
        pytest.param(
            Wish(1, Hold(11, accumulates=False)), [], Choice(11, 1, Limit.MEMORY, 11), id="no accumulation"
        ),
    ],
)
def test_what_is_chosen_where_11_fits(wish: Wish, more: list[int], choice: Choice | None) -> None:
    trials, answer = search(11, Cap(4096, Limit.DATASET))
    assert [t.batch_size for t in trials] == [1, 11, 12]

    chosen, tried = choose(trials, answer, wish, 11)

    assert tried == more
    assert chosen == choice


@pytest.mark.parametrize(
    ("wish", "knee", "more", "batch_size", "limit"),
    [
        pytest.param(Wish(1, prefer=FAST), 40, [8, 16, 32], 37, Limit.MEMORY, id="never flat"),
        pytest.param(Wish(1, prefer=FAST), 16, [8, 16], 16, Limit.THROUGHPUT, id="flat from 16"),
        pytest.param(Wish(1, prefer=FAST), 10, [8, 16], 16, Limit.THROUGHPUT, id="flat from 10"),
        pytest.param(Wish(1, prefer=FAST), 1, [], 1, Limit.THROUGHPUT, id="flat"),
        pytest.param(Wish(1, Hold(96), FAST), 10, [32, 6, 12, 8], 12, Limit.THROUGHPUT, id="held"),
        pytest.param(Wish(1, Hold(37), FAST), 10, [], 37, Limit.MEMORY, id="held, one division"),
    ],
)
def test_the_smallest_that_is_as_fast(
    wish: Wish, knee: int, more: list[int], batch_size: int, limit: Limit
) -> None:
    trials, answer = search(37, Cap(4096, Limit.DATASET), flat_from(knee))
    assert [t.batch_size for t in trials] == [1, 37, 38]

    chosen, tried = choose(trials, answer, wish, 37, flat_from(knee))

    assert tried == more
    assert chosen is not None
    assert (chosen.batch_size, chosen.limit) == (batch_size, limit)
    assert chosen.largest == 37


def test_one_that_was_measured_not_to_fit_after_all_is_passed_over() -> None:
    trials, answer = search(11, Cap(4096, Limit.DATASET))

    chosen = next_choice([*trials, trial(8, 7)], answer, Wish(1, Hold(32)), len(trials))
    assert chosen == Try(4)
    chosen = next_choice([*trials, trial(8, 7), trial(4, 11)], answer, Wish(1, Hold(32)), len(trials))

    why = "11 was measured to fit, and 8, which would make up 32, not to"
    assert chosen == Choice(4, 8, Limit.HOLD, 11, why)


@pytest.mark.parametrize("accept_partial", [True, False])
def test_without_time_for_another_trial(accept_partial: bool) -> None:
    trials, answer = search(11, Cap(4096, Limit.DATASET))
    held, fast = Wish(1, Hold(32)), Wish(1, prefer=FAST)

    cut = choose_measured(trials, answer, held, accept_partial=accept_partial)
    whole = choose_measured(trials, answer, fast, accept_partial=accept_partial)

    assert cut == (Choice(1, 32, Limit.TIME, 11) if accept_partial else None)
    assert whole == Choice(11, 1, Limit.MEMORY, 11)
    assert choose_measured([], answer, Wish(1, Hold(40)), accept_partial=True) is None


@given(st.integers(1, 200), st.integers(1, 1000), st.integers(1, 300))
def test_the_choice_is_measured_and_the_largest_division(largest: int, held: int, cap: int) -> None:
    wish = Wish(1, Hold(held))
    trials, answer = search(largest, Cap(min(cap, held), Limit.MAX_BATCH_SIZE))

    chosen, tried = choose(trials, answer, wish, largest)

    assert chosen is not None
    assert chosen.batch_size * chosen.gradient_accumulation_steps == held
    fits = [b for b in range(1, min(cap, held, largest) + 1) if held % b == 0]
    assert chosen.batch_size == max(fits)
    assert chosen.batch_size in {t.batch_size for t in trials} | set(tried)
    assert len(tried) <= 1


@given(st.integers(1, 4096), st.integers(1, 5000), st.booleans())
def test_the_fastest_is_measured_and_as_fast_as_any(largest: int, knee: int, hold: bool) -> None:
    rate = flat_from(knee)
    trials, answer = search(largest, Cap(4096, Limit.DATASET), rate)
    wish = Wish(1, Hold(5040) if hold else None, FAST)

    chosen, tried = choose(trials, answer, wish, largest, rate)

    assert chosen is not None
    assert len(tried) <= 4
    measured = {b for b in (*(t.batch_size for t in trials), *tried) if b <= largest}
    allowed = {b for b in measured if not hold or 5040 % b == 0}
    assert chosen.batch_size in allowed
    best = max(rate(b) for b in allowed)
    assert rate(chosen.batch_size) >= 0.97 * best
    assert all(rate(b) < 0.97 * best for b in allowed if b < chosen.batch_size)


def test_that_a_smaller_one_is_as_fast_is_said() -> None:
    rates = {1: 100.0, 16: 980.0, 36: 990.0, 37: 1000.0}
    trials = [
        Trial(size, Verdict.FITS, peak_bytes=size * GIB, tokens_per_second=rate)
        for size, rate in rates.items()
    ]

    assert throughput_remark(trials, 37) == (
        "batch_size 16 reaches 98.0 % of the tokens/s of 37, with a peak of 16.0 GiB (--prefer throughput "
        "chooses the smallest such)"
    )
    assert throughput_remark(trials, 16) == ""
    assert throughput_remark([trials[0], Trial(2, Verdict.FITS)], 2) == ""
