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
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from autobatch.errors import AutobatchError
from autobatch.estimate.subject import read_subject
from autobatch.estimate.trials import SimulatedTrials
from autobatch.probing.forkserver import ForkServer
from autobatch.records import Metric
from autobatch.runs.torchtune_source import registered_recipes
from tests.benchmarks.machine import machine_facts, write_json

_TOKENS = 2048
_LENGTH = f"tokenizer.max_seq_len={_TOKENS}"
_PACKED = ("dataset.packed=True",)

_GIB = 2**30

#: Batch sizes whose peaks are measured.
_SIZES = (1, 2, 4, 8)

#: Bars on the difference from what others measured.
_MEDIAN, _WORST = 0.03, 0.10

#: Seconds and host memory that an estimate may take.
_COSTS = {
    "llama3_2/1B_lora_single_device": (60, 6 * _GIB),
    "llama3_1/8B_lora_single_device": (90, 6 * _GIB),
    "llama3_1/70B_lora": (120, 6 * _GIB),
}


@dataclass(frozen=True)
class Published:
    """A peak that somebody else measured on GPUs.

    Attributes:
        label: of the row.
        config: that ships with torchtune.
        settings: changed in it.
        batch_size: of the figure; None: once the model is made, before any batch.
        gib: allocated (torchtune's "active"), and reserved where it is known.
        source: where it stands.
        ranks: of a distributed recipe.
    """

    label: str
    config: str
    settings: tuple[str, ...]
    batch_size: int | None
    gib: tuple[float, float | None]
    source: str
    ranks: int = 1


_FLAGS = "README, Optimization Flags (A100, peak active)"
_MODELS = "README, Memory and training speed"
_TUTORIAL = "tutorials, log after model init"

_PLAIN_LOSS = "loss=torch.nn.CrossEntropyLoss"
_CHUNKED = "loss=torchtune.modules.loss.CEWithChunkedOutputLoss"
_CHECKPOINTING = "enable_activation_checkpointing=True"
_OFFLOADING = "enable_activation_offloading=True"


def _flags(*settings: str, optimizer: str = "torch.optim.AdamW") -> tuple[str, ...]:
    """Of the 3B of "Optimization Flags": what isn't set is off."""
    fused = ("optimizer.fused=True",) if optimizer == "torch.optim.AdamW" else ()
    return (
        "tokenizer.max_seq_len=4096",
        "enable_activation_checkpointing=False",
        "optimizer_in_bwd=False",
        f"optimizer={optimizer}",
        "optimizer.lr=2e-5",
        *fused,
        *settings,
    )


_3B, _ONCE = "llama3_2/3B_full_single_device", "gradient_accumulation_steps=1"
_ADAPTERS = ("tokenizer.max_seq_len=4096", "compile=True", _CHUNKED, _CHECKPOINTING, _OFFLOADING, _ONCE)

