"""`autobatch probe PATH`: measure the largest batch_size of a run and write it into its files.

Many runs, or an experiment directory: `probe_many`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autobatch.cli.plan_of_many import held_lines
from autobatch.cli.probe_arguments import add_arguments, request_of, slurm_options_of
from autobatch.errors import UsageError
from autobatch.records import ProbeRequest, to_json
from autobatch.units import format_bytes

__all__ = ["add_arguments", "run"]

if TYPE_CHECKING:
    from autobatch.launch.resources import Resources
    from autobatch.launch.submission import Cluster, Submission
    from autobatch.runs.directory import RunDirectory


def run(arguments: argparse.Namespace) -> int:
    """Probe, and return the exit code."""
    from autobatch.launch.slurm import submit_training
    from autobatch.launch.submission import Cluster, resolve_cluster, resources_for, submit
    from autobatch.runs.directory import read_run
    from autobatch.runs.experiment import is_for_many
    from autobatch.runs.settings import find_profile, user_directory

    if arguments.max_parallel is not None and arguments.max_parallel < 1:
        raise UsageError(f"--max-parallel {arguments.max_parallel} is less than 1")
    if is_for_many([Path(path) for path in arguments.paths]):
        from autobatch.cli.probe_many import run_many

        return run_many(arguments)
    request = request_of(arguments)
    cluster, reason = resolve_cluster(Cluster(arguments.cluster))
    run_directory = read_run(Path(request.run_dir), request)
    request = replace(request, run_dir=str(run_directory.path))
    resources = None
    if cluster is Cluster.SLURM:
        places = (run_directory.path, run_directory.experiment_dir, user_directory())
        resources = resources_for(
            run_directory, slurm_options_of(arguments), find_profile(arguments.profile, places)
        )
    else:
        refuse_slurm_options(arguments, cluster)
    script = None if arguments.train is None else training_script(run_directory, arguments.train)
    if arguments.dry_run:
        plan = _plan(request, run_directory, cluster, resources, arguments.after)
        print(json.dumps(plan, indent=2) if arguments.json else "\n".join(_plan_lines(plan)))
        return 0
    print(f"cluster: {cluster.value} ({reason})", file=sys.stderr)
    submission = submit(request, run_directory, cluster, resources=resources, after=arguments.after)
    jobs = {"job_id": submission.job_id}
    if script is not None:
        jobs["train_job_id"] = submit_training(script, submission.job_id)
    waits = arguments.wait if arguments.wait is not None else cluster is not Cluster.SLURM
    if waits:
        return _wait(submission, as_json=arguments.json)
    print(f"log: {submission.log}", file=sys.stderr)
    print(f"next: autobatch status {shlex.quote(arguments.paths[0])}", file=sys.stderr)
    print(json.dumps(jobs) if arguments.json else "\n".join(jobs.values()))
    return 0


def _wait(submission: Submission, *, as_json: bool) -> int:
    from autobatch.api import wait
    from autobatch.cli.render import renderer
    from autobatch.probing.events import Event, Wrote
    from autobatch.report.table import result_lines

    diffs: list[str] = []
    with renderer() as shown:

        def tell(event: Event) -> None:
            shown.show(event)
            if isinstance(event, Wrote):
                diffs.append(event.diff)

        result = wait(submission, tell)
    if as_json:
        print(json.dumps(to_json(result), indent=2, ensure_ascii=False))
        return result.status.exit_code
    if result.status.exit_code != 0:
        print(f"autobatch: {result.message}", file=sys.stderr)
        return result.status.exit_code
    for diff in diffs:
        print(diff.rstrip("\n"), end="\n\n")
    if result.reused:
        print(
            f"on file since {result.ended}, and nothing has changed; --force measures again", file=sys.stderr
        )
    print("\n".join(result_lines(result)))
    return 0


def refuse_slurm_options(arguments: argparse.Namespace, cluster: Cluster) -> None:
    """Refuse options that would do nothing where there is no Slurm."""
    given = [
        *slurm_options_of(arguments),
        *(name for name in ("profile", "after", "train", "max_parallel") if getattr(arguments, name)),
    ]
    if given and not arguments.dry_run:
        raise UsageError(
            f"--{given[0].replace('_', '-')} is for Slurm, and the probe would run with --cluster {cluster.value}"
        )


def training_script(run_directory: RunDirectory, name: str) -> Path:
    """The script that `--train` names, in the run's directory or from here."""
    for path in (run_directory.path / name, Path(name).absolute()):
        if path.is_file():
            return path
    raise UsageError(f"--train {name}: no such file in {run_directory.path} or here")


def _plan(
    request: ProbeRequest,
    run_directory: RunDirectory,
    cluster: Cluster,
    resources: Resources | None,
    after: str | None,
) -> dict[str, Any]:
    """What would be done, for programs."""
    plan: dict[str, Any] = {
        "run": request.run_dir,
        "recipe": run_directory.recipe.note,
        "notes": list(run_directory.notes),
        "cluster": cluster.value,
        "request": to_json(request),
        "would_write": [
            str(run_directory.config_path),
            str(run_directory.plan_path),
            f"{run_directory.path / 'probe'}/",
        ],
    }
    if resources is not None:
        from autobatch.launch.slurm import sbatch_script

        plan["sources"] = dict(resources.sources)
        plan["sbatch"] = sbatch_script(run_directory, resources, after)
    return plan


def _plan_lines(plan: dict[str, Any]) -> list[str]:
    """The same for people."""
    request = plan["request"]
    capacity = request["capacity_bytes"]
    size = format_bytes(capacity) if capacity else "the device's memory"
    lines = [
        f"run: {plan['run']}",
        f"recipe: {plan['recipe']}",
        *plan["notes"],
        f"cluster: {plan['cluster']}",
        f"target: {100 * request['target_fraction']:g} % of {size}",
        *held_lines(request),
        f"would write: {', '.join(plan['would_write'])}",
    ]
    if "sbatch" in plan:
        sources = ", ".join(f"{name} from {source}" for name, source in plan["sources"].items())
        lines += [f"settings: {sources}", "would submit:", "", plan["sbatch"]]
    return lines
