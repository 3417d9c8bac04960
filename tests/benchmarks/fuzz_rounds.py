"""Rounds of hypothesis until a time is over, which go on when they have found something.

A check takes a case that its strategy made up and returns what came of it in a word (`edited`, `refused`, ...).
Whatever it raises is a finding; a case that takes longer than CASE_S is one, too. A finding is made small, told,
and passed over from then on, so that the next one comes to light.
"""

from __future__ import annotations

import random
import resource
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

#: Seconds that no case may take.
CASE_S = 10.0

#: Bytes of memory that no case may take; what there is, is told as MemoryError.
_MEMORY_BYTES = 6 * 2**30

_EXAMPLES_OF_A_ROUND = 500


class TooSlow(BaseException):
    """A case took longer than CASE_S; no `except Exception` may hide it."""


@dataclass(frozen=True)
class Check:
    """One property.

    Attributes:
        cases: makes up what `of` is called with.
        of: returns what came of a case; an assertion or any other exception is a finding.
    """

    cases: st.SearchStrategy[Any]
    of: Callable[[Any], str]


@dataclass
class Found:
    """A finding: which check, what was raised, and the smallest case that raises it."""

    check: str
    what: str
    case: str


@dataclass
class Tally:
    """What came of a target.

    Attributes:
        seconds: of wall time.
        outcomes: cases by check and outcome.
        found: findings that differ.
        again: further cases of findings that were known.
    """

    seconds: float = 0.0
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    found: dict[str, Found] = field(default_factory=dict)
    again: int = 0

    @property
    def cases(self) -> int:
        """All that were tried."""
        return sum(sum(counter.values()) for counter in self.outcomes.values()) + self.again


def fuzz(checks: Mapping[str, Check], minutes: float, tell: Callable[[str], None]) -> Tally:
    """Try cases of all checks, in turns, until the time is over.

    Args:
        checks: by name.
        minutes: of wall time.
        tell: hears of each finding as it is made.
    """
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    tally = Tally(outcomes={name: Counter() for name in checks})
    began = time.monotonic()
    source = random.SystemRandom()
    while time.monotonic() - began < 60 * minutes:
        for name, check in checks.items():
            found = _round(name, check, source.getrandbits(64), tally)
            if found is not None:
                tell(f"found in {found.check}: {found.what}\n    {found.case}")
            if time.monotonic() - began >= 60 * minutes:
                break
    tally.seconds = time.monotonic() - began
    return tally


def _round(name: str, check: Check, number: int, tally: Tally) -> Found | None:
    last: list[tuple[str, Found]] = []
    own: set[str] = set()

    @seed(number)
    @settings(
        max_examples=_EXAMPLES_OF_A_ROUND,
        deadline=None,
        database=None,
        derandomize=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )
    @given(check.cases)
    def one(case: Any) -> None:
        try:
            with _limited():
                outcome = check.of(case)
        except (Exception, TooSlow) as error:
            key = f"{name}: {_where(error)}"
            if key in tally.found and key not in own:
                tally.again += 1
                return
            own.add(key)
            # hypothesis tries the smallest case last.
            last[:] = [(key, Found(name, f"{_where(error)}: {str(error)[:300]}", repr(case)))]
            raise AssertionError(key) from error
        tally.outcomes[name][outcome] += 1

    try:
        one()
    except AssertionError:
        key, found = last[0]
        tally.found[key] = found
        return found
    return None


@contextmanager
def _limited() -> Iterator[None]:
    def on_alarm(number: int, frame: FrameType | None) -> None:
        raise TooSlow(f"more than {CASE_S:g} s")

    before = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, CASE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _where(error: BaseException) -> str:
    """Kind of the error and the place that raised it: what makes two findings the same."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        frame for frame in frames if "/autobatch/" in frame.filename or "/benchmarks/fuzz_" in frame.filename
    ]
    ours = [frame for frame in ours if "fuzz_rounds" not in frame.filename] or list(frames)
    last = ours[-1]
    return f"{type(error).__name__} in {last.filename.rpartition('/')[2]}, {last.name}, line {last.lineno}"
