"""Faults that a cluster really has, each again and again at random moments of real probes.

    python -m tests.benchmarks.faults --markdown tests/benchmarks/results/faults.md

What a right ending is stands beside each fault in `fault_signals`, `fault_files` and `fault_names`. Bars: every
run ends rightly, no file of the user's is ever anything but as it was or as it should be, and no process outlives
its probe. Exit status 1 when one is missed. Mounts need root; without it those faults are left out, and said so.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from slurm.devcluster import cluster as devcluster
from slurm.devcluster.conf import Options
from slurm.devcluster.errors import NotPossible
from tests.benchmarks import fault_files, fault_names, fault_signals
from tests.benchmarks.fault_base import make_base
from tests.benchmarks.fault_scene import Base, Scene
from tests.benchmarks.fault_verdict import Fault, Outcome
from tests.benchmarks.judging import markdown_table
from tests.benchmarks.machine import machine_facts, write_json

FAULTS: tuple[Fault, ...] = (*fault_signals.FAULTS, *fault_files.FAULTS, *fault_names.FAULTS)
HEADER = ("fault", "right ending", "runs", "right", "files broken", "orphans", "how they ended")

#: A fault may come too late for a probe, and is tried again; one that always does isn't tried for ever.
_MOST_ROUNDS = 40


def main(arguments: Sequence[str] | None = None) -> int:
    """Make the faults happen and print the table; 1 when a bar is missed."""
    options = _parser().parse_args(arguments)
    chosen = [
        fault for fault in FAULTS if not options.only or any(text in fault.name for text in options.only)
    ]
    left_out = [fault for fault in chosen if fault.needs_root and os.geteuid() != 0]
    for fault in left_out:
        print(f"LEFT OUT, needs root for mounts: {fault.name}", file=sys.stderr)
    figures = {fault.name: _figures([], 0.0) for fault in chosen if fault not in left_out}
    if options.json and options.json.exists():
        # Runs of an earlier call count.
        figures |= json.loads(options.json.read_text(encoding="utf-8"))["faults"]
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch, _slurm(Path(scratch)) as slurm:
        bases = {fault.base: make_base(Path(scratch), fault.base) for fault in chosen}
        with ThreadPoolExecutor(options.parallel) as pool:
            for _ in range(_MOST_ROUNDS):
                once = partial(_once, bases, Path(scratch), slurm)
                # Of all faults one after the other, so that each has had some runs should this be interrupted.
                for fault, outcomes, seconds in pool.map(
                    once, _left(chosen, figures, options.runs, options.parallel)
                ):
                    figures[fault.name] = _sum(figures[fault.name], _figures(outcomes, seconds))
                    if options.json:
                        write_json({"machine": machine_facts(), "faults": figures}, options.json)
                    print(" | ".join(_row(fault, figures[fault.name])), flush=True)
    lines = _report(figures, left_out, slurm is not None, options.parallel)
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))
    return 1 if any(one["wrong"] for one in figures.values()) or _left(chosen, figures, options.runs) else 0


def _left(
    chosen: Sequence[Fault], figures: Mapping[str, Any], runs: int, parallel: int = 1
) -> list[tuple[Fault, int]]:
    """The next run of each fault that hasn't had enough; several, where few faults are left."""
    wanted = {fault: max(runs, fault.kinds) for fault in chosen if fault.name in figures}
    done = {fault: figures[fault.name]["runs"] for fault in wanted}
    left = [fault for fault in done if done[fault] < wanted[fault]]
    each = -(-parallel // max(1, len(left)))
    return [(f, n) for f in left for n in range(done[f], min(wanted[f], done[f] + each))]


def _once(
    bases: Mapping[str, Base], folder: Path, slurm: Mapping[str, str] | None, what: tuple[Fault, int]
) -> tuple[Fault, list[Outcome], float]:
    """One scene, with what came of it, nothing where the probe was over before the fault; and its seconds."""
    fault, number = what
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="scene-", dir=folder) as directory:
        try:
            scene = Scene(bases[fault.base], Path(directory), number, probed=fault.probed, slurm=slurm)
            outcomes = fault.of(scene)
        except Exception as error:  # a scene that broke is a run that ended wrongly; the others go on
            outcomes = Outcome(False, f"{type(error).__name__}: {error}")
    made = outcomes if isinstance(outcomes, list) else [outcomes]
    seen = [outcome for outcome in made if outcome.hit or not _holds(outcome)]
    return fault, seen, time.monotonic() - began


