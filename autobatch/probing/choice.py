"""The stage after the search: which of the batch sizes that fit is the answer. Pure functions, as the search's.

The search has found the largest size that fits. That is the answer, unless an effective batch is held, which only
its divisors make up, or the fastest is preferred:

    tokens/s
    |          o----o---o      the curve has flattened within 3 % of the best at b: b is the answer,
    |        o                 measured like every other that is considered
    |     o
    |__o_______b____________ batch_size

A size that the answer depends on and that the search didn't try becomes one more trial.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from autobatch.probing.effective_batch import Hold
from autobatch.probing.search import Answer, Try
from autobatch.probing.wish import Wish
from autobatch.records import Limit, Preference, Trial, Verdict
from autobatch.units import format_bytes, format_percent

#: A batch size this close to the best tokens/s is as fast: more memory buys nothing.
_AS_FAST = 0.97

#: Trials after the search, at most, to find the smallest size that is as fast.
_MOST_TRIALS = 4


@dataclass(frozen=True)
class Choice:
    """The answer of a probe.

    Attributes:
        batch_size: measured, and fits.
        gradient_accumulation_steps: that goes with it.
        limit: what keeps batch_size from being larger.
        largest: the largest size that the search found to fit.
        why: it isn't the largest; empty when it is, and `limit` says all.
    """

    batch_size: int
    gradient_accumulation_steps: int
    limit: Limit
    largest: int
    why: str = ""


def next_choice(trials: Sequence[Trial], answer: Answer, wish: Wish, searched: int) -> Try | Choice | None:
    """What to do when the search has ended.

    Args:
        trials: the search's, then those that this function asked for.
        answer: of the search, with a batch_size.
        wish: what is asked.
        searched: how many of `trials` are the search's.

    Returns:
        The answer, a size to measure first, or None when no size that fits makes up the effective batch.
    """
    candidates = _candidates(trials, answer, wish)
    if not candidates:
        return None
    if candidates[-1] not in _fitting(trials):
        return Try(candidates[-1])
    if wish.prefer is Preference.THROUGHPUT and len(trials) - searched < _MOST_TRIALS:
        size = _between(trials, candidates, wish)
        if size is not None:
            return Try(size)
    return _choice(trials, answer, wish, candidates)


def choose_measured(
    trials: Sequence[Trial], answer: Answer, wish: Wish, *, accept_partial: bool
) -> Choice | None:
    """The answer where there is no time for another trial.

    Args:
        trials, answer, wish: as for `next_choice`.
        accept_partial: take what was measured though a larger size would make up the effective batch.

    Returns:
        None when the answer isn't measured.
    """
    candidates = _candidates(trials, answer, wish)
    fitting = _fitting(trials)
    measured = [size for size in candidates if size in fitting]
    if not measured or (measured[-1] != candidates[-1] and not accept_partial):
        return None
    if measured[-1] != candidates[-1]:
        answer = replace(answer, limit=Limit.TIME)
    return _choice(trials, answer, wish, measured)


def throughput_remark(trials: Sequence[Trial], chosen: int) -> str:
    """That a smaller batch size than `chosen` is as fast as any measured; empty when none is."""
    fitting = _fitting(trials)
    rates = _rates(fitting, [size for size in fitting if size <= chosen])
    if chosen not in rates:
        return ""
    smallest = _smallest_as_fast(rates)
    if smallest == chosen:
        return ""
    peak = fitting[smallest].peak_bytes
    takes = f", with a peak of {format_bytes(peak)}" if peak is not None else ""
    return (
        f"batch_size {smallest} reaches {format_percent(rates[smallest], rates[chosen])} of the tokens/s of "
        f"{chosen}{takes} (--prefer throughput chooses the smallest such)"
    )


def _candidates(trials: Sequence[Trial], answer: Answer, wish: Wish) -> list[int]:
    """Sizes that may be the answer, ascending: up to the largest that fits, without those measured not to."""
    largest = answer.batch_size or 0
    sizes = range(1, largest + 1) if wish.hold is None else wish.hold.batch_sizes(largest)
    failed = {trial.batch_size for trial in trials if trial.verdict is not Verdict.FITS}
    return [size for size in sizes if size not in failed]


def _fitting(trials: Sequence[Trial]) -> dict[int, Trial]:
    return {trial.batch_size: trial for trial in trials if trial.verdict is Verdict.FITS}


def _rates(fitting: dict[int, Trial], candidates: Sequence[int]) -> dict[int, float]:
    """tokens/s by batch_size, of the candidates whose throughput was measured."""
    found = {size: fitting[size].tokens_per_second for size in candidates if size in fitting}
    return {size: rate for size, rate in found.items() if rate is not None}


def _smallest_as_fast(rates: dict[int, float]) -> int:
    best = max(rates.values())
    return min(size for size, rate in rates.items() if rate >= _AS_FAST * best)


def _between(trials: Sequence[Trial], candidates: Sequence[int], wish: Wish) -> int | None:
    """A size to bisect with, between the largest that is too slow and the smallest that is as fast as any.

    Among the divisors of a held batch, else among powers of two; the curve rises, then is flat.
    """
    rates = _rates(_fitting(trials), candidates)
    if not rates:
        return None
    fast = _smallest_as_fast(rates)
    slow = max((size for size in rates if size < fast), default=0)
    between = [
        size
        for size in candidates
        if slow < size < fast and (wish.hold is not None or size & (size - 1) == 0)
    ]
    return between[(len(between) - 1) // 2] if between else None


def _choice(trials: Sequence[Trial], answer: Answer, wish: Wish, candidates: Sequence[int]) -> Choice:
    assert answer.batch_size is not None
    size, limit, why = candidates[-1], answer.limit, ""
    rates = _rates(_fitting(trials), candidates)
    if wish.prefer is Preference.THROUGHPUT and rates and _smallest_as_fast(rates) < size:
        size, limit = _smallest_as_fast(rates), Limit.THROUGHPUT
        best = max(rates, key=lambda each: rates[each])
        why = f"the smallest measured within 3 % of the best tokens/s, those of {best} (--prefer throughput)"
        if size == best:
            why = "the best tokens/s measured (--prefer throughput)"
    elif wish.hold is not None and size < answer.batch_size:
        limit, why = Limit.HOLD, _why_not_larger(size, answer.batch_size, wish.hold)
    if answer.limit is Limit.TIME:
        limit, why = Limit.TIME, ""
    steps = wish.gradient_accumulation_steps if wish.hold is None else wish.hold.per_device // size
    return Choice(size, steps, limit, answer.batch_size, why)


def _why_not_larger(size: int, largest: int, held: Hold) -> str:
    failed = next((other for other in held.batch_sizes(largest) if other > size), None)
    if failed is not None:
        return f"{largest} was measured to fit, and {failed}, which would make up {held.per_device}, not to"
    if size + 1 == largest:
        return f"{largest} fits too, and doesn't divide {held.per_device}"
    return f"{largest} fits too, and no size from {size + 1} to {largest} divides {held.per_device}"
