"""`autobatch estimate RUN`: predict the peak memory of a run without a GPU."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from autobatch.errors import UsageError
from autobatch.records import to_json
from autobatch.units import format_bytes, format_percent, format_seconds, parse_bytes

if TYPE_CHECKING:
    from autobatch.estimate.cards import Card
    from autobatch.estimate.records import Estimate, Fitting

_DESCRIPTION = """\
Predict the peak GPU memory of a run before any GPU is asked for: its own recipe runs on fake tensors,
which have shapes and no memory, at three batch sizes. Neither weights nor dataset nor tokenizer need be
there; tokenizer.max_seq_len must be set. 20 s for a 1B, 45 s for a 70B, on two cores. An estimate is
a hint: autobatch probe measures, and begins with this one's answer.
"""

_EPILOG = """\
what the figures are:
  allocated   peak of live tensors, as PyTorch counts them
  reserved    what PyTorch's caching allocator holds for them, cuBLAS's workspaces included: held against
              the target. The CUDA context, 0.3 to 0.5 GB, lies outside
  batch_size  the largest whose reserved peak is at most the target, and what that would be if the
              estimate were 5 % too low or too high

distributed recipes:
  The figures are those of one rank's card, the largest one's: its part of the sharded model, the layers
  gathered on it, the buffers of all-gather and reduce-scatter. The model is shared out by the recipe itself,
  over as many ranks as the training has: --nproc-per-node and --nodes, else finetune.slurm. What NCCL takes
  lies outside of PyTorch's allocator and of the figures

files:
  RUN/probe/estimate.json   the recorded traces, under a key of all that decides memory: asked again, for
                            any card or batch size, the answer comes from there (not with --set)

exit codes:
  0  estimated
  1  no estimate: why
  2  the run, the config or an option can't be used

