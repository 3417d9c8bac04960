"""`set_values` changes the values that it was given and no other byte."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import event, given, settings
from hypothesis import strategies as st

from autobatch.edits.yaml_format import Value
from autobatch.edits.yaml_nodes import Loader, compose, equal_but_for
from autobatch.edits.yaml_values import get_line, set_values
from autobatch.errors import EditError

BATCH = ("batch_size",)
STEPS = ("gradient_accumulation_steps",)
PACKED = ("dataset", "packed")
BATCH_24: Mapping[tuple[str, ...], Value] = {BATCH: 24}
STEPS_2: Mapping[tuple[str, ...], Value] = {STEPS: 2}
PACK: Mapping[tuple[str, ...], Value] = {PACKED: True}


@pytest.fixture(
    params=[
        pytest.param(
            "CSafeLoader",
            marks=pytest.mark.skipif(not yaml.__with_libyaml__, reason="PyYAML without libyaml"),
        ),
        "SafeLoader",
    ]
)
def loader(request: pytest.FixtureRequest) -> Loader:
    """Both parsers: which one a user has depends on how PyYAML was built."""
    found: Loader = getattr(yaml, request.param)
    return found


REPLACED = [
    pytest.param("batch_size: 4\n", "batch_size: 24\n", id="plain"),
    pytest.param("batch_size:   4   # fits\n", "batch_size:   24   # fits\n", id="spaces and comment"),
    pytest.param(
        "batch_size: 4 # a\tb é 🙂\n", "batch_size: 24 # a\tb é 🙂\n", id="tab and non-ASCII in comment"
    ),
    pytest.param("# é 🙂\nbatch_size: 4", "# é 🙂\nbatch_size: 24", id="non-ASCII before, no final newline"),
    pytest.param("\ufeffbatch_size: 4\n", "\ufeffbatch_size: 24\n", id="byte order mark"),
    pytest.param("a: 1\r\nbatch_size: 4\r\n", "a: 1\r\nbatch_size: 24\r\n", id="CRLF"),
    pytest.param(
        "a: 1\rb: 2\nbatch_size: 4\r\nc: 3", "a: 1\rb: 2\nbatch_size: 24\r\nc: 3", id="mixed newlines"
    ),
    pytest.param(
        "a: 1\u2028batch_size: 4\x85c: 2", "a: 1\u2028batch_size: 24\x85c: 2", id="YAML 1.1 line breaks"
    ),
    pytest.param("batch_size:\n  4 # c\nb: 3\n", "batch_size:\n  24 # c\nb: 3\n", id="value on its own line"),
    pytest.param("batch_size: '4' # c\n", "batch_size: 24 # c\n", id="single quotes"),
    pytest.param('batch_size: "4"\n', "batch_size: 24\n", id="double quotes"),
    pytest.param("batch_size: '24'\n", "batch_size: 24\n", id="the same number in quotes is a string"),
    pytest.param('"batch_size": 4\n', '"batch_size": 24\n', id="quoted key"),
    pytest.param("? batch_size\n: 4\n", "? batch_size\n: 24\n", id="explicit key"),
    pytest.param("batch_size: x\n  y\n\nb: 2", "batch_size: 24\n\nb: 2", id="plain on two lines"),
    pytest.param("batch_size: ${bs} # c\n", "batch_size: 24 # c\n", id="interpolation"),
    pytest.param("batch_size: &bs 4 # c\n", "batch_size: &bs 24 # c\n", id="anchor without alias"),
    pytest.param("batch_size: &x !!int 4\n", "batch_size: &x !!int 24\n", id="anchor and tag"),
    pytest.param(
        "batch_size: !!int &x # c\n  4\n", "batch_size: !!int &x # c\n  24\n", id="tag, anchor, comment"
    ),
    pytest.param("b: &x 4\nbatch_size: *x # c\n", "b: &x 4\nbatch_size: 24 # c\n", id="alias"),
    pytest.param("batch_size:\nb: 3\n", "batch_size: 24\nb: 3\n", id="empty"),
    pytest.param("batch_size: # c\nb: 3\n", "batch_size: 24 # c\nb: 3\n", id="empty with comment"),
    pytest.param("batch_size:", "batch_size: 24", id="empty at the end"),
    pytest.param("batch_size: &x\nb: 3\n", "batch_size: &x 24\nb: 3\n", id="empty with anchor"),
    pytest.param("batch_size: null\n", "batch_size: 24\n", id="null"),
    pytest.param("batch_size: | # c\n  4\n\nb: 2\n", "batch_size: 24 # c\n\nb: 2\n", id="block scalar"),
    pytest.param("batch_size: >-\n  4\nb: 2\n", "batch_size: 24\nb: 2\n", id="folded block scalar"),
    pytest.param("{batch_size: 4, b: 1}", "{batch_size: 24, b: 1}", id="flow"),
    pytest.param('{"batch_size":"4","x":[1]}', '{"batch_size":24,"x":[1]}', id="JSON"),
    pytest.param("{b: 1, batch_size}", "{b: 1, batch_size: 24}", id="flow key without a value"),
    pytest.param("--- # c\nbatch_size: 4\n...\n", "--- # c\nbatch_size: 24\n...\n", id="document markers"),
    pytest.param("%YAML 1.1\n---\nbatch_size: 4\n", "%YAML 1.1\n---\nbatch_size: 24\n", id="directive"),
    pytest.param(
        "x: &a [*a]\nbatch_size: 4\n", "x: &a [*a]\nbatch_size: 24\n", id="a list that holds itself"
    ),
    pytest.param(
        "m: !Foo {a: !bar 1}\nbatch_size: 4\n", "m: !Foo {a: !bar 1}\nbatch_size: 24\n", id="unknown tags"
    ),
    pytest.param(
        "t:\n  batch_size: 1\nbatch_size: 4\n", "t:\n  batch_size: 1\nbatch_size: 24\n", id="same key deeper"
    ),
    pytest.param(
        "b: |\n  batch_size: 1\nbatch_size: 4", "b: |\n  batch_size: 1\nbatch_size: 24", id="key in a text"
    ),
]


@pytest.mark.parametrize(("before", "after"), REPLACED)
def test_replaces_the_value_only(before: str, after: str, loader: Loader) -> None:
    assert set_values(before, BATCH_24, loader=loader) == after
    assert set_values(after, BATCH_24, loader=loader) == after


ADDED = [
    pytest.param(
        "batch_size: 4 # c\nb: 1\n", STEPS_2, "batch_size: 4 # c\n{}: 2\nb: 1\n", id="below batch_size"
    ),
    pytest.param(
        "a: 1\r\nbatch_size: 4", STEPS_2, "a: 1\r\nbatch_size: 4\r\n{}: 2", id="CRLF, no final newline"
    ),
    pytest.param(
        "batch_size: 4\r\nb: 1\r\n", STEPS_2, "batch_size: 4\r\n{}: 2\r\nb: 1\r\n", id="CRLF, first line"
    ),
    pytest.param(
        "batch_size: |\r\n  4\r\nb: 1\n",
        STEPS_2,
        "batch_size: |\r\n  4\r\n{}: 2\r\nb: 1\n",
        id="the line break above, of two kinds",
    ),
    pytest.param("\rbatch_size: 4", STEPS_2, "\rbatch_size: 4\r{}: 2", id="an empty line first, CR"),
    pytest.param(
        "  batch_size: 4\n  b: 1\n", STEPS_2, "  batch_size: 4\n  {}: 2\n  b: 1\n", id="indented root"
    ),
    pytest.param(
        "batch_size: |\n  4\nb: 1\n", STEPS_2, "batch_size: |\n  4\n{}: 2\nb: 1\n", id="below a block scalar"
    ),
    pytest.param(
        "{batch_size: 4, b: 1}", STEPS_2, "{batch_size: 4, {}: 2, b: 1}", id="flow, behind batch_size"
    ),
    pytest.param("a: 1\n# end\n", STEPS_2, "a: 1\n{}: 2\n# end\n", id="last when there is no batch_size"),
    pytest.param(
        "a:\n  b:\n  - c # d\n\n# end\n",
        BATCH_24,
        "a:\n  b:\n  - c # d\n{}: 24\n\n# end\n",
        id="after a list",
    ),
    pytest.param(
        "a: |+\n  x\n\n", BATCH_24, "a: |+\n  x\n\n{}: 24\n", id="after a block that keeps its newlines"
    ),
    pytest.param("{}", BATCH_24, "{{}: 24}", id="into an empty flow mapping"),
    pytest.param(
        "b: &b {batch_size: 4}\n<<: *b\n", BATCH_24, "b: &b {batch_size: 4}\n<<: *b\n{}: 24\n", id="merged"
    ),
    pytest.param(
        "dataset:\n  a: 1 # c\n\nb: 1\n", PACK, "dataset:\n  a: 1 # c\n  {}: True\n\nb: 1\n", id="nested"
    ),
    pytest.param(
        "dataset:\n  a: 1\n    # of a\nb: 1\n",
        PACK,
        "dataset:\n  a: 1\n    # of a\n  {}: True\nb: 1\n",
        id="below a comment that belongs to the last",
    ),
    pytest.param("dataset: {a: 1 }\n", PACK, "dataset: {a: 1, {}: True }\n", id="nested flow"),
    pytest.param(
        "dataset: {a: 1,\n  b: 2,}\n", PACK, "dataset: {a: 1,\n  b: 2, {}: True,}\n", id="trailing comma"
    ),
    pytest.param(
        "dataset: &d { # c\n}\n", PACK, "dataset: &d {{}: True # c\n}\n", id="empty nested flow with anchor"
    ),
    pytest.param(
        "q: &q 1\ndataset:\n  a: *q # c\nz: 1",
        PACK,
        "q: &q 1\ndataset:\n  a: *q # c\n  {}: True\nz: 1",
        id="after alias",
    ),
    pytest.param(
        "dataset:\n  - a\n",
        BATCH_24,
        "dataset:\n  - a\n{}: 24\n",
        id="beside a list",
    ),
]


@pytest.mark.parametrize(("before", "values", "template"), ADDED)
def test_adds_a_missing_key(
    before: str, values: Mapping[tuple[str, ...], Value], template: str, loader: Loader
) -> None:
    (path,) = values
    after = template.replace("{}", path[-1], 1) if template.count("{}") == 1 else template
    assert set_values(before, values, loader=loader) == after
    assert set_values(after, values, loader=loader) == after


def test_adds_several_keys_to_one_mapping(loader: Loader) -> None:
    both: Mapping[tuple[str, ...], Value] = {BATCH: 24, STEPS: 2}
    assert (
        set_values("a: 1\n", both, loader=loader) == "a: 1\nbatch_size: 24\ngradient_accumulation_steps: 2\n"
    )
    assert set_values("{}", both, loader=loader) == "{batch_size: 24, gradient_accumulation_steps: 2}"


UNCHANGED = [
    pytest.param("batch_size:  24\n", BATCH_24, id="number"),
    pytest.param("batch_size: 0x18\n", BATCH_24, id="number written otherwise"),
    pytest.param("dataset: {packed: true}\n", PACK, id="bool written otherwise"),
    pytest.param("dataset: &d {packed: True}\nother: *d\n", PACK, id="shared, but right already"),
    pytest.param("base: &b {batch_size: 24}\n<<: *b\n", BATCH_24, id="merged"),
    pytest.param(
        "a: &a {batch_size: 24}\nb: &b {batch_size: 4}\n<<: [*a, *b]\n", BATCH_24, id="first merge wins"
    ),
    pytest.param(
        "z: &z {q: 1}\na: &a {<<: [*z]}\nb: &b {batch_size: 24}\n<<: [*a, *a, *b]\n",
        BATCH_24,
        id="the last of several merges, the first of which merges too",
    ),
    pytest.param("lr: 1.0e-05\n", {("lr",): 1e-5}, id="float"),
    pytest.param("name: 'a b'\n", {("name",): "a b"}, id="string"),
]


@pytest.mark.parametrize(("text", "values"), UNCHANGED)
def test_leaves_a_value_that_is_right_as_it_is_written(
    text: str, values: Mapping[tuple[str, ...], Value], loader: Loader
) -> None:
    assert set_values(text, values, loader=loader) == text


WRITTEN = [
    pytest.param(False, "False", id="bool"),
    pytest.param(0, "0", id="int"),
    pytest.param(0.7, "0.7", id="float"),
    pytest.param(1e-5, "1.0e-05", id="float with an exponent that YAML 1.1 reads as one"),
    pytest.param("torchtune.datasets.alpaca_dataset", "torchtune.datasets.alpaca_dataset", id="bare string"),
    pytest.param("yes", '"yes"', id="string that would be a bool"),
    pytest.param("24", '"24"', id="string that would be a number"),
    pytest.param("", '""', id="empty string"),
    pytest.param("a: b # c", '"a: b # c"', id="string with YAML in it"),
    pytest.param('é "\n', '"é \\"\\n"', id="string with quotes and a newline"),
]


@pytest.mark.parametrize(("value", "written"), WRITTEN)
def test_writes_values_as_torchtune_does(value: Value, written: str, loader: Loader) -> None:
    assert (
        set_values("x: [1]\nkey: 4 # c\n", {("key",): value}, loader=loader)
        == f"x: [1]\nkey: {written} # c\n"
    )


ALIAS = "so setting it would change both: write the value out in one of the two places"
NO_MAPPING = "1: the file holds no mapping: write it as key: value lines"
TAGGED = "batch_size can't be set to 24 as it is written here (does it carry a tag?): set it by hand"

REFUSED = [
    pytest.param(
        "batch_size: 4\nb: 1\nbatch_size: 5\n",
        BATCH_24,
        "3: batch_size is there twice, on lines 1 and 3: keep one",
        id="duplicate key",
    ),
    pytest.param(
        "dataset: {a: 1}\ndataset: {b: 1}\n",
        PACK,
        "2: dataset is there twice, on lines 1 and 2: keep one",
        id="duplicate parent",
    ),
    pytest.param(
        "batch_size: &bs 4\nx: *bs\n",
        BATCH_24,
        f"1: batch_size is shared through the alias on line 2, {ALIAS}",
        id="shared value",
    ),
    pytest.param(
        "dataset: &d\n  a: 1\nx: *d\n",
        PACK,
        f"1: dataset.packed is shared through the alias on line 3, {ALIAS}",
        id="shared mapping",
    ),
    pytest.param(
        "d: &d {a: 1}\ndataset: *d\n",
        PACK,
        f"2: dataset.packed is shared through the alias on line 2, {ALIAS}",
        id="parent is an alias",
    ),
    pytest.param(
        "dataset: &d {packed: False}\nx:\n  <<: *d\n",
        PACK,
        f"1: dataset.packed is shared through the alias on line 3, {ALIAS}",
        id="merged elsewhere",
    ),
    pytest.param(
        "dataset:\n  packed: [4]\n",
        PACK,
        "2: dataset.packed holds a sequence, not a single value: set it to True by hand",
        id="list",
    ),
    pytest.param(
        "batch_size:\n  a: 4\n",
        BATCH_24,
        "2: batch_size holds a mapping, not a single value: set it to 24 by hand",
        id="mapping",
    ),
    pytest.param(
        "a: 1\ndataset: null\n",
        PACK,
        "2: dataset isn't a mapping, so it can't hold packed: set dataset.packed by hand",
        id="parent is null",
    ),
    pytest.param(
        "dataset:\n- packed: False\n",
        PACK,
        "2: dataset isn't a mapping, so it can't hold packed: set dataset.packed by hand",
        id="parent is a list",
    ),
    pytest.param(
        "a: 1\n", PACK, "1: there is no mapping dataset to hold packed: add dataset by hand", id="no parent"
    ),
    pytest.param(
        "d:\n  a: 1\n",
        {("d", "e", "f"): 1},
        "2: there is no mapping d.e to hold f: add d.e by hand",
        id="no parent deeper",
    ),
    pytest.param(
        "d: 1\n",
        {("d", "e", "f"): 1},
        "1: d isn't a mapping, so it can't hold f: set d.e.f by hand",
        id="no mapping two levels above",
    ),
    pytest.param("batch_size: !!str 4\n", BATCH_24, f"1: {TAGGED}", id="tag of another type"),
    pytest.param("a: 1\nbatch_size: !mine 4\n", BATCH_24, f"2: {TAGGED}", id="unknown tag"),
    pytest.param(
        "dataset:\n  packed: !mine 4\n",
        PACK,
        "2: dataset.packed can't be set to True as it is written here (does it carry a tag?): set it by hand",
        id="unknown tag in a section",
    ),
    pytest.param(
        "? batch_size\nb: 2\n",
        BATCH_24,
        "1: batch_size can't be set here without breaking the file: set it by hand",
        id="explicit key without a value",
    ),
    pytest.param(
        "# c\nd: {}\na: |\n  x",
        {BATCH: 24, ("d", "e"): 1},
        "2: setting batch_size, d.e would change other values: set it by hand",
        id="text without a newline is the last",
    ),
    pytest.param("# c\n- 1\n", BATCH_24, NO_MAPPING.replace("1:", "2:"), id="list as root"),
    pytest.param("", BATCH_24, NO_MAPPING, id="empty file"),
    pytest.param("# only\n", BATCH_24, NO_MAPPING, id="comment only"),
    pytest.param(
        "a: 1\n---\nbatch_size: 1\n",
        BATCH_24,
        "2: a second document begins here: keep one document in the file",
        id="two documents",
    ),
    pytest.param(
        "a: 1\nb: 'x\n",
        BATCH_24,
        "3: not valid YAML (found unexpected end of stream): correct the file, then run again",
        id="unclosed quote",
    ),
    pytest.param(
        "a: 1\nb: *x\n",
        BATCH_24,
        "2: the alias *x has no anchor before it: define &x, or write the value",
        id="alias without an anchor",
    ),
    pytest.param(
        "a: &x 1\nb: &x 2\n",
        BATCH_24,
        "2: the anchor &x is defined a second time: rename it",
        id="anchor defined twice",
    ),
    pytest.param(
        "\na: 1\nb: \x00\n",
        BATCH_24,
        "3: the character '\\x00' isn't allowed in YAML: remove it, or save the file as UTF-8",
        id="binary",
    ),
    pytest.param(
        "a: 1\nb: \udce9\n",
        BATCH_24,
        "2: the character '\\udce9' isn't allowed in YAML: remove it, or save the file as UTF-8",
        id="not UTF-8",
    ),
]


@pytest.mark.parametrize(("text", "values", "message"), REFUSED)
def test_refuses_what_it_cannot_do_safely(
    text: str, values: Mapping[tuple[str, ...], Value], message: str, loader: Loader
) -> None:
    with pytest.raises(EditError) as refusal:
        set_values(text, values, name="run1/finetune.yaml", loader=loader)
    assert str(refusal.value) == f"run1/finetune.yaml:{message}"


def test_a_text_without_a_name_is_called_yaml() -> None:
    with pytest.raises(EditError) as refusal:
        set_values("", BATCH_24)
    assert str(refusal.value) == f"YAML:{NO_MAPPING}"


OLD = "a: 1\nb: {c: 1, d: [1, 2], e: &e x}\nf: *e\n"


@pytest.mark.parametrize(
    ("new", "values", "equal"),
    [
        pytest.param("b: {c: 1, d: [1, 2], e: &e x}\nf: *e\n", [("a",)], True, id="removed"),
        pytest.param(OLD.replace("a: 1", "a: [{}]"), [("a",)], True, id="of another kind"),
        pytest.param(OLD + "g: 1\n", [("g",)], True, id="added"),
        pytest.param(OLD.replace("c: 1", "c: 2"), [("b", "c")], True, id="deeper"),
        pytest.param(OLD.replace("c: 1", "c: 2"), [("b",)], True, id="with all below"),
        pytest.param(
            OLD.replace("c: 1", "c: 2").replace("a: 1", "a: 3"), [("b", "c"), ("a",)], True, id="two"
        ),
        pytest.param(OLD.replace("1,", "1, # c\n "), [], True, id="only a comment"),
        pytest.param(OLD.replace("c: 1", "c: 2"), [("c",)], False, id="the key elsewhere"),
        pytest.param(OLD.replace("c: 1", "c: 2"), [("a",)], False, id="another"),
        pytest.param(OLD.replace("c: 1", "c: '1'"), [("a",)], False, id="another type"),
        pytest.param(OLD.replace("c: 1", "g: 1"), [("a",)], False, id="another key"),
        pytest.param(OLD.replace("c: 1", "c: 1, g: 1"), [("b", "c")], False, id="one more beside"),
        pytest.param(OLD.replace("1, 2", "1, 2, 3"), [("b", "c")], False, id="one more in a list"),
        pytest.param(OLD.replace("1, 2", "1, 3"), [("b", "c")], False, id="another in a list"),
        pytest.param(OLD.replace("[1, 2]", "{1: 2}"), [("b", "c")], False, id="a mapping for a list"),
        pytest.param(OLD.replace("&e x", "&e y"), [("b", "e")], False, id="an alias changes with its anchor"),
    ],
)
def test_two_documents_are_equal_but_for_some_values(
    new: str, values: list[tuple[str, ...]], equal: bool, loader: Loader
) -> None:
    old_root, new_root = compose(OLD, "old", loader), compose(new, "new", loader)
    assert old_root is not None
    assert new_root is not None
    assert equal_but_for(old_root.node, new_root.node, set(values)) == equal
    assert equal_but_for(new_root.node, old_root.node, set(values)) == equal


def test_an_alias_may_be_set_together_with_its_anchor(loader: Loader) -> None:
    text = "batch_size: &bs 4\neval_batch_size: *bs\n"
    after = "batch_size: &bs 24\neval_batch_size: 8\n"
    assert set_values(text, {BATCH: 24, ("eval_batch_size",): 8}, loader=loader) == after
    assert set_values(text, {("eval_batch_size",): 8, BATCH: 24}, loader=loader) == after


def test_never_executes_a_tag(tmp_path: Path, loader: Loader) -> None:
    trap = tmp_path / "trap"
    text = f"x: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{trap}']]\n"
    assert set_values(text + "batch_size: 4\n", BATCH_24, loader=loader) == text + "batch_size: 24\n"
    assert not trap.exists()


def test_never_expands_aliases(loader: Loader) -> None:
    """Expanded, these would be 10**40 nodes."""
    laughs = "".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]\n" for i in range(40))
    merges = "".join(f"m{i + 1}: &m{i + 1}\n  <<: [{', '.join([f'*m{i}'] * 10)}]\n" for i in range(40))
    text = f"a0: &a0 ha\nm0: &m0 {{k: ha}}\n{laughs}{merges}<<: *m40\nbatch_size: "
    assert set_values(text + "4\n", BATCH_24, loader=loader) == text + "24\n"
    assert get_line(text, ("k",)) == 2
    assert get_line(text, ("not there",)) is None


def test_deep_nesting_is_no_limit(loader: Loader) -> None:
    """Not Python's, 1,000 frames; libyaml 0.2.6 takes no more levels."""
    text = "a: " + "[" * 998 + "]" * 998 + "\nbatch_size: "
    assert set_values(text + "4\n", BATCH_24, loader=loader) == text + "24\n"


