"""Waiting for the jobs of groups of runs, and what came of each run."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from autobatch.errors import JobError
from autobatch.launch.group_submission import GroupSubmission, follow_groups, measured_runs, start_here
from autobatch.launch.groups import Group
from autobatch.launch.submission import Cluster
from autobatch.probing.events import Ended, Event, Failed
from autobatch.records import ProbeResult

#: Seconds that a job on this machine takes to end after its last word.
_ENDS_IN_S = 60.0

#: Less than any of a job's last words needs, with what file systems keep back.
_ROOM_BYTES = 2**16

#: Hears of which group and run, and what happened.
Tell: TypeAlias = Callable[[GroupSubmission, str, Event], None]


@dataclass(frozen=True)
class RunOutcome:
    """What came of the probe of one run among many.

    Attributes:
        run: its path.
        group: number of its group, from 1.
        job_id: that probed it.
        result: the answer, or why there is none; None when the job ended without one.
        error: why there is no result; empty where there is one.
        exit_code: as `autobatch probe` would end for this run alone.
    """

    run: str
    group: int
    job_id: str
    result: ProbeResult | None
    error: str
    exit_code: int


def probe_groups_here(groups: Sequence[Group], cluster: Cluster, tell: Tell) -> list[RunOutcome]:
    """Probe groups on this machine, one after the other, as `wait_for_groups` does."""
    others = measured_runs(groups)
    outcomes = []
    for number, one in enumerate(groups, 1):
        submission = start_here(one, number, cluster, others)
        outcomes += wait_for_groups([submission], tell)
        deadline = time.monotonic() + _ENDS_IN_S
        while not submission.job.finished() and time.monotonic() < deadline:
            time.sleep(0.05)
    return outcomes


def wait_for_groups(submissions: Sequence[GroupSubmission], tell: Tell) -> list[RunOutcome]:
    """Follow the jobs of groups to their end; whatever interrupts the wait ends all of them.

    Args:
        submissions: the jobs.
        tell: hears of which group and run, and what happened.

    Returns:
        What came of each run, in the order of groups and their runs.
    """
    of_run = {run: submission for submission in submissions for run in submission.group.run_dirs}
    outcomes: dict[str, RunOutcome] = {}
    try:
        for run, event in follow_groups(submissions):
            submission = of_run[run]
            job = submission.job
            if event is not None:
                tell(submission, run, event)
            if isinstance(event, Ended):
                result, error, code = event.result, "", event.result.status.exit_code
            elif isinstance(event, Failed):
                result, error, code = None, event.message, event.exit_code
            elif event is None:
                result, error, code = None, without_result(job.job_id, job.log), JobError.exit_code
            else:
                continue
            outcomes[run] = RunOutcome(run, submission.number, job.job_id, result, error, code)
    except BaseException:
        for submission in submissions:
            submission.job.cancel()
        raise
    return [outcomes[run] for run in of_run]


def without_result(job_id: str, log: Path) -> str:
    """What to say of a job that ended without a last word: its log, and how that ends."""
    lines = [f"    {line}" for line in _last_lines(log)]
    if _is_full(log.parent) and not any("No space left" in line for line in lines):
        # Then the job couldn't say so.
        lines.append("    No space left on device: make room, then run again")
    return "\n".join([f"the probe's job {job_id} ended without a result; its log: {log}", *lines]).rstrip()


def _is_full(directory: Path) -> bool:
    try:
        return shutil.disk_usage(directory).free < _ROOM_BYTES
    except OSError:
        return False


def _last_lines(log: Path, count: int = 15) -> list[str]:
    """From the job's own last message on, where it could write one, to the end."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:]
    except OSError:
        return []
    messages = [number for number, line in enumerate(lines) if line.startswith("autobatch: ")]
    return lines[messages[-1] :] if messages else lines