example, with torchtune's llama3_2/1B_lora_single_device, packed, at 2,048 tokens:
  $ autobatch estimate my.yaml --gpu a100-40gb --batch-size 4 --what-if enable_activation_offloading=True
  ...
  batch_size 4 fits in 70 % of a100-40gb (39.4 GiB): 23.0 GiB; between 4 and 5 if the estimate is 5 % off
  ...
           peak  batch_size on a100-40gb  setting
  23.0 GiB at 4                        4  as it is
  10.5 GiB at 4                       12  enable_activation_offloading=True
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.add_argument(
        "run", metavar="RUN|CONFIG", help="run directory, which holds finetune.yaml, or any config file"
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--gpu",
        metavar="NAME",
        default="h100-80gb",
        help="card to plan for (default: h100-80gb); a wrong name lists all",
    )
    where.add_argument("--capacity", metavar="SIZE", help="plan for a card of this size, such as 48GiB")
    parser.add_argument(
        "--target",
        type=float,
        default=0.70,
        metavar="FRACTION",
        help="part of the card that the peak may reach (default: 0.70)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="show the peak at this size (default: the largest that fits)",
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
        "--timeout", type=float, default=600, metavar="SECONDS", help="give up after this long (default: 600)"
    )
    parser.add_argument("--force", action="store_true", help="estimate again though one is on file")
    parser.add_argument("--json", action="store_true", help="print the estimate as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Estimate, and print."""
    from autobatch.estimate.estimator import Question, estimate
    from autobatch.estimate.subject import read_subject, with_settings
    from autobatch.probing.forkserver import ForkServer

    _check(arguments)
    subject = read_subject(
        Path(arguments.run),
        arguments.recipe,
        arguments.set,
        processes_per_node=arguments.nproc_per_node,
        nodes=arguments.nodes,
    )
    if subject.device == "cpu":
        print(
            f"{subject.path}: device is cpu; the figures are for a card, as with device: cuda",
            file=sys.stderr,
        )
        # Not kept: what is on file is the run as it is.
        subject = replace(with_settings(subject, ["device=cuda"]), run_dir=None)
    server = ForkServer({"PYTHONWARNINGS": "ignore"}, "cpu")
    with _quiet():
        server.start()
    question = Question(
        card=_card(arguments),
        target_fraction=arguments.target,
        batch_size=arguments.batch_size,
        what_if=arguments.what_if,
        timeout_s=arguments.timeout,
        fresh=arguments.force,
        keep=not arguments.set,
    )
    found = estimate(subject, question, server)
    for note in found.notes:
        print(note, file=sys.stderr)
    print(json.dumps(to_json(found), indent=2) if arguments.json else "\n".join(_lines(found)))
    return 0


@contextmanager
def _quiet() -> Iterator[None]:
    """Processes started meanwhile have nowhere to complain: what a recipe's imports say isn't about the run."""
    kept = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _check(arguments: argparse.Namespace) -> None:
    if not 0 < arguments.target <= 1:
        raise UsageError(f"--target {arguments.target:g} is not in (0, 1]: give a fraction such as 0.70")
    if arguments.batch_size is not None and arguments.batch_size < 1:
        raise UsageError(f"--batch-size {arguments.batch_size} is less than 1")
    if not arguments.timeout > 0:
        raise UsageError(f"--timeout {arguments.timeout:g} is not a time: give seconds above 0")


def _card(arguments: argparse.Namespace) -> Card:
    from autobatch.estimate.cards import Card, card_named

    if arguments.capacity is None:
        return card_named(arguments.gpu)
    # Of an unknown card the larger workspaces are assumed.
    return Card("--capacity", parse_bytes(arguments.capacity), 9)


def _lines(found: Estimate) -> list[str]:
    from autobatch.report.table import text_table

    rows = "packs" if found.packed else "rows"
    ranks = f" on {found.world.size} ranks ({found.world})" if found.world else ""
    fitting = found.fitting
    capacity = fitting.capacity_bytes
    density = f", {found.density:.2f} examples in each (counted by the probe)" if found.density else ""
    lines = [
        f"{found.config}: {found.recipe}{ranks}, {rows} of {found.max_seq_len} tokens{density}",
        _answer(fitting, found),
        "",
        f"at batch_size {found.batch_size}{', the largest rank' if found.world else ''}: "
        f"{format_bytes(found.reserved_bytes)} reserved, "
        f"{format_percent(found.reserved_bytes, capacity)} of {format_bytes(capacity)}; "
        f"{format_bytes(found.allocated_bytes)} allocated, of which",
    ]
    lines += text_table(
        ("memory", "of the peak", "for"),
        [
            (format_bytes(size), format_percent(size, found.allocated_bytes), kind)
            for kind, size in found.by_kind.items()
        ],
    )
    if found.what_if:
        lines += ["", *text_table(("peak", f"batch_size on {fitting.card}", "setting"), _variants(found))]
    lines += [
        "",
        *text_table(
            ("batch_size", "interval", "reserved", "capacity", "card"),
            [_card_row(card) for card in found.cards],
        ),
    ]
    took = f"{format_seconds(found.seconds)}" if found.seconds else "on file"
    lines.append(
        f"{took}; a third batch_size is {100 * found.off_line_fraction:.2f} % off what the first two say"
    )
    return lines


def _answer(fitting: Fitting, found: Estimate) -> str:
    target = f"{100 * found.target_fraction:g} % of {fitting.card} ({format_bytes(fitting.capacity_bytes)})"
    if fitting.batch_size == 0:
        return f"not even batch_size 1 fits in {target}: {format_bytes(fitting.reserved_bytes)}"
    each = " of each rank" if found.world else ""
    return (
        f"batch_size {fitting.batch_size}{each} fits in {target}: {format_bytes(fitting.reserved_bytes)}; "
        f"between {fitting.lowest} and {fitting.highest} if the estimate is "
        f"{100 * found.margin_fraction:g} % off"
    )


def _card_row(card: Fitting) -> tuple[str, ...]:
    return (
        str(card.batch_size) if card.batch_size else "-",
        f"{card.lowest}-{card.highest}" if card.highest else "-",
        format_bytes(card.reserved_bytes),
        format_bytes(card.capacity_bytes),
        card.card if card.batch_size else f"{card.card}: batch_size 1 is over the target",
    )


def _variants(found: Estimate) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for variant in found.what_if:
        name = variant.settings or "as it is"
        if variant.peak_bytes is None or variant.fitting is None:
            rows.append(("-", "-", f"{name}: no estimate: {variant.why}"))
            continue
        peak = f"{format_bytes(variant.peak_bytes)} at {variant.batch_size}"
        rows.append((peak, str(variant.fitting.batch_size or "-"), name))
    return rows
