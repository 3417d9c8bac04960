"""What commands that validate share: findings as lines, and the question whether to go on all the same."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autobatch.validation.findings import Report


def validate_first(paths: Sequence[Path], *, skip: bool, build: bool = True) -> bool:
    """Validates before a command goes on; True when it may.

    Findings go to stderr. After an error, a person at a terminal is asked; elsewhere the answer is no, which
    is exit code 1. Nothing is asked about warnings.

    Args:
        paths: configs, runs, experiments or plans.
        skip: `--skip-validation`: the findings are shown, and it goes on.
        build: as for `autobatch.validation.validator.validate`.

    Raises:
        UsageError: a path names nothing that can be validated.
    """
    from autobatch.validation.validator import validate

    return may_go_on(validate(paths, build=build), skip=skip)


def may_go_on(reports: Sequence[Report], *, skip: bool) -> bool:
    """`validate_first`, once it has the reports."""
    from autobatch.validation.findings import Severity

    for report in reports:
        if report.count(Severity.ERROR) or report.count(Severity.WARNING):
            print("\n".join(report_lines(report)), file=sys.stderr)
    errors = sum(report.count(Severity.ERROR) for report in reports)
    if not errors:
        return True
    found = f"{errors} error{'s' if errors > 1 else ''} found"
    if skip:
        print(f"{found}; going on all the same (--skip-validation)", file=sys.stderr)
        return True
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        print(f"autobatch: {found}; correct them, or go on with --skip-validation", file=sys.stderr)
        return False
    return _goes_on(f"{found}. Continue anyway? (y/n): ")


def report_lines(report: Report) -> list[str]:
    """A report as lines: what the checks went by, then finding by finding."""
    from autobatch.report.table import printable

    lines = [f"{shown_path(report.path)}{_facts(report)}"]
    directory = f"{Path(report.path).parent}{os.sep}"
    for finding in report.findings:
        where = finding.where.removeprefix(directory)
        lines.append(f"  {finding.severity.value}  {finding.check}  {where}")
        lines += [f"      {text}" for text in (finding.what, finding.remedy) if text]
    return [printable(line) for line in lines]


def shown_path(path: str) -> str:
    """`path` relative to the current directory, if it lies below."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path


def _facts(report: Report) -> str:
    facts = report.facts
    if facts.get("batch_size") is None:
        return ""
    words = []
    if facts["parameters"]:
        millions = facts["parameters"] / 1e6
        words.append(
            f"{millions / 1000:.2f}B parameters" if millions >= 100 else f"{millions:.1f}M parameters"
        )
    elif facts["size"]:
        words.append(f"{facts['size']} by its name")
    length = f" ({facts['max_seq_len']} tokens)" if facts["max_seq_len"] else ""
    words += [f"batch_size {facts['batch_size']}", f"{'packed' if facts['packed'] else 'unpacked'}{length}"]
    if facts["effective_batch_size"] is not None:
        unit = "sequences" if facts["packed"] else "examples"
        words.append(f"effective batch size {facts['effective_batch_size']} {unit}")
    if facts["effective_examples"]:
        words[-1] += f" (about {facts['effective_examples']:.0f} examples)"
    return ": " + ", ".join(words)


def _goes_on(question: str) -> bool:
    print(question, end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    if not answer.endswith("\n"):
        print(file=sys.stderr)
    return answer.strip().lower() in ("y", "yes")
