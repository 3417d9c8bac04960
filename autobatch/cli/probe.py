"""`autobatch probe RUN`: measure the largest batch_size of a run and write it into its files."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from autobatch.records import Metric, PackingMode, ProbeRequest, to_json
from autobatch.units import format_bytes, parse_bytes

if TYPE_CHECKING:
    from autobatch.launch.submission import Cluster, Submission
    from autobatch.runs.directory import RunDirectory

_DESCRIPTION = """\
Measure the largest batch_size of a run: its own recipe runs a few optimizer steps at a few batch
sizes, each in a process of its own, until b fits in the target and b + 1 doesn't, both measured.
The answer goes into RUN/finetune.yaml and ../runs_plan.md, with the packing density; every figure
behind it into RUN/probe/result.json. Nothing is written before the last trial has ended.
"""

_EPILOG = """\
files in RUN/probe/:
  result.json    the answer, or why there is none; every trial; versions, device, density
  trials.jsonl   the journal: a probe that was killed goes on from it and measures nothing twice
  events.jsonl   what happens while it runs, a JSON object a line
  trials/        config and log of each trial;  job/  the job's own log

exit codes:
  0  done: the batch_size is in finetune.yaml
  1  nothing fits, or the peak doesn't come to rest; no file was changed
  2  the run or an option can't be used; no file was changed
  3  the recipe crashed or hung; no file was changed

example:
  $ autobatch probe demo-run/run1 --capacity 3GiB
  ...
  batch_size 12 (peak 2.0 GiB, 68.2 % of 3.0 GiB); batch_size 13 would take 71.9 %
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.add_argument("run", metavar="RUN", help="run directory, which holds finetune.yaml")
    where = parser.add_argument_group("where it runs")
    where.add_argument(
        "--cluster",
        choices=("auto", "slurm", "local", "inline"),
        default="auto",
        help="slurm: submit a job; local: start one on this machine (both through submitit); inline: a child of "
        "this process, for use inside a job; auto: slurm where there is an sbatch, else local (default)",
    )
    where.add_argument(
        "--wait",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="wait for the answer (default, except on slurm); otherwise print the job's id and return",
    )
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--target",
        type=float,
        default=0.70,
        metavar="FRACTION",
        help="part of the capacity that the peak may reach (default: 0.70)",
    )
    what.add_argument(
        "--capacity",
        metavar="SIZE",
        help="plan for a card of this size, such as 40GiB (default: the card's own)",
    )
    what.add_argument(
        "--metric",
        choices=[m.value for m in Metric if m is not Metric.RESIDENT],
        default=Metric.RESERVED.value,
        help="the peak that counts on CUDA: reserved by PyTorch's allocator (default; decides an out-of-memory "
        "error), allocated in tensors, or used on the device by anybody. On CPU: the resident set",
    )
    what.add_argument("--max-batch-size", type=int, metavar="N", help="never go above")
    what.add_argument(
        "--recipe",
        metavar="NAME|PATH",
        help="recipe to run (default: the one in finetune.slurm, else inferred from the config)",
    )
    what.add_argument(
        "--steps", type=int, default=3, metavar="N", help="optimizer steps of a trial, at least (default: 3)"
    )
    what.add_argument(
        "--trial-timeout",
        type=float,
        default=600,
        metavar="SECONDS",
        help="a trial that takes longer counts as hung (default: 600)",
    )
    what.add_argument(
        "--load-weights",
        action="store_true",
        help="read the real checkpoint in each trial instead of zeros of the same shapes",
    )
    rows = what.add_mutually_exclusive_group()
    rows.add_argument("--pack", action="store_true", help="set dataset.packed: True, in finetune.yaml too")
    rows.add_argument(
        "--unpacked",
        action="store_true",
        help="leave packed off and probe with batches of the longest example, the worst case",
    )
    what.add_argument(
        "--density-sample",
        type=int,
        metavar="N",
        help="pack about N examples instead of all (more, where N would fill too few packs); density and number "
        "of packs are then extrapolated",
    )
    what.add_argument(
        "--force", action="store_true", help="measure again though valid measurements are on file"
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--dry-run", action="store_true", help="check the run, say what would be done, do nothing"
    )
    output.add_argument(
        "--json", action="store_true", help="print the result (or the job, or the plan) as JSON"
    )


def run(arguments: argparse.Namespace) -> int:
    """Probe, and return the exit code."""
    from autobatch.launch.submission import Cluster, resolve_cluster, submit
    from autobatch.runs.directory import read_run

    request = _request(arguments)
    cluster, reason = resolve_cluster(Cluster(arguments.cluster))
    run_directory = read_run(Path(request.run_dir), request)
    request = replace(request, run_dir=str(run_directory.path))
    if arguments.dry_run:
        return _dry_run(request, run_directory, cluster, as_json=arguments.json)
    print(f"cluster: {cluster.value} ({reason})", file=sys.stderr)
    submission = submit(request, run_directory, cluster)
    waits = arguments.wait if arguments.wait is not None else cluster is not Cluster.SLURM
    if not waits:
        print(f"log: {submission.log}", file=sys.stderr)
        print(f"next: autobatch report {arguments.run}", file=sys.stderr)
        print(json.dumps({"job_id": submission.job_id}) if arguments.json else submission.job_id)
        return 0
    return _wait(submission, as_json=arguments.json)


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


def _request(arguments: argparse.Namespace) -> ProbeRequest:
    mode = PackingMode.PACK if arguments.pack else PackingMode.CONFIG
    return ProbeRequest(
        run_dir=arguments.run,
        recipe=arguments.recipe,
        target_fraction=arguments.target,
        capacity_bytes=parse_bytes(arguments.capacity) if arguments.capacity is not None else None,
        metric=Metric(arguments.metric),
        max_batch_size=arguments.max_batch_size,
        min_steps=arguments.steps,
        trial_timeout_s=arguments.trial_timeout,
        load_weights=arguments.load_weights,
        packing=PackingMode.UNPACKED if arguments.unpacked else mode,
        density_sample=arguments.density_sample,
        force=arguments.force,
    )


def _dry_run(request: ProbeRequest, run: RunDirectory, cluster: Cluster, *, as_json: bool) -> int:
    run_dir = Path(request.run_dir)
    if as_json:
        print(
            json.dumps(
                {
                    "request": to_json(request),
                    "recipe": run.recipe.note,
                    "cluster": cluster.value,
                    "would_write": [str(run_dir / "finetune.yaml"), str(run.plan_path)],
                },
                indent=2,
            )
        )
        return 0
    capacity = format_bytes(request.capacity_bytes) if request.capacity_bytes else "the device's memory"
    print(f"run: {run_dir}")
    print(f"recipe: {run.recipe.note}")
    print(f"cluster: {cluster.value}")
    print(f"target: {100 * request.target_fraction:g} % of {capacity}")
    print(
        f"would write: batch_size in {run_dir / 'finetune.yaml'}; a row in {run.plan_path}; {run_dir / 'probe'}/"
    )
    return 0
