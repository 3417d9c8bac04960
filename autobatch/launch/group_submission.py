"""Starting the jobs of groups of runs, and following them.

On Slurm a job array, a task a group; groups that ask for different resources can't be tasks of one array and
get an array each. On this machine one job after the other. An array's files are in `EXPERIMENT/probe/job`, of
the experiment of its first run.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from autobatch.launch.groups import Group, arrays
from autobatch.launch.note import note_of, write_note
from autobatch.launch.slurm import executor_for, submit_array
from autobatch.launch.submission import Cluster, LocalJob, PlainProcess
from autobatch.probing.events import EVENTS, Ended, Event, EventReader, Failed
from autobatch.records import to_json
from autobatch.runs.experiment import find_runs

_POLL_S = 0.1


class Job(Protocol):
    """A job that was started: a Slurm job, a task of an array, or a process.

    Attributes:
        job_id: Slurm's job id, or a process id.
        log: where its own output goes.
        attempt: marks its events.
    """

    job_id: str
    log: Path
    attempt: str

    def finished(self) -> bool:
        """Whether it has ended, however it did."""

    def cancel(self) -> None:
        """End it."""


@dataclass(frozen=True)
class GroupSubmission:
    """A group whose job was started.

    Attributes:
        number: of the group, from 1.
        group: its runs.
        job: their job.
    """

    number: int
    group: Group
    job: Job


def submit_arrays(
    groups: Sequence[Group], *, after: str | None = None, max_parallel: int | None = None
) -> list[GroupSubmission]:
    """Hand all groups to Slurm; in their order. What was handed over is taken back if anything fails.

    Args:
        groups: with resources.
        after: a job that must end well first.
        max_parallel: tasks of an array that run at a time.

    Raises:
        UsageError: sbatch refused one.
    """
    submitted: list[GroupSubmission] = []
    numbers = {one.run_dirs: number for number, one in enumerate(groups, 1)}
    others = measured_runs(groups)
    try:
        for tasks in arrays(groups):
            executor = _executor(tasks, after, max_parallel)
            executor.folder.mkdir(parents=True, exist_ok=True)
            jobs = submit_array(executor, [(_requests(one), others) for one in tasks])
            submitted += [
                GroupSubmission(numbers[one.run_dirs], one, job) for one, job in zip(tasks, jobs, strict=True)
            ]
        for submission in submitted:
            _note(submission, Cluster.SLURM)
    except BaseException:
        for submission in submitted:
            submission.job.cancel()
        raise
    return sorted(submitted, key=lambda submission: submission.number)


def array_scripts(
    groups: Sequence[Group], *, after: str | None = None, max_parallel: int | None = None
) -> list[tuple[list[Group], str]]:
    """The script of each array that `submit_arrays` would submit, with its groups; submits nothing."""
    found = []
    for tasks in arrays(groups):
        executor = _executor(tasks, after, max_parallel)
        if len(tasks) > 1:
            executor.parameters["map_count"] = len(tasks)
        # submitit has no public way to see it.
        found.append((tasks, executor._make_submission_file_text(executor._submitit_command_str, "dry-run")))
    return found


def start_here(group: Group, number: int, cluster: Cluster, others: Sequence[str]) -> GroupSubmission:
    """Start the job of one group on this machine.

    Args:
        group: the runs.
        number: of the group.
        cluster: local or inline.
        others: as for `group_job`.
    """
    from autobatch.launch.group_job import group_job

    folder = folder_of(group)
    folder.mkdir(parents=True, exist_ok=True)
    events = group.members[0].run.path / "probe" / EVENTS
    job: Job
    if cluster is Cluster.INLINE:
        asked = {"requests": _requests(group), "others": list(others)}
        job = PlainProcess(asked, folder / f"inline-{number}.log", events)
    else:
        job = LocalJob(group_job, (_requests(group), list(others)), folder, events)
    submission = GroupSubmission(number, group, job)
    try:
        _note(submission, cluster)
    except BaseException:
        job.cancel()
        raise
    return submission


def folder_of(group: Group) -> Path:
    """Of scripts and logs of the array whose first task this is."""
    return group.members[0].run.experiment_dir / "probe" / "job"


def measured_runs(groups: Sequence[Group]) -> list[str]:
    """Runs whose measurements on file may count: those of the groups, then their siblings."""
    given = [run_dir for one in groups for run_dir in one.run_dirs]
    experiments = dict.fromkeys(Path(run_dir).parent for run_dir in given)
    siblings = [str(run) for experiment in experiments for run in find_runs(experiment)]
    return list(dict.fromkeys([*given, *siblings]))


def follow_groups(submissions: Sequence[GroupSubmission]) -> Iterator[tuple[str, Event | None]]:
    """What happens to which run (its path) of jobs that were started, until all have ended.

    The last of each run is `Ended`, `Failed`, or None where its job ended without either.
    """
    readers = {
        run_dir: (submission, EventReader(Path(run_dir) / "probe" / EVENTS, submission.job.attempt))
        for submission in submissions
        for run_dir in submission.group.run_dirs
    }
    while readers:
        finished = {submission.number for submission in submissions if submission.job.finished()}
        for run_dir, (submission, reader) in list(readers.items()):
            for event in reader.new():
                yield run_dir, event
                if isinstance(event, (Ended, Failed)):
                    readers.pop(run_dir, None)
            if submission.number in finished and readers.pop(run_dir, None) is not None:
                yield run_dir, None
        if readers:
            time.sleep(_POLL_S)


def _executor(tasks: Sequence[Group], after: str | None, max_parallel: int | None) -> Any:
    folder = folder_of(tasks[0])
    resources = tasks[0].resources
    assert resources is not None
    executor = executor_for(folder, folder.parent.parent.name, resources, after)
    # submitit's own default would be 256.
    executor.update_parameters(array_parallelism=max_parallel or len(tasks))
    return executor


def _requests(group: Group) -> list[dict[str, Any]]:
    return [to_json(member.request) for member in group.members]


def _note(submission: GroupSubmission, cluster: Cluster) -> None:
    """Which job probes a run, into each run's `probe/job.json`."""
    job, run_dirs = submission.job, submission.group.run_dirs
    note = note_of(cluster.value, job, run_dirs if len(run_dirs) > 1 else ())
    for run_dir in run_dirs:
        directory = Path(run_dir) / "probe"
        directory.mkdir(parents=True, exist_ok=True)
        write_note(directory, note)
