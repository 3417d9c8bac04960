"""Where the checks of a run directory put what they find."""

from __future__ import annotations

from dataclasses import dataclass, field

from autobatch.errors import Problem


@dataclass
class Findings:
    """Problems, which stop the probe, and notes, which the user is told.

    Attributes:
        problems: what is wrong.
        notes: what was assumed, or will surprise.
    """

    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def problem(self, what: str, where: str, remedy: str) -> None:
        """Adds a problem; the arguments are those of `autobatch.errors.Problem`."""
        found = Problem(what, where, remedy)
        if found not in self.problems:
            self.problems.append(found)

    def note(self, text: str) -> None:
        """Adds a sentence for the user."""
        if text not in self.notes:
            self.notes.append(text)
