"""`autobatch metrics PATH`: what a training took, into runs_status.yaml."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autobatch.errors import UsageError

if TYPE_CHECKING:
    from autobatch.metrics.record import Change
    from autobatch.metrics.run_metrics import RunMetrics

_DESCRIPTION = """\
Extract what the last training of a run took, or of every run of an experiment, and record it in
runs_status.yaml of the experiment directory: how it ended, config, packing, memory against the probe's
prediction, time, throughput. The run's entry is found by its name; other entries, your own keys and
comments stay, and several jobs may write at once.
"""

_EPILOG = """\
read, of each run:
  slurm-*.out             and what finetune.slurm's --output names; with progress bars as they are
  DiskLogger's log_*.txt  where the config or the job's log says that it is
  gpu_metrics.csv         of nvidia-smi --query-gpu=timestamp,utilization.gpu,memory.used,... --format=csv -l 30
  probe/result.json       density, and the peak that was predicted
  finetune.yaml           when the log doesn't hold the config that was trained with
  Slurm                   sacct, else scontrol: state, start, end, GPUs; goes on without when neither answers

where two sources tell the same:
  peak_gpu_memory_gb      torchtune's reserved, else nvidia-smi's, alloc, active: peak_gpu_memory_source says
                          which; the prediction is of the same kind, at the batch size that was trained with
  packing_density         the probe's, if it packed this dataset, else the log's: packing_source says which
  training_time_minutes   the progress bars' (training alone), else Slurm's elapsed time
  gpu_hours               GPUs x Slurm's elapsed time, else the time that nvidia-smi sampled
  tokens_per_second       of a GPU, as torchtune logs it: tokens that are trained on. Memory is in GiB
  examples_per_second     from the steps, their time and the density, over all GPUs
  avg_gpu_memory_gb       mean of nvidia-smi's samples; of an epoch: the epochs are laid end to end before the
                          last sample, for a log has no clock

