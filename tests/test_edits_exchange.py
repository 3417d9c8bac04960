"""Files that are saved between the last look at them and the rename: neither side is lost."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from autobatch.edits.exchange import exchange
from autobatch.edits.files import edit_file
from autobatch.errors import EditError

#: By the path that something is renamed to: what happens just before, each time.
_BEFORE_RENAMES: dict[str, list[Callable[[], object]]] = {}


def _on_audit(name: str, arguments: tuple[Any, ...]) -> None:
    if name == "os.rename" and _BEFORE_RENAMES:
        waiting = _BEFORE_RENAMES.get(str(arguments[1]))
        if waiting:
            waiting.pop(0)()


@pytest.fixture(scope="module", autouse=True)
def _audited() -> None:
    sys.addaudithook(_on_audit)


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("1")
    other.write_text("2")
    if not exchange(one, other):
        pytest.skip(
            "NO renameat2 ON THIS FILE SYSTEM: an editor's text can be lost in the moment of a rename"
        )
    assert (one.read_text(), other.read_text()) == ("2", "1")
    one.unlink()
    other.unlink()
    yield tmp_path / "finetune.yaml"
    _BEFORE_RENAMES.clear()


def save(path: Path, text: str) -> Callable[[], object]:
    """As most editors do: beside, then renamed."""

    def saves() -> None:
        beside = path.with_name("saved~")
        beside.write_text(text)
        beside.replace(path)

    return saves


def edit(path: Path, create: str | None = None) -> str:
    """The refusal of an edit."""
    with pytest.raises(EditError) as refusal:
        edit_file(path, lambda text: text + "ours", create=create)
    return str(refusal.value)


@pytest.mark.parametrize(
    "saved",
    [
        pytest.param(["theirs"], id="once"),
        pytest.param(["first", "theirs"], id="again while it is put back"),
        pytest.param(["first", "second", "theirs"], id="and again"),
    ],
)
def test_what_is_saved_in_the_moment_of_the_rename_stays(path: Path, saved: list[str]) -> None:
    path.write_text("before")
    actions = [save(path, text) for text in saved]
    # Each saving is a rename of its own, at which nothing more happens.
    _BEFORE_RENAMES[str(path)] = [step for action in actions for step in (action, lambda: None)]

    refusal = edit(path)

    assert "changed while autobatch was running" in refusal
    assert path.read_text() == "theirs"
    assert [left.name for left in path.parent.iterdir()] == [path.name]


def test_a_file_that_is_made_in_the_moment_of_the_rename_stays(path: Path) -> None:
    _BEFORE_RENAMES[str(path)] = [lambda: path.write_text("theirs")]

    refusal = edit(path, create="")

    assert "changed while autobatch was running" in refusal
    assert path.read_text() == "theirs"


def test_a_file_that_is_removed_in_the_moment_of_the_rename_stays_removed(path: Path) -> None:
    path.write_text("before")
    _BEFORE_RENAMES[str(path)] = [path.unlink]

    refusal = edit(path)

    assert "changed while autobatch was running" in refusal
    assert not list(path.parent.iterdir())