def test_five_megabytes() -> None:
    text = "".join(f"key_{i}: {'value ' * 40} # comment\n" for i in range(20_000))
    assert len(text) > 5_000_000
    assert set_values(f"{text}batch_size: 4\n", BATCH_24) == f"{text}batch_size: 24\n"


LINES = [
    pytest.param("a: 1\nbatch_size: 4\n", BATCH, 2, id="top"),
    pytest.param("a: 1\ndataset:\n  packed: 1\n", ("dataset",), 2, id="of a section's key"),
    pytest.param(
        "\ufeff# c\r\ndataset:\r\n  a: 1\r\n  packed: 1\r\n", PACKED, 4, id="nested, CRLF, byte order mark"
    ),
    pytest.param("d: &d\n  packed: 1\ndataset: *d\n", PACKED, 2, id="through an alias"),
    pytest.param("d: &d\n  batch_size: 1\n<<: *d\n", BATCH, 2, id="through a merge"),
    pytest.param("a: 1\n", BATCH, None, id="missing"),
    pytest.param("dataset: [packed]\n", PACKED, None, id="not a mapping"),
    pytest.param("", BATCH, None, id="empty"),
    pytest.param("a: [\nbatch_size: 4", BATCH, None, id="not YAML"),
]


@pytest.mark.parametrize(("text", "path", "line"), LINES)
def test_get_line(text: str, path: tuple[str, ...], line: int | None) -> None:
    assert get_line(text, path) == line


