"""The story of a probe on the node, from the run directory to the answer.

    read the run -> find the device -> pack once -> search: trial after trial -> choose -> write back

Prints nothing: what happens is told through `Event`s. Nothing of the user's is written before the last
trial has ended; `probe/result.json` comes last and says how it went, also when the answer is no.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path

from autobatch.edits.files import replace_file
from autobatch.errors import UsageError
from autobatch.probing import outcome
from autobatch.probing.choice import Choice, choose_measured, next_choice
from autobatch.probing.density_store import DensityStore
from autobatch.probing.distributed_trial import runner_for
from autobatch.probing.events import Began, Ended, Event, FoundDevice, Packed, Said
from autobatch.probing.forecast import Forecaster, Hint, Occasion
from autobatch.probing.forkserver import ForkServer
from autobatch.probing.identity import device_of, is_packed, run_fingerprint
from autobatch.probing.journal import JOURNAL, Decision, Journal
from autobatch.probing.lock import only_one
from autobatch.probing.meter import MALLOC_ENVIRONMENT
from autobatch.probing.node import check_allocation
from autobatch.probing.pool import KnownTrials, TrialPool
from autobatch.probing.search import Answer, Cap, bracket_of, next_step
from autobatch.probing.series import Deadline, Series, Stopped
from autobatch.probing.trial_config import TrialSetup
from autobatch.probing.versions import installed_versions
from autobatch.probing.wish import Wish, batch_before, cap_of, wish_of
from autobatch.probing.writeback import write_back
from autobatch.records import Density, Limit, Metric, Preference, ProbeRequest, ProbeResult, Status, to_json
from autobatch.runs.directory import RunDirectory, read_run
from autobatch.runs.fingerprint import data_bytes
from autobatch.runs.results import RESULT, find_result
from autobatch.simulated_gpu.kernels import KERNELS, kernel_cache


def run_probe(
    request: ProbeRequest,
    tell: Callable[[Event], None] = lambda event: None,
    *,
    deadline: float | None = None,
    forecaster: Forecaster | None = None,
    pool: TrialPool | None = None,
    attempt: str = "",
) -> ProbeResult:
    """Probe one run, on this machine, in this process and its children.

    Args:
        request: what is asked.
        tell: hears what happens.
        deadline: Unix time by which it must be over; a trial that wouldn't end by then isn't begun.
        forecaster: says where to begin, and what to compare with; None begins with 1.
        pool: what other runs have measured, and hear of what this one does; None for a run by itself.
        attempt: the same when a job is requeued; what it has measured itself, `force` doesn't discard.

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
        forecaster = forecaster if request.estimate else None
        probe = _Probe(
            request, run, tell, began, Deadline(deadline), forecaster, pool or TrialPool(), attempt
        )
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
        deadline: Deadline,
        forecaster: Forecaster | None,
        pool: TrialPool,
        attempt: str,
    ) -> None:
        self._request = request
        self._run = run
        self._tell = tell
        self._began = began
        self._deadline = deadline
        self._forecaster = forecaster
        self._pool = pool
        self._attempt = attempt
        self._directory = run.path / "probe"
        self._started = _utc_now()
        if run.script is not None:
            # The probe must allocate as the training job will.
            os.environ.update(run.script.exports)
        environment = MALLOC_ENVIRONMENT if run.device == "cpu" else _kernels(run)
        self._server = ForkServer(environment, run.device, ranks=run.world is not None)
        self._recipe = run.recipe.note
        self._packed = is_packed(run, request)

    def carry_out(self) -> ProbeResult:
        run, request = self._run, self._request
        # Before anything is measured: a file that this version must not overwrite.
        stored = find_result(self._directory / RESULT)
        self._tell(Began(run.name, self._recipe, run.notes))
        self._server.start()
        device = device_of(run, self._server, self._directory, request.trial_timeout_s)
        if device.simulated:
            self._check_simulated(stored)
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
        packing = store.get(
            self._server,
            self._tell,
            fresh=request.force,
            attempt=self._attempt,
            packed_by=self._pool.packed,
        )
        if packing.density is None:
            return self._end(outcome.packing_failed(result, run, packing.error))
        density = packing.density
        wish = wish_of(request, run, density)
        # What is measured covers every way to divide a held batch; the fingerprint of the way chosen comes later.
        measured = run.with_batch(run.batch_size, wish.accumulation_measured)
        result = replace(
            result,
            density=density,
            before=batch_before(run, density),
            fingerprint=run_fingerprint(measured, request, device),
            remarks=wish.hold.remarks if wish.hold else (),
        )
        cap = cap_of(request, wish, density)
        if wish.hold is not None:
            self._tell(Said(outcome.holding(wish.hold, density)))
        self._tell(Packed(density, cap.batch_size, cap.limit.value))
        if cap.batch_size < 1:
            return self._end(outcome.too_few_packs(result))
        return self._search(result, measured, wish, cap, store.rows, packing.held_bytes)

    def _check_simulated(self, stored: ProbeResult | None) -> None:
        if stored is not None and stored.device is not None and not stored.device.simulated:
            raise UsageError(
                f"{self._directory / RESULT}: holds what was measured on {stored.device.name}, and a simulated "
                "GPU would replace it: copy the run, or take `autobatch estimate`"
            )
        if self._request.prefer is Preference.THROUGHPUT:
            raise UsageError(
                "--prefer throughput: on a simulated GPU no kernel runs, so that tokens/s say nothing"
            )

    def _search(
        self, result: ProbeResult, run: RunDirectory, wish: Wish, cap: Cap, rows: Path, held_bytes: int
    ) -> ProbeResult:
        """Find what fits and choose from it; `run` as it is measured."""
        device, metric, target_bytes, density = (
            result.device,
            result.metric,
            result.target_bytes,
            result.density,
        )
        assert device is not None
        assert metric is not None
        assert target_bytes is not None
        assert density is not None
        journal = self._open_journal(result)
        known = KnownTrials(journal, self._pool, self._run.path, metric, target_bytes)
        runner = runner_for(
            self._server,
            TrialSetup(
                config=run.config,
                recipe=run.recipe.path,
                working_dir=run.working_dir,
                device=device.kind,
                metric=metric,
                target_bytes=target_bytes,
                rows=rows,
                held_bytes=held_bytes,
                packed=self._packed,
                row_tokens=None
                if device.simulated
                else (density.max_seq_len if density.packed else None) or density.longest_example,
                min_steps=self._request.min_steps,
                timeout_s=self._request.trial_timeout_s,
                load_weights=self._request.load_weights,
                directory=self._directory,
                world=self._run.world,
            ),
        )
        occasion = Occasion(run=run, packed=self._packed, device=device, metric=metric)
        hint = self._hint(occasion, target_bytes, cap, known)
        guess = known.guess(cap.batch_size) or hint.guess
        if wish.hold is not None and not wish.hold.accumulates:
            guess = cap.batch_size
        series = Series(
            runner,
            known,
            cap=cap.batch_size,
            deadline=self._deadline,
            tell=self._tell,
        )
        answer = series.follow(
            lambda trials: next_step(trials, target_bytes=target_bytes, cap=cap, guess=guess)
        )
        choice = answer if isinstance(answer, Stopped) else self._choose(series, answer, wish)
        if choice is Stopped.OUT_OF_TIME:
            choice = self._choose_in_time(series, answer, wish, cap)
        result = replace(result, trials=tuple(series.trials), prediction=hint.prediction())
        if choice is Stopped.FAILED:
            return self._end(outcome.trial_failed(result, series.trials[-1]), series)
        if choice is Stopped.OUT_OF_TIME:
            bracket = bracket_of(series.trials, cap.batch_size)
            return self._end(outcome.out_of_time(result, bracket), series)
        if isinstance(choice, Choice):
            result = replace(result, prediction=hint.prediction(choice.batch_size))
            return self._decide(result, choice, journal, series)
        if isinstance(answer, Answer) and answer.batch_size is None:
            return self._end(outcome.nothing_fits(result), series)
        return self._end(outcome.cannot_hold(result, wish), series)

    def _choose(self, series: Series, answer: Answer, wish: Wish) -> Choice | Stopped | None:
        if answer.batch_size is None:
            return None
        searched = len(series.trials)
        return series.follow(lambda trials: next_choice(trials, answer, wish, searched))

    def _choose_in_time(
        self, series: Series, answer: Answer | Stopped, wish: Wish, cap: Cap
    ) -> Choice | Stopped:
        """What may be chosen of the trials that there was time for."""
        partial = self._request.accept_partial
        if isinstance(answer, Stopped):
            fits = bracket_of(series.trials, cap.batch_size).fits
            if not (partial and fits):
                return Stopped.OUT_OF_TIME
            answer = Answer(fits, Limit.TIME)
        return choose_measured(series.trials, answer, wish, accept_partial=partial) or Stopped.OUT_OF_TIME

    def _hint(self, occasion: Occasion, target_bytes: int, cap: Cap, known: KnownTrials) -> Hint:
        forecast = None if known or self._forecaster is None else self._forecaster(occasion)
        hint = Hint(forecast, target_bytes, cap.batch_size)
        prediction = hint.prediction()
        if prediction is not None:
            self._tell(Said(outcome.predicted(prediction)))
        return hint

    def _decide(self, result: ProbeResult, choice: Choice, journal: Journal, series: Series) -> ProbeResult:
        run = self._run
        new = (choice.batch_size, choice.gradient_accumulation_steps)
        decision, before = journal.decision, result.before
        device = result.device
        assert before is not None
        assert device is not None
        if decision is not None and decision.is_for(*new) and new == _settings_of(run):
            # Killed, or run again, after finetune.yaml was written: what is in it now are our own values.
            before = decision.before
        result = replace(
            result,
            before=before,
            batch_size_before=before.batch_size,
            # As it is trained with now: a held batch may be measured with more micro-batches than that.
            fingerprint=run_fingerprint(run.with_batch(*new), self._request, device),
        )
        result = outcome.done(result, choice)
        stored = find_result(self._directory / RESULT)
        if decision is None or not decision.is_for(*new):
            journal.add_decision(Decision(*new, before))
        written = () if device.simulated else write_back(run, result, self._tell)
        fresh = series.measured > 0 or written or self._request.force
        if not fresh and stored is not None and _same_answer(stored, result):
            return replace(stored, reused=True)
        return self._end(replace(result, written=written), series)

    def _end(self, result: ProbeResult, series: Series | None = None) -> ProbeResult:
        seconds = time.monotonic() - self._began
        if series is not None:
            seconds += series.known.resumed_seconds
            result = replace(result, shared_from=series.known.shared_from(result.trials))
        result = replace(result, ended=_utc_now(), seconds=seconds)
        text = json.dumps(to_json(result), indent=2, ensure_ascii=False) + "\n"
        replace_file(self._directory / RESULT, text, expected=None)
        return result

    def _open_journal(self, result: ProbeResult) -> Journal:
        key = {
            "fingerprint": result.fingerprint,
            "device": to_json(result.device),
            "min_steps": self._request.min_steps,
            # A row of an unpacked dataset is as long as its longest example.
            "longest": None if self._packed or result.density is None else result.density.longest_example,
            # In memory beside the model, where the model is on the CPU.
            "data": self._data_size(result.density) if self._run.device == "cpu" else None,
        }
        return Journal(self._directory / JOURNAL, key, fresh=self._request.force, attempt=self._attempt)

    def _data_size(self, density: Density | None) -> dict[str, int]:
        counts = {"examples": density.examples, "packs": density.packs} if density is not None else {}
        return {"bytes": data_bytes(self._run.resolved(), self._run.working_dir), **counts}


def _kernels(run: RunDirectory) -> dict[str, str]:
    """Where trials keep their kernels, unless the user, or a simulated GPU, has chosen a place."""
    chosen = kernel_cache(run.path / "probe" / KERNELS)
    return {name: place for name, place in chosen.items() if name not in os.environ}


def _settings_of(run: RunDirectory) -> tuple[int, int]:
    return run.batch_size, run.gradient_accumulation_steps


def _same_answer(one: ProbeResult, two: ProbeResult) -> bool:
    return (
        one.status is Status.DONE
        and _asked(one.request) == _asked(two.request)
        and (one.message, one.fingerprint, one.target_bytes, one.metric, one.limit, one.after, one.remarks)
        == (two.message, two.fingerprint, two.target_bytes, two.metric, two.limit, two.after, two.remarks)
        and one.density is not None
        and two.density is not None
        and replace(one.density, seconds=0) == replace(two.density, seconds=0)
    )


def _asked(request: ProbeRequest) -> tuple[object, ...]:
    """What a request asks beside that it fits."""
    return (
        request.hold_effective_batch,
        request.effective_batch,
        request.effective_batch_in,
        request.prefer,
    )


def _utc_now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
