"""One trial from the job's side: start its process, say what came of it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from autobatch.probing.components import EventFile
from autobatch.probing.forkserver import Exit, ForkServer
from autobatch.probing.meter import oom_kills
from autobatch.probing.trial_config import TrialSetup, micro_batches, trial_config
from autobatch.probing.worker import TrialSpec, run_recipe
from autobatch.records import Metric, Trial, Verdict
from autobatch.runs.out_of_memory import is_out_of_memory


class TrialRunner:
    """Runs trials, each in a process of its own.

    Args:
        server: gives the processes.
        setup: what all trials share.
        target: what runs the recipe in the trial's process.
    """

    def __init__(
        self, server: ForkServer, setup: TrialSetup, target: Callable[[TrialSpec], None] = run_recipe
    ) -> None:
        self._server = server
        self._setup = setup
        self._target = target

    def run(
        self,
        batch_size: int,
        on_step: Callable[[int], None] = lambda steps: None,
        *,
        at_most_s: float = float("inf"),
        end_when_over: bool = False,
    ) -> Trial:
        """Measure one batch size. What went wrong is in the verdict; nothing is raised for it.

        Args:
            batch_size: sequences per micro-batch.
            on_step: called with the number of optimizer steps done so far.
            at_most_s: seconds after which it is ended, should that be before it counts as hung.
            end_when_over: end it after the first step whose peak is over the target.
        """
        setup = self._setup
        name = f"batch_size_{batch_size}"
        log, events, config = (
            setup.directory / "trials" / f"{name}.{ext}" for ext in ("log", "events", "yaml")
        )
        log.parent.mkdir(parents=True, exist_ok=True)
        for left_over in (log, events):
            left_over.unlink(missing_ok=True)
        text = trial_config(setup, batch_size, events, end_when_over=end_when_over)
        config.write_text(text, encoding="utf-8")
        spec = TrialSpec(
            recipe=str(setup.recipe),
            config=str(config),
            working_dir=str(setup.working_dir),
            events=str(events),
            device=setup.device,
            skip_init=setup.device == "cpu" and not setup.load_weights,
        )
        event_file = EventFile(events)
        kills = oom_kills()
        asked = time.monotonic()
        ended = self._server.run(
            self._target,
            spec,
            log=log,
            timeout_s=min(setup.timeout_s, at_most_s),
            on_wait=lambda: on_step(sum(event["event"] == "step" for event in event_file.read())),
        )
        said = event_file.read()
        trial = read_trial(
            batch_size,
            said,
            ended,
            metric=setup.metric,
            step_tokens=step_tokens(setup, batch_size),
            oom_killed=oom_kills() > kills,
            output=tail(log),
        )
        started = next((event["time"] for event in said if event["event"] == "started"), None)
        trial = replace(
            trial,
            start_seconds=None if started is None else started - asked,
            log=f"probe/trials/{log.name}",
        )
        return judge(trial, setup.metric, setup.target_bytes)


def step_tokens(setup: TrialSetup, batch_size: int) -> int | None:
    """Positions of all rows of an optimizer step, of all ranks; None where its time says nothing."""
    if setup.row_tokens is None:
        return None
    ranks = setup.world.data_parallel if setup.world is not None else 1
    return batch_size * micro_batches(setup.config) * ranks * setup.row_tokens


def read_trial(
    batch_size: int,
    events: Sequence[dict[str, Any]],
    ended: Exit,
    *,
    metric: Metric,
    step_tokens: int | None,
    oom_killed: bool,
    output: str,
) -> Trial:
    """What a trial's events and its exit say. Whether a finished trial fits is `judge`'s to say.

    Args:
        batch_size: sequences per micro-batch.
        events: of the trial's event file.
        ended: how its process did.
        metric: the peak that counts.
        step_tokens: positions of all rows of an optimizer step; None where its time says nothing.
        oom_killed: whether the kernel's OOM killer struck meanwhile.
        output: the last lines of what it printed.
    """
    steps = [event for event in events if event["event"] == "step"]
    first = next((event for event in events if event["event"] == "first_batch"), None)
    error = next((event for event in events if event["event"] == "error"), None)
    names = {event["event"] for event in events}
    peaks = tuple(step["peaks"][metric.value] for step in steps)
    seconds = _step_seconds(steps, first)
    trial = Trial(
        batch_size=batch_size,
        verdict=Verdict.CRASHED,
        peak_bytes=peaks[-1] if peaks else None,
        peaks_bytes=dict(steps[-1]["peaks"]) if steps else {},
        before_bytes=_in_use(first["current"], metric) if first else None,
        step_peaks_bytes=peaks,
        alloc_retries=max((step["retries"] for step in steps), default=0),
        tokens_per_second=_rate(step_tokens, seconds, len(steps)),
        step_seconds=seconds,
        seconds=ended.seconds,
        training_seconds=steps[-1]["time"] - first["time"] if steps and first else 0.0,
    )
    if "finished" in names:
        return replace(trial, verdict=Verdict.FITS)
    if "over" in names:
        # The only step there may be has warmed up as well: its time says nothing.
        return replace(trial, verdict=Verdict.OVER_TARGET, cut_short=True, tokens_per_second=None)
    if "unstable" in names:
        return replace(trial, verdict=Verdict.UNSTABLE, detail=_growth(peaks))
    if ended.timed_out:
        return replace(trial, verdict=Verdict.TIMED_OUT, detail=output)
    said = f"{error['kind']}: {error['message']}" if error else output
    killed = ended.code == -signal.SIGKILL
    if is_out_of_memory(said) or (killed and oom_killed):
        return replace(trial, verdict=Verdict.OUT_OF_MEMORY, peak_bytes=None, detail=said)
    if error is None:
        said = f"{describe_exit(ended)} before its last step\n{output}".rstrip()
    return replace(trial, detail=said)


def judge(trial: Trial, metric: Metric, target_bytes: int) -> Trial:
    """`trial` with its verdict for this metric and target, which only finished trials have a choice of.

    One that was cut short must be over this target as well (`can_be_judged`).
    """
    if trial.verdict not in (Verdict.FITS, Verdict.OVER_TARGET):
        return trial
    peak = trial.peaks_bytes[metric.value]
    fits = peak <= target_bytes and trial.alloc_retries == 0
    return replace(trial, peak_bytes=peak, verdict=Verdict.FITS if fits else Verdict.OVER_TARGET)


def can_be_judged(trial: Trial, metric: Metric, target_bytes: int) -> bool:
    """Whether what was measured says if the size fits this target, perhaps another than it was measured for."""
    if trial.verdict is Verdict.OUT_OF_MEMORY:
        return True
    peak = trial.peaks_bytes.get(metric.value)
    return peak is not None and (not trial.cut_short or peak > target_bytes)


def was_killed(trial: Trial) -> bool:
    """Whether the trial's process was killed from outside, which says nothing about its batch size."""
    return trial.verdict is Verdict.CRASHED and trial.detail.startswith("killed by signal")


