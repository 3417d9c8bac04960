"""How a training ended, from what is known of it: its exit code, Slurm's word, its log."""

from __future__ import annotations

from dataclasses import dataclass

from autobatch.metrics.accounting import JobAccount
from autobatch.metrics.records import LogMetrics

OUT_OF_MEMORY = "out of memory"
TIME_LIMIT = "time limit"

#: Slurm's states (sacct(1), JOB STATE CODES) of a job that is to do something yet.
_WAITING = (
    "PENDING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "REQUEUE_FED",
    "SPECIAL_EXIT",
    "RESV_DEL_HOLD",
)
_RUNNING = ("RUNNING", "COMPLETING", "RESIZING", "SIGNALING", "STAGE_OUT", "STOPPED", "SUSPENDED")


@dataclass(frozen=True)
class Outcome:
    """How a training ended.

    Attributes:
        status: ``planned``, ``running``, ``completed``, ``failed`` or ``cancelled``; None when nothing says.
        failure: why, when it failed: `OUT_OF_MEMORY`, `TIME_LIMIT`, or the error's last line.
    """

    status: str | None = None
    failure: str | None = None


def judge(
    log: LogMetrics | None, account: JobAccount | None, exit_code: int | None, all_steps: int | None
) -> Outcome:
    """How the training ended.

    The exit code of `tune run` decides, where it is given; then Slurm's state of the job, except that a job
    that Slurm calls completed failed all the same when its log ends in an error: its script went on behind
    `tune run`. Without either, the log decides: an error, Slurm's own line, or every step done.

    Args:
        log: what the log says; None when there is none.
        account: what Slurm says; None when it doesn't.
        exit_code: of `tune run`.
        all_steps: optimizer steps of the whole training; None when that isn't known.
    """
    log = log or LogMetrics()
    state = account.state if account is not None else None
    if exit_code is not None:
        if exit_code == 0:
            return Outcome("completed")
        return Outcome("failed", _reason(log, f"tune run ended with exit code {exit_code}"))
    if state in _WAITING:
        return Outcome("planned")
    if state == "CANCELLED":
        return Outcome("cancelled")
    if state == "TIMEOUT":
        return Outcome("failed", TIME_LIMIT)
    if state == "OUT_OF_MEMORY":
        return Outcome("failed", OUT_OF_MEMORY)
    ended_in_error = log.out_of_memory is not None or log.error is not None
    all_done = all_steps is not None and log.steps >= all_steps
    if state in _RUNNING and not ended_in_error:
        return Outcome("completed" if all_done else "running")
    if state == "COMPLETED" and not ended_in_error:
        return Outcome("completed")
    if ended_in_error or state is not None:
        return Outcome("failed", _reason(log, f"Slurm: {state}"))
    return _from_log(log, all_done)


def _from_log(log: LogMetrics, all_done: bool) -> Outcome:
    if log.slurm_end is not None:
        if "TIME LIMIT" in log.slurm_end:
            return Outcome("failed", TIME_LIMIT)
        return (
            Outcome("cancelled") if log.slurm_end == "CANCELLED" else Outcome("failed", log.slurm_end.lower())
        )
    return Outcome("completed" if all_done else None)


def _reason(log: LogMetrics, otherwise: str) -> str:
    if log.out_of_memory is not None:
        return OUT_OF_MEMORY
    if log.error is None and log.slurm_end is not None and "TIME LIMIT" in log.slurm_end:
        return TIME_LIMIT
    return log.error or otherwise
