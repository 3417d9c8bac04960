"""The commands that the skills name, and what they are where a test runs them."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autobatch.skills.catalog import Skill, skills

ROOT = Path(__file__).parent.parent

#: What the capital words in a skill's commands stand for, below the directory in which they are run.
#: A skill's reader puts paths and names of their own there.
PLACEHOLDERS = {
    "EXPERIMENT": "experiment",
    "NEW_RUN": "experiment/run2",
    "RUN": "experiment/run1",
    "CONFIG": "experiment/run1/finetune.yaml",
    "DATA": "experiment/data/train.json",
    "LOG": "experiment/run1/slurm-7.out",
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a skill.

    Attributes:
        skill: its name.
        info: what stands behind the fence: ``sh``, or ``sh slurm`` for what needs a Slurm cluster.
        line: of the fence.
        commands: its lines.
    """

    skill: str
    info: str
    line: int
    commands: tuple[str, ...]


def blocks_of(skill: Skill) -> list[Block]:
    found = []
    for fence in re.finditer(r"(?m)^( *)```(\S.*)\n((?:.*\n)*?)\1```$", skill.text):
        line = skill.text[: fence.start()].count("\n") + 1
        commands = tuple(text.strip() for text in fence[3].splitlines() if text.strip())
        found.append(Block(skill.name, fence[2], line, commands))
    return found


BLOCKS = [block for skill in skills() for block in blocks_of(skill)]


def substituted(line: str, also: Mapping[str, str]) -> str:
    """A skill's line as it is run by a test, with further options behind the commands of `also`."""
    words = "|".join(sorted(PLACEHOLDERS, key=len, reverse=True))
    line = re.sub(rf"\b({words})\b", lambda match: PLACEHOLDERS[match.group()], line)
    for command, options in also.items():
        line = line.replace(f"autobatch {command} ", f"autobatch {command} {options} ")
    return line


def write_autobatch(directory: Path) -> None:
    """This checkout's `autobatch`, for a PATH."""
    directory.mkdir()
    script = directory / "autobatch"
    script.write_text(
        f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(ROOT))} exec {sys.executable} -m autobatch.cli.main "$@"\n'
    )
    script.chmod(0o755)