def torchtune_configs() -> list[Any]:
    """Every config that torchtune ships; found without importing torchtune."""
    spec = importlib.util.find_spec("torchtune")
    assert spec is not None
    assert spec.origin is not None
    root = Path(spec.origin).parents[1] / "recipes" / "configs"
    configs = sorted(root.rglob("*.yaml"))
    assert len(configs) > 100
    return [pytest.param(config, id=str(config.relative_to(root))) for config in configs]


FORMS: dict[str, Callable[[str], str]] = {
    "as shipped": lambda text: text,
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "no final newline": lambda text: text.rstrip("\n"),
    "non-ASCII comments": lambda text: re.sub("(?m)^(#.*)$", "\\1 é 漢 🙂\t!", text),
    "byte order mark": lambda text: "\ufeff" + text,
}

OWNED_LINE = re.compile(r"(batch_size|gradient_accumulation_steps|  packed):( *)(\S+)?")


def without_owned(text: str) -> list[str]:
    """Lines that we may not touch; of those with an owned value, all but the value."""
    return [OWNED_LINE.sub(r"\1:\2", line, count=1) for line in re.findall("[^\n]*\n|[^\n]+", text)]


@pytest.mark.parametrize("config", torchtune_configs())
def test_every_config_of_torchtune(config: Path) -> None:
    shipped = config.read_text(encoding="utf-8")
    document = yaml.safe_load(shipped)
    values: dict[tuple[str, ...], Value] = {BATCH: 24, STEPS: 3}
    wanted = document | {"batch_size": 24, "gradient_accumulation_steps": 3}
    if isinstance(document.get("dataset"), dict):
        values[PACKED] = True
        wanted["dataset"] = document["dataset"] | {"packed": True}
    added = [path for path in values if path[-1] not in (document if len(path) == 1 else document["dataset"])]
    for convert in FORMS.values():
        before = convert(shipped)
        after = set_values(before, values)
        assert yaml.safe_load(after) == wanted
        assert set_values(after, values) == after
        assert after.count("\r\n") in (0, after.count("\n"))
        assert after.endswith("\n") == before.endswith("\n")
        kept, is_now = without_owned(before), without_owned(after)
        for path in added:
            ours = next(line for line in is_now if line.strip() in (f"{path[-1]}:", f"{path[-1]}: "))
            is_now.remove(ours)
        if added and not before.endswith("\n"):
            kept[-1], is_now[-1] = kept[-1].rstrip("\n"), is_now[-1].rstrip("\n")
        assert is_now == kept


