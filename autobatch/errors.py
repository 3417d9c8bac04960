"""The error tree.

    AutobatchError                exit code 3: the job or the recipe crashed
    ├── UsageError                exit code 2: wrong usage or unreadable input
    │   ├── RunProblems           every problem of a run directory, each with file and line
    │   └── EditError             a user's file can't be edited safely; it was left as it is
    ├── Refused                   exit code 1: the answer is no
    └── JobError                  exit code 3: the probe's job ended without an answer

Outcomes that are expected (out of memory, nothing fits, a trial that timed out) are fields of
`autobatch.records`, not exceptions. Only `autobatch.cli` turns an error into an exit code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class AutobatchError(Exception):
    """Base of every error that autobatch raises on purpose; the message is for the user."""

    exit_code: ClassVar[int] = 3


class UsageError(AutobatchError):
    """An option, a file or a value that the user gave can't be used."""

    exit_code = 2


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a run directory.

    Attributes:
        what: what is wrong, with the bad value and the limit.
        where: the file, with ``:line`` where there is one.
        remedy: what to do about it.
    """

    what: str
    where: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}\n    {self.remedy}"


class RunProblems(UsageError):
    """All problems of a run directory, reported together."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class EditError(UsageError):
    """A user's file can't be edited without touching more than the values we own."""


class Refused(AutobatchError):
    """The probe ended with a no: nothing fits, or the measurement can't be trusted."""

    exit_code = 1


class JobError(AutobatchError):
    """The probe's job ended without an answer."""
