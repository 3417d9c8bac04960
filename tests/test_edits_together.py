"""Edits of several files: all or none."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from autobatch.edits.together import Edit, edit_together, refuse_unwritable
from autobatch.errors import EditError


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "finetune.yaml"
    path.write_text("batch_size: 4\n")
    return path


def larger(text: str) -> str:
    return text.replace("4", "24")


def test_all(config: Path, tmp_path: Path) -> None:
    plan = tmp_path / "runs_plan.md"

    changes = edit_together(
        [Edit(config, larger), Edit(plan, lambda text: text + "row\n", create="# Plan\n")]
    )

    assert [change.changed for change in changes] == [True, True]
    assert (config.read_text(), plan.read_text()) == ("batch_size: 24\n", "# Plan\nrow\n")
    assert "+batch_size: 24" in changes[0].diff()


def test_what_is_in_place_is_not_written(config: Path) -> None:
    before = config.stat()

    (change,) = edit_together([Edit(config, lambda text: text)])

    assert not change.changed
    assert config.stat().st_mtime_ns == before.st_mtime_ns


def test_none_when_one_cannot_be_edited(config: Path, tmp_path: Path) -> None:
    def refuse(text: str) -> str:
        raise EditError("a code fence isn't closed")

    with pytest.raises(EditError) as caught:
        edit_together([Edit(config, larger), Edit(tmp_path / "runs_plan.md", refuse, create="")])

    assert str(caught.value) == "a code fence isn't closed"
    assert config.read_text() == "batch_size: 4\n"


def test_none_when_one_is_no_file(config: Path, tmp_path: Path) -> None:
    plan = tmp_path / "runs_plan.md"
    plan.mkdir()

    with pytest.raises(EditError):
        edit_together([Edit(config, larger), Edit(plan, larger, create="")])

    assert config.read_text() == "batch_size: 4\n"


@pytest.mark.parametrize("there", [True, False], ids=["edited", "created"])
def test_the_first_is_taken_back_when_the_second_changes_under_it(
    there: bool, config: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "runs_plan.md"
    if there:
        plan.write_text("mine 4\n")

    def while_an_editor_saves(text: str) -> str:
        config.write_text("batch_size: 8\n")
        return larger(text)

    with pytest.raises(EditError) as caught:
        edit_together([Edit(plan, larger, create="new 4\n"), Edit(config, while_an_editor_saves)])

    assert "changed while autobatch was running" in str(caught.value)
    assert config.read_text() == "batch_size: 8\n"
    assert plan.exists() == there
    if there:
        assert plan.read_text() == "mine 4\n"


def test_all_that_were_written_are_taken_back(config: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("4\n")
    second.write_text("4 4\n")

    def while_an_editor_saves(text: str) -> str:
        config.write_text("batch_size: 8\n")
        return larger(text)

    with pytest.raises(EditError, match="changed while autobatch was running"):
        edit_together([Edit(first, larger), Edit(second, larger), Edit(config, while_an_editor_saves)])

    assert (first.read_text(), second.read_text()) == ("4\n", "4 4\n")


def test_what_could_not_be_written_is_known_beforehand(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("")
    refused = {}
    for name in ("directory", "loop", "file", "missing"):
        try:
            refuse_unwritable(tmp_path / name)
        except EditError as error:
            refused[name] = str(error)

    assert list(refused) == ["directory", "loop"]
    assert refused["directory"] == (
        f"{tmp_path}/directory: isn't a regular file, and autobatch writes one there: move it away"
    )
    assert re.fullmatch(
        rf"{tmp_path}/loop: can't be written \(.*(Symlink loop|Too many levels).*\): correct its path",
        refused["loop"],
    )
