"""`autobatch density RUN | --log FILE...`: how a dataset packs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autobatch.errors import AutobatchError, UsageError

if TYPE_CHECKING:
    from autobatch.metrics.records import PackingMetrics
    from autobatch.probing.dataset_density import DatasetDensity
    from autobatch.records import Density

_DESCRIPTION = """\
Show the packing density: examples per packed sequence, and how much of it isn't padding.

  RUN          from the dataset itself: its own component and tokenizer read and pack it, without a
               GPU. A run with packed: False gets two rows: what it trains with, and what packing would
               give. The count is kept in RUN/probe/density/ until the data or the config changes.
  --log FILE   from training logs: torchtune's output (slurm-*.out). One row a file.
"""

_EPILOG = """\
sources of a density, in the column "source":
  dataset              counted now
  dataset, on file     counted before, of the same data
  dataset, sampled     extrapolated (--sample), with the standard error
  stated in the log    "Packed 8000 examples into 2857 sequences", "packing density: 2.80"
  counts in the log    "Loaded 8000 examples" and "Dataset packed: 2857 total sequences"; or the
                       examples of torchtune's bar "Packing dataset" and, with batch_size 1, the
                       steps of an epoch
  estimate             the same where an epoch's steps give the packs within 5 %; or, with
                       --mean-tokens, max_seq_len / mean - 1/2

exit codes:
  0  a density for every run or file
  1  a log doesn't say, and there is nothing to estimate from
  2  a run or a file can't be read
  3  the dataset component failed; its own words are on stderr

example:
  $ autobatch density demo-run/run1
  run   rows   examples  packs  density  efficiency  mean tokens  longest  source
  run1  packs      2000    384     5.21      89.0 %         87.5      419  dataset
"""

_RUN_HEADER = (
    "run",
    "rows",
    "examples",
    "packs",
    "density",
    "efficiency",
    "mean tokens",
    "longest",
    "source",
)
_LOG_HEADER = ("log", "examples", "packs", "density", "efficiency", "source")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.add_argument(
        "run", metavar="RUN", nargs="?", help="run directory, or experiment directory: one row a run"
    )
    parser.add_argument("--log", metavar="FILE", nargs="+", help="read these training logs, not a dataset")
    parser.add_argument(
        "--sample",
        type=int,
        metavar="N",
        help="with RUN: pack about N examples and extrapolate (more, where N would fill too few packs)",
    )
    parser.add_argument(
        "--mean-tokens",
        type=float,
        metavar="N",
        help="with --log: mean length of an example, to estimate the density where a log doesn't tell it",
    )
    parser.add_argument(
        "--max-seq-len",
        type=int,
        metavar="N",
        help="with --mean-tokens: tokens of a pack (default: of the config that the log shows)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print a row a run or a log, and return the exit code."""
    if (arguments.run is None) == (arguments.log is None):
        raise UsageError("name a run directory, or log files with --log, and not both")
    if arguments.log is not None:
        if arguments.sample is not None:
            raise UsageError("--sample is about a dataset; with --log there is none")
        return _show_logs(arguments)
    if arguments.mean_tokens is not None or arguments.max_seq_len is not None:
        raise UsageError("--mean-tokens and --max-seq-len are for --log; a dataset is counted")
    if arguments.sample is not None and arguments.sample < 1:
        raise UsageError(f"--sample {arguments.sample} is less than 1")
    return _show_runs(arguments)


def _show_runs(arguments: argparse.Namespace) -> int:
    from autobatch.cli.render import renderer
    from autobatch.probing.dataset_density import DensityMeter
    from autobatch.records import to_json
    from autobatch.report.table import text_table
    from autobatch.runs.experiment import find_runs

    # Where there is none, the meter says what is wrong with the path.
    paths = find_runs(Path(arguments.run)) or [Path(arguments.run)]
    meter = DensityMeter()
    found: list[DatasetDensity] = []
    refused: list[dict[str, Any]] = []
    code = 0
    for path in paths:
        try:
            with renderer() as shown:
                found.append(meter.measure(path, sample=arguments.sample, tell=shown.show))
        except AutobatchError as error:
            if len(paths) == 1:
                raise
            print(f"autobatch: {error}", file=sys.stderr)
            refused.append({"run": str(path), "error": str(error), "exit_code": error.exit_code})
            code = max(code, error.exit_code)
    if arguments.json:
        counted = [_with_ratios(to_json(one), one) for one in found]
        print(json.dumps([*counted, *refused], indent=2, ensure_ascii=False))
    elif found:
        rows = [row for one in found for row in _rows_of(one)]
        print(
            "\n".join(text_table(_RUN_HEADER, rows, numbers=[False, False, *[True] * (len(_RUN_HEADER) - 2)]))
        )
    return code


