"""How many trials an estimate saves: the exactness benchmark's probes, searched again with and without it.

    python -m tests.benchmarks.seeded --markdown tests/benchmarks/results/seeded.md

The search is the probe's own (`probing.search`); each trial's peak is taken from `results/exactness-cpu.json`, for
several ranks from `results/distributed-cpu.json`, which have every batch_size from 1 to two above the answer. A
size beyond gets the estimate's peak, moved to meet the last measured one. The estimate is also replaced by one
that is wrong by a factor.

    python -m tests.benchmarks.seeded --really lora-fp32,full-bf16

probes those cases anew, with and without.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from autobatch.demo import SmallRun, lay_out
from autobatch.estimate.forecaster import KERNELS_BYTES, forecast
from autobatch.estimate.recording import recorded
from autobatch.estimate.subject import read_subject
from autobatch.estimate.trace import Curve
from autobatch.probing.forkserver import ForkServer
from autobatch.probing.job import run_probe
from autobatch.probing.meter import MALLOC_ENVIRONMENT
from autobatch.probing.search import Answer, Cap, next_step
from autobatch.records import Limit, ProbeRequest, Trial, Verdict
from tests.benchmarks import distributed
from tests.benchmarks.cases import CASES, Case
from tests.benchmarks.estimates_cpu import MEASURED
from tests.benchmarks.estimates_sharded import MEASURED as OF_RANKS

#: What the estimate's peaks are multiplied with.
_FACTORS = (1.0, 0.25, 4.0)

#: More than any case's dataset has packs.
_CAP = Cap(200, Limit.DATASET)

HEADER = ("config", "answer", "from 1", "from the estimate", "estimate x 0.25", "estimate x 4")


def main(arguments: Sequence[str] | None = None) -> int:
    """Search, print the table; 1 when an answer changes or the median is over three trials."""
    options = _parser().parse_args(arguments)
    server = ForkServer({"PYTHONWARNINGS": "ignore", **MALLOC_ENVIRONMENT}, "cpu")
    if options.really:
        return _really([case for case in CASES if case.name in options.really.split(",")])
    rows, seeded, holds = [], [], True
    for run, measured, ready in _all_cases():
        with tempfile.TemporaryDirectory() as scratch:
            run_dir = lay_out(Path(scratch) / "experiment", run)
            ready(run_dir)
            curve = recorded(read_subject(run_dir), server, timeout_s=600, keep=None).curve
        known = _Peaks(run, measured, curve)
        guesses = [None, *(known.guess(factor) for factor in _FACTORS)]
        searches = [known.search(guess) for guess in guesses]
        holds &= all(answer == _true_answer(measured) for answer, _ in searches)
        seeded.append(len(searches[1][1]))
        cells = (run.name, str(searches[0][0]), *(" ".join(map(str, tried)) for _, tried in searches))
        rows.append("| " + " | ".join(cells) + " |")
        print(rows[-1], flush=True)
    summary = (
        f"Median {statistics.median(seeded):g} trials from the estimate, {max(seeded)} at most; "
        f"every answer {'is' if holds else 'IS NOT'} the measured one."
    )
    print(summary)
    if options.markdown:
        head = ["# Trials with and without an estimate", "", *_EXPLANATION, "", summary, ""]
        table = ["| " + " | ".join(HEADER) + " |", "|" + " --- |" * len(HEADER), *rows]
        options.markdown.write_text("\n".join([*head, *table]) + "\n", encoding="utf-8")
    return 0 if holds and statistics.median(seeded) <= 3 else 1


def _all_cases() -> Iterator[tuple[SmallRun, dict[str, Any], Callable[[Path], None]]]:
    """Each run, what was measured of it, and what makes its directory that of the run that was measured."""
    measured = {case["name"]: case for case in json.loads(MEASURED.read_text(encoding="utf-8"))["cases"]}
    for case in CASES:
        yield case.run, measured[case.name], lambda run_dir: None
    of_ranks = {case["case"]: case for case in json.loads(OF_RANKS.read_text(encoding="utf-8"))["cases"]}
    for ranks in distributed.CASES:
        ready = functools.partial(distributed.on_ranks, case=ranks)
        yield ranks.run, of_ranks[ranks.run.name]["measured"], ready


def _peak_of(plain: dict[str, Any]) -> int:
    """A plain run's peak; of several ranks, the largest one's, its checkpoint included."""
    return int(plain["trained_bytes"] or plain["peaks_bytes"]["resident"])


def _true_answer(measured: dict[str, Any]) -> int:
    """The largest batch_size whose plain run stays within the target."""
    return max(int(p["batch_size"]) for p in measured["plain"] if _peak_of(p) <= measured["target_bytes"])


class _Peaks:
    """What a trial of a case measures, and what an estimate says."""

    def __init__(self, run: SmallRun, measured: dict[str, Any], curve: Curve) -> None:
        first = measured["trials"][0]
        self._target: int = measured["target_bytes"]
        self._before: int = first["before_bytes"]
        self._measured: dict[int, int] = {plain["batch_size"]: _peak_of(plain) for plain in measured["plain"]}
        # What the probe measured itself goes before a plain run's.
        self._measured |= {
            trial["batch_size"]: trial["peak_bytes"]
            for trial in measured["trials"]
            if not trial.get("cut_short")
        }
        self._process: int = self._before - curve.at(first["batch_size"]).before_bytes
        self._kernels = KERNELS_BYTES[run.dtype]
        self._curve = curve

    def guess(self, factor: float) -> int:
        """The largest batch_size whose estimated peak, times `factor`, is within the target."""
        most = self._target / factor
        return max(
            1, self._curve.largest(lambda peak: self._estimate(peak.batch_size) <= most, _CAP.batch_size)
        )

    def search(self, guess: int | None) -> tuple[int | None, list[int]]:
        """The answer, and the sizes tried."""
        trials: list[Trial] = []
        while True:
            step = next_step(trials, target_bytes=self._target, cap=_CAP, guess=guess)
            if isinstance(step, Answer):
                return step.batch_size, [trial.batch_size for trial in trials]
            peak = self._peak(step.batch_size)
            verdict = Verdict.FITS if peak <= self._target else Verdict.OVER_TARGET
            trials.append(Trial(step.batch_size, verdict, peak, before_bytes=self._before))

    def _estimate(self, batch_size: int) -> int:
        peak = self._curve.at(batch_size)
        return self._process + max(peak.setup_bytes, peak.training_bytes + self._kernels)

    def _peak(self, batch_size: int) -> int:
        last = max(self._measured)
        if batch_size <= last:
            return self._measured[batch_size]
        return self._measured[last] + self._estimate(batch_size) - self._estimate(last)


def _really(cases: Sequence[Case]) -> int:
    """Probe with and without, on this machine as it is now."""
    for case in cases:
        with tempfile.TemporaryDirectory() as scratch:
            run = lay_out(Path(scratch) / "experiment", case.run)
            for forecaster in (None, forecast):
                began = time.monotonic()
                request = ProbeRequest(str(run), capacity_bytes=case.capacity_bytes, force=True)
                result = run_probe(request, forecaster=forecaster)
                tried = " ".join(str(trial.batch_size) for trial in result.trials)
                said = f"; {result.prediction}" if result.prediction else ""
                seconds = time.monotonic() - began
                print(f"{case.name}: {result.batch_size}, tried {tried}, {seconds:.1f} s{said}", flush=True)
    return 0


_EXPLANATION = (
    "The probe's own search over the measured peaks of exactness-cpu.json, and for several ranks of",
    "distributed-cpu.json, beginning with 1, with the estimate, and with an estimate wrong by a factor: the batch",
    "sizes that it tries. In `-unequal` one rank holds more than the others, which the estimate can't know.",
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument("--really", metavar="CASES", help="probe these, comma-separated, instead")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
