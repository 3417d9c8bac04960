"""Estimates of recipes of several processes, against measured peaks and for every config.

    python -m tests.benchmarks.estimates_sharded measured \\
        --markdown tests/benchmarks/results/estimates-sharded-cpu.md
    python -m tests.benchmarks.estimates_sharded configs --json sharded.json \\
        --into tests/benchmarks/results/estimates-configs.md

`measured` follows the CPU's own kernels and gloo's copies. The measured peaks are those of
`results/distributed-cpu.json`. `configs` estimates every full, LoRA and QLoRA config that torchtune ships for
several devices, on 2 and on 8, and puts the table at the end of that of the single-device ones. Figures already in
the JSON file (`--json`, one for each of the two) are kept, so that it can be stopped and go on.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autobatch.demo import lay_out
from autobatch.estimate.forecaster import KERNELS_BYTES
from autobatch.estimate.recording import recorded
from autobatch.estimate.subject import read_subject
from autobatch.probing.forkserver import ForkServer
from autobatch.records import from_json, to_json
from autobatch.runs.torchtune_source import registered_recipes
from tests.benchmarks import estimates
from tests.benchmarks.distributed import CASES, on_ranks
from tests.benchmarks.estimates_cpu import HEADER, MEDIAN, WORST, Compared, compare, summary
from tests.benchmarks.machine import machine_facts, write_json

MEASURED = Path(__file__).parent / "results" / "distributed-cpu.json"

RANKS = (2, 8)

_RECIPES = ("full_finetune_distributed", "lora_finetune_distributed")

_SECTION = "## On several devices"


def main(arguments: Sequence[str] | None = None) -> int:
    """Estimate, print the table; 1 when a bar on the measured ones fails."""
    options = _parser().parse_args(arguments)
    server = ForkServer({"PYTHONWARNINGS": "ignore"}, "cpu", ranks=True)
    server.start()
    if options.what == "measured":
        return _measured(server, options.json, options.markdown, options.only)
    _configs(server, options.json, options.into, options.only, as_is=options.as_is)
    return 0


def _kept(path: Path | None) -> dict[str, Any]:
    if path is None or not path.exists():
        return {}
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["figures"]
    return figures


def _keep(path: Path | None, figures: dict[str, Any]) -> None:
    if path is not None:
        write_json({"machine": machine_facts(), "figures": figures}, path)


def _measured(
    server: ForkServer, kept: Path | None, markdown: Path | None, only: Sequence[str] | None
) -> int:
    known = {case["case"]: case for case in json.loads(MEASURED.read_text(encoding="utf-8"))["cases"]}
    done = _kept(kept)
    chosen = [case for case in CASES if not only or case.run.name in only]
    for case in chosen:
        if case.run.name in done:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            run = lay_out(Path(scratch) / "experiment", case.run)
            # Rank 0 is the one that is followed.
            on_ranks(run, case, heavy_rank=None if case.heavy_rank is None else 0)
            curve = recorded(read_subject(run), server, timeout_s=1200, keep=None).curve
        done[case.run.name] = to_json(compare(case.run, known[case.run.name]["measured"], curve))
        _keep(kept, done)
    peaks = [from_json(Compared, peak) for case in chosen for peak in done[case.run.name]]
    errors = [peak.error for peak in peaks if not peak.calibrates]
    lines = [
        "# Estimates of sharded runs against measured peaks, on CPU",
        "",
        *_EXPLANATION,
        "",
        summary("With each config's own figure for its kernels", errors, bars=True),
        summary("With one figure for each dtype", [peak.error_without_trial for peak in peaks]),
        "",
        "| " + " | ".join(HEADER) + " |",
        "|" + " --- |" * len(HEADER),
        *(peak.line() for peak in peaks),
    ]
    print("\n".join(lines))
    if markdown:
        markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    sizes = [abs(error) for error in errors]
    return 0 if statistics.median(sizes) <= MEDIAN and max(sizes) <= WORST else 1


_EXPLANATION = (
    "The measured peaks are those of distributed-cpu.json: plain `tune run`s of 2 and 4 ranks with gloo, resident",
    "memory of the largest rank, its checkpoint included. The estimate follows rank 0, which in `-unequal` holds",
    "what another rank does there. Taken off is what the process has besides tensors: at the first batch, and",
    "what computing adds to that, both from the probe's trial at batch_size 1, where the estimate is therefore",
    "not judged. The last column takes for the latter "
    + ", ".join(f"{size // 2**20} MiB for {dtype}" for dtype, size in KERNELS_BYTES.items())
    + " instead.",
    "A star marks the probe's answer.",
)


def _configs(
    server: ForkServer, kept: Path | None, into: Path | None, only: Sequence[str] | None, *, as_is: bool
) -> None:
    done = _kept(kept)
    chosen = [
        (f"{config.parent.name}/{config.stem}", config, recipe.name, ranks)
        for recipe in registered_recipes().values()
        if recipe.name in _RECIPES
        for config in recipe.configs
        for ranks in RANKS
    ]
    chosen = [row for row in sorted(chosen) if not only or row[0] in only]
    for name, config, recipe, ranks in chosen:
        key = f"{name} {ranks}"
        if key in done or as_is:
            continue
        done[key] = estimates.measure(
            functools.partial(read_subject, config, recipe, estimates.SETTINGS, processes_per_node=ranks),
            server,
        )
        print("| " + " | ".join(_row(name, ranks, done[key])) + " |", flush=True)
        _keep(kept, done)
    header = (estimates.HEADER[0], "ranks", *estimates.HEADER[1:])
    rows = [_row(n, ranks, done[f"{n} {ranks}"]) for n, _, _, ranks in chosen if f"{n} {ranks}" in done]
    absent = sorted({name for name, _, _, ranks in chosen if f"{name} {ranks}" not in done})
    lines = [
        _SECTION,
        "",
        "As above, of each of 2 and of 8 ranks on one node. NCCL's own memory is outside of these figures.",
        "",
        *("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)),
        *(("", f"Not estimated yet, on 2 ranks, on 8 or on both: {', '.join(absent)}.") if absent else ()),
    ]
    print("\n".join(lines))
    if into:
        before, _, _ = into.read_text(encoding="utf-8").partition(f"\n{_SECTION}")
        into.write_text("\n".join([before.rstrip(), "", *lines]) + "\n", encoding="utf-8")


def _row(name: str, ranks: int, found: dict[str, Any]) -> tuple[str, ...]:
    cells = estimates.row(name, found)
    return (cells[0], str(ranks), *cells[1:])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("measured", "configs"))
    parser.add_argument("--markdown", type=Path, help="write the table of the measured ones here")
    parser.add_argument("--json", type=Path, help="keep the figures here")
    parser.add_argument("--into", type=Path, help="put the configs' table at the end of this one")
    parser.add_argument("--as-is", action="store_true", help="estimate nothing: the table of what is kept")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these alone")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
