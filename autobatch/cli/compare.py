"""`autobatch compare PATH`: the runs of an experiment side by side."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

_DESCRIPTION = """\
Show the runs of an experiment side by side, below it what to mind in comparing them, and what the
figures recommend. Reads each run's finetune.yaml, its probe (RUN/probe/result.json) and its entry in
runs_status.yaml, which autobatch metrics writes; measures nothing. A run of which only some of these
are there is shown with what is known of it. Memory is in GiB (2**30 bytes).
"""

_EPILOG_BEGINS = """\
columns (those that no run has a figure for are left out of text and markdown):
"""

_EPILOG = """\

formats:
  text      a table, then "to mind" and "recommendations"
  markdown  the same for a report
  csv       a line a run under the columns' names; unknown is empty; figures in the units above
  json      {"runs": [{COLUMN: figure or null, ...}], "caveats": [{"code", "runs", "text"}],
            "recommendations": [{"code", "runs", "text"}], "schema_version": 1}

exit codes:
  0  compared
  1  nothing to compare: no run has a figure
  2  there is no such run, column or directory, runs_status.yaml can't be read, or FILE is there already

example:
  $ autobatch compare demo-run/
  run   model     packed  seq len  batch  fits  accum  effective  ...
  run1  llama3_2  yes         512      9     9      1          9  ...
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    from autobatch.report.columns import COLUMNS

    width = max(len(column.key) for column in COLUMNS)
    lines = [f"  {column.key.ljust(width)}  {column.meaning}" for column in COLUMNS]
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG_BEGINS + "\n".join(lines) + "\n" + _EPILOG
    parser.add_argument("path", metavar="PATH", help="experiment directory, or one run directory")
    parser.add_argument(
        "--run",
        action="append",
        default=[],
        metavar="GLOB",
        help="compare only runs of this name, such as 'lora-*'; may be given several times",
    )
    parser.add_argument("--sort", metavar="COLUMN", help="sort by a column (default: by the runs' names)")
    parser.add_argument("--descending", action="store_true", help="with --sort: the largest first")
    parser.add_argument(
        "--format", choices=("text", "markdown", "json", "csv"), help="form of the output (default: text)"
    )
    parser.add_argument("--json", action="store_true", help="the same as --format json")
    parser.add_argument("--output", metavar="FILE", help="write into FILE instead of printing")
    parser.add_argument("--force", action="store_true", help="with --output: replace a FILE that is there")


def run(arguments: argparse.Namespace) -> int:
    """Compare, and print or write."""
    from autobatch.errors import UsageError
    from autobatch.report.columns import sort_runs
    from autobatch.report.compare import compare
    from autobatch.report.comparison_formats import FORMATS

    if arguments.json and arguments.format not in (None, "json"):
        raise UsageError(f"--json and --format {arguments.format}: give one of them")
    if arguments.force and arguments.output is None:
        raise UsageError("--force is for --output FILE")
    if arguments.descending and arguments.sort is None:
        raise UsageError("--descending is for --sort COLUMN")
    found = compare(Path(arguments.path), arguments.run)
    if arguments.sort is not None:
        found = replace(found, runs=sort_runs(found.runs, arguments.sort, descending=arguments.descending))
    form = "json" if arguments.json else arguments.format or "text"
    if not found.has_figures:
        if form == "json":
            print(FORMATS[form](found), end="")
        print(
            f"autobatch: {arguments.path}: nothing to compare: none of its {len(found.runs)} runs has been "
            "probed (autobatch probe RUN) or has metrics (autobatch metrics PATH)",
            file=sys.stderr,
        )
        return 1
    text = FORMATS[form](found)
    if arguments.output is None:
        print(text, end="")
        return 0
    _write(Path(arguments.output), text, force=arguments.force)
    print(f"written: {arguments.output}", file=sys.stderr)
    return 0


def _write(path: Path, text: str, *, force: bool) -> None:
    from autobatch.edits.files import replace_file
    from autobatch.errors import UsageError

    if path.exists() and not force:
        raise UsageError(f"{path} is there already: name another file, or replace it with --force")
    # Without --force a file that has appeared since stays too.
    replace_file(path, text, expected=None if force else "")
