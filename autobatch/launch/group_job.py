"""What runs as the job of a group: the probes of its runs, one after the other, with one fork server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autobatch.errors import AutobatchError, JobError
from autobatch.launch.entry import begin_job, probe_one


def group_job(
    requests: Sequence[Mapping[str, Any]],
    others: Sequence[str],
    attempt: str,
    environment: Mapping[str, str | None],
) -> list[dict[str, Any]]:
    """Probe the runs of a group; what is measured for one counts for the next.

    A run without an answer doesn't keep the others from theirs.

    Args:
        requests: a `ProbeRequest` as JSON for each run. They differ in the run alone.
        others: run directories whose measurements on file count too; none of them with `force`.
        attempt: marks the events of all of them, and what is measured by force.
        environment: as for `entry.probe_job`.

    Returns:
        The results as JSON, in the order of `requests`.

    Raises:
        JobError: some run has no batch_size. The job's exit status must say so, for the training jobs that
            depend on it; which and why is in the message, and in each run's `probe/result.json`.
    """
    # Only here: whoever submits this function must not pay for it.
    from autobatch.probing.pool import TrialPool

    deadline = begin_job(environment)
    fresh = any(request.get("force") for request in requests)
    pool = TrialPool([] if fresh else [Path(other) for other in others])
    results, failed = [], []
    for request in requests:
        try:
            results.append(probe_one(request, attempt, deadline, pool))
        except AutobatchError as error:
            failed.append(f"{request['run_dir']}: {error}")
        except Exception as error:
            failed.append(f"{request['run_dir']}: {type(error).__name__}: {error}")
    if failed:
        listed = "\n".join(failed)
        raise JobError(f"{len(failed)} of {len(requests)} runs of the group have no batch_size:\n{listed}")
    return results


class GroupJob:
    """`group_job` in a form that submitit can requeue: each run's probe goes on from its journal.

    Args:
        requests: a `ProbeRequest` as JSON for each run.
        others: run directories whose measurements on file count too.
        attempt: as for `group_job`; it stays when the job is requeued.
    """

    def __init__(self, requests: Sequence[Mapping[str, Any]], others: Sequence[str], attempt: str) -> None:
        self._requests = [dict(request) for request in requests]
        self._others = list(others)
        self._attempt = attempt

    def __call__(self) -> list[dict[str, Any]]:
        """Probe the runs."""
        return group_job(self._requests, self._others, self._attempt, {})

    def checkpoint(self) -> Any:
        """What submitit runs when the job starts again: the same; the journals know how far it got."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)
