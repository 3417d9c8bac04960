"""`autobatch cancel RUN`: end the probe of a run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

_DESCRIPTION = """\
End the probe of a run, queued or running. No file of yours changes, a training job that depends on
it never starts, and what was measured stays: the next probe goes on from there.
"""

_EPILOG = """\
exit codes:
  0  ended
  1  no probe is under way

example:
  $ autobatch cancel runs/run1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.add_argument("run", metavar="RUN", help="run directory")


def run(arguments: argparse.Namespace) -> int:
    """End it."""
    from autobatch.launch.watch import cancel

    job_id = cancel(Path(arguments.run))
    if job_id is None:
        print(f"autobatch: {arguments.run}: no probe is under way", file=sys.stderr)
        return 1
    print(job_id)
    return 0
