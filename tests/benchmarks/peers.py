"""autobatch beside the tools that people use instead: how near, how dear, and how often out of memory.

On the same memory curves (`peers_curves`) and on one real torchtune run on this CPU:

    autobatch            with and without its estimate
    accelerate           find_executable_batch_size
    Lightning            Tuner.scale_batch_size, modes power and binsearch
    halving              a job that runs out of memory is submitted again with half the batch_size

The two packages are the real ones, installed from `peers_requirements.txt` into an environment of their own, and
drive what they are given to train (`peers_worker`, `peers_training`) as their documentation says, with their
defaults. autobatch looks for the largest batch_size within 70 % of the card, the others for what runs on all of
it: each answer stands beside both. A second table asks the others for 70 %, too, with the card cut to that.

    python -m tests.benchmarks.peers --environment .venv/peers

Exit status 1 when a bar fails (`peers_judging`), else 0. A quarter of an hour on two cores, without installing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from autobatch.json_form import to_json
from tests.benchmarks.machine import machine_facts, write_json
from tests.benchmarks.peers_judging import Found, cheaper_by_their_rule, failed_bars, table
from tests.benchmarks.peers_on_curves import ESTIMATE_ERROR, NoisySearches, noisy_searches, on_curves
from tests.benchmarks.peers_on_run import CASE, on_run

_HERE = Path(__file__).parent
_CONSTRAINTS = _HERE.parent.parent / "constraints.txt"
_REQUIREMENTS = _HERE / "peers_requirements.txt"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, print the tables, write the figures."""
    options = _parser().parse_args(arguments)
    # On a busy machine OpenMP's spinning threads would wait for each other most of the time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with tempfile.TemporaryDirectory(prefix="peers-") as scratch:
        python = install(options.environment or Path(scratch) / "environment")
        facts = {**machine_facts(), "peers": versions(python), "date": _today()}
        whole, cut = (on_curves(python, Path(scratch), cut=cut) for cut in (False, True))
        print("\n".join(table(whole)), flush=True)
        run = [] if options.curves else on_run(python, Path(scratch))
    noisy = noisy_searches()
    facts["load_average"] = round(os.getloadavg()[2], 1)
    lines = report(facts, whole, cut, run, noisy)
    print("\n".join(lines))
    if options.json:
        tables = {"curves": whole, "curves_at_target": cut, "run": run}
        found = {name: [to_json(one) for one in rows] for name, rows in tables.items()}
        write_json(
            {**facts, **found, "noisy": to_json(noisy), "failed": failed(whole, run, noisy)}, options.json
        )
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if failed(whole, run, noisy) else 0


def install(environment: Path) -> Path:
    """Make the environment unless it is there; returns its Python."""
    python, ready = environment / "bin" / "python", environment / ".ready"
    wanted = _REQUIREMENTS.read_text(encoding="utf-8") + _CONSTRAINTS.read_text(encoding="utf-8")
    if ready.exists() and ready.read_text(encoding="utf-8") == wanted:
        return python
    torch = next(line for line in wanted.splitlines() if line.startswith("torch=="))
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "-c", str(_CONSTRAINTS)]
    # By itself: as another package's dependency, pip would fetch a build with CUDA packages.
    subprocess.run([*pip, torch], check=True)
    subprocess.run([*pip, "-r", str(_REQUIREMENTS)], check=True)
    ready.write_text(wanted, encoding="utf-8")
    return python.absolute()


def versions(python: Path) -> dict[str, str]:
    """Of the tools, as they are installed."""
    names = ("accelerate", "lightning", "torch", "torchtune")
    code = "import sys, importlib.metadata as m; print(*(m.version(n) for n in sys.argv[1:]))"
    said = subprocess.run([python, "-c", code, *names], check=True, capture_output=True, text=True)
    return dict(zip(names, said.stdout.split(), strict=True))


def failed(whole: Sequence[Found], run: Sequence[Found], noisy: NoisySearches) -> list[str]:
    """All bars that fail."""
    return [*failed_bars([*whole, *run]), *noisy.failed_bars()]


def report(
    facts: dict[str, Any],
    whole: Sequence[Found],
    cut: Sequence[Found],
    run: Sequence[Found],
    noisy: NoisySearches,
) -> list[str]:
    """The tables as Markdown, with what they were measured on and which bars fail."""
    ours = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    theirs = ", ".join(f"{name} {version}" for name, version in facts["peers"].items())
    bars = failed(whole, run, noisy)
    cheaper = cheaper_by_their_rule([*whole, *run])
    return [
        "# autobatch and the tools that are used instead",
        "",
        f"{facts['cpu']}, {facts['cores']} cores; {ours}; the others with {theirs}; {facts['date']}. "
        f"Load average of the last 15 minutes: {facts['load_average']}.",
        "",
        "autobatch looks for the largest batch_size whose peak is within 70 % of the card, and the others for one "
        "that runs on all of it. `exact?` is about the first; `of its own largest` compares each with the "
        "largest by its own rule. A trial is a size tried, in brackets where it ran out of memory; `steps` are "
        "the optimizer steps begun, 3 for each trial that ends well. autobatch has always tried its answer, and "
        "the next size, whose trial ends with the first step that is over the target where its peak isn't wanted.",
        "",
        "## Memory curves",
        "",
        f"`autobatch` begins where an estimate wrong by {100 * ESTIMATE_ERROR:.2f} % says, up or down, whichever "
        "takes more trials. Seconds are those of the tools alone: a step on a curve takes no time.",
        "",
        *table(whole),
        "",
        noisy.sentence(),
        "",
        "## The same, with the card cut to 70 % for the others",
        "",
        "As `torch.cuda.set_per_process_memory_fraction(0.7)` would: all look for the same batch_size.",
        "",
        *table(cut),
        "",
        *(["No fewer steps than these, which came within 10 %:", ""] if failed_bars(cut) else []),
        *[f"- {line}" for line in failed_bars(cut)],
        "",
        *_run_section(run),
        "## Bars",
        "",
        *(["Bars that fail:", "", *(f"- {bar}" for bar in bars)] if bars else ["All bars hold."]),
        "",
        *(
            ["Not a bar: within 10 % of what they look for on the whole card, in no more steps:", ""]
            if cheaper
            else []
        ),
        *(f"- {line}" for line in cheaper),
    ]


def _run_section(run: Sequence[Found]) -> list[str]:
    if not run:
        return []
    return [
        "## A torchtune run",
        "",
        f"{CASE.run.name}: the demo's LoRA on this CPU, with a capacity of "
        f"{CASE.capacity_bytes / 2**20:.0f} MiB. The others train in a process with so much data and no more "
        "(RLIMIT_DATA), where torch's allocator then raises its error; what is true, and the peaks, are those "
        "of plain `tune run`s. autobatch's seconds include starting processes, packing and the "
        "estimate, halving's its jobs' starts; accelerate's and Lightning's begin with everything imported.",
        "",
        *table(run),
        "",
    ]


def _today() -> str:
    return datetime.now(timezone.utc).date().isoformat()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.peers",
        description="Compare autobatch with accelerate, Lightning and halving by hand.",
    )
    parser.add_argument(
        "--environment",
        type=Path,
        metavar="DIR",
        help="virtual environment for the other tools, made there unless it is there (default: a temporary one)",
    )
    parser.add_argument("--curves", action="store_true", help="the memory curves alone, without the real run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