runs_status.yaml, the entry of a run (a value that isn't known is left out, or null where there was one):
  - name: run1
    status: completed     planned, running, completed, failed, cancelled
    failure:              of a failed one: out of memory, time limit, or the error's last line
    slurm_job_id:  started:  completed:
    config:               model, recipe, batch_size, packed, max_seq_len, gradient_accumulation_steps,
                          effective_batch_size, lora_rank, lora_alpha, epochs, learning_rate, dtype
    metrics:              the keys above, total_examples, total_sequences, packing_efficiency (percent),
                          gpu_utilization_pct, predicted_peak_memory_gb, peak_vs_predicted_pct, steps, final_loss
                          (.nan or .inf where the training diverged; left out of --json)

exit codes:
  0  recorded
  1  nothing could be extracted of any run; with --init: no config could be read
  2  there is no run at PATH, a file can't be read, or runs_status.yaml can't be edited safely; of an
     experiment, all other runs were recorded

example:
  $ autobatch metrics demo-run/       (on a CPU, of which torchtune logs no peak)
  run   status     batch_size  peak  predicted  off by  density  tokens/s  training
  run1  completed           9     -          -       -     5.21       135    58.0 s
"""

_HEADER = (
    "run", "status", "batch_size", "peak", "predicted", "off by", "density", "tokens/s", "training", "",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.add_argument("path", metavar="PATH", help="run directory or experiment directory")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--per-run",
        action="store_true",
        help="write RUN/run_metrics.yaml instead, with a list of epochs; runs_status.yaml stays as it is",
    )
    what.add_argument(
        "--init",
        action="store_true",
        help="before training: add the runs to runs_status.yaml as planned, with their config and metrics of "
        "null; a run that was trained already is left as it is",
    )
    parser.add_argument(
        "--log",
        action="append",
        type=Path,
        metavar="FILE",
        help="read this log instead of those that are found; may be given again (the job's output, DiskLogger's "
        "file); for one run",
    )
    parser.add_argument(
        "--job", metavar="ID", help="Slurm's id of the training job (default: of the log's name); for one run"
    )
    parser.add_argument(
        "--exit-code",
        type=int,
        metavar="N",
        help="of `tune run`, for use in the training job itself, which Slurm still calls running; for one run",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would change as a diff; write nothing"
    )
    parser.add_argument("--json", action="store_true", help="print JSON: a list of runs")


def run(arguments: argparse.Namespace) -> int:
    """Record, and print a line a run."""
    from autobatch.runs.experiment import find_runs

    path = Path(arguments.path).resolve()
    runs = find_runs(path)
    if not runs:
        raise UsageError(f"{arguments.path}: no finetune.yaml here or one level below")
    options = {"--log": arguments.log, "--job": arguments.job, "--exit-code": arguments.exit_code}
    option = next((name for name, value in options.items() if value is not None), None)
    if arguments.job is not None and not re.fullmatch(r"\d+(_\d+)?", arguments.job):
        raise UsageError(f"--job {arguments.job!r} is no job's id: give a number, or 28_0 of an array")
    if arguments.init and option:
        raise UsageError(f"--init plans a training, and {option} is of one that has run: drop one of them")
    if len(runs) > 1 and option:
        raise UsageError(
            f"{option} is of one run, and {arguments.path} holds {len(runs)}: name a run, such as {runs[0]}"
        )
    return _plan(runs, arguments) if arguments.init else _extract(runs, arguments)


def _plan(runs: Sequence[Path], arguments: argparse.Namespace) -> int:
    from autobatch.metrics.entry import planned_entry
    from autobatch.metrics.record import record_planned
    from autobatch.metrics.trained_config import read_trained_config

    rows: list[dict[str, Any]] = []
    refused: list[UsageError] = []
    readable = False
    for found in runs:
        config = read_trained_config(found, {}, None)
        for note in config.notes:
            _say(found, note)
        if not config.values:
            if not config.notes:
                _say(found, "holds no finetune.yaml that can be read")
            continue
        readable = True
        try:
            change = record_planned(found, config, dry_run=arguments.dry_run)
        except UsageError as error:
            refused.append(error)
            continue
        if change is None:
            _say(found, "was trained already; its entry is left as it is")
        else:
            rows.append({"run_name": found.name, **planned_entry(config), **_written(change)})
            _show_change(change, arguments)
    _tell_refused(refused, any_recorded=bool(rows))
    if arguments.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    elif not arguments.dry_run:
        for row in rows:
            print(f"{row['run_name']}: {'planned in' if row['changed'] else 'is as it was in'} {row['file']}")
    return UsageError.exit_code if refused else 0 if readable else 1


def _extract(runs: Sequence[Path], arguments: argparse.Namespace) -> int:
    from autobatch.metrics.collect import collect
    from autobatch.metrics.entry import run_file
    from autobatch.metrics.record import record_run_file, record_status

    found = collect(runs, logs=arguments.log, job_id=arguments.job, exit_code=arguments.exit_code)
    rows: list[dict[str, Any]] = []
    recorded: list[RunMetrics] = []
    refused: list[UsageError] = []
    for metrics in found:
        for note in metrics.notes:
            _say(metrics.run, note)
        if not metrics.sources:
            _say(metrics.run, "no training yet: no log, no gpu_metrics.csv, no job that Slurm knows")
            continue
        record = record_run_file if arguments.per_run else record_status
        try:
            change = record(metrics, dry_run=arguments.dry_run)
        except UsageError as error:
            refused.append(error)
            continue
        recorded.append(metrics)
        read = {"sources": list(metrics.sources), "notes": list(metrics.notes)}
        # JSON has no NaN: there it is left out, and a note says what it was.
        finite = replace(metrics, final_loss=_finite(metrics.final_loss))
        rows.append(run_file(finite) | read | _written(change))
        _show_change(change, arguments)
    _tell_refused(refused, any_recorded=bool(recorded))
    if arguments.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    elif recorded and not arguments.dry_run:
        _print_table(recorded)
        for file in dict.fromkeys(row["file"] for row in rows):
            print(f"recorded in {file}", file=sys.stderr)
    return UsageError.exit_code if refused else 0 if recorded else 1


def _tell_refused(refused: Sequence[UsageError], *, any_recorded: bool) -> None:
    """Says of which runs nothing could be recorded; where that is so of all, it is the command's own error."""
    if refused and not any_recorded:
        raise refused[0]
    for message in dict.fromkeys(map(str, refused)):
        print(f"autobatch: {message}", file=sys.stderr)


def _print_table(found: Sequence[RunMetrics]) -> None:
    from autobatch.report.table import text_table
    from autobatch.units import format_seconds

    rows = []
    for metrics in found:
        memory, off = metrics.memory, metrics.memory.percent_of_prediction
        predicted, density = memory.predicted_gib, metrics.packing.packing_density
        cells = (
            metrics.outcome.status,
            metrics.config.integer("batch_size"),
            f"{memory.gib:.2f} GiB {memory.kind}" if memory.gib is not None else None,
            f"{predicted:.2f} GiB {memory.predicted_by}" if predicted is not None else None,
            f"{off:+.1f} %" if off is not None else None,
            f"{density:.2f}" if density is not None else None,
            f"{metrics.tokens_per_second:.0f}" if metrics.tokens_per_second is not None else None,
            format_seconds(metrics.training_seconds) if metrics.training_seconds is not None else None,
        )
        told = ["-" if cell is None else str(cell) for cell in cells]
        rows.append((metrics.run.name, *told, metrics.outcome.failure or ""))
    print("\n".join(text_table(_HEADER, rows, numbers=[False, False, *[True] * (len(_HEADER) - 2)])))


def _show_change(change: Change, arguments: argparse.Namespace) -> None:
    if arguments.dry_run and not arguments.json:
        print(change.diff(), end="")


def _written(change: Change) -> dict[str, Any]:
    return {"file": str(change.path), "changed": change.before != change.after, "written": change.changed}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _say(run: Path, note: str) -> None:
    from autobatch.report.table import printable

    print(printable(f"{run.name}: {note}"), file=sys.stderr)
