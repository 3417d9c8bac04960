"""`autobatch status PATH...`: how far the probes are."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from autobatch.errors import UsageError

_DESCRIPTION = """\
Show how far the probe of a run, or of every run of an experiment, is: queued, running (which trial,
which bracket), done, failed, preempted. Asks Slurm where the probe is a Slurm job; where Slurm
doesn't answer, the run's own files. Runs that one job probes as a group stand together, with how many
of them it is done with.
"""

_EPILOG = """\
exit codes:
  0  printed
  2  there is no run at PATH

example:
  $ autobatch status runs/
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.add_argument("paths", metavar="PATH", nargs="+", help="run directory or experiment directory")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print a line a run."""
    from autobatch.launch.watch import status_of
    from autobatch.report.table import text_table
    from autobatch.runs.directory import CONFIG_NAME
    from autobatch.runs.experiment import find_runs

    runs: dict[Path, Path] = {}
    for path in map(Path, arguments.paths):
        below = find_runs(path.parent if path.name == CONFIG_NAME else path)
        if not below:
            raise UsageError(f"{path}: no finetune.yaml here or one level below")
        for run in below:
            runs.setdefault(run.resolve(), run)
    found = [status_of(run) for run in runs.values()]
    if arguments.json:
        print(json.dumps([asdict(status) for status in found], indent=2))
        return 0
    # The runs of a job beside one another, in the order of their first.
    jobs = list(dict.fromkeys(status.job_id for status in found if status.group))
    found.sort(key=lambda status: jobs.index(status.job_id) if status.group else len(jobs))
    header: tuple[str, ...] = ("run", "job", "state", "detail")
    rows: list[tuple[str, ...]] = [
        (Path(s.run).resolve().name, s.job_id or "-", s.state, s.detail) for s in found
    ]
    if jobs:
        header = ("run", "job", "group", "state", "detail")
        groups = [f"{s.group_done} of {len(s.group)} done" if s.group else "-" for s in found]
        rows = [(*row[:2], group, *row[2:]) for row, group in zip(rows, groups, strict=True)]
    print("\n".join(text_table(header, rows, numbers=False)))
    return 0