ENTRIES = st.sampled_from(
    [
        "# comment é\n",
        "\n",
        "model:\n  _component_: torchtune.models.llama3_2.lora_llama3_2_1b # c\n  rank: 8\n",
        "q: ['batch_size: 1', {batch_size: 2}]\n",
        "text: |\n  batch_size: 7\n\n  # no comment\n",
        "folded: >-\n  batch_size: 7\n\n",
        "seed: null\n",
        "s: 'it''s: # x'\n",
        'd: "batch_size: 9 \\" \\\n  more"\n',
        "anchor: &lr 2e-5\n",
        "list:\n- a\n-  b: 1\n   batch_size: 3\n",
        "long: a b\n  batch size\n",
        "out: ${output_dir}/x\n",
        "tagged: !custom {a: 1}\n",
    ]
)
VALUES = st.sampled_from(
    ["4", "'4'", '"4"', "null", "~", "${bs}", "4.5", "four", "&bs 4", "!!int 4", "&bs !!int 4", "a\n  b"]
)


@settings(max_examples=1000, deadline=None)
@given(
    entries=st.lists(ENTRIES, max_size=8, unique=True),
    position=st.integers(0, 8),
    value=VALUES,
    tail=st.sampled_from(["\n", " # fits 4\n", "   #\té\n"]),
    newline=st.sampled_from(["\n", "\r\n", "\r"]),
    head=st.sampled_from(["", "\ufeff", "---\n", "%YAML 1.1\n---\n"]),
    number=st.integers(1, 10**6),
)
def test_exactly_the_value_is_replaced(
    entries: list[str], position: int, value: str, tail: str, newline: str, head: str, number: int
) -> None:
    above, below = "".join(entries[:position]), "".join(entries[position:])
    properties, _, old = value.rpartition(" ") if value[0] in "&!" else ("", "", value)
    key = f"batch_size: {properties} " if properties else "batch_size: "
    before, after = (
        (head + above + key + token + tail + below).replace("\n", newline) for token in (old, str(number))
    )
    assert set_values(before, {BATCH: number}) == after


