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


@pytest.mark.parametrize(
    ("text", "left"),
    [
        pytest.param("a: 1\nb:\n  c:\n    d: 2\n", "a: 1\n", id="two sections"),
        pytest.param("b:\n  x: 1\n  c:\n    d: 2\n", "b:\n  x: 1\n", id="only the inner one"),
    ],
)
def test_a_section_that_is_left_empty_goes_too(text: str, left: str) -> None:
    assert remove_key(text, ("b", "c", "d")) == left


@pytest.mark.parametrize(
    ("text", "path", "left"),
    [
        pytest.param("", ("a",), "", id="no document"),
        pytest.param("x: {p: 1, q: 2, r: 3}\n", ("x", "p"), "x: {q: 2, r: 3}\n", id="first of three"),
        pytest.param("\na: 1\nb: 2\n", ("a",), "\nb: 2\n", id="below an empty line"),
        pytest.param("a: 1\nb: 2\n", ("a",), "b: 2\n", id="the first line"),
        pytest.param(
            "b: &x {p: 1, q: 2}\na: *x\n", ("a", "p"), "b: &x {p: 1, q: 2}\na: *x\n", id="through an alias"
        ),
    ],
)
def test_what_is_removed_where(text: str, path: tuple[str, ...], left: str) -> None:
    assert remove_key(text, path) == left


@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["lf", "crlf"])
def test_no_final_newline_and_a_byte_order_mark(newline: str) -> None:
    text = f"\ufeffa: 1{newline}b: 2"

    assert remove_key(text, ("b",)) == f"\ufeffa: 1{newline}"
    assert comment_above(text, ("b",), ["why"]) == f"\ufeffa: 1{newline}# why{newline}b: 2"


ONLY = "a is the only entry: remove the file instead"


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        pytest.param(
            "d:\n  a: &x 1\n  b: *x\n",
            ("d", "a"),
            "2: d.a can't be removed here without changing something else: remove it by hand",
            id="an anchor that is used below",
        ),
        pytest.param("{a: 1}", ("a",), f"1: {ONLY}", id="the only entry of a flow mapping"),
        pytest.param("a: 1\n", ("a",), f"1: {ONLY}", id="the only entry"),
        pytest.param("a:\n  b: 1\n", ("a", "b"), f"1: {ONLY}", id="the only entry of the only section"),
        pytest.param(
            "# top\na: [\n",
            ("a",),
            "3: not valid YAML (did not find expected node content): correct the file, then run again",
            id="not YAML",
        ),
    ],
)
def test_what_cannot_be_removed_alone_is_refused_with_its_line(
    text: str, path: tuple[str, ...], message: str
) -> None:
    with pytest.raises(EditError) as named:
        remove_key(text, path, name="f.yaml")
    with pytest.raises(EditError) as unnamed:
        remove_key(text, path)

    assert str(named.value) == f"f.yaml:{message}"
    assert str(unnamed.value) == f"YAML:{message}"


def test_a_comment_stands_above_its_key_indented_as_it_is() -> None:
    assert comment_above(TEXT, ("d", "y"), ["first", "second"]) == TEXT.replace(
        "  y: |", "  # first\n  # second\n  y: |"
    )
    assert comment_above(TEXT, ("d",), ["why"]) == TEXT.replace("d:\n", "# why\nd:\n")
    assert comment_above("a: 1", ("a",), ["why"]) == "# why\na: 1"


def test_a_comment_needs_a_text_that_is_yaml() -> None:
    with pytest.raises(EditError, match=r"^f\.yaml:2: not valid YAML"):
        comment_above("a: [\n", ("a",), ["why"], name="f.yaml")
    with pytest.raises(EditError, match=r"^YAML:2: not valid YAML"):
        comment_above("a: [\n", ("a",), ["why"])


@pytest.mark.parametrize(
    ("text", "path"),
    [
        pytest.param(TEXT, ("d", "z", "p"), id="inside a flow mapping"),
        pytest.param("d: {\n  p: 1}\n", ("d", "p"), id="inside a flow mapping, on a line of its own"),
        pytest.param("? a\n: 1\n", ("a",), id="behind a question mark"),
        pytest.param(TEXT, ("n",), id="missing"),
        pytest.param("", ("n",), id="no document"),
    ],
)
def test_where_a_comment_has_no_place_the_text_stays(text: str, path: tuple[str, ...]) -> None:
    assert comment_above(text, path, ["why"]) == text


@pytest.mark.parametrize(
    ("value", "written"),
    [
        pytest.param(None, "null", id="null"),
        pytest.param(["q_proj", "a b", True, 1], '[q_proj, "a b", True, 1]', id="list"),
        pytest.param({"input": "question", "n": 2}, "{input: question, n: 2}", id="mapping"),
        pytest.param("LoRA", "LoRA", id="capitals"),
        pytest.param("a b " * 40, f'"{"a b " * 40}"', id="long, on one line all the same"),
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


@pytest.mark.parametrize(
    ("written", "value"),
    [
        pytest.param("[a, b]", ["a"], id="shorter"),
        pytest.param("[a]", ["a", "b"], id="longer"),
        pytest.param("[a]", ["b"], id="another item"),
        pytest.param("{a: 1}", {"a": 2}, id="another value"),
        pytest.param("{a: 1}", {"b": 1}, id="another key"),
    ],
)
def test_a_list_or_a_mapping_that_differs_is_written_again(written: str, value: Value) -> None:
    edited = set_values(f"files: {written}  # c\n", {("files",): value})

    assert edited == f"files: {format_value(value)}  # c\n"


def test_a_list_takes_the_place_of_a_block_list_and_its_comments_stay_around() -> None:
    text = "files: [\n  a,  # first\n  b,\n]  # both\nn: 1\n"

    assert set_values(text, {("files",): ["c"]}) == "files: [c]  # both\nn: 1\n"


def test_a_scalar_in_the_place_of_a_list_is_refused() -> None:
    values: dict[tuple[str, ...], Value] = {("e",): 3}

    with pytest.raises(EditError, match="e holds a sequence"):
        set_values(TEXT, values)