def _step_seconds(steps: Sequence[dict[str, Any]], first_batch: dict[str, Any] | None) -> tuple[float, ...]:
    """Time of each optimizer step; the first begins with its first batch, and has none where that isn't known."""
    began = [first_batch["time"] if first_batch else None, *(step["began"] for step in steps[1:])]
    return tuple(
        step["ended"] - start for step, start in zip(steps, began, strict=False) if start is not None
    )


def _rate(step_tokens: int | None, step_seconds: Sequence[float], steps: int) -> float | None:
    """Tokens per second of the median step, without the first, which also warms up, if there are others."""
    counted = step_seconds[-(steps - 1) :] if steps > 1 else step_seconds
    typical = median(counted) if counted else 0.0
    return step_tokens / typical if step_tokens is not None and typical > 0 else None


def _in_use(current: Mapping[str, int], metric: Metric) -> int:
    """What the first batch comes on top of.

    Of reserved memory, what set-up has left in the allocator's cache isn't: the first batch takes it.
    """
    if metric is Metric.RESERVED:
        return current.get(Metric.ALLOCATED.value, current[metric.value])
    return current[metric.value]


def describe_exit(ended: Exit) -> str:
    """How a process ended, in words."""
    if ended.code < 0:
        return f"killed by signal {-ended.code} ({signal.Signals(-ended.code).name})"
    return f"ended with status {ended.code}"


def _growth(peaks: Sequence[int]) -> str:
    per_step = (peaks[-1] - peaks[1]) / (len(peaks) - 2)
    return (
        f"the peak still grows after {len(peaks)} optimizer steps, "
        f"by {per_step / 2**20:.1f} MiB a step: the recipe leaks memory, or its steps differ in size"
    )


def tail(log: Path, lines: int = 20) -> str:
    """The last lines of a trial's output, without the intermediate states of progress bars."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 65536))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    visible = [line.rsplit("\r", 1)[-1] for line in text.splitlines()]
    return "\n".join([line for line in visible if line.strip()][-lines:])