YAML_PIECES = st.lists(
    st.sampled_from(
        [
            *"ab4&*!|>'\"#,?:-[]{} \n\t%@`~é",
            *(": ", "- ", "\n  ", "\r\n", " # c", "&a ", "*a", "<<: ", "!!int ", "---\n", "\u2028"),
            *("\nk: 1\n", "\nbatch_size: 1\n", "{a: 1, b: *a}", "|\n  4\n", "\n  a: 1\n", "\n- a\n"),
        ]
    ),
    max_size=4,
).map("".join)
YAML_TEXTS = st.one_of(
    st.builds("{}batch_size:{}\nz: {}".format, YAML_PIECES, YAML_PIECES, YAML_PIECES),
    st.builds("a: &a {}\nbatch_size: {}4{}\nz: {}".format, *[YAML_PIECES] * 4),
    st.builds("{{a: {}, batch_size{}, z: {}}}".format, YAML_PIECES, YAML_PIECES, YAML_PIECES),
    st.builds("a: {}".format, YAML_PIECES),
)


def composed(text: str, loader: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Tag and text of the values of batch_size, and all other pairs, as PyYAML's own composer has them."""
    root: Any = yaml.compose(text, Loader=getattr(yaml, loader, yaml.SafeLoader))
    return (
        [(value.tag, value.value) for key, value in root.value if key.value == "batch_size"],
        [
            (yaml.serialize(key), yaml.serialize(value))
            for key, value in root.value
            if key.value != "batch_size"
        ],
    )


@settings(max_examples=3000, deadline=None)
@given(text=YAML_TEXTS, loader=st.sampled_from(["CSafeLoader", "SafeLoader"]))
def test_any_text_is_edited_rightly_or_refused(text: str, loader: str) -> None:
    try:
        after = set_values(text, BATCH_24, loader=getattr(yaml, loader, yaml.SafeLoader))
    except EditError as refusal:
        event(re.sub("[0-9]+", "N", str(refusal))[:40])
        return
    event("edited")
    ours, others = composed(after, loader)
    assert others == composed(text, loader)[1]
    assert set_values(after, BATCH_24, loader=getattr(yaml, loader, yaml.SafeLoader)) == after
    # None when the value comes through a merge key, as it must.
    assert ours in ([("tag:yaml.org,2002:int", "24")], [])