def _holds(outcome: Outcome) -> bool:
    return outcome.right and not outcome.broken and not outcome.orphans


@contextlib.contextmanager
def _slurm(scratch: Path) -> Iterator[Mapping[str, str] | None]:
    """The environment of a development cluster; None where there can't be one."""
    directory = scratch / "slurm"
    try:
        devcluster.check(Options())
        environment = devcluster.up(directory, Options(), owner_pid=os.getpid()).exports
    except NotPossible as error:
        print(f"NO SLURM CLUSTER HERE, names are tried without: {error}", file=sys.stderr)
        yield None
        return
    try:
        yield environment
    finally:
        devcluster.down(directory)


def _figures(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    said = Counter(outcome.said if outcome.right else "WRONG" for outcome in outcomes)
    return {
        "runs": len(outcomes),
        "right": sum(outcome.right for outcome in outcomes),
        "broken": sum(len(outcome.broken) for outcome in outcomes),
        "orphans": sum(len(outcome.orphans) for outcome in outcomes),
        "seconds": round(seconds),
        "said": dict(said.most_common()),
        "wrong": [vars(outcome) for outcome in outcomes if not _holds(outcome)],
    }


def _sum(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    added = {name: one[name] + other[name] for name in one if name != "said"}
    return added | {"said": dict((Counter(one["said"]) + Counter(other["said"])).most_common())}


def _row(fault: Fault, figures: Mapping[str, Any]) -> list[str]:
    said = "; ".join(f"{count} x {word}" for word, count in figures["said"].items())
    counts = [str(figures[name]) for name in ("runs", "right", "broken", "orphans")]
    return [fault.name, fault.ending, *counts, said]


def _report(figures: Mapping[str, Any], left_out: Sequence[Fault], slurm: bool, parallel: int) -> list[str]:
    facts = machine_facts()
    runs = sum(one["runs"] for one in figures.values())
    seconds = sum(one["seconds"] for one in figures.values()) / parallel
    wrong = [f"- {name}: {outcome}" for name, one in figures.items() for outcome in one["wrong"]]
    return [
        "# Faults",
        "",
        f"{facts['cpu']}, {facts['cores']} cores, Linux {facts['kernel']}; {runs} runs in {seconds / 60:.0f} "
        f"minutes, {parallel} at a time; {datetime.now(timezone.utc).date().isoformat()}.",
        "",
        "Each run probes an experiment of its own with the command line, `--cluster inline` where nothing else is "
        "said, and a recipe that takes real memory (`tests/recipes/misbehaving.py`). A number is an exit code, "
        "with one message on stderr, after which the next probe came to the answer of an undisturbed one, in the "
        "same files; of a probe that a signal ended, the next is hit too, up to 4 in a row. `files broken`: "
        "finetune.yaml, finetune.slurm, runs_plan.md or result.json was neither as before nor as it should be.",
        "",
        *markdown_table(
            HEADER, [_row(fault, figures[fault.name]) for fault in FAULTS if fault.name in figures]
        ),
        "",
        "Clock jump: in turns, `time.time` of all processes of the probe jumps by up to 20 years either way at a "
        "random moment (a sitecustomize, so it is what Python code sees), every file's times are up to 50 years "
        "off, and the probe runs in a time namespace whose monotonic and boot time are those of a node that has "
        "just started, or of one that has been up for 10 years.",
        "",
        *(
            ["Each second run name is probed by a job of a real one-node Slurm.", ""]
            if slurm
            else ["No Slurm: run names were tried without.", ""]
        ),
        *[f"Left out, for it needs root: {fault.name}." for fault in left_out],
        *(
            ["Bars that fail:", "", *wrong]
            if wrong
            else ["All bars hold: every run ended rightly, no file broken, no process left."]
        ),
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.faults",
        description="Let probes be killed, starved and lied to, and look at what is left.",
    )
    parser.add_argument("--runs", type=int, default=20, help="of each fault (default: 20)")
    parser.add_argument("--parallel", type=int, default=2, help="probes at a time (default: 2)")
    parser.add_argument(
        "--only", metavar="TEXT", action="append", help="faults whose name has this in it; may be repeated"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
