"""Values that a bullet of `runs_plan.md` can get, besides plain text: they take account of what is there."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PER_RUN = re.compile(
    r"[ \t]*(?:(?P<quote>`+)(?P<quoted>.+?)(?P=quote)(?!`)|(?P<bare>[^,:`]+?))[ \t]*:[ \t]*(?P<value>[^,]*)"
)


@dataclass(frozen=True)
class PerRun:
    """The entry of one run in a bullet that runs share, e.g. ``run1: 24, run2: 16``.

    What is there for other runs stays, whatever else is there too. A run's name that has a comma, a colon
    or a backtick in it is written as a code span; commas in `value` become semicolons.
    """

    run: str
    value: str

    def merge_into(self, current: str) -> str:
        """`current` with this run's entry replaced, or added at its end."""
        name = one_line(self.run)
        value = one_line(self.value).replace(",", ";")
        position = 0
        while position < len(current):
            entry = _PER_RUN.match(current, position)
            if entry and _entry_name(entry) == name:
                before = current[: entry.start("value")].rstrip()
                return f"{before} {value}".rstrip() + current[entry.end("value") :]
            comma = current.find(",", entry.end() if entry else position)
            position = comma + 1 if comma >= 0 else len(current)
        entry_text = f"{_quote_name(name)}: {value}"
        return f"{current}, {entry_text}" if current else entry_text


@dataclass(frozen=True)
class Stated:
    """A value with its reason, e.g. ``True - examples are short``: the user's own reason for it stays."""

    value: str
    reason: str

    def merge_into(self, current: str) -> str:
        """`current` when it begins with the value, else the value and our reason."""
        if re.match(re.escape(self.value) + r"(?!\w)", current):
            return current
        return f"{one_line(self.value)} - {one_line(self.reason)}"


#: Text of a bullet, and sub-bullets by their label.
BulletText = str | PerRun | Stated
BulletValue = BulletText | tuple[BulletText, tuple[str | tuple[str, BulletText], ...]]


def one_line(value: str) -> str:
    """`value` without line breaks, which would end a bullet or a table row."""
    return re.sub(r"[\r\n]+", " ", value).strip()


def _entry_name(entry: re.Match[str]) -> str:
    return (entry["bare"] if entry["quoted"] is None else entry["quoted"]).strip()


def _quote_name(name: str) -> str:
    if not re.search("[,:`]", name):
        return name
    longest = max((len(ticks) for ticks in re.findall("`+", name)), default=0)
    quote = "`" * (longest + 1)
    space = " " if name.startswith("`") or name.endswith("`") else ""
    return f"{quote}{space}{name}{space}{quote}"
