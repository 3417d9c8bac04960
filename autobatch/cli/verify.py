"""`autobatch verify RUN`: the first line of the training job."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

_DESCRIPTION = """\
Check that a run was probed and that the answer still holds here: result.json is complete, its
fingerprint is this config's, batch_size in finetune.yaml is the measured one, and the card has at
least the memory that was planned for. Put it first in the training job: Slurm starts a dependent
job also when it no longer knows the job that it depends on.
"""

_EPILOG = """\
exit codes:
  0  the measurement holds: train
  1  it doesn't; each reason on stderr
  2  the run can't be read

example, in finetune.slurm:
  autobatch verify . || exit 1
  tune run lora_finetune_single_device --config finetune.yaml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.add_argument("run", metavar="RUN", help="run directory that is about to train")
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Check, and return the exit code."""
    from autobatch.probing.verification import failed_checks

    failed = failed_checks(Path(arguments.run))
    if arguments.json:
        print(json.dumps({"holds": not failed, "failed": failed}, indent=2))
    for reason in failed:
        print(f"autobatch: {reason}", file=sys.stderr)
    if not failed and not arguments.json:
        print("the measurement holds")
    return 1 if failed else 0
