"""`autobatch probe` of many runs: groups of them, a job each, and what came of every run."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autobatch.cli.plan_of_many import plan_lines, plan_of
from autobatch.cli.probe import refuse_slurm_options, training_script
from autobatch.cli.probe_arguments import request_of, slurm_options_of
from autobatch.errors import AutobatchError, UsageError
from autobatch.records import ProbeResult, to_json
from autobatch.units import format_bytes, format_percent

if TYPE_CHECKING:
    from autobatch.launch.group_submission import GroupSubmission
    from autobatch.launch.group_wait import RunOutcome
    from autobatch.launch.groups import Member
    from autobatch.launch.resources import Resources
    from autobatch.probing.events import Event
    from autobatch.runs.directory import RunDirectory

_HEADER = (
    "run",
    "group",
    "batch_size",
    "sequences an update",
    "peak",
    "of capacity",
    "density",
    "job",
    "trials",
)


@dataclass(frozen=True)
class _Training:
    """The training job of a run.

    Attributes:
        job_id: None when sbatch refused it.
        error: in whose words.
    """

    job_id: str | None
    error: str = ""


def run_many(arguments: argparse.Namespace) -> int:
    """Probe, and return the largest of the runs' exit codes."""
    from autobatch.launch.group_submission import submit_arrays
    from autobatch.launch.group_wait import probe_groups_here, wait_for_groups
    from autobatch.launch.groups import group, read_members
    from autobatch.launch.submission import Cluster, refuse_in_vain, resolve_cluster, resources_for
    from autobatch.runs.experiment import runs_at
    from autobatch.runs.settings import find_profile, user_directory

    request = request_of(arguments)
    cluster, reason = resolve_cluster(Cluster(arguments.cluster))
    if cluster is not Cluster.SLURM:
        refuse_slurm_options(arguments, cluster)
    runs, notes = runs_at([Path(path) for path in arguments.paths])
    scripts: dict[str, Path] = {}

    def prepare(run: RunDirectory) -> Resources | None:
        if arguments.train is not None:
            scripts[str(run.path)] = training_script(run, arguments.train)
        if not arguments.dry_run:
            refuse_in_vain(run, cluster)
        if cluster is not Cluster.SLURM:
            return None
        places = (run.path, run.experiment_dir, user_directory())
        return resources_for(run, slurm_options_of(arguments), find_profile(arguments.profile, places))

    members = read_members(runs, request, prepare)
    groups = group(members)
    for line in (*notes, f"{len(members)} runs in {len(groups)} group{'s' if len(groups) > 1 else ''}"):
        print(line, file=sys.stderr)
    if arguments.dry_run:
        plan = plan_of(groups, cluster, arguments)
        print(json.dumps(plan, indent=2) if arguments.json else "\n".join(plan_lines(plan)))
        return 0
    print(f"cluster: {cluster.value} ({reason})", file=sys.stderr)
    shown = _Lines(members)
    if cluster is not Cluster.SLURM:
        if arguments.wait is False and len(groups) > 1:
            raise UsageError(
                f"--no-wait: --cluster {cluster.value} probes {len(groups)} groups one after the other, so this "
                "command has to stay; put it in the background instead"
            )
        outcomes = probe_groups_here(groups, cluster, shown.show)
        return _show_outcomes(members, outcomes, {}, as_json=arguments.json)
    submissions = submit_arrays(groups, after=arguments.after, max_parallel=arguments.max_parallel)
    training = _submit_training(submissions, scripts)
    if arguments.wait:
        outcomes = wait_for_groups(submissions, shown.show)
        return _show_outcomes(members, outcomes, training, as_json=arguments.json)
    return _show_jobs(members, submissions, training, arguments)


class _Lines:
    """Events on stderr, each line with the run that it is about."""

    def __init__(self, members: Sequence[Member]) -> None:
        from autobatch.cli.render import PlainLines

        names = _names(members)
        width = max(map(len, names.values()))
        self._of_run = {run: PlainLines(f"{name.ljust(width)}  ") for run, name in names.items()}
        self._begun: set[int] = set()

    def show(self, submission: GroupSubmission, run: str, event: Event) -> None:
        """Take one event."""
        if submission.number not in self._begun:
            self._begun.add(submission.number)
            listed = ", ".join(Path(member).name for member in submission.group.run_dirs)
            print(f"group {submission.number}, job {submission.job.job_id}: {listed}", file=sys.stderr)
        self._of_run[run].show(event)


def _names(members: Sequence[Member]) -> dict[str, str]:
    """What to call each run: its name, or its path where two have one name."""
    names = [member.run.name for member in members]
    return {
        str(member.run.path): member.run.name if names.count(member.run.name) == 1 else str(member.run.path)
        for member in members
    }


