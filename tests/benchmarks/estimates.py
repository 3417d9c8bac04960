"""Estimates of every config that torchtune ships for one device, what they cost, and what others measured.

    python -m tests.benchmarks.estimates configs --json configs.json --markdown configs.md
    python -m tests.benchmarks.estimates costs --markdown costs.md
    python -m tests.benchmarks.estimates published --markdown published.md

Rows are packs of 2,048 tokens. Figures already in the JSON file are kept, so that it can be stopped and go on.
"""

from __future__ import annotations

import argparse
import functools
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autobatch.errors import AutobatchError
from autobatch.estimate.cards import CARDS
from autobatch.estimate.estimator import fit
from autobatch.estimate.recording import recorded
from autobatch.estimate.subject import Subject, read_subject
from autobatch.probing.forkserver import ForkServer
from autobatch.records import to_json
from autobatch.runs.torchtune_source import registered_recipes
from tests.benchmarks.machine import machine_facts, write_json

_TOKENS = 2048
SETTINGS = (f"tokenizer.max_seq_len={_TOKENS}", "dataset.packed=True")
_UNPACKED = (f"tokenizer.max_seq_len={_TOKENS}",)

_GIB = 2**30

#: Batch sizes whose peaks are shown, and the card that they are for.
_SIZES = (1, 2, 4, 8)
_CARD = "a100-80gb"

#: Configs whose cost has a bar, with what is set in them; the 70B is a config for several devices.
_COSTS = (
    ("llama3_2/1B_lora_single_device", ()),
    ("llama3_2/3B_lora_single_device", ()),
    ("llama3_1/8B_lora_single_device", ()),
    ("llama3_1/70B_lora", ()),
)


@dataclass(frozen=True)
class Published:
    """A figure that somebody else measured on a card.

    Attributes:
        config: that ships with torchtune.
        settings: changed in it.
        batch_size: of the figure; None: once the model is made, before any batch.
        gib: allocated, and reserved where it is known.
        source: where it stands.
        how: what was different from what is estimated.
    """

    config: str
    settings: tuple[str, ...]
    batch_size: int | None
    gib: tuple[float, float | None]
    source: str
    how: str = ""


_README = "torchtune's README (0.4 to 0.6), Llama 3.1 8B"
_ONCE = ("gradient_accumulation_steps=1",)
_COMPILED = "measured with torch.compile, estimated without; other settings aren't stated there"

