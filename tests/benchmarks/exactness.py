"""Is the probe's answer the right one, and is it cheap? On CPU, against plain runs at every batch size.

For each case (`tests.benchmarks.cases`) a small run is laid out and probed; then plain `tune run`, with
nothing of autobatch inside, trains at every batch size from 1 to two above the answer, each in its own
process, and the kernel's peak for that process says what is true.

    python -m tests.benchmarks.exactness
    python -m tests.benchmarks.exactness --configs lora-fp32,full-bf16 --json figures.json

Exit status 1 when a bar fails (`tests.benchmarks.judging`), else 0. About half an hour on two cores.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import autobatch
from autobatch.demo import SmallRun, lay_out
from autobatch.records import from_json, to_json
from tests.benchmarks.cases import CASES, TARGET, Case
from tests.benchmarks.judging import HEADER, Measured, failed_bars, markdown_table, row
from tests.benchmarks.machine import cold_start_seconds, machine_facts, write_json
from tests.benchmarks.plain import run_plain

#: Optimizer steps of a plain run: one more than a trial's.
STEPS = 4

#: What the demo's finetune.slurm exports.
_EXPORTS = {"HF_HUB_OFFLINE": "1"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the chosen cases, print the table, write the figures."""
    options = _parser().parse_args(arguments)
    cases = _chosen(options.configs)
    # On a busy machine OpenMP's spinning threads would wait for each other most of the time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    facts = {**machine_facts(), "cold_start_seconds": cold_start_seconds(), "date": _today()}
    print(f"cold start of a recipe: {facts['cold_start_seconds']:.1f} s", flush=True)
    done = _on_file(options.json, facts) if options.json else {}
    for case in cases:
        with tempfile.TemporaryDirectory(prefix="exactness-") as scratch:
            done[case.name] = measure(case, Path(scratch))
        print("\n".join(markdown_table(HEADER, [row(done[case.name])])), flush=True)
        if options.json:
            write_json(_figures(facts, _in_order(done)), options.json)
    measured = _in_order(done)
    lines = report(facts, measured)
    print("\n".join(lines))
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if any(failed_bars(case) for case in measured) else 0


def measure(case: Case, scratch: Path) -> Measured:
    """Probe one case, then run it plainly at every size up to two above the answer."""
    in_a_process_of_its_own(scratch, case.run)
    run_dir = scratch / case.run.name
    began = time.monotonic()
    result = autobatch.probe(
        run_dir, cluster="inline", target=TARGET, capacity=case.capacity_bytes, estimate=False
    )
    seconds = time.monotonic() - began
    print(f"{case.name}: {result.message} ({seconds:.1f} s)", flush=True)
    plain = []
    for batch_size in range(1, (result.batch_size or 0) + 3):
        with tempfile.TemporaryDirectory(dir=scratch) as output:
            plain.append(
                run_plain(
                    run_dir,
                    case.run.recipe_name,
                    batch_size,
                    steps=STEPS,
                    output_dir=Path(output),
                    device="cpu",
                    environment=_EXPORTS,
                )
            )
        peak = plain[-1].peaks_bytes.get("resident", 0)
        print(
            f"  plain, batch_size {batch_size}: {peak / 2**20:.1f} MiB, {plain[-1].seconds:.1f} s", flush=True
        )
    return Measured(
        name=case.name,
        capacity_bytes=case.capacity_bytes,
        target_bytes=result.target_bytes or 0,
        batch_size=result.batch_size,
        message=result.message,
        seconds=seconds,
        trials=result.trials,
        plain=tuple(plain),
    )


def report(facts: dict[str, Any], measured: Sequence[Measured]) -> list[str]:
    """The table as Markdown, with what it was measured on and which bars fail."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    failed = [f"- {case.name}: {bar}" for case in measured for bar in failed_bars(case)]
    saving = max((_saving(case) for case in measured), default=0.0)
    return [
        "# The probe against plain runs, on CPU",
        "",
        f"{facts['cpu']}, {facts['cores']} cores; {versions}; {facts['date']}.",
        f"Target {100 * TARGET:g} % of the capacity. A plain run trains {STEPS} optimizer steps and saves.",
        "",
        *markdown_table(HEADER, [row(case) for case in measured]),
        "",
        "`probe` is the probe's answer, `true` the largest batch_size whose plain run stays within the target. "
        "`limit s` is 1.5 times the trials' optimizer steps and 15 s. `start s` is the median time from asking "
        "for a trial's process to its recipe's first line, of the trials after the first; a cold start of the "
        f"recipe took {facts['cold_start_seconds']:.1f} s.",
        "",
        f"Saving the checkpoint raised the peak of a plain run by {100 * saving:.2f} % at most.",
        "",
        *(["Bars that fail:", "", *failed] if failed else ["All bars hold."]),
    ]


def _saving(case: Measured) -> float:
    """By how much, as a fraction, saving raised the peak of any of the plain runs."""
    return max(
        (
            run.peaks_bytes["resident"] / run.trained_bytes - 1
            for run in case.plain
            if run.trained_bytes and "resident" in run.peaks_bytes
        ),
        default=0.0,
    )


def in_a_process_of_its_own(scratch: Path, run: SmallRun) -> None:
    """Lay the run out without importing torch here: plain runs are started from this process."""
    process = multiprocessing.get_context("spawn").Process(
        target=lay_out, args=(scratch, run), kwargs={"force": True}
    )
    process.start()
    process.join()
    if process.exitcode != 0:
        raise RuntimeError(f"{run.name} couldn't be laid out: status {process.exitcode}")


def _figures(facts: dict[str, Any], measured: Sequence[Measured]) -> dict[str, Any]:
    cases = [
        {
            **to_json(case),
            "true_batch_size": case.true_batch_size,
            "difference": case.difference,
            "failed": failed_bars(case),
        }
        for case in measured
    ]
    return {**facts, "target": TARGET, "steps": STEPS, "cases": cases}


def _on_file(path: Path, facts: dict[str, Any]) -> dict[str, Measured]:
    """What earlier calls measured with the same versions: the table is of all of it."""
    if not path.exists():
        return {}
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["versions"] != facts["versions"]:
        return {}
    cases = [from_json(Measured, case) for case in content["cases"]]
    return {case.name: case for case in cases}


def _in_order(done: dict[str, Measured]) -> list[Measured]:
    """Those that are cases still, in the cases' order."""
    return [done[case.name] for case in CASES if case.name in done]


def _chosen(names: str | None) -> list[Case]:
    known = {case.name: case for case in CASES}
    chosen = names.split(",") if names else list(known)
    unknown = [name for name in chosen if name not in known]
    if unknown:
        sys.exit(f"no such config: {', '.join(unknown)}; there are {', '.join(known)}")
    return [known[name] for name in chosen]


def _today() -> str:
    return datetime.now(timezone.utc).date().isoformat()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.exactness",
        description="Compare the probe's answers with plain runs at every batch size, on CPU.",
    )
    parser.add_argument("--configs", metavar="A,B", help="only these of: " + ", ".join(c.name for c in CASES))
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="write the figures there, after each config, beside those of other configs",
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
