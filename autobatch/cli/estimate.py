"""`autobatch estimate RUN`: predict the peak memory of a run without a GPU."""

from __future__ import annotations

import argparse
import json
import sys
from typing import TYPE_CHECKING

from autobatch.errors import UsageError
from autobatch.records import to_json
from autobatch.units import format_bytes, format_percent, format_seconds, parse_bytes

if TYPE_CHECKING:
    from autobatch.estimate.records import Estimate, Fitting
    from autobatch.records import Trial

_DESCRIPTION = """\
Predict the peak GPU memory of a run before any GPU is asked for: the trials of a probe run on a simulated
GPU, with PyTorch's own CUDA build, allocator and compiler. The batch_size that fits and the next one are
both run there. Neither weights nor dataset nor tokenizer need be there; tokenizer.max_seq_len must be set.
It needs the environment that trains on a GPU (a CUDA build of PyTorch) and a C compiler, but no GPU: a login
node will do. An estimate is a hint: autobatch probe measures, and begins with this one's answer.
"""

_EPILOG = """\
what the figures are:
  reserved    what PyTorch's caching allocator takes of the GPU: held against the target. The CUDA context
              of a real GPU, 0.3 to 0.5 GB, lies outside
  allocated   peak of live tensors, as PyTorch counts them
  other GPUs  from the line through the trials; cuBLAS's workspaces differ by up to 48 MiB. A GPU whose
              kernels are others is only known by running it: --gpu

distributed recipes:
  The figures are those of rank 0, the largest: its part of the sharded model, the layers gathered on it, the
  buffers of all-gather and reduce-scatter. The model is shared out by the recipe itself, over as many ranks
  as the training has: --nproc-per-node and --nodes, else finetune.slurm. What NCCL takes lies outside of
  PyTorch's allocator and of the figures

files:
  RUN/probe/estimate.json   the trials, under a key of all that decides memory: asked again, and for where a
                            probe begins (not with --set)
  RUN/probe/kernels/        compiled kernels, which the trials of a probe find there (1 GiB at most)

exit codes:
  0  estimated
  1  no estimate: why
  2  the run, the config or an option can't be used

example, with torchtune's llama3_2/1B_lora_single_device:
  $ autobatch estimate my.yaml --set dataset.packed=True --set tokenizer.max_seq_len=2048
  ...
  batch_size 10 fits in 70 % of h100-80gb (79.1 GiB): 53.5 GiB; 11 takes at least 58.5 GiB, at least 74.0 %
  (simulated)
  ...
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.add_argument(
        "run", metavar="RUN|CONFIG", help="run directory, which holds finetune.yaml, or any config file"
    )
    parser.add_argument(
        "--gpu",
        metavar="NAME",
        default="h100-80gb",
        help="GPU to simulate, or a MIG slice of one, such as h100-80gb:3g.40gb (default: h100-80gb); a wrong "
        "name lists all",
    )
    parser.add_argument("--capacity", metavar="SIZE", help="with this much memory instead, such as 48GiB")
    parser.add_argument(
        "--target",
        type=float,
        default=0.70,
        metavar="FRACTION",
        help="part of the GPU that the peak may reach (default: 0.70)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="show the peak at this size too (default: the largest that fits)",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="estimate the config with this setting changed, such as tokenizer.max_seq_len=2048 (repeatable)",
    )
    parser.add_argument(
        "--what-if",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a row for the config with this setting changed too, such as model.lora_rank=16 (repeatable)",
    )
    parser.add_argument(
        "--recipe",
        metavar="NAME|PATH",
        help="recipe to run (default: the one in finetune.slurm, else inferred from the config)",
    )
    parser.add_argument(
        "--nproc-per-node",
        type=int,
        metavar="N",
        help="processes of a distributed recipe on each node (default: as `tune run --nproc_per_node` in "
        "finetune.slurm, else the GPUs of its header)",
    )
    parser.add_argument(
        "--nodes",
        type=int,
        metavar="N",
        help="nodes of a distributed recipe (default: as `tune run --nnodes`, else the header's)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=600,
        metavar="SECONDS",
        help="give up on the config, or on a variant, after this long (default: 600)",
    )
    parser.add_argument("--force", action="store_true", help="simulate again though it is on file")
    parser.add_argument("--json", action="store_true", help="print the estimate as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Estimate, and print."""
    from autobatch.estimate.estimator import estimate
    from autobatch.estimate.records import Question
    from autobatch.simulated_gpu.gpus import gpu_named

    _check(arguments)
    gpu = gpu_named(arguments.gpu)
    capacity = parse_bytes(arguments.capacity) if arguments.capacity is not None else None
    question = Question(
        path=arguments.run,
        recipe=arguments.recipe,
        settings=tuple(arguments.set),
        processes_per_node=arguments.nproc_per_node,
        nodes=arguments.nodes,
        gpu=arguments.gpu,
        capacity_bytes=capacity,
        target_fraction=arguments.target,
        batch_size=arguments.batch_size,
        what_if=tuple(arguments.what_if),
        timeout_s=arguments.timeout,
        fresh=arguments.force,
    )
    total = capacity or gpu.total_bytes
    print(
        f"simulating {gpu.product}, {format_bytes(total)}: memory is counted, nothing is computed",
        file=sys.stderr,
    )
    found = estimate(question, lambda trial, known: print(_trial_line(trial, known, total), file=sys.stderr))
    for note in found.notes:
        print(note, file=sys.stderr)
    print(json.dumps(to_json(found), indent=2) if arguments.json else "\n".join(_lines(found)))
    return 0