PUBLISHED = (
    Published(
        "llama3_2/3B_lora_single_device",
        (),
        None,
        (6.21, 6.27),
        "torchtune's end-to-end tutorial, 3B LoRA's log",
    ),
    Published(
        "llama3_1/8B_full_single_device",
        ("gradient_accumulation_steps=1",),
        2,
        (18.9, None),
        _README,
        _COMPILED,
    ),
    Published(
        "llama3_1/8B_lora_single_device",
        ("gradient_accumulation_steps=1",),
        2,
        (16.2, None),
        _README,
        _COMPILED,
    ),
    Published(
        "llama3_1/8B_qlora_single_device",
        ("gradient_accumulation_steps=1",),
        2,
        (7.4, None),
        _README,
        _COMPILED,
    ),
    Published(
        "llama2/7B_full_low_memory",
        ("dataset.packed=False", "loss=torch.nn.CrossEntropyLoss", "enable_activation_offloading=False"),
        4,
        (18.81, None),
        "meta-pytorch/torchtune#961: 20.2 GB; a reviewer had 22.3 GB on an A100",
        "torchtune of May 2024, whose loss took fp32 logits",
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Estimate, print the table, write the figures."""
    options = _parser().parse_args(arguments)
    done: dict[str, Any] = {}
    if options.json and options.json.exists():
        done = json.loads(options.json.read_text(encoding="utf-8"))["configs"]
    server = ForkServer({"PYTHONWARNINGS": "ignore"}, "cpu")
    server.start()
    if options.what == "published":
        lines = [*_heading("Estimates against figures measured elsewhere"), *_published(server)]
        _write(lines, options.markdown)
        return 0
    chosen = single_device_configs() if options.what == "configs" else [name for name, _ in _COSTS]
    for name in chosen:
        if name in done and not options.again:
            continue
        done[name] = measure(functools.partial(subject_named, name), server)
        print("| " + " | ".join(row(name, done[name])) + " |", flush=True)
        if options.json:
            write_json({"machine": machine_facts(), "configs": done}, options.json)
    table = _table([(name, done[name]) for name in chosen if name in done])
    _write([*_heading(f"Estimates of torchtune's configs ({options.what})"), *table], options.markdown)
    return 0


def _heading(title: str) -> list[str]:
    facts = machine_facts()
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return [
        f"# {title}",
        "",
        f"{facts['cpu']}, {facts['cores']} cores, no card; {versions}. As the configs ship, but with",
        f"`dataset.packed: True` (DPO can't pack) and `tokenizer.max_seq_len: {_TOKENS}`. Peaks are GiB of",
        f"allocated memory. The largest batch_size is that whose reserved peak is at most 70 % of {_CARD}, with",
        "the interval of a 5 % error. Seconds are wall time for the three traces, beside other work there;",
        "`process` is the largest of theirs.",
        "",
    ]


def _write(lines: Sequence[str], path: Path | None) -> None:
    print("\n".join(lines))
    if path is not None:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _published(server: ForkServer) -> list[str]:
    header = ("config", "batch_size", "published GiB", "estimate GiB", "difference", "source", "but")
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    for known in PUBLISHED:
        curve = recorded(
            subject_named(known.config, *known.settings), server, timeout_s=1200, keep=None
        ).curve
        peak = curve.at(known.batch_size or 1)
        ours = (
            (peak.setup_bytes, peak.setup_reserved_bytes)
            if known.batch_size is None
            else (peak.allocated_bytes, peak.reserved_bytes)
        )
        pairs = [(size / _GIB, gib) for size, gib in zip(ours, known.gib, strict=True) if gib is not None]
        cells = (
            known.config,
            str(known.batch_size or "before the first"),
            " / ".join(f"{gib:.2f}" for _, gib in pairs),
            " / ".join(f"{size:.2f}" for size, _ in pairs),
            " / ".join(f"{100 * (size - gib) / gib:+.1f} %" for size, gib in pairs),
            known.source,
            known.how,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def single_device_configs() -> list[str]:
    """Names of the LoRA, QLoRA, DoRA and full configs for one device, as `tune ls` lists them."""
    return sorted(
        f"{config.parent.name}/{config.stem}"
        for recipe in registered_recipes().values()
        if not recipe.supports_distributed
        for config in recipe.configs
        if "_single_device" in config.stem
    )


def measure(read: Callable[[], Subject], server: ForkServer) -> dict[str, Any]:
    """Estimate what `read` reads, or say why it can't be."""
    began = time.monotonic()
    try:
        result = recorded(read(), server, timeout_s=1200, keep=None)
    except AutobatchError as error:
        return {"why": str(error), "seconds": time.monotonic() - began}
    fitting = fit(result.curve, CARDS[_CARD], 0.7)
    peaks = [result.curve.at(batch_size) for batch_size in _SIZES]
    return {
        "peaks": [
            to_json(peak) | {"by_kind": {k.value: v for k, v in peak.by_kind.items()}} for peak in peaks
        ],
        "fitting": to_json(fitting),
        "traces_seconds": [trace.seconds for trace in result.curve.traces],
        "storages": len(result.curve.traces[0].sizes),
        "memory_bytes": result.memory_bytes,
        "seconds": time.monotonic() - began,
    }


def subject_named(name: str, *settings: str) -> Subject:
    """A config that ships with torchtune, with packs of 2,048 tokens."""
    recipes = registered_recipes()
    path = next(
        config
        for recipe in recipes.values()
        for config in recipe.configs
        if f"{config.parent.name}/{config.stem}" == name
    )
    recipe = next(
        r.name.replace("_distributed", "_single_device") for r in recipes.values() if path in r.configs
    )
    packing = _UNPACKED if "dpo" in name else SETTINGS
    return read_subject(path, recipe, (*packing, *settings))


HEADER = (
    "config", *(f"batch_size {size}" for size in _SIZES), "reserved at 8", "before the first batch",
    f"largest on {_CARD}", "seconds", "process", "why there is none",
)  # fmt: skip


def row(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    """The cells under `HEADER`."""
    if "why" in found:
        why = found["why"].replace("\n", " ").replace("no estimate: ", "")
        why = re.sub(r"/\S*/configs/\S+: ", "", " ".join(why.split()))
        return (name, *("" for _ in HEADER[1:-3]), f"{found['seconds']:.0f}", "", why)
    peaks, fitting = found["peaks"], found["fitting"]
    return (
        name,
        *(f"{peak['allocated_bytes'] / _GIB:.2f}" for peak in peaks),
        f"{peaks[-1]['reserved_bytes'] / _GIB:.2f}",
        f"{peaks[0]['before_bytes'] / _GIB:.2f}",
        f"{fitting['batch_size']} ({fitting['lowest']}-{fitting['highest']})",
        f"{found['seconds']:.0f}",
        f"{found['memory_bytes'] / 2**20:.0f} MiB",
        "",
    )


def _table(rows: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    lines = ["| " + " | ".join(HEADER) + " |", "|" + " --- |" * len(HEADER)]
    return [*lines, *("| " + " | ".join(row(name, found)) + " |" for name, found in rows)]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("configs", "costs", "published"))
    parser.add_argument("--json", type=Path, help="keep the figures here")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument("--again", action="store_true", help="also what the JSON file has")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
