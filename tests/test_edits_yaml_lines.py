"""Removing entries of a YAML text, putting comments above keys, writing values that aren't scalars."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from autobatch.edits.yaml_format import Value, format_value
from autobatch.edits.yaml_lines import comment_above, remove_key
from autobatch.edits.yaml_values import set_values
from autobatch.errors import EditError

TEXT = """\
# top
a: 1  # one
d:
  x: 1  # of x
  # of y
  y: |
    text
  z: {p: 1, q: 2}
e: [1, 2]
"""


@pytest.mark.parametrize(
    ("path", "gone"),
    [
        pytest.param(("a",), "a: 1  # one\n", id="scalar"),
        pytest.param(("d", "x"), "  x: 1  # of x\n", id="nested"),
        pytest.param(("d", "y"), "  y: |\n    text\n", id="block scalar"),
        pytest.param(("d", "z"), "  z: {p: 1, q: 2}\n", id="flow mapping"),
        pytest.param(("d", "z", "p"), "p: 1, ", id="first of a flow mapping"),
        pytest.param(("d", "z", "q"), ", q: 2", id="last of a flow mapping"),
        pytest.param(("e",), "e: [1, 2]\n", id="list at the end"),
        pytest.param(("n",), "", id="missing"),
        pytest.param(("a", "b"), "", id="below a scalar"),
    ],
)
def test_an_entry_goes_and_nothing_else(path: tuple[str, ...], gone: str) -> None:
    assert remove_key(TEXT, path) == TEXT.replace(gone, "", 1)


def test_a_section_that_is_left_empty_goes_too() -> None:
    assert remove_key("a: 1\nb:\n  c:\n    d: 2\n", ("b", "c", "d")) == "a: 1\n"


@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_no_final_newline_and_a_byte_order_mark(newline: str) -> None:
    text = f"\ufeffa: 1{newline}b: 2"

    assert remove_key(text, ("b",)) == f"\ufeffa: 1{newline}"
    assert comment_above(text, ("b",), ["why"]) == f"\ufeffa: 1{newline}# why{newline}b: 2"


@pytest.mark.parametrize(
    ("text", "path"),
    [
        pytest.param("a: &x 1\nb: *x\n", ("a",), id="an anchor that is used below"),
        pytest.param("{a: 1}", ("a",), id="the only entry of a flow mapping"),
        pytest.param("a: 1\n", ("a",), id="the only entry"),
    ],
)
def test_what_cannot_be_removed_alone_is_refused_with_its_line(text: str, path: tuple[str, ...]) -> None:
    with pytest.raises(EditError, match=r"f\.yaml:1: "):
        remove_key(text, path, name="f.yaml")


def test_a_comment_stands_above_its_key_indented_as_it_is() -> None:
    assert comment_above(TEXT, ("d", "y"), ["first", "second"]) == TEXT.replace(
        "  y: |", "  # first\n  # second\n  y: |"
    )


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(("d", "z", "p"), id="inside a flow mapping"),
        pytest.param(("n",), id="missing"),
    ],
)
def test_where_a_comment_has_no_place_the_text_stays(path: tuple[str, ...]) -> None:
    assert comment_above(TEXT, path, ["why"]) == TEXT


@pytest.mark.parametrize(
    ("value", "written"),
    [
        pytest.param(None, "null", id="null"),
        pytest.param(["q_proj", "a b", True, 1], '[q_proj, "a b", True, 1]', id="list"),
        pytest.param({"input": "question"}, "{input: question}", id="mapping"),
        pytest.param("../data/train.json", "../data/train.json", id="path"),
        pytest.param("/scratch/x", "/scratch/x", id="absolute path"),
        pytest.param("${dir}/x", '"${dir}/x"', id="interpolation"),
        pytest.param(".5", '".5"', id="string that looks like a number"),
        pytest.param("~", '"~"', id="string that looks like null"),
        pytest.param([], "[]", id="empty list"),
    ],
)
def test_values_of_every_kind(value: Any, written: str) -> None:
    edited = set_values(TEXT, {("d", "new"): value})

    assert format_value(value) == written
    assert edited == TEXT.replace("q: 2}\n", f"q: 2}}\n  new: {written}\n")
    assert yaml.safe_load(edited)["d"]["new"] == value
    assert set_values(edited, {("d", "new"): value}) == edited


def test_a_list_takes_the_place_of_a_block_list_and_its_comments_stay_around() -> None:
    text = "files: [\n  a,  # first\n  b,\n]  # both\nn: 1\n"

    assert set_values(text, {("files",): ["c"]}) == "files: [c]  # both\nn: 1\n"


def test_a_scalar_in_the_place_of_a_list_is_refused() -> None:
    values: dict[tuple[str, ...], Value] = {("e",): 3}

    with pytest.raises(EditError, match="e holds a sequence"):
        set_values(TEXT, values)
