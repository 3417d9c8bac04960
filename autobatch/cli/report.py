"""`autobatch report RUN`: the last probe of a run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from autobatch.records import to_json

_DESCRIPTION = "Show the last probe of a run, from RUN/probe/result.json; measures nothing."

_EPILOG = """\
exit codes:
  as the probe's: 0 done, 1 nothing fitted, 3 crashed; 2 there is no result to show

example:
  $ autobatch report demo-run/run1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.add_argument("run", metavar="RUN", help="run directory that was probed")
    parser.add_argument("--json", action="store_true", help="print result.json")


def run(arguments: argparse.Namespace) -> int:
    """Print the report, and return the probe's exit code."""
    from autobatch.report.table import report_lines
    from autobatch.runs.results import load_result

    result = load_result(Path(arguments.run) / "probe" / "result.json")
    if arguments.json:
        print(json.dumps(to_json(result), indent=2, ensure_ascii=False))
    else:
        print("\n".join(report_lines(result)))
    return result.status.exit_code
