"""The trials of one attempt at a probe: taken from what is known, else measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeVar

from autobatch.probing.distributed_trial import TrialRuns
from autobatch.probing.events import Event, Said, Stepped, TrialBegan, TrialEnded
from autobatch.probing.outcome import ENDS_THE_PROBE
from autobatch.probing.pool import KnownTrials, describe
from autobatch.probing.search import Try, bracket_of, is_decisive
from autobatch.probing.trial import was_killed
from autobatch.records import Trial, Verdict

#: Seconds to leave for writing the answer down.
_WRITE_BACK_S = 10.0

_End = TypeVar("_End")


class Stopped(Enum):
    """Why a series ended before what it was after."""

    OUT_OF_TIME = auto()
    FAILED = auto()  # the last trial ended for a reason that isn't memory


@dataclass(frozen=True)
class Deadline:
    """When it must be over.

    Attributes:
        at: Unix time; None for never.
    """

    at: float | None

    def seconds_left(self) -> float:
        """For measuring, with enough kept for writing the answer down."""
        return float("inf") if self.at is None else self.at - _WRITE_BACK_S - time.time()


class Series:
    """The trials so far.

    Args:
        runner: measures.
        known: trials that need not be run; gets those that are.
        cap: the largest batch_size worth trying.
        deadline: a trial that wouldn't end by then isn't begun.
        tell: hears what happens.
    """

    def __init__(
        self,
        runner: TrialRuns,
        known: KnownTrials,
        *,
        cap: int,
        deadline: Deadline,
        tell: Callable[[Event], None],
    ) -> None:
        self._runner = runner
        self.known = known
        self._cap = cap
        self._deadline = deadline
        self._tell = tell
        self.trials: list[Trial] = known.begin(cap)
        #: Trials that had to be run.
        self.measured = 0
        for shared in known.shared_from(self.trials):
            tell(Said(describe(shared)))
        for trial in self.trials:
            tell(TrialEnded(trial, resumed=True))

    def follow(self, propose: Callable[[Sequence[Trial]], Try | _End]) -> _End | Stopped:
        """Add the trials that `propose` asks for, until it returns something else."""
        while isinstance(step := propose(self.trials), Try):
            trial, resumed = self._trial(step.batch_size)
            if trial is None:
                return Stopped.OUT_OF_TIME
            self.trials.append(trial)
            self._tell(TrialEnded(trial, resumed=resumed))
            if trial.verdict in ENDS_THE_PROBE:
                return Stopped.FAILED
        return step

    def _trial(self, batch_size: int) -> tuple[Trial | None, bool]:
        """(the trial, whether it was known); no trial when there is no time for it."""
        known = self.known.take(batch_size)
        if known is not None:
            return known, True
        if self._is_too_late():
            return None, False
        bracket = bracket_of(self.trials, self._cap)
        self._tell(
            TrialBegan(batch_size, bracket.fits, bracket.fails if bracket.fails <= self._cap else None)
        )
        trial = self._measure(batch_size)
        if trial.verdict is Verdict.TIMED_OUT and self._deadline.seconds_left() <= 0:
            return None, False
        self.known.add(trial)
        self.measured += 1
        return trial, False

    def _is_too_late(self) -> bool:
        """Whether another trial, taking half as long again as the longest yet, would outlast the deadline."""
        longest = max((trial.seconds for trial in self.trials), default=0.0)
        return 1.5 * longest > self._deadline.seconds_left()

    def _measure(self, batch_size: int) -> Trial:
        seen = 0

        def on_step(steps: int) -> None:
            nonlocal seen
            if steps > seen:
                seen = steps
                self._tell(Stepped(batch_size, steps))

        decisive = is_decisive(self.trials, batch_size)

        def run() -> Trial:
            left = self._deadline.seconds_left()
            return self._runner.run(batch_size, on_step, at_most_s=left, end_when_over=decisive)

        trial = run()
        if was_killed(trial):
            self._tell(
                Said(f"batch_size {batch_size}: the trial was {trial.detail.splitlines()[0]}; once more")
            )
            seen = 0
            trial = run()
        return trial
