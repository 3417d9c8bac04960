"""`autobatch cancel PATH`: end the probe of a run, or the probes of an experiment."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from autobatch.errors import AutobatchError, UsageError

_DESCRIPTION = """\
End the probe of a run, queued or running, or all probes of an experiment's runs. No file of yours
changes, training jobs that depend on it never start, and what was measured stays: the next probe goes
on from there. A job that probes other runs too, as a group, is ended with --group alone.
"""

_EPILOG = """\
exit codes:
  0  ended; the jobs' ids are on stdout
  1  no probe is under way
  2  there is no such run, or its job probes other runs too

example:
  $ autobatch cancel runs/run1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.add_argument("path", metavar="PATH", help="run directory or experiment directory")
    parser.add_argument(
        "--group",
        action="store_true",
        help="end the run's job though it probes other runs too, for all of them",
    )


def run(arguments: argparse.Namespace) -> int:
    """End them."""
    from autobatch.launch.watch import cancel
    from autobatch.runs.experiment import find_runs, is_for_many

    path = Path(arguments.path)
    is_experiment = is_for_many([path])
    runs = find_runs(path) if is_experiment else [path]
    ended: dict[str, None] = {}
    errors = []
    for run_dir in runs:
        try:
            job_id = cancel(run_dir, whole_group=arguments.group or is_experiment)
        except AutobatchError as error:
            errors.append(str(error))
            continue
        if job_id is not None:
            ended[job_id] = None
    if ended:
        print("\n".join(ended))
    if errors:
        raise UsageError("\n".join(errors))
    if not ended:
        print(f"autobatch: {arguments.path}: no probe is under way", file=sys.stderr)
        return 1
    return 0
