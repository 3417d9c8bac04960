"""Does the probe's answer hold in training, on a card? Against plain `tune run` at the answer and above it.

For Llama 3.2 1B and 3B and Llama 3.1 8B with random weights (`tests.benchmarks.gpu_cases`): probe, then
train with plain `tune run` for 20 steps at the answer and at the next size, and compare the peaks that
torchtune logs with the probe's.

    python -m tests.benchmarks.gpu
    python -m tests.benchmarks.gpu --only lora-1b-checkpointing --scratch /scratch/models
    python -m tests.benchmarks.gpu --budget-s 540 --scratch /scratch/models --out figures
    python -m tests.benchmarks.gpu --cpu-rehearsal

Figures are on disk after every step of every config, and a later call goes on with the configs that are
missing. Exit status: 0, 1 when a bar fails, 2 without a card. About 25 minutes on an H100.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import autobatch
from autobatch.records import from_json, to_json
from tests.benchmarks.gpu_cases import CASES, REHEARSAL, GpuCase, lay_out_case
from tests.benchmarks.gpu_judging import HEADER, GpuMeasured, failed_gpu_bars, gpu_row
from tests.benchmarks.judging import markdown_table
from tests.benchmarks.machine import machine_facts, write_json
from tests.benchmarks.plain import PlainRun, PlainRunFailed, run_plain

#: Optimizer steps of a plain run.
STEPS = 20

#: Tokens of a pack, on a card and in the rehearsal.
_SEQUENCE = {"cuda": 2048, "cpu": 512}

#: In the rehearsal, whose plain runs are slow, and whose memory is planned for a small card.
_REHEARSAL_STEPS = 4
_REHEARSAL_CAPACITY = "860MiB"

_RESULTS = Path(__file__).parent / "results"
_EXPORTS = {"HF_HUB_OFFLINE": "1"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the configs that fit the budget and aren't on file, print the table."""
    options = _parser().parse_args(arguments)
    began = time.monotonic()
    device = "cpu" if options.cpu_rehearsal else "cuda"
    cases = _chosen(REHEARSAL if options.cpu_rehearsal else CASES, options.only)
    facts = _facts(device)
    if facts is None:
        print("no CUDA device here; --cpu-rehearsal runs the same in little without one", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"gpu-{_slug(facts['card'])}.json"
    done = {} if options.again else _on_file(path, facts)

    def keep(measured: GpuMeasured) -> None:
        done[measured.name] = measured
        write_json({**facts, "steps": STEPS, "cases": [_figures(case) for case in done.values()]}, path)

    with _scratch(options.scratch) as scratch:
        for case in cases:
            if case.name in done and done[case.name].complete:
                continue
            if options.budget_s and time.monotonic() - began + case.cost_s > options.budget_s:
                print(f"{case.name}: left out, the time would not suffice", flush=True)
                continue
            measure(case, scratch, device, keep)
            print("\n".join(markdown_table(HEADER, [gpu_row(done[case.name])])), flush=True)
    lines = report(facts, list(done.values()))
    print("\n".join(lines))
    path.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if any(failed_gpu_bars(measured) for measured in done.values()) else 0


def measure(case: GpuCase, scratch: Path, device: str, keep: Callable[[GpuMeasured], None]) -> None:
    """Probe one case and train at its answer and above it; `keep` gets what is known after each."""
    directory = scratch / "runs" / case.name
    in_a_process_of_its_own(lay_out_case, directory, case, scratch / "models", device, _SEQUENCE[device])
    run_dir = directory / case.name
    rehearsing = device == "cpu"
    began = time.monotonic()
    result = autobatch.probe(
        run_dir, cluster="inline", capacity=_REHEARSAL_CAPACITY if rehearsing else None, force=True
    )
    measured = GpuMeasured(
        name=case.name,
        metric=result.metric.value if result.metric else "",
        capacity_bytes=result.capacity_bytes or 0,
        target_bytes=result.target_bytes or 0,
        batch_size=result.batch_size,
        limit=result.limit.value if result.limit else None,
        message=result.message,
        seconds=time.monotonic() - began,
        answer_within_s=case.answer_within_s,
        trials=result.trials,
    )
    print(f"{case.name}: {result.message} ({measured.seconds:.1f} s)", flush=True)
    keep(measured)
    if result.batch_size is None or result.density is None:
        return
    steps = _REHEARSAL_STEPS if rehearsing else STEPS
    recipe = "full_finetune_single_device" if case.method == "full" else "lora_finetune_single_device"

    def train(batch_size: int, packs: int) -> PlainRun:
        with tempfile.TemporaryDirectory(dir=scratch) as output:
            return run_plain(
                run_dir,
                recipe,
                batch_size,
                # Not more than the dataset gives.
                steps=min(steps, packs // batch_size),
                output_dir=Path(output),
                device=device,
                environment=_EXPORTS,
                timeout_s=480,
            )

    try:
        measured = replace(measured, at_answer=train(result.batch_size, result.density.packs))
        keep(measured)
        measured = replace(measured, at_next=train(result.batch_size + 1, result.density.packs))
    except PlainRunFailed as error:
        measured = replace(measured, error=str(error))
    keep(measured)


def report(facts: dict[str, Any], measured: Sequence[GpuMeasured]) -> list[str]:
    """The table as Markdown, with what it was measured on and which bars fail."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    failed = [f"- {case.name}: {bar}" for case in measured for bar in failed_gpu_bars(case)]
    starts = ", ".join(f"{child['start_seconds']:.2f} s" for child in facts["fork_server"]["children"])
    kind = "cold" if facts["fork_server"].get("cold_starts") else "forked"
    return [
        "# The probe against plain `tune run`, on a card",
        "",
        f"{facts['card']}, driver {facts['driver']}; {versions}.",
        f"Children of the fork server start {kind}: {starts} until their first line.",
        "",
        *markdown_table(HEADER, [gpu_row(case) for case in measured]),
        "",
        *(["Bars that fail:", "", *failed] if failed else ["All bars hold."]),
    ]


def _facts(device: str) -> dict[str, Any] | None:
    """Card, driver, versions, and what the fork server's children see; None without a card."""
    said = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.gpu_facts", device], capture_output=True, text=True
    )
    if said.returncode != 0:
        raise RuntimeError(f"the device couldn't be asked about: {said.stderr[-2000:]}")
    found = json.loads(said.stdout.splitlines()[-1])
    first = found["children"][0] if found["children"] else {}
    if device == "cuda" and not first.get("available"):
        return None
    card = first["name"] if device == "cuda" else "cpu rehearsal"
    return {
        **machine_facts(),
        "card": card,
        "total_bytes": first.get("total_bytes"),
        "driver": found["driver"],
        "fork_server": found,
    }


def _on_file(path: Path, facts: dict[str, Any]) -> dict[str, GpuMeasured]:
    """What an earlier call measured with the same versions; what failed is measured again."""
    if not path.exists():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["versions"] != facts["versions"]:
        return {}
    cases = [from_json(GpuMeasured, case) for case in content["cases"]]
    return {case.name: case for case in cases if case.complete}


def _figures(measured: GpuMeasured) -> dict[str, Any]:
    return {**to_json(measured), "difference": measured.difference, "failed": failed_gpu_bars(measured)}


@contextmanager
def _scratch(given: Path | None) -> Iterator[Path]:
    """The directory for checkpoints and runs: the given one stays, a temporary one goes."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="gpu-benchmark-") as directory:
        yield Path(directory)


def in_a_process_of_its_own(target: Callable[..., Any], *arguments: Any) -> None:
    """Without a CUDA context of this process: it would show in the measurements."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=arguments)
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"{target.__name__} ended with status {process.exitcode}")


def _chosen(cases: Sequence[GpuCase], only: str | None) -> list[GpuCase]:
    names = only.split(",") if only else [case.name for case in cases]
    known = {case.name: case for case in cases}
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"no such config: {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in names]


def _slug(card: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", card.lower()).strip("-")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.gpu",
        description="Compare the probe's answers with plain tune run, on a CUDA device.",
    )
    parser.add_argument("--only", metavar="A,B", help="only these of: " + ", ".join(c.name for c in CASES))
    parser.add_argument("--out", type=Path, default=_RESULTS, metavar="DIR", help="for the figures")
    parser.add_argument("--scratch", type=Path, metavar="DIR", help="for weights and runs; kept (24 GB)")
    parser.add_argument("--budget-s", type=float, metavar="N", help="start no config that would end later")
    parser.add_argument("--again", action="store_true", help="measure again what is on file")
    parser.add_argument("--cpu-rehearsal", action="store_true", help="tiny models, on CPU")
    return parser


if __name__ == "__main__":
    sys.exit(main())