def _submit_training(
    submissions: Sequence[GroupSubmission], scripts: dict[str, Path]
) -> dict[str, _Training]:
    """Each run's training behind its own group's job; one that is refused doesn't keep the others."""
    from autobatch.launch.slurm import submit_training

    submitted: dict[str, _Training] = {}
    for submission in submissions:
        for run in submission.group.run_dirs:
            if run not in scripts:
                continue
            try:
                submitted[run] = _Training(submit_training(scripts[run], submission.job.job_id))
            except AutobatchError as error:
                submitted[run] = _Training(None, str(error))
    return submitted


def _training_exit_code(training: dict[str, _Training]) -> int:
    """Says on stderr what was refused."""
    errors = [one.error for one in training.values() if one.error]
    for error in errors:
        print(f"autobatch: {error}", file=sys.stderr)
    return UsageError.exit_code if errors else 0


def _show_jobs(
    members: Sequence[Member],
    submissions: Sequence[GroupSubmission],
    training: dict[str, _Training],
    arguments: argparse.Namespace,
) -> int:
    """The jobs that were submitted, a line a run."""
    from autobatch.report.table import text_table

    of_run = {run: submission for submission in submissions for run in submission.group.run_dirs}
    exit_code = _training_exit_code(training)
    names = _names(members)
    entries = []
    for run in names:
        job = of_run[run].job
        entries.append(_entry(run, of_run[run].number, job.job_id, training) | {"log": str(job.log)})
    paths = " ".join(map(shlex.quote, arguments.paths))
    print(f"next: autobatch status {paths}", file=sys.stderr)
    if arguments.json:
        print(json.dumps({"runs": entries, "exit_code": exit_code}, indent=2))
        return exit_code
    header = ("run", "group", "job", *(("training job",) if training else ()))
    rows = [
        (
            names[entry["run"]],
            str(entry["group"]),
            entry["job_id"],
            *((entry["train_job_id"] or "refused",) if training else ()),
        )
        for entry in entries
    ]
    print("\n".join(text_table(header, rows, numbers=False)))
    return exit_code


def _show_outcomes(
    members: Sequence[Member],
    outcomes: Sequence[RunOutcome],
    training: dict[str, _Training],
    *,
    as_json: bool,
) -> int:
    """What came of every run, in the order in which they were named."""
    from autobatch.report.table import text_table

    of_run = {outcome.run: outcome for outcome in outcomes}
    names = _names(members)
    found = [of_run[run] for run in names]
    exit_code = max(_training_exit_code(training), *(outcome.exit_code for outcome in found))
    if as_json:
        entries = [
            _entry(outcome.run, outcome.group, outcome.job_id, training)
            | {
                "result": None if outcome.result is None else to_json(outcome.result),
                "error": outcome.error or None,
                "exit_code": outcome.exit_code,
            }
            for outcome in found
        ]
        print(json.dumps({"runs": entries, "exit_code": exit_code}, indent=2, ensure_ascii=False))
        return exit_code
    for outcome in found:
        if outcome.exit_code != 0:
            said = outcome.error or (outcome.result.message if outcome.result is not None else "")
            print(f"autobatch: {names[outcome.run]}: {said}", file=sys.stderr)
    print("\n".join(text_table(_HEADER, [_row(names[one.run], one) for one in found])))
    return exit_code


def _entry(run: str, group: int, job_id: str, training: dict[str, _Training]) -> dict[str, Any]:
    entry: dict[str, Any] = {"run": run, "group": group, "job_id": job_id}
    if run in training:
        entry["train_job_id"] = training[run].job_id
    return entry


def _row(name: str, outcome: RunOutcome) -> tuple[str, ...]:
    result = outcome.result
    known = (name, str(outcome.group))
    if result is None:
        return (*known, "-", "-", "-", "-", "-", outcome.job_id, "ended without a result")
    peak = share = density = "-"
    if result.peak_bytes is not None and result.capacity_bytes:
        peak = format_bytes(result.peak_bytes)
        share = format_percent(result.peak_bytes, result.capacity_bytes)
    if result.density is not None and result.density.packed:
        density = f"{result.density.examples_per_pack:.2f}"
    size = "-" if result.batch_size is None else str(result.batch_size)
    return (*known, size, _update(result), peak, share, density, outcome.job_id, _trials(result))


def _update(result: ProbeResult) -> str:
    """``8 x 4 = 32``: batch_size, gradient_accumulation_steps and, where there are several, the ranks."""
    after = result.after
    if after is None:
        return "-"
    factors = [after.batch_size, after.gradient_accumulation_steps, after.world_size]
    if after.world_size == 1:
        factors.pop()
    return f"{' x '.join(map(str, factors))} = {after.sequences}"


def _trials(result: ProbeResult) -> str:
    """Where the answer comes from, or that there is none."""
    if result.batch_size is None:
        return result.status.value
    if result.reused:
        return f"on file since {result.ended}"
    shared = sum(len(one.batch_sizes) for one in result.shared_from)
    own = len(result.trials) - shared
    parts = [f"{own} measured"] if own else []
    parts += [f"{len(one.batch_sizes)} of {Path(one.run).name}" for one in result.shared_from]
    return ", ".join(parts)
