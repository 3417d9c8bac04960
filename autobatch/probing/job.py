"""The story of a probe on the node, from the run directory to the answer.

    read the run -> find the device -> pack once -> search: trial after trial -> decide -> write back

Prints nothing: what happens is told through `Event`s. Nothing of the user's is written before the last
trial has ended; `probe/result.json` comes last and says how it went, also when the answer is no.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from autobatch.edits.files import replace_file
from autobatch.probing import outcome
from autobatch.probing.density_store import DensityStore
from autobatch.probing.distributed_trial import TrialRuns, runner_for
from autobatch.probing.events import (
    Began,
    Ended,
    Event,
    FoundDevice,
    Packed,
    Said,
    Stepped,
    TrialBegan,
    TrialEnded,
)
from autobatch.probing.forecast import Forecaster, Hint, Occasion, hint_for
from autobatch.probing.forkserver import ForkServer
from autobatch.probing.identity import device_of, is_packed, run_fingerprint
from autobatch.probing.journal import Decision, Journal
from autobatch.probing.lock import only_one
from autobatch.probing.meter import MALLOC_ENVIRONMENT
from autobatch.probing.node import check_allocation
from autobatch.probing.search import Answer, Cap, bracket_of, next_step
from autobatch.probing.trial import judge, was_killed
from autobatch.probing.trial_config import TrialSetup
from autobatch.probing.versions import installed_versions
from autobatch.probing.writeback import write_back
from autobatch.records import (
    Density,
    Limit,
    Metric,
    ProbeRequest,
    ProbeResult,
    Status,
    Trial,
    Verdict,
    to_json,
)
from autobatch.runs.directory import RunDirectory, read_run
from autobatch.runs.fingerprint import data_signature
from autobatch.runs.results import RESULT, find_result

JOURNAL = "trials.jsonl"

#: An estimate that takes longer costs more than the trials that it saves.
_FORECAST_S = 90.0

#: Seconds to leave for writing the answer down.
_WRITE_BACK_S = 10.0


def run_probe(
    request: ProbeRequest,
    tell: Callable[[Event], None] = lambda event: None,
    *,
    deadline: float | None = None,
    forecaster: Forecaster | None = None,
) -> ProbeResult:
    """Probe one run, on this machine, in this process and its children.

    Args:
        request: what is asked.
        tell: hears what happens.
        deadline: Unix time by which it must be over; a trial that wouldn't end by then isn't begun.
        forecaster: says where to begin, and what to compare with; None begins with 1.

    Returns:
        The answer, or why there is none; `probe/result.json` holds the same.

    Raises:
        RunProblems: the run directory can't be probed; nothing was started.
        UsageError: another probe of this run is running, or there is no such device, or too few nodes.
        EditError: a file of the user's couldn't be written; the measurements are in the journal.
    """
    began = time.monotonic()
    run = read_run(Path(request.run_dir), request)
    if run.world is not None:
        check_allocation(run.world)
    with only_one(run.path / "probe"):
        probe = _Probe(request, run, tell, began, deadline, forecaster if request.estimate else None)
        result = probe.carry_out()
        tell(Ended(result))
        return result


class _Probe:
    """One attempt at a probe, step by step."""

    def __init__(
        self,
        request: ProbeRequest,
        run: RunDirectory,
        tell: Callable[[Event], None],
        began: float,
        deadline: float | None,
        forecaster: Forecaster | None,
    ) -> None:
        self._request = request
        self._run = run
        self._tell = tell
        self._began = began
        self._deadline = deadline
        self._forecaster = forecaster
        self._directory = run.path / "probe"
        self._started = _utc_now()
        self._measured_now = 0
        self._resumed_seconds = 0.0
        if run.script is not None:
            # The probe must allocate as the training job will.
            os.environ.update(run.script.exports)
        environment = MALLOC_ENVIRONMENT if run.device == "cpu" else {}
        self._server = ForkServer(environment, run.device, ranks=run.world is not None)
        self._recipe = run.recipe.note
        self._packed = is_packed(run, request)

    def carry_out(self) -> ProbeResult:
        run, request = self._run, self._request
        # Before anything is measured: a file that this version must not overwrite.
        find_result(self._directory / RESULT)
        self._tell(Began(run.name, self._recipe, run.notes))
        self._server.start()
        device = device_of(run, self._server, self._directory, request.trial_timeout_s)
        metric = Metric.RESIDENT if device.kind == "cpu" else request.metric
        capacity = request.capacity_bytes or device.total_bytes
        result = ProbeResult(
            status=Status.CRASHED,
            message="",
            request=request,
            recipe=self._recipe,
            device=device,
            metric=metric,
            capacity_bytes=capacity,
            target_bytes=int(capacity * request.target_fraction),
            batch_size_before=run.batch_size,
            gradient_accumulation_steps=run.gradient_accumulation_steps,
            fingerprint=run_fingerprint(run, request, device),
            versions=installed_versions(),
            world=run.world,
            started=self._started,
        )
        self._tell(FoundDevice(device, capacity, result.target_bytes or 0, metric.value))
        store = DensityStore(
            run,
            self._directory,
            packed=self._packed,
            sample=request.density_sample,
            in_memory=device.kind == "cpu",
        )
        packing = store.get(self._server, self._tell, fresh=request.force)
        if packing.density is None:
            return self._end(outcome.packing_failed(result, run, packing.error))
        result = replace(result, density=packing.density)
        cap = self._cap(packing.density)
        self._tell(Packed(packing.density, cap.batch_size, cap.limit.value))
        if cap.batch_size < 1:
            return self._end(outcome.too_few_packs(result))
        return self._search(result, cap, store.rows, packing.held_bytes)

    def _search(self, result: ProbeResult, cap: Cap, rows: Path, held_bytes: int) -> ProbeResult:
        assert result.device is not None
        metric, target_bytes = result.metric, result.target_bytes
        assert metric is not None
        assert target_bytes is not None
        journal = self._open_journal(result)
        runner = runner_for(
            self._server,
            TrialSetup(
                config=self._run.config,
                recipe=self._run.recipe.path,
                working_dir=self._run.working_dir,
                device=result.device.kind,
                metric=metric,
                target_bytes=target_bytes,
                rows=rows,
                held_bytes=held_bytes,
                packed=self._packed,
                min_steps=self._request.min_steps,
                timeout_s=self._request.trial_timeout_s,
                load_weights=self._request.load_weights,
                directory=self._directory,
                world=self._run.world,
            ),
        )
        hint = self._hint(result, cap, held_bytes, journal)
        result = replace(result, prediction=hint.prediction())
        # What an interrupted probe began with is on file, and costs nothing to begin with again.
        guess = journal.trials[0].batch_size if journal.trials else hint.guess
        trials: list[Trial] = []
        on_file = {trial.batch_size: trial for trial in journal.trials if _is_usable(trial, metric)}
        while True:
            step = next_step(trials, target_bytes=target_bytes, cap=cap, guess=guess)
            if isinstance(step, Answer):
                result = replace(result, prediction=hint.prediction(step.batch_size))
                return self._decide(replace(result, trials=tuple(trials)), step, journal)
            known = on_file.get(step.batch_size)
            if known is not None:
                trial = judge(known, metric, target_bytes)
                self._resumed_seconds += trial.seconds
            elif self._is_too_late(trials):
                return self._out_of_time(replace(result, trials=tuple(trials)), cap, journal)
            else:
                bracket = bracket_of(trials, cap.batch_size)
                self._tell(
                    TrialBegan(
                        step.batch_size,
                        bracket.fits,
                        bracket.fails if bracket.fails <= cap.batch_size else None,
                    )
                )
                trial = self._measure(runner, step.batch_size)
                if trial.verdict is Verdict.TIMED_OUT and self._seconds_left() <= 0:
                    return self._out_of_time(replace(result, trials=tuple(trials)), cap, journal)
                journal.add_trial(trial)
                self._measured_now += 1
            trials.append(trial)
            self._tell(TrialEnded(trial, resumed=known is not None))
            if trial.verdict in outcome.ENDS_THE_PROBE:
                return self._end(outcome.trial_failed(replace(result, trials=tuple(trials)), trial))

    def _hint(self, result: ProbeResult, cap: Cap, held_bytes: int, journal: Journal) -> Hint:
        assert result.device is not None
        assert result.metric is not None
        assert result.target_bytes is not None
        occasion = Occasion(
            run=self._run,
            packed=self._packed,
            server=self._server,
            device=result.device,
            metric=result.metric,
            held_bytes=held_bytes,
            timeout_s=min(_FORECAST_S, self._seconds_left() / 4),
        )
        forecaster = None if journal.trials else self._forecaster
        hint = hint_for(forecaster, occasion, result.target_bytes, cap.batch_size)
        prediction = hint.prediction()
        if prediction is not None:
            self._tell(Said(outcome.predicted(prediction)))
        return hint

    def _is_too_late(self, trials: Sequence[Trial]) -> bool:
        """Whether another trial, taking half as long again as the longest yet, would outlast the deadline."""
        return 1.5 * max((trial.seconds for trial in trials), default=0.0) > self._seconds_left()

    def _seconds_left(self) -> float:
        """For measuring, with enough kept for writing the answer down."""
        if self._deadline is None:
            return float("inf")
        return self._deadline - _WRITE_BACK_S - time.time()

    def _out_of_time(self, result: ProbeResult, cap: Cap, journal: Journal) -> ProbeResult:
        bracket = bracket_of(result.trials, cap.batch_size)
        if self._request.accept_partial and bracket.fits:
            return self._decide(result, Answer(bracket.fits, Limit.TIME), journal)
        return self._end(outcome.out_of_time(result, bracket))

    def _measure(self, runner: TrialRuns, batch_size: int) -> Trial:
        seen = 0

        def on_step(steps: int) -> None:
            nonlocal seen
            if steps > seen:
                seen = steps
                self._tell(Stepped(batch_size, steps))

        trial = runner.run(batch_size, on_step, at_most_s=self._seconds_left())
        if was_killed(trial):
            self._tell(
                Said(f"batch_size {batch_size}: the trial was {trial.detail.splitlines()[0]}; once more")
            )
            seen = 0
            trial = runner.run(batch_size, on_step, at_most_s=self._seconds_left())
        return trial

    def _decide(self, result: ProbeResult, answer: Answer, journal: Journal) -> ProbeResult:
        if answer.batch_size is None:
            return self._end(outcome.nothing_fits(result))
        before = self._run.batch_size
        if journal.decision is not None and journal.decision.batch_size == answer.batch_size == before:
            # Killed, or run again, after finetune.yaml was written: what is in it now is our own value.
            before = journal.decision.batch_size_before
        result = outcome.done(replace(result, batch_size_before=before), answer)
        stored = find_result(self._directory / RESULT)
        if journal.decision is None or journal.decision.batch_size != answer.batch_size:
            journal.add_decision(Decision(answer.batch_size, before))
        written = write_back(self._run, result, self._tell)
        if self._measured_now == 0 and not written and stored is not None and _same_answer(stored, result):
            return replace(stored, reused=True)
        return self._end(replace(result, written=written))

    def _end(self, result: ProbeResult) -> ProbeResult:
        seconds = time.monotonic() - self._began + self._resumed_seconds
        result = replace(result, ended=_utc_now(), seconds=seconds)
        text = json.dumps(to_json(result), indent=2, ensure_ascii=False) + "\n"
        replace_file(self._directory / RESULT, text, expected=None)
        return result

    def _cap(self, density: Density) -> Cap:
        # torchtune drops the last incomplete step: with fewer packs it trains zero steps and exits 0.
        by_dataset = density.packs_of_a_rank(self._run.data_parallel) // self._run.gradient_accumulation_steps
        asked = self._request.max_batch_size
        if asked is not None and asked < by_dataset:
            return Cap(asked, Limit.MAX_BATCH_SIZE)
        return Cap(by_dataset, Limit.DATASET)

    def _open_journal(self, result: ProbeResult) -> Journal:
        key = {
            "fingerprint": result.fingerprint,
            "device": to_json(result.device),
            "min_steps": self._request.min_steps,
            # A row of an unpacked dataset is as long as its longest example.
            "longest": None if self._packed or result.density is None else result.density.longest_example,
            # In memory beside the model, where the model is on the CPU.
            "data": data_signature(self._run.resolved(), self._run.working_dir)
            if self._run.device == "cpu"
            else None,
        }
        return Journal(self._directory / JOURNAL, key, fresh=self._request.force)


def _is_usable(trial: Trial, metric: Metric) -> bool:
    """Whether a trial of the journal has the peak that counts: someone may have edited it."""
    return trial.verdict is Verdict.OUT_OF_MEMORY or metric.value in trial.peaks_bytes


def _same_answer(one: ProbeResult, two: ProbeResult) -> bool:
    return (
        one.status is Status.DONE
        and (one.batch_size, one.fingerprint, one.target_bytes, one.metric, one.limit)
        == (two.batch_size, two.fingerprint, two.target_bytes, two.metric, two.limit)
        and one.density is not None
        and two.density is not None
        and replace(one.density, seconds=0) == replace(two.density, seconds=0)
    )


def _utc_now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
