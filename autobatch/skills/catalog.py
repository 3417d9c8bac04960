"""The skills that ship with the package, and copying them to where an agent looks for skills."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autobatch.edits.files import read_text, replace_file
from autobatch.errors import UsageError

_SHIPPED = Path(__file__).parent
SKILL_FILE = "SKILL.md"


@dataclass(frozen=True)
class Skill:
    """One skill.

    Attributes:
        name: of the skill and its directory.
        description: what it does and when to use it, from its front matter.
        text: of its SKILL.md.
    """

    name: str
    description: str
    text: str


@dataclass(frozen=True)
class Installed:
    """A skill in a directory of skills.

    Attributes:
        name: of the skill.
        path: of its SKILL.md there.
        state: ``missing``, ``same`` as the shipped one, or ``differs`` from it.
    """

    name: str
    path: Path
    state: str


def skills() -> tuple[Skill, ...]:
    """Every skill that ships with the package, by name.

    Raises:
        UsageError: the package is damaged.
    """
    found = tuple(_read(path) for path in sorted(_SHIPPED.glob(f"*/{SKILL_FILE}")))
    if not found:
        raise UsageError(f"{_SHIPPED}: the skills are missing: install autobatch again")
    return found


def states(directory: Path) -> tuple[Installed, ...]:
    """How each skill stands in a directory of skills.

    Raises:
        UsageError: something there can't be read, or is no directory.
    """
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory}: is not a directory: name one, such as .claude/skills")
    found = []
    for skill in skills():
        path = directory / skill.name / SKILL_FILE
        if path.parent.exists() and not path.parent.is_dir():
            raise UsageError(f"{path.parent}: is not a directory: move it away, then install again")
        state = "missing"
        if path.exists():
            state = "same" if read_text(path) == skill.text else "differs"
        found.append(Installed(skill.name, path, state))
    return tuple(found)


def install(directory: Path, *, force: bool = False) -> tuple[Installed, ...]:
    """Copies every skill to ``DIRECTORY/NAME/SKILL.md``; one that is there as shipped is left alone.

    Args:
        directory: of skills; made when missing.
        force: replace files that differ from the shipped ones.

    Returns:
        How each skill stood before.

    Raises:
        UsageError: without `force`, files there differ from the shipped ones; nothing was written.
        EditError: a file can't be written.
    """
    before = states(directory)
    differing = [str(found.path) for found in before if found.state == "differs"]
    if differing and not force:
        raise UsageError(
            "these differ from the skills that ship with autobatch; nothing was written:\n"
            + "\n".join(f"    {path}" for path in differing)
            + "\n    replace them with --force, or install into another directory"
        )
    for skill, found in zip(skills(), before, strict=True):
        if found.state == "same":
            continue
        try:
            found.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"{found.path.parent}: can't be made ({error.strerror}): check the permissions of {directory}"
            ) from error
        # Without force a file that has appeared since stays.
        replace_file(found.path, skill.text, expected=None if force else "")
    return before


def summary_rows(found: Sequence[Skill]) -> list[tuple[str, str]]:
    """Name and first sentence of each, for a table."""
    return [(skill.name, skill.description.partition(". ")[0].rstrip(".")) for skill in found]


def _read(path: Path) -> Skill:
    text = read_text(path)
    front = re.match(r"---\nname: (?P<name>[a-z0-9-]+)\ndescription: (?P<description>.+)\n---\n", text)
    if front is None:
        raise UsageError(f"{path}:1: the front matter is damaged: install autobatch again")
    return Skill(front["name"], front["description"], text)
