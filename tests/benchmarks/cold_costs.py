"""What a command costs before it does anything: seconds and imported modules, beside `tune --help`.

    python -m tests.benchmarks.cold_costs --markdown tests/benchmarks/results/cold-costs.md

Each command is a process of its own, as typed; one after the other, and that again and again, so that whatever
else the machine does meanwhile meets all of them. Exit status 1 when a bar fails, else 0. Some minutes.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import Any

from autobatch.demo.layout import SmallRun
from autobatch.json_form import to_json
from tests.benchmarks.exactness import in_a_process_of_its_own
from tests.benchmarks.judging import markdown_table
from tests.benchmarks.machine import machine_facts, write_json

REPEATS = 11

#: What the others are compared with.
TUNE = "tune --help"

HEADER = (
    "command", "seconds, median", "least", "processor, median", "modules", "of tune's seconds",
    "of tune's modules",
)  # fmt: skip

#: A console script as pip writes it, and what has it leave the number of modules that it ended with.
_SCRIPT = "import sys; from {module} import main; sys.exit(main())"
_COUNTING = (
    "import atexit, pathlib, sys; "
    "atexit.register(lambda: pathlib.Path({count!r}).write_text(str(len(sys.modules)))); "
)


@dataclass(frozen=True)
class Cost:
    """Of one command.

    Attributes:
        command: as typed.
        seconds: of each run.
        cpu_seconds: of the processor in each.
        modules: in memory when it ended.
    """

    command: str
    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    modules: int

    @property
    def median(self) -> float:
        return median(self.seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the figures."""
    options = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="cold-costs-") as place:
        in_a_process_of_its_own(Path(place), SmallRun())
        costs = measure(Path(place), options.repeats)
    facts = {**machine_facts(), "date": datetime.now(timezone.utc).date().isoformat()}
    lines = report(facts, costs)
    print("\n".join(lines))
    if options.json:
        write_json({**facts, "costs": to_json(costs), "failed": failed_bars(costs)}, options.json)
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if failed_bars(costs) else 0


def measure(place: Path, repeats: int) -> list[Cost]:
    """All commands, interleaved; `place` holds the demo's experiment."""
    run = str(place / "run1")
    commands = {
        TUNE: ("torchtune._cli.tune", ["--help"]),
        "autobatch --help": ("autobatch.cli.main", ["--help"]),
        "autobatch probe RUN --dry-run": ("autobatch.cli.main", ["probe", run, "--dry-run"]),
        "autobatch status RUN": ("autobatch.cli.main", ["status", run]),
    }
    count = place / "modules"
    modules: dict[str, int] = {}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for name, (module, words) in commands.items():
        code = _COUNTING.format(count=str(count)) + _SCRIPT.format(module=module)
        _call([sys.executable, "-c", code, *words])
        modules[name] = int(count.read_text())
    for _ in range(repeats):
        for name, (module, words) in commands.items():
            began, used = time.monotonic(), _cpu_seconds()
            _call([sys.executable, "-c", _SCRIPT.format(module=module), *words])
            seconds[name].append((time.monotonic() - began, _cpu_seconds() - used))
    costs = []
    for name in commands:
        clock, cpu = zip(*seconds[name], strict=True)
        costs.append(Cost(name, clock, cpu, modules[name]))
    return costs


def failed_bars(costs: Sequence[Cost]) -> list[str]:
    """What costs as much as `tune --help`, in words."""
    by_name = _by_name(costs)
    tune = by_name.pop(TUNE)
    return [
        f"{cost.command}: {ours:.2f} {what}, {TUNE} {theirs:.2f}"
        for cost in by_name.values()
        for what, ours, theirs in (
            ("s", cost.median, tune.median),
            ("modules", float(cost.modules), float(tune.modules)),
        )
        if ours >= theirs
    ]


def report(facts: dict[str, Any], costs: Sequence[Cost]) -> list[str]:
    """The table as Markdown, with what it was measured on."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    tune, failed = _by_name(costs)[TUNE], failed_bars(costs)
    rows = [
        (
            cost.command,
            f"{cost.median:.2f}",
            f"{min(cost.seconds):.2f}",
            f"{median(cost.cpu_seconds):.2f}",
            str(cost.modules),
            f"{100 * cost.median / tune.median:.0f} %",
            f"{100 * cost.modules / tune.modules:.0f} %",
        )
        for cost in costs
    ]
    return [
        "# What a command costs before it does anything",
        "",
        f"{facts['cpu']}, {facts['cores']} cores; {versions}; {facts['date']}.",
        f"{len(tune.seconds)} runs of each, interleaved, each in a process of its own. The run is the demo's, and "
        "there is no Slurm.",
        "",
        *markdown_table(HEADER, rows),
        "",
        *(["Bars that fail:", "", *(f"- {bar}" for bar in failed)] if failed else ["All bars hold."]),
    ]


def _by_name(costs: Sequence[Cost]) -> dict[str, Cost]:
    return {cost.command: cost for cost in costs}


def _cpu_seconds() -> float:
    """Of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _call(words: Sequence[str]) -> None:
    ended = subprocess.run(words, capture_output=True, text=True)
    if ended.returncode != 0:
        raise RuntimeError(f"{' '.join(words[2:])} ended with status {ended.returncode}:\n{ended.stderr}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.cold_costs",
        description="Measure what autobatch's commands cost before they do anything.",
    )
    parser.add_argument("--repeats", type=int, default=REPEATS, metavar="N", help="runs of each command")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
