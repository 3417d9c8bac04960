"""The memory curves, searched by autobatch and by the others."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from autobatch.probing.search import Answer, Cap, is_decisive, next_step
from autobatch.records import Limit, Trial, Verdict
from tests.benchmarks.peers_curves import (
    ANSWERS,
    BEFORE,
    CARD_BYTES,
    NOISE,
    ROWS,
    TARGET,
    TARGET_BYTES,
    Curve,
    all_curves,
    make_curve,
)
from tests.benchmarks.peers_judging import PLAIN, SEEDED, Attempt, Found
from tests.benchmarks.peers_worker import STEPS, TOOLS

#: An error of the estimate, over what is in use before a batch. Those of simulated GPUs are smaller.
ESTIMATE_ERROR = 0.0869

#: Readings of the noisy curves are drawn so many times.
_SEEDS = 100


@dataclass(frozen=True)
class NoisySearches:
    """Searches without an estimate on noisy curves, each answer with many draws.

    Attributes:
        searches: how many.
        exact: of those, with the true answer.
        median_trials, most_trials: that they took.
    """

    searches: int
    exact: int
    median_trials: float
    most_trials: int

    def failed_bars(self) -> list[str]:
        """What falls short, in words."""
        wrong = self.searches - self.exact
        return [f"noisy curves: {wrong} of {self.searches} answers are wrong"] if wrong else []

    def sentence(self) -> str:
        """For the report."""
        return (
            f"Noise of {100 * NOISE:g} % drawn {_SEEDS} times for each answer: autobatch without estimate is "
            f"exact in {self.exact} of {self.searches} searches, with {self.median_trials:g} trials in the "
            f"median and {self.most_trials} at most."
        )


def on_curves(python: Path, scratch: Path, *, cut: bool) -> list[Found]:
    """Every tool on every curve.

    Args:
        python: of the other tools' environment.
        scratch: for files.
        cut: the card ends for them at autobatch's target.
    """
    curves = {curve.name: curve for curve in all_curves()}
    card = TARGET_BYTES if cut else CARD_BYTES
    order, answer = scratch / "order.json", scratch / "answer.json"
    tasks = [
        {"curve": name, "peaks_bytes": curve.peaks_bytes, "card_bytes": card, "tool": tool}
        for name, curve in curves.items()
        for tool in TOOLS
    ]
    order.write_text(json.dumps({"curves": tasks}), encoding="utf-8")
    command = [str(python), "-m", "tests.benchmarks.peers_worker", str(order), str(answer)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found = []
    for said in json.loads(answer.read_text(encoding="utf-8")):
        curve = curves[said["curve"]]
        found.append(
            Found(
                case=curve.name,
                tool=said["tool"],
                answer=said["answer"],
                true=curve.answer,
                own=curve.largest(card),
                attempts=tuple(Attempt(**trial) for trial in said["trials"]),
                seconds=said["seconds"],
                peak=curve.at(said["answer"]) / CARD_BYTES,
            )
        )
    return [
        one
        for curve in curves.values()
        for one in (*_ours(curve), *(f for f in found if f.case == curve.name))
    ]


def noisy_searches() -> NoisySearches:
    """autobatch on many draws of the noisy curves."""
    found = [
        _searched(make_curve("noisy", answer, seed), PLAIN, None)
        for answer in ANSWERS
        for seed in range(1, _SEEDS + 1)
    ]
    trials = [len(one.attempts) for one in found]
    return NoisySearches(len(found), sum(one.exact for one in found), median(trials), max(trials))


def _ours(curve: Curve) -> Sequence[Found]:
    wrong = [_searched(curve, SEEDED, error) for error in (-ESTIMATE_ERROR, ESTIMATE_ERROR)]
    return max(wrong, key=lambda found: len(found.attempts)), _searched(curve, PLAIN, None)


def _searched(curve: Curve, tool: str, error: float | None) -> Found:
    """The probe's own search; `error` is that of the estimate's peaks, over the memory before a batch."""
    before = int(BEFORE * CARD_BYTES)
    guess = None if error is None else max(1, curve.largest(before + (TARGET_BYTES - before) / (1 + error)))
    trials: list[Trial] = []
    began = time.monotonic()
    while True:
        step = next_step(trials, target_bytes=TARGET_BYTES, cap=Cap(ROWS, Limit.DATASET), guess=guess)
        if isinstance(step, Answer):
            break
        trial = _trial(curve, step.batch_size, before)
        over = trial.verdict is Verdict.OVER_TARGET
        trials.append(replace(trial, cut_short=over and is_decisive(trials, step.batch_size)))
    return Found(
        case=curve.name,
        tool=tool,
        answer=step.batch_size,
        true=curve.answer,
        own=curve.answer,
        attempts=tuple(_attempt(trial) for trial in trials),
        seconds=time.monotonic() - began,
        peak=None if step.batch_size is None else curve.at(step.batch_size) / CARD_BYTES,
    )


def _trial(curve: Curve, batch_size: int, before: int) -> Trial:
    peak = curve.at(batch_size)
    if peak > CARD_BYTES:
        return Trial(batch_size, Verdict.OUT_OF_MEMORY, before_bytes=before)
    verdict = Verdict.FITS if peak <= TARGET * CARD_BYTES else Verdict.OVER_TARGET
    return Trial(batch_size, verdict, peak, before_bytes=before)


def _attempt(trial: Trial) -> Attempt:
    """A trial takes `STEPS` optimizer steps (`ProbeRequest.min_steps`); its peak is there in the first.

    It ends with the first when memory runs out, and when the size is over the target and that is all to know.
    """
    out = trial.verdict is Verdict.OUT_OF_MEMORY
    return Attempt(trial.batch_size, 1 if out or trial.cut_short else STEPS, out)
