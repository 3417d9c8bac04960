"""The documentation says what is there: commands, options, files, make targets."""

from __future__ import annotations

import argparse
import importlib
import re
from pathlib import Path

import pytest

from autobatch.cli.main import COMMANDS

ROOT = Path(__file__).parent.parent
READMES = sorted(
    path
    for path in ROOT.rglob("README.md")
    if not any(part.startswith(".") or part == "demo-run" for part in path.relative_to(ROOT).parts)
)


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"autobatch {command}")
    importlib.import_module(f"autobatch.cli.{command}").add_arguments(parser)
    return parser


def options_of(command: str) -> set[str]:
    return {option for action in parser_of(command)._actions for option in action.option_strings}


@pytest.mark.parametrize("readme", READMES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_linked_file_exists(readme: Path) -> None:
    links = re.findall(r"\]\((?!https?://)([^)#]+)", readme.read_text(encoding="utf-8"))

    missing = [link for link in links if not (readme.parent / link).exists()]

    assert missing == []


def test_the_readme_names_every_command_and_no_other() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    named = set(re.findall(r"autobatch ([a-z]+)(?= |`|$)", text, flags=re.M))

    assert set(COMMANDS) - named == set()
    assert {word for word in named if f"autobatch {word} " in text and word in ("run", "train")} == set()


def test_every_option_in_the_readme_exists() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    known = set().union(*(options_of(command) for command in COMMANDS))

    named = set(re.findall(r"`(--[a-z][a-z-]*)", text)) | set(
        re.findall(r"autobatch .*?(--[a-z][a-z-]*)", text)
    )

    assert named - known - {"--dependency"} == set()
    assert len(named) > 10


@pytest.mark.parametrize("command", COMMANDS)
def test_help_describes_every_option_and_ends_with_an_example(command: str) -> None:
    parser = parser_of(command)

    undescribed = [action.dest for action in parser._actions if not action.help]

    assert undescribed == []
    assert parser.description
    assert parser.epilog
    assert "example" in parser.epilog
    assert f"autobatch {command}" in parser.epilog.split("\nexample")[-1]


def test_every_make_target_in_the_readmes_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    text = "\n".join(readme.read_text(encoding="utf-8") for readme in READMES)

    named = set(re.findall(r"(?:^ {4}|`)make ([a-z-]+)", text, flags=re.M))

    assert named <= targets
    assert {"demo", "test"} <= named


def test_the_top_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) < 250


def test_rooms_in_the_architecture_exist() -> None:
    text = (ROOT / "autobatch" / "README.md").read_text(encoding="utf-8")
    table = text.split("## Rooms")[1].split("## The seam")[0]

    rooms = re.findall(r"^\| `([a-z_]+)/`", table, flags=re.M)

    there = {
        path.name
        for path in (ROOT / "autobatch").iterdir()
        if path.is_dir() and (path / "__init__.py").exists()
    }
    assert set(rooms) == there
