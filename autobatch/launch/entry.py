"""What runs as the probe's job: under submitit, or in a process of its own (`--cluster inline`)."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from autobatch.errors import AutobatchError, JobError, UsageError
from autobatch.records import ProbeRequest, from_json, to_json

if TYPE_CHECKING:
    from autobatch.probing.events import Event
    from autobatch.probing.pool import TrialPool

#: Seconds before the time limit at which Slurm warns a job with a signal, on which submitit requeues it.
SIGNAL_DELAY_S = 15

#: Longer than partitions give a preempted job to end (GraceTime).
_GRACE_S = 600.0

#: How much too early Slurm may warn of the time limit, and some.
_EARLY_S = 80.0


def probe_job(
    request: Mapping[str, Any], attempt: str, environment: Mapping[str, str | None]
) -> dict[str, Any]:
    """Run a probe and return its result as JSON.

    Args:
        request: a `ProbeRequest` as JSON.
        attempt: marks this job's events, and what it has measured by force.
        environment: set (None: unset) before anything else; submitit's local executor hides the cards.

    Raises:
        JobError: there is no batch_size. The job's exit status must say so, for a training job that depends
            on it; the reason is in `probe/result.json`.
        AutobatchError: the run can't be probed, or a file can't be written.
    """
    return probe_one(request, attempt, begin_job(environment))


def begin_job(environment: Mapping[str, str | None]) -> float | None:
    """What a job does first: its environment, and what it makes of signals.

    Args:
        environment: as for `probe_job`.

    Returns:
        Unix time by which it should have ended by itself; None for no limit.
    """
    from autobatch.probing.forkserver import die_with_parent

    for name, value in environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    deadline = _deadline()
    if os.environ.get("SUBMITIT_EXECUTOR") == "slurm":
        signal.signal(signal.SIGTERM, _await_the_end)
        _requeue_only_when_preempted(deadline)
    elif os.environ.get("SUBMITIT_EXECUTOR") == "local":
        # submitit passes over SIGTERM, with which a probe is cancelled, and its job outlives its controller.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        die_with_parent(signal.SIGKILL)
    return deadline


def probe_one(
    request: Mapping[str, Any], attempt: str, deadline: float | None, pool: TrialPool | None = None
) -> dict[str, Any]:
    """Probe one run in a job that has begun.

    Args:
        request: a `ProbeRequest` as JSON.
        attempt: as for `probe_job`.
        deadline: of `begin_job`.
        pool: what the job's other probes have measured.

    Raises:
        AutobatchError: as `probe_job`.
    """
    # Only here: whoever submits this function must not pay for these imports.
    from autobatch.estimate.on_file import forecast
    from autobatch.launch.drawing import draw_report
    from autobatch.probing.events import EVENTS, Ended, EventLog, Failed, Said
    from autobatch.probing.job import run_probe

    asked = from_json(ProbeRequest, request)
    run_dir = Path(asked.run_dir)
    if not run_dir.is_dir():
        raise JobError(
            f"{run_dir}: not a directory on {os.uname().nodename}. The job must see the run at the path that it "
            "was submitted with: put it on a file system that the nodes share."
        )
    log = EventLog(run_dir / "probe" / EVENTS, attempt)

    def tell(event: Event) -> None:
        # The result is on disk. Drawn before its end is told: who waits for that may end this job with itself.
        if isinstance(event, Ended):
            seconds = float("inf") if deadline is None else deadline - time.time()
            problem = draw_report(event.result, run_dir, seconds)
            if problem:
                log(Said(f"the report wasn't drawn: {problem}"))
        log(event)

    try:
        try:
            result = run_probe(
                asked, tell, deadline=deadline, forecaster=forecast, pool=pool, attempt=attempt
            )
        except OSError as error:
            # A full disk, or a directory where one of the files in probe/ should be.
            raise UsageError(
                f"{error.filename or run_dir}: {error.strerror or error}: make room, or move away what is in its "
                "place, then run again"
            ) from error
    except Exception as error:
        failed = Failed(f"the probe's job failed: {type(error).__name__}: {error}", JobError.exit_code)
        if isinstance(error, AutobatchError):
            failed = Failed(str(error), error.exit_code)
        with suppress(OSError):
            tell(failed)
        raise
    if result.status.exit_code != 0:
        raise JobError(result.message)
    return dict(to_json(result))


class ProbeJob:
    """`probe_job` in a form that submitit can requeue: a preempted job goes on from the probe's journal.

    Args:
        request: a `ProbeRequest` as JSON.
        attempt: as for `probe_job`; it stays when the job is requeued.
    """

    def __init__(self, request: Mapping[str, Any], attempt: str) -> None:
        self._request = dict(request)
        self._attempt = attempt

    def __call__(self) -> dict[str, Any]:
        """Run the probe."""
        return probe_job(self._request, self._attempt, {})

    def checkpoint(self) -> Any:
        """What submitit runs when the job starts again: the same; the journal knows how far it got."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _await_the_end(*_: object) -> None:
    """Do nothing more: no trial, no write. Slurm has told this job to end.

    A preempted one is told again with the signal on which submitit requeues it, and must not have ended by
    then; a cancelled one is killed.
    """
    time.sleep(_GRACE_S)
    raise JobError("the job was told to end (SIGTERM) and wasn't killed")


def _requeue_only_when_preempted(deadline: float | None) -> None:
    """Let submitit requeue the job on its signal, but not when that only warns of the time limit.

    There the search ends by itself and says how far it got; a job that needs longer than its limit would be
    requeued for ever. Slurm sends the warning up to a minute too early (sbatch(1), --signal).
    """
    from autobatch.probing.slurm_warning import warning_signal

    warning = warning_signal()
    requeue = signal.getsignal(warning)

    def on_signal(number: int, frame: FrameType | None) -> None:
        if deadline is not None and time.time() > deadline - _EARLY_S:
            return
        if callable(requeue):
            requeue(number, frame)

    signal.signal(warning, on_signal)


def _deadline() -> float | None:
    """Unix time at which a Slurm job should have ended by itself; None where there is no limit to know."""
    job_id = os.environ.get("SLURM_JOB_ID")
    if job_id is None:
        return None
    end = os.environ.get("SLURM_JOB_END_TIME", "")
    if end.isdigit():
        return int(end) - SIGNAL_DELAY_S
    from autobatch.launch.slurm import seconds_left

    left = seconds_left(job_id)
    return None if left is None else time.time() + left - SIGNAL_DELAY_S