def _rows_of(one: DatasetDensity) -> list[tuple[str, ...]]:
    name = Path(one.run).resolve().name
    rows = [_run_row(name, "packs" if one.packed else "examples", one.density, one.kept)]
    if one.if_packed is not None:
        rows.append(_run_row(name, "if packed", one.if_packed, one.kept))
    return rows


def _run_row(name: str, kind: str, density: Density, kept: bool) -> tuple[str, ...]:
    source = "dataset, on file" if kept else "dataset"
    about = ""
    if density.sampled_examples is not None:
        about = "about "
        source += f", sampled: {density.sampled_examples} examples"
        if density.standard_error is not None:
            source += f", standard error {density.standard_error:.2f}"
    return (
        name,
        kind,
        str(density.examples),
        f"{about}{density.packs}",
        f"{about}{density.examples_per_pack:.2f}",
        "-" if density.efficiency is None else f"{100 * density.efficiency:.1f} %",
        f"{density.tokens / density.examples:.1f}",
        str(density.longest_example),
        source,
    )


def _with_ratios(data: dict[str, Any], one: DatasetDensity) -> dict[str, Any]:
    """The record, and what follows from it."""
    for key, density in (("density", one.density), ("if_packed", one.if_packed)):
        if density is not None:
            data[key]["examples_per_pack"] = density.examples_per_pack
            data[key]["efficiency"] = density.efficiency
            data[key]["mean_tokens"] = density.tokens / density.examples
    return data


def _show_logs(arguments: argparse.Namespace) -> int:
    from autobatch.records import to_json
    from autobatch.report.table import text_table

    if arguments.max_seq_len is not None and arguments.mean_tokens is None:
        raise UsageError("--max-seq-len alone gives no estimate: add --mean-tokens N")
    found = [
        (log, _density_of_log(Path(log), arguments.mean_tokens, arguments.max_seq_len))
        for log in arguments.log
    ]
    if arguments.json:
        print(
            json.dumps(
                [{"log": log, **to_json(packing)} for log, packing in found], indent=2, ensure_ascii=False
            )
        )
    else:
        rows = [_log_row(log, packing) for log, packing in found]
        print("\n".join(text_table(_LOG_HEADER, rows, numbers=[False, *[True] * (len(_LOG_HEADER) - 1)])))
    silent = [log for log, packing in found if packing.packing_density is None]
    for log in silent:
        print(
            f"autobatch: {log}: says no density; --mean-tokens N estimates it from the examples' mean length, "
            "autobatch density RUN counts it",
            file=sys.stderr,
        )
    return 1 if silent else 0


def _density_of_log(log: Path, mean_tokens: float | None, max_seq_len: int | None) -> PackingMetrics:
    from autobatch.metrics.log_packing import estimated, max_seq_len_of
    from autobatch.metrics.logs import read_logs

    read = read_logs([log])
    if read.packing.packing_density is not None or mean_tokens is None:
        return read.packing
    length = max_seq_len or max_seq_len_of(read.config)
    if length is None:
        raise UsageError(f"{log}: shows no config with tokenizer.max_seq_len: add --max-seq-len N")
    return estimated(read.packing, mean_tokens=mean_tokens, max_seq_len=length)


def _log_row(log: str, packing: PackingMetrics) -> Sequence[str]:
    return (
        log,
        "-" if packing.total_examples is None else str(packing.total_examples),
        "-" if packing.total_sequences is None else str(packing.total_sequences),
        "-" if packing.packing_density is None else f"{packing.packing_density:.2f}",
        "-" if packing.packing_efficiency is None else f"{packing.packing_efficiency:.1f} %",
        "-" if packing.source is None else packing.source.value,
    )