def _check(arguments: argparse.Namespace) -> None:
    if not 0 < arguments.target <= 1:
        raise UsageError(f"--target {arguments.target:g} is not in (0, 1]: give a fraction such as 0.70")
    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise UsageError(f"--batch-size {arguments.batch_size} is less than 1")
    if not arguments.timeout > 0:
        raise UsageError(f"--timeout {arguments.timeout:g} is not a time: give seconds above 0")


def _trial_line(trial: Trial, known: bool, total_bytes: int) -> str:
    took = "on file" if known else format_seconds(trial.seconds)
    return f"batch_size {trial.batch_size}: {_peak(trial, total_bytes)}, {trial.verdict.value} ({took})"


def _peak(trial: Trial, total_bytes: int) -> str:
    if trial.peak_bytes is None:
        return "no peak"
    least = "at least " if trial.cut_short else ""
    return f"{least}{format_bytes(trial.peak_bytes)}, {least}{format_percent(trial.peak_bytes, total_bytes)}"


def _lines(found: Estimate) -> list[str]:
    from autobatch.report.table import text_table

    rows = "packs" if found.packed else "rows"
    ranks = f" on {found.world.size} ranks ({found.world})" if found.world else ""
    fitting = found.fitting
    density = f", {found.density:.2f} examples in each (counted by the probe)" if found.density else ""
    lines = [
        f"{found.config}: {found.recipe}{ranks}, {rows} of {found.max_seq_len} tokens{density}",
        _answer(found),
        "",
        *_figures(found),
    ]
    if found.what_if:
        lines += ["", *text_table(("peak", f"batch_size on {fitting.gpu}", "setting"), _variants(found))]
    lines += [
        "",
        *text_table(
            ("batch_size", "reserved", "capacity", "GPU"), [_gpu_row(gpu) for gpu in (fitting, *found.gpus)]
        ),
        _took(found),
    ]
    return lines


def _answer(found: Estimate) -> str:
    fitting = found.fitting
    target = f"{100 * found.target_fraction:g} % of {fitting.gpu} ({format_bytes(fitting.capacity_bytes)})"
    trials = {trial.batch_size: trial for trial in found.trials}
    if not fitting.batch_size:
        peak = (
            f": {_peak(trials[1], fitting.capacity_bytes)}"
            if trials[1].peak_bytes
            else ": it runs out of memory"
        )
        return f"not even batch_size 1 fits in {target}{peak} (simulated)"
    each = " of each rank" if found.world else ""
    answer = f"batch_size {fitting.batch_size}{each} fits in {target}"
    if fitting.reserved_bytes is not None:
        answer += f": {format_bytes(fitting.reserved_bytes)}"
    following = trials.get(fitting.batch_size + 1)
    if following is None:
        return f"{answer} (simulated); no larger one was tried"
    how = (
        f"takes {_peak(following, fitting.capacity_bytes)}" if following.peak_bytes else "runs out of memory"
    )
    return f"{answer}; {following.batch_size} {how} (simulated)"


def _figures(found: Estimate) -> list[str]:
    from autobatch.report.table import text_table

    where = f"at batch_size {found.batch_size}{', rank 0' if found.world else ''}"
    if found.reserved_bytes is None or found.allocated_bytes is None:
        return [f"{where}: out of memory"]
    capacity = found.fitting.capacity_bytes
    return [
        f"{where}: {format_bytes(found.reserved_bytes)} reserved, "
        f"{format_percent(found.reserved_bytes, capacity)} of {format_bytes(capacity)}; "
        f"{format_bytes(found.allocated_bytes)} allocated, of which",
        *text_table(
            ("memory", "of the peak", "for"),
            [
                (format_bytes(size), format_percent(size, found.allocated_bytes), part)
                for part, size in found.parts.items()
            ],
        ),
    ]


def _gpu_row(fitting: Fitting) -> tuple[str, ...]:
    capacity = format_bytes(fitting.capacity_bytes)
    if fitting.batch_size is None:
        return "?", "-", capacity, f"{fitting.gpu}: {fitting.why}"
    about = "" if fitting.simulated else "~"
    reserved = f"{about}{format_bytes(fitting.reserved_bytes)}" if fitting.reserved_bytes is not None else "-"
    if fitting.batch_size == 0:
        return "-", reserved, capacity, f"{fitting.gpu}: batch_size 1 is over the target"
    return f"{about}{fitting.batch_size}", reserved, capacity, fitting.gpu


def _took(found: Estimate) -> str:
    reused = f", {found.reused} of them on file" if found.reused else ""
    line = "~: from the line through these trials"
    if found.fit is not None:
        line += f", none of them further than {100 * found.fit.max_residual_fraction:.1f} % from it"
    return f"{len(found.trials)} trials{reused} in {format_seconds(found.seconds)}; {line}"


def _variants(found: Estimate) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for variant in found.what_if:
        name = variant.settings or "as it is"
        if variant.fitting is None:
            rows.append(("-", "-", f"{name}: no estimate: {variant.why}"))
            continue
        peak = format_bytes(variant.peak_bytes) if variant.peak_bytes is not None else "out of memory"
        rows.append((f"{peak} at {variant.batch_size}", str(variant.fitting.batch_size or "-"), name))
    return rows
