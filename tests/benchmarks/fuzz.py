"""Fuzzes what reads and edits texts that others wrote: the YAML edits, the Markdown edits, the log parsers.

    python -m tests.benchmarks.fuzz --minutes 10 --markdown tests/benchmarks/results/fuzz.md

What must hold of each stands in `fuzz_yaml`, `fuzz_markdown` and `fuzz_logs`; the cases are made up by hypothesis,
anew in each call. What was found once is in `tests/test_fuzz_found.py`. Exit status 1 when anything is found.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tests.benchmarks import fuzz_logs, fuzz_markdown, fuzz_yaml
from tests.benchmarks.fuzz_rounds import Check, Tally, fuzz
from tests.benchmarks.judging import markdown_table
from tests.benchmarks.machine import machine_facts, write_json

TARGETS: dict[str, Mapping[str, Check]] = {
    "yaml": fuzz_yaml.CHECKS,
    "markdown": fuzz_markdown.CHECKS,
    "logs": fuzz_logs.CHECKS,
}
#: Beside the tables: of each target, findings of earlier calls that are tests now.
CORPUS = Path(__file__).parent.parent / "test_fuzz_found.py"


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz and tell; 1 when something was found."""
    options = _parser().parse_args(arguments)
    rows: dict[str, Any] = {}
    if options.json and options.json.exists():
        # Targets may be fuzzed one by one, beside each other.
        rows = json.loads(options.json.read_text(encoding="utf-8"))["targets"]
    for name in options.target or TARGETS:
        tally = fuzz(TARGETS[name], options.minutes, lambda text: print(text, flush=True))
        rows[name] = _row(tally)
        print(
            f"{name}: {tally.cases} cases in {tally.seconds / 60:.1f} minutes, {len(tally.found)} found",
            flush=True,
        )
    if options.json:
        write_json({"machine": machine_facts(), "targets": rows}, options.json)
    lines = _report({name: rows[name] for name in TARGETS if name in rows})
    print("\n".join(lines))
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if any(row["found"] for row in rows.values()) else 0


def _row(tally: Tally) -> dict[str, Any]:
    return {
        "minutes": round(tally.seconds / 60, 1),
        "cases": tally.cases,
        "outcomes": {name: dict(counter.most_common()) for name, counter in tally.outcomes.items()},
        "found": [vars(found) for found in tally.found.values()],
    }


def _report(rows: Mapping[str, Any]) -> list[str]:
    facts = machine_facts()
    header = ("target", "minutes", "cases", "found")
    table = [
        [name, f"{row['minutes']:g}", f"{row['cases']:,}", str(len(row["found"]))]
        for name, row in rows.items()
    ]
    outcomes = [
        [name, check, ", ".join(f"{word} {count:,}" for word, count in counts.items())]
        for name, row in rows.items()
        for check, counts in row["outcomes"].items()
    ]
    found = [
        f"- {one['check']}: {one['what']}: `{one['case'][:200]}`"
        for row in rows.values()
        for one in row["found"]
    ]
    return [
        "# Fuzzing",
        "",
        f"{facts['cpu']}, one core for each target, hypothesis; {datetime.now(timezone.utc).date().isoformat()}.",
        "",
        *markdown_table(header, table),
        "",
        "What came of the cases:",
        "",
        *markdown_table(("target", "check", "outcomes"), outcomes),
        "",
        *(["Found:", "", *found] if found else ["Nothing was found."]),
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.fuzz",
        description="Fuzz the YAML edits, the Markdown edits and the log parsers.",
    )
    parser.add_argument("--minutes", type=float, default=10, help="of each target (default: 10)")
    parser.add_argument(
        "--target", action="append", choices=list(TARGETS), help="only this one; may be repeated"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures there, beside other targets'"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