PUBLISHED = (
    Published("3B full, packed", _3B, _flags(_PLAIN_LOSS), 2, (60.0, None), _FLAGS),
    Published("+ compile", _3B, _flags(_PLAIN_LOSS, "compile=True"), 2, (51.0, None), _FLAGS),
    Published("+ chunked cross entropy", _3B, _flags(_CHUNKED, "compile=True"), 2, (42.9, None), _FLAGS),
    Published(
        "+ activation checkpointing",
        _3B,
        _flags(_CHUNKED, "compile=True", _CHECKPOINTING),
        2,
        (24.9, None),
        _FLAGS,
    ),
    Published(
        "+ optimizer in backward",
        _3B,
        _flags(_CHUNKED, "compile=True", _CHECKPOINTING, "optimizer_in_bwd=True"),
        2,
        (23.1, None),
        _FLAGS,
    ),
    Published(
        "+ activation offloading",
        _3B,
        _flags(_CHUNKED, "compile=True", _CHECKPOINTING, "optimizer_in_bwd=True", _OFFLOADING),
        2,
        (21.8, None),
        _FLAGS,
    ),
    Published(
        "+ 8-bit AdamW",
        _3B,
        _flags(
            _CHUNKED,
            "compile=True",
            _CHECKPOINTING,
            "optimizer_in_bwd=True",
            _OFFLOADING,
            optimizer="bitsandbytes.optim.AdamW8bit",
        ),
        2,
        (17.6, None),
        _FLAGS,
    ),
    Published("3B LoRA", "llama3_2/3B_lora_single_device", _ADAPTERS, 2, (8.5, None), _FLAGS),
    Published("3B QLoRA", "llama3_2/3B_qlora_single_device", _ADAPTERS, 2, (4.6, None), _FLAGS),
    Published(
        "8B full on a 4090",
        "llama3_1/8B_full_single_device",
        ("compile=True", _ONCE),
        2,
        (18.9, None),
        _MODELS,
    ),
    Published(
        "8B LoRA on a 4090",
        "llama3_1/8B_lora_single_device",
        ("compile=True", _ONCE),
        2,
        (16.2, None),
        _MODELS,
    ),
    Published(
        "8B QLoRA on a 4090",
        "llama3_1/8B_qlora_single_device",
        ("compile=True", _ONCE),
        2,
        (7.4, None),
        _MODELS,
    ),
    Published(
        "8B full on an A6000",
        "llama3_1/8B_full_single_device",
        ("compile=True", _ONCE, "enable_activation_checkpointing=False"),
        2,
        (37.4, None),
        _MODELS,
    ),
    Published(
        "8B LoRA on an A6000",
        "llama3_1/8B_lora_single_device",
        ("compile=True", _ONCE, "enable_activation_checkpointing=False"),
        2,
        (30.3, None),
        _MODELS,
    ),
    Published(
        "70B LoRA on 8 A100", "llama3_1/70B_lora", ("compile=True", _ONCE), 2, (27.6, None), _MODELS, ranks=8
    ),
    Published("3B LoRA, model init", "llama3_2/3B_lora_single_device", (), None, (6.21, 6.27), _TUTORIAL),
    Published("8B QLoRA, model init", "llama3_1/8B_qlora_single_device", (), None, (6.19, 6.27), _TUTORIAL),
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
    if options.what == "published":
        return _published(server, options)
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


def measure(
    name: str, settings: Sequence[str], sizes: Sequence[int], server: ForkServer, ranks: int = 1
) -> dict[str, Any]:
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
    if ranks == 1:
        recipe = recipe.replace("_distributed", "_single_device")
    base = (_LENGTH, *(() if "dpo" in name else _PACKED))
    with tempfile.TemporaryDirectory() as scratch:
        try:
            processes = ranks if ranks > 1 else None
            subject = read_subject(path, recipe, (*base, *settings), processes_per_node=processes)
            trials = SimulatedTrials(
                subject, server, Path(scratch), target_bytes=2**60, timeout_s=900.0 * len(sizes)
            )
            peaks = {}
            for size in sizes:
                peaks[size] = trials.at(size).peaks_bytes
            log = (Path(scratch) / "trials" / f"batch_size_{sizes[0]}.log").read_text(errors="replace")
        except AutobatchError as error:
            return {"why": str(error), "seconds": time.monotonic() - began}
    return {"peaks": peaks, "init": _after_init(log), "seconds": time.monotonic() - began}


def _after_init(log: str) -> dict[str, int]:
    """What torchtune itself logs once the model is made."""
    text = log.partition("Memory stats after model init")[2]
    said = re.findall(r"peak memory (alloc|reserved)\w*: ([\d.]+) GiB", text)[:2]
    names = {"alloc": "allocated", "reserved": "reserved"}
    return {names[which]: round(float(gib) * _GIB) for which, gib in said}


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


def _published(server: ForkServer, options: argparse.Namespace) -> int:
    """The table of what others measured; 1 when a bar fails."""
    header = ("", "batch_size", "published GiB", "simulated GiB", "difference", "source: torchtune's")
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    errors = []
    for known in PUBLISHED:
        if options.only and known.label not in options.only:
            continue
        size = known.batch_size or 1
        found = measure(known.config, known.settings, (size,), server, known.ranks)
        cells = [known.label, str(known.batch_size or "before the first")]
        if "why" in found:
            cells += [f"{known.gib[0]:.1f}", "", found["why"].splitlines()[0], known.source]
        else:
            peaks = found["init"] if known.batch_size is None else found["peaks"][size]
            pairs = [
                (peaks[metric] / _GIB, gib)
                for metric, gib in zip(("allocated", "reserved"), known.gib, strict=True)
                if gib is not None
            ]
            off = [ours / gib - 1 for ours, gib in pairs]
            errors.append(max(map(abs, off)))
            cells += [
                " / ".join(f"{gib:.2f}" for _, gib in pairs),
                " / ".join(f"{ours:.2f}" for ours, _ in pairs),
                " / ".join(f"{100 * each:+.1f} %" for each in off),
                known.source,
            ]
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    _write(lines, options.markdown)
    return 0 if errors and median(errors) <= _MEDIAN and max(errors) <= _WORST else 1


def _costs(markdown: Path | None) -> int:
    """Seconds and memory of `autobatch estimate`; 1 when a bar fails."""
    header = ("config", "answer", "trials", "seconds", "limit", "host memory", "limit")
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    failed = False
    for name, (limit_s, limit_bytes) in _COSTS.items():
        path = next(
            config
            for recipe in registered_recipes().values()
            for config in recipe.configs
            if f"{config.parent.name}/{config.stem}" == name
        )
        words = ["estimate", str(path), *(f"--set={setting}" for setting in (_LENGTH, *_PACKED)), "--json"]
        if "single_device" not in name:
            words += ["--recipe", "lora_finetune_distributed", "--nproc-per-node", "8"]
        began = time.monotonic()
        with _EmptyCaches() as environment, _Watch() as watch:
            done = subprocess.run(
                [sys.executable, "-m", "autobatch.cli.main", *words],
                capture_output=True,
                text=True,
                check=True,
                env=environment,
            )
        seconds = time.monotonic() - began
        found = json.loads(done.stdout)
        failed = failed or seconds > limit_s or watch.most_bytes > limit_bytes
        cells = (
            name,
            str(found["fitting"]["batch_size"]),
            str(len(found["trials"])),
            f"{seconds:.0f}",
            str(limit_s),
            f"{watch.most_bytes / _GIB:.1f} GiB",
            f"{limit_bytes / _GIB:.0f} GiB",
        )
        lines.append("| " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    _write(lines, markdown)
    return int(failed)


class _EmptyCaches:
    """An environment in which nothing is compiled yet, neither kernels nor the simulation."""

    def __enter__(self) -> dict[str, str]:
        self._scratch = tempfile.TemporaryDirectory()
        return {**os.environ, "XDG_CACHE_HOME": self._scratch.name}

    def __exit__(self, *_: object) -> None:
        self._scratch.cleanup()


class _Watch:
    """The most memory that this process's descendants take together, shared pages counted once."""

    def __enter__(self) -> _Watch:
        self.most_bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        import psutil

        while not self._over.wait(0.5):
            taken = 0
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):
                    taken += process.memory_full_info().pss
            self.most_bytes = max(self.most_bytes, taken)


def _write(lines: Sequence[str], path: Path | None) -> None:
    if path is not None:
        facts = machine_facts()
        versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
        head = [f"{facts['cpu']}, {facts['cores']} cores, no GPU; {versions}.", ""]
        path.write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    raise SystemExit(main())
