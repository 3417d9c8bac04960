"""Trials on a simulated GPU: torchtune's configs, what estimates cost, and what others measured on real GPUs.

    autobatch simulate --gpu a100-80gb --capacity 4TiB -- python -m tests.benchmarks.estimates configs --json FILE
    autobatch simulate --gpu a100-80gb --capacity 4TiB -- python -m tests.benchmarks.estimates published
    python -m tests.benchmarks.estimates costs

Rows are packs of 2,048 tokens, unless a row says otherwise. The capacity lets every size run. Figures already in
the JSON file are kept, so that it can be stopped and go on.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autobatch.errors import AutobatchError
from autobatch.estimate.subject import read_subject
from autobatch.estimate.trials import SimulatedTrials
from autobatch.probing.components import EventFile
from autobatch.probing.forkserver import ForkServer
from autobatch.records import Metric
from autobatch.runs.torchtune_source import registered_recipes
from tests.benchmarks.machine import machine_facts, write_json

_TOKENS = 2048
_PACKED = ("dataset.packed=True",)

_GIB = 2**30

#: Batch sizes whose peaks are measured.
_SIZES = (1, 2, 4, 8)

#: Seconds and host memory that an estimate may take.
_COSTS = {
    "llama3_2/1B_lora_single_device": (60, 6 * _GIB),
    "llama3_1/8B_lora_single_device": (90, 6 * _GIB),
    "llama3_1/70B_lora": (120, 6 * _GIB),
}


@dataclass(frozen=True)
class Published:
    """A peak that somebody else measured on a GPU.

    Attributes:
        label: of the row.
        config: that ships with torchtune.
        settings: changed in it.
        batch_size: of the figure; None: once the model is made, before any batch.
        gib: allocated, and reserved where it is known.
        source: where it stands.
    """

    label: str
    config: str
    settings: tuple[str, ...]
    batch_size: int | None
    gib: tuple[float, float | None]
    source: str


_FLAGS = "torchtune's README, Optimization Flags: 3B full, A100, peak active"
_8B = "torchtune's README, Llama 3.1 8B on a 4090"
_TUTORIAL = "torchtune's tutorials, the log after model init"

_BASE = (
    "tokenizer.max_seq_len=4096",
    "dataset.packed=False",
    "compile=False",
    "loss=torchtune.modules.loss.CEWithChunkedOutputLoss",
    "loss.num_output_chunks=1",
    "enable_activation_checkpointing=False",
    "enable_activation_offloading=False",
    "optimizer_in_bwd=False",
    "optimizer=torch.optim.AdamW",
    "optimizer.fused=True",
    "gradient_accumulation_steps=1",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the figures."""
    options = _parser().parse_args(arguments)
    if options.what == "costs":
        return _costs(options.markdown)
    done: dict[str, Any] = {}
    if options.json and options.json.exists():
        done = json.loads(options.json.read_text(encoding="utf-8"))["configs"]
    server = ForkServer({"PYTHONWARNINGS": "ignore"}, "cuda")
    for name in options.only or single_device_configs():
        if name in done and not options.again:
            continue
        done[name] = measure(name, (), _SIZES, server)
        print(name, _short(done[name]), flush=True)
        if options.json:
            write_json({"machine": machine_facts(), "configs": done}, options.json)
    return 0


def single_device_configs() -> list[str]:
    """Names of the LoRA, QLoRA, DoRA and full configs for one device, as `tune ls` lists them."""
    return sorted(
        f"{config.parent.name}/{config.stem}"
        for recipe in registered_recipes().values()
        if not recipe.supports_distributed
        for config in recipe.configs
        if "_single_device" in config.stem
    )


def measure(name: str, settings: Sequence[str], sizes: Sequence[int], server: ForkServer) -> dict[str, Any]:
    """Peaks of a config that ships with torchtune at each size, by metric; or why there are none."""
    began = time.monotonic()
    recipes = registered_recipes()
    path = next(
        config
        for found in recipes.values()
        for config in found.configs
        if f"{config.parent.name}/{config.stem}" == name
    )
    recipe = next(r.name for r in recipes.values() if path in r.configs)
    recipe = recipe.replace("_distributed", "_single_device")
    base = (f"tokenizer.max_seq_len={_TOKENS}", *(() if "dpo" in name else _PACKED))
    with tempfile.TemporaryDirectory() as scratch:
        try:
            subject = read_subject(path, recipe, (*base, *settings))
            trials = SimulatedTrials(
                subject, server, Path(scratch), target_bytes=2**60, timeout_s=900.0 * len(sizes)
            )
            peaks = {}
            for size in sizes:
                peaks[size] = trials.at(size).peaks_bytes
            first = EventFile(Path(scratch) / "trials" / f"batch_size_{sizes[0]}.events").read()
        except AutobatchError as error:
            return {"why": str(error), "seconds": time.monotonic() - began}
    before = next(event["current"] for event in first if event["event"] == "first_batch")
    return {"peaks": peaks, "before": before, "seconds": time.monotonic() - began}


def _short(found: dict[str, Any]) -> str:
    if "why" in found:
        return str(found["why"])
    allocated = [f"{peaks[Metric.ALLOCATED.value] / _GIB:.2f}" for peaks in found["peaks"].values()]
    return f"{' '.join(allocated)} GiB, {found['seconds']:.0f} s"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("configs", "costs", "published"))
    parser.add_argument("--only", nargs="*", help="these configs")
    parser.add_argument("--json", type=Path, help="keep the figures here")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument("--again", action="store_true", help="also what the JSON file has")
    return parser


def _costs(markdown: Path | None) -> int:
    raise SystemExit("not yet")


if __name__ == "__main__":
    raise SystemExit(main())
