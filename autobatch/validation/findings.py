"""What validation says of a file: findings, each of a check, with file and line and what to do."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from autobatch.runs.findings import Findings

_NOTE = re.compile(r"(?P<where>[^\s:]\S*:\d+): (?P<what>.+)", re.DOTALL)


class Severity(str, Enum):
    """How much a finding weighs."""

    ERROR = "error"  # training fails, trains nothing, or was measured not to fit
    WARNING = "warning"  # likely not what was meant
    INFO = "info"  # worth knowing


@dataclass(frozen=True)
class Finding:
    """One thing that a check has to say.

    Attributes:
        severity: how much it weighs.
        check: name of the check; stays the same over versions.
        what: the value, and why it matters.
        where: the file, with ``:line`` where there is one.
        remedy: what to do about it; may be empty for an info.
    """

    severity: Severity
    check: str
    what: str
    where: str
    remedy: str = ""


@dataclass(frozen=True)
class Report:
    """What was found in one file.

    Attributes:
        path: the config, or the plan.
        name: of the run; else of the file.
        findings: errors first.
        facts: what the checks went by: model, batch_size, packed and the like.
        readable: whether the file could be read at all.
    """

    path: str
    name: str
    findings: tuple[Finding, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    readable: bool = True

    def count(self, severity: Severity) -> int:
        """How many findings have this severity."""
        return sum(finding.severity is severity for finding in self.findings)

    def passes(self, *, strict: bool = False) -> bool:
        """Whether there is no error, and with `strict` no warning either."""
        return not self.count(Severity.ERROR) and not (strict and self.count(Severity.WARNING))


class Collector:
    """Where the checks of one file put what they find."""

    def __init__(self) -> None:
        self._found: list[Finding] = []

    def error(self, check: str, what: str, where: str, remedy: str) -> None:
        """Adds an error."""
        self._add(Finding(Severity.ERROR, check, what, where, remedy))

    def warning(self, check: str, what: str, where: str, remedy: str) -> None:
        """Adds a warning."""
        self._add(Finding(Severity.WARNING, check, what, where, remedy))

    def info(self, check: str, what: str, where: str, remedy: str = "") -> None:
        """Adds an info."""
        self._add(Finding(Severity.INFO, check, what, where, remedy))

    def take(self, check: str, findings: Findings, where: str, problems: Severity = Severity.ERROR) -> None:
        """Adds what a check of `autobatch.runs` found: problems as errors, or as said; notes as infos.

        Args:
            check: name of the check.
            findings: its findings.
            where: the place of a note that doesn't begin with one.
            problems: severity of its problems.
        """
        for problem in findings.problems:
            self._add(Finding(problems, check, problem.what, problem.where, problem.remedy))
        for note in findings.notes:
            match = _NOTE.fullmatch(note)
            self.info(check, match["what"] if match else note, match["where"] if match else where)

    def sorted(self) -> tuple[Finding, ...]:
        """All findings: errors, then warnings, then infos."""
        order = list(Severity)
        return tuple(sorted(self._found, key=lambda finding: order.index(finding.severity)))

    def _add(self, finding: Finding) -> None:
        if finding not in self._found:
            self._found.append(finding)
