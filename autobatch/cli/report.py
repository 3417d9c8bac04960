"""`autobatch report PATH`: the last probe of a run, or those of an experiment, as table and picture."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autobatch.errors import UsageError
from autobatch.records import to_json

if TYPE_CHECKING:
    from autobatch.report.text_plot import Terminal

_DESCRIPTION = """\
Show the last probe of a run, from RUN/probe/result.json, or those of every run of an experiment; measures
nothing. Printed are a table and a plot in characters: peak memory against batch_size with the fitted line, the
target and the capacity; of an experiment, each run's peak as a share of its capacity. --output writes a
picture, or a page with pictures and tables that needs nothing else. The probe itself leaves such a page in
RUN/probe/report.html, and its picture in RUN/probe/report.png.
"""

_EPILOG = """\
columns of an experiment, where their names don't say it:
  tokens/s         of the trial at batch_size
  density          examples per pack
  effective batch  sequences of an optimizer step
  limited by       what keeps batch_size from being larger

exit codes:
  of a run, as the probe's: 0 done, 1 nothing fitted, 3 crashed; 2 there is no result to show
  of an experiment: 0 shown; 1 no run has been probed; 2 there is no run, or a FILE can't be written

with --json: result.json of a run; of an experiment
  [{"run": NAME, "problem": why there is no batch_size or "", "result": result.json or null}, ...]

example:
  $ autobatch report demo-run/run1
  $ autobatch report demo-run/ --output sweep.html --output sweep.png
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.add_argument(
        "path", metavar="PATH", help="run directory that was probed, or experiment directory with several"
    )
    parser.add_argument(
        "--output",
        action="append",
        default=[],
        metavar="FILE",
        help="write a picture (.png, .svg) or a page (.html) as well; may be given several times",
    )
    parser.add_argument("--force", action="store_true", help="with --output: replace a FILE that is there")
    parser.add_argument("--no-plot", action="store_true", help="print the table without the plot below it")
    parser.add_argument("--json", action="store_true", help="print JSON instead")


def run(arguments: argparse.Namespace) -> int:
    """Print the report, write what is asked for, and return the exit code."""
    from autobatch.report.experiment import is_run

    path = Path(arguments.path)
    outputs = _outputs(arguments)
    if is_run(path):
        return _report_run(path, outputs, arguments)
    return _report_experiment(path, outputs, arguments)


def _report_run(path: Path, outputs: Mapping[Path, str], arguments: argparse.Namespace) -> int:
    from autobatch.report.chart import chart_of
    from autobatch.report.picture import probe_file
    from autobatch.report.table import report_lines
    from autobatch.report.text_plot import probe_plot
    from autobatch.runs.results import RESULT, load_result

    result = load_result(path / "probe" / RESULT)
    name = path.resolve().name
    # Before anything is printed: where one can't be written, JSON says that alone.
    for file, form in outputs.items():
        _write(file, probe_file(result, form, name), force=arguments.force)
    if arguments.json:
        print(json.dumps(to_json(result), indent=2, ensure_ascii=False))
    else:
        print("\n".join(report_lines(result)))
        if not arguments.no_plot:
            _print_plot(probe_plot(chart_of(result, name), _terminal()))
    return result.status.exit_code


def _report_experiment(path: Path, outputs: Mapping[Path, str], arguments: argparse.Namespace) -> int:
    from autobatch.report.experiment import experiment_lines, probed_runs
    from autobatch.report.picture import experiment_file
    from autobatch.report.text_plot import experiment_plot

    runs = probed_runs(path)
    for file, form in outputs.items():
        _write(file, experiment_file(runs, form, path.resolve().name), force=arguments.force)
    if arguments.json:
        entries = [
            {"run": run.name, "problem": run.problem, "result": run.result and to_json(run.result)}
            for run in runs
        ]
        print(json.dumps(entries, indent=2, ensure_ascii=False))
    else:
        print("\n".join(experiment_lines(runs)))
        if not arguments.no_plot:
            _print_plot(experiment_plot(runs, _terminal()))
    return 0 if any(run.result is not None for run in runs) else 1


def _outputs(arguments: argparse.Namespace) -> dict[Path, str]:
    """The files to write, each with its form; refused before anything is read or written."""
    from autobatch.report.picture import form_of

    if arguments.force and not arguments.output:
        raise UsageError("--force is for --output FILE")
    forms = {Path(name): form_of(Path(name)) for name in arguments.output}
    for file in forms:
        if file.exists() and not arguments.force:
            raise UsageError(f"{file} is there already: name another file, or replace it with --force")
    return forms


def _write(file: Path, content: bytes, *, force: bool) -> None:
    from autobatch.edits.files import replace_file

    # Without --force a file that has appeared since stays too. Whatever the bytes are, they are written as such.
    replace_file(file, content.decode("utf-8", "surrogateescape"), expected=None if force else "")
    print(f"written: {file}", file=sys.stderr)


def _print_plot(lines: Sequence[str]) -> None:
    if lines:
        print("", *lines, sep="\n")


def _terminal() -> Terminal:
    """What stdout can show. Elsewhere than on a terminal: no colours, and 80 columns if COLUMNS doesn't say."""
    from autobatch.report.text_plot import UNICODE, Terminal

    is_terminal = sys.stdout.isatty()
    try:
        UNICODE.every.encode(sys.stdout.encoding or "ascii")
        has_unicode = True
    except (UnicodeEncodeError, LookupError):
        has_unicode = False
    return Terminal(
        width=shutil.get_terminal_size((80, 24)).columns,
        unicode=has_unicode,
        colour=is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb",
    )
