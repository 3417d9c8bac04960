"""`set_run` sets what we own in one entry of runs_status.yaml and no other byte."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from autobatch.edits.status_nodes import Entry, check_edit
from autobatch.edits.status_yaml import set_run
from autobatch.edits.yaml_nodes import LOADER, compose
from autobatch.errors import EditError

ENTRY: Entry = {
    "status": "completed",
    "failure": None,
    "slurm_job_id": 12,
    "config": {"batch_size": 24, "packed": True},
    "metrics": {"steps": 7, "final_loss": None},
}

NEW = """\
  - name: run1
    status: completed
    slurm_job_id: 12
    config:
      batch_size: 24
      packed: True
    metrics:
      steps: 7
"""


AT_THE_MARGIN = re.sub("(?m)^  ", "", NEW)

CASES = [
    pytest.param("", f"runs:\n{NEW}", id="no file"),
    pytest.param("# notes\n", f"# notes\nruns:\n{NEW}", id="comments only"),
    pytest.param("# notes", f"# notes\nruns:\n{NEW}"[:-1], id="no final newline"),
    pytest.param("# notes\r\n", f"# notes\nruns:\n{NEW}".replace("\n", "\r\n"), id="comments only, CRLF"),
    pytest.param("---\n", f"---\nruns:\n{NEW}", id="a document without content"),
    pytest.param("runs:\n", f"runs:\n{NEW}", id="runs is empty"),
    pytest.param("runs: null  # none\nb: 1\n", f"runs:  # none\n{NEW}b: 1\n", id="runs is null"),
    pytest.param("runs: []\n", f"runs:\n{NEW}", id="runs is an empty list"),
    pytest.param("owner: me\n", f"owner: me\nruns:\n{NEW}", id="no runs"),
    pytest.param("---\nowner: me\n...\n", f"---\nowner: me\nruns:\n{NEW}...\n", id="document marks"),
    pytest.param("\ufeffruns:\n", f"\ufeffruns:\n{NEW}", id="byte order mark"),
    pytest.param(
        "\ufeffruns:\n  - name: run1\n    status: planned\n",
        f"\ufeffruns:\n{NEW}",
        id="byte order mark before an entry",
    ),
    pytest.param(
        "runs:\n  - name: run10\n    # of run10\n# of the file\n",
        f"runs:\n  - name: run10\n    # of run10\n{NEW}# of the file\n",
        id="behind another entry and its comment",
    ),
    pytest.param(
        "runs:\n- name: run2\n  note: |\n    text\n",
        f"runs:\n- name: run2\n  note: |\n    text\n{AT_THE_MARGIN}",
        id="list at the margin",
    ),
    pytest.param(
        "runs:\n    -   name: run2\n        metrics:\n                steps: 1\n",
        "runs:\n    -   name: run2\n        metrics:\n                steps: 1\n"
        "    -   name: run1\n        status: completed\n        slurm_job_id: 12\n"
        "        config:\n                batch_size: 24\n                packed: True\n"
        "        metrics:\n                steps: 7\n",
        id="indentation of the file",
    ),
    pytest.param(
        "runs:\r\n  - name: run1 # mine\r\n    status: planned\r\n",
        f"runs:\n{NEW}".replace("run1\n", "run1 # mine\n").replace("\n", "\r\n"),
        id="CRLF",
    ),
    pytest.param(
        "runs:\n  - status: 'planned'  # s\n    failure: out of memory # f\n    owner: me\n    name: \"run1\"\n"
        "    metrics:\n      # above\n      verdict: keep  # v\n      final_loss: 3.5 # l\n      # below\n",
        "runs:\n  - status: completed  # s\n    failure: null # f\n    slurm_job_id: 12\n    config:\n"
        '      batch_size: 24\n      packed: True\n    owner: me\n    name: "run1"\n'
        "    metrics:\n      # above\n      verdict: keep  # v\n      final_loss: null # l\n"
        "      steps: 7\n      # below\n",
        id="keys and comments of the user",
    ),
    pytest.param(
        "runs:\n  - name: run1\n    config: # c\n    metrics: null # m\n",
        "runs:\n  - name: run1\n    status: completed\n    slurm_job_id: 12\n    config: # c\n"
        "      batch_size: 24\n      packed: True\n    metrics: # m\n      steps: 7\n",
        id="sections that are null",
    ),
    pytest.param(
        "runs:\n  - {name: run1, config: {}, metrics: {a: 1}}\n  - {name: run2}\n",
        "runs:\n  - {name: run1, status: completed, slurm_job_id: 12, config: {batch_size: 24, packed: True}, "
        "metrics: {a: 1, steps: 7}}\n  - {name: run2}\n",
        id="entry in brackets",
    ),
    pytest.param(
        "runs:\n  - {name: run1, config: null, b: 1}\n",
        "runs:\n  - {name: run1, status: completed, slurm_job_id: 12, config: {batch_size: 24, packed: True}, "
        "metrics: {steps: 7}, b: 1}\n",
        id="entry in brackets without its sections",
    ),
    pytest.param(
        'runs:\n- name: run1\n  status: "completed"\n  slurm_job_id: 0xc\n'
        "  config: {batch_size: 0x18, packed: true}\n  metrics:\n    steps: +7\n",
        'runs:\n- name: run1\n  status: "completed"\n  slurm_job_id: 0xc\n'
        "  config: {batch_size: 0x18, packed: true}\n  metrics:\n    steps: +7\n",
        id="values that are right stay as they are written",
    ),
    pytest.param(
        "base: &base {failure: out of memory}\nruns:\n- <<: *base\n  name: run1\n  status: completed\n"
        "  slurm_job_id: 12\n  config: {a: 1}\n  metrics:\n    a: 1\n    steps: 7\n",
        "base: &base {failure: out of memory}\nruns:\n- <<: *base\n  name: run1\n  status: completed\n"
        "  failure: null\n  slurm_job_id: 12\n  config: {a: 1, batch_size: 24, packed: True}\n  metrics:\n"
        "    a: 1\n    steps: 7\n",
        id="an old value that is merged in becomes null; two values in a section in brackets",
    ),
    pytest.param(
        "runs:\n- name: run1\n  status: completed\n  slurm_job_id: 12\n  config:\n    mine: 1\n",
        "runs:\n- name: run1\n  status: completed\n  slurm_job_id: 12\n  config:\n    mine: 1\n"
        "    batch_size: 24\n    packed: True\n  metrics:\n    steps: 7\n",
        id="two values in a section of the user's",
    ),
    pytest.param(
        "runs:\n- name: run2\n  other:\n      a: 1\n- name: run1\n  status: completed\n  slurm_job_id: 12\n"
        "  config: {batch_size: 24, packed: True}\n",
        "runs:\n- name: run2\n  other:\n      a: 1\n- name: run1\n  status: completed\n  slurm_job_id: 12\n"
        "  config: {batch_size: 24, packed: True}\n  metrics:\n      steps: 7\n",
        id="a new section is indented as those of other entries",
    ),
    pytest.param("runs:\n- {name: run2}\n", f"runs:\n- {{name: run2}}\n{AT_THE_MARGIN}", id="below brackets"),
    pytest.param("runs:\n- text\n- [a]\n", f"runs:\n- text\n- [a]\n{AT_THE_MARGIN}", id="below other items"),
    pytest.param(
        "base:\n    deep: &b\n      name: x\nruns:\n- *b\n",
        f"base:\n    deep: &b\n      name: x\nruns:\n- *b\n{AT_THE_MARGIN}",
        id="below an alias",
    ),
    pytest.param(
        "base: &base {batch_size: 24, packed: False}\nruns:\n  - name: run1\n    status: completed\n"
        "    slurm_job_id: 12\n    config:\n      <<: *base\n    metrics: {steps: 7}\n",
        "base: &base {batch_size: 24, packed: False}\nruns:\n  - name: run1\n    status: completed\n"
        "    slurm_job_id: 12\n    config:\n      <<: *base\n      packed: True\n    metrics: {steps: 7}\n",
        id="a merge key counts, and is overridden",
    ),
]


@pytest.mark.parametrize(("before", "after"), CASES)
def test_sets_the_entry_only(before: str, after: str) -> None:
    edited = set_run(before, "run1", ENTRY)

    assert edited == after
    assert set_run(edited, "run1", ENTRY) == edited


def test_a_planned_entry_names_what_is_to_come() -> None:
    planned = set_run(
        "", "run1", {"status": "planned", "metrics": {"steps": None, "final_loss": None}}, nulls=True
    )

    assert planned.endswith("    metrics:\n      steps: null\n      final_loss: null\n")
    assert "steps: 7\n      final_loss: null\n" in set_run(planned, "run1", ENTRY)
    begun = "runs:\n- name: run1\n"
    assert set_run(begun, "run1", {"failure": None}, nulls=True) == f"{begun}  failure: null\n"


@pytest.mark.parametrize("section", ["", "  metrics: {}\n", "  metrics:\n"], ids=["none", "empty", "null"])
def test_a_section_of_which_nothing_is_known_stays_as_it_is(section: str) -> None:
    text = f"runs:\n- name: run1\n{section}  status: a\n"

    edited = set_run(text, "run1", {"status": "b", "metrics": {"steps": None}})

    assert edited == text.replace("status: a", "status: b")


def test_an_empty_section_in_brackets_gets_its_only_value() -> None:
    text = "runs:\n- name: run1\n  metrics: {}\n"

    assert set_run(text, "run1", {"metrics": {"steps": 7}}) == text.replace("{}", "{steps: 7}")


@pytest.mark.parametrize(
    ("run", "written"),
    [
        pytest.param("7", '"7"', id="a number"),
        pytest.param("a: b #c", '"a: b #c"', id="YAML's own characters"),
        pytest.param("null", '"null"', id="null"),
        pytest.param("a run's name", '"a run\'s name"', id="spaces"),
    ],
)
def test_any_name_of_a_directory(run: str, written: str) -> None:
    text = set_run("", run, {"slurm_job_id": "28_0"})

    assert text == f'runs:\n  - name: {written}\n    slurm_job_id: "28_0"\n'
    assert yaml.safe_load(text) == {"runs": [{"name": run, "slurm_job_id": "28_0"}]}
    assert set_run(text, run, {"slurm_job_id": "28_0"}) == text


SHARED = (
    "shared through the alias on line {}, so setting it would change both: "
    "write the value out in one of the two places"
)
BY_HAND = "the entry of run1 can't be set without changing other values: set it by hand"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param(
            "runs: [{name: run2}]\n",
            "1: runs is a list in brackets: write each entry on lines of its own, then run again",
            id="flow list",
        ),
        pytest.param(
            "a: 1\nruns: {run1: 2}\n",
            "2: runs isn't a list: write an entry a run, `- name: ...`, then run again",
            id="mapping",
        ),
        pytest.param(
            "runs: none\n",
            "1: runs isn't a list: write an entry a run, `- name: ...`, then run again",
            id="text",
        ),
        pytest.param(
            "# c\n{a: 1}\n",
            "2: the file is written with brackets: write it as `runs:` and a list below, then run again",
            id="flow document",
        ),
        pytest.param(
            "- name: run1\n",
            "1: the file holds no mapping: write it as `runs:` and a list below",
            id="list at the top",
        ),
        pytest.param(
            "runs:\n- name: run1\n- name: run1\n",
            "3: two entries are called run1, on lines 2 and 3: keep one",
            id="twice",
        ),
        pytest.param("runs:\nruns:\n", "2: runs is there twice, on lines 1 and 2: keep one", id="runs twice"),
        pytest.param(
            "runs:\n- name: run1\n  status: a\n  status: b\n",
            "4: status is there twice, on lines 3 and 4: keep one",
            id="status twice",
        ),
        pytest.param(
            "runs:\n- name: run1\n  metrics:\n    steps: 1\n    steps: 2\n",
            "5: steps is there twice, on lines 4 and 5: keep one",
            id="twice in a section",
        ),
        pytest.param(
            "runs:\n- name: run1\n  config: x\n",
            "3: config of run1 isn't a mapping: write it as key: value lines, then run again",
            id="config is text",
        ),
        pytest.param(
            "runs:\n- name: run1\n  status: [a]\n",
            "3: status holds a sequence, not a single value: set it to completed by hand",
            id="status is a list",
        ),
        pytest.param(
            "runs:\n- name: a\n---\nruns:\n",
            "3: a second document begins here: keep one document in the file",
            id="documents",
        ),
        pytest.param(
            "runs:\n- name: 'run1\n",
            "3: not valid YAML (found unexpected end of stream): correct the file, then run again",
            id="not YAML",
        ),
        pytest.param(
            "runs:\n- &r {name: run1}\n- *r\n",
            "3: two entries are called run1, on lines 2 and 3: keep one",
            id="an alias of the entry",
        ),
        pytest.param("runs:\n- &r {name: run1}\nlast: *r\n", f"2: run1 is {SHARED.format(3)}", id="shared"),
        pytest.param(
            "runs:\n- name: run1\n  config: &c {a: 1}\n- name: run2\n  config: *c\n",
            f"3: run1.config is {SHARED.format(5)}",
            id="shared section",
        ),
        pytest.param(
            "c: &c {a: 1}\nruns:\n- name: run1\n  config: *c\n",
            f"4: run1.config is {SHARED.format(4)}",
            id="section by alias",
        ),
        pytest.param(
            "base: &b []\nruns: *b\n",
            "2: runs is shared through an alias: write the list out, then run again",
            id="runs by alias",
        ),
        pytest.param(
            "runs: &b []\nlast: *b\n",
            "1: runs is shared through an alias: write the list out, then run again",
            id="runs shared",
        ),
        pytest.param("# c\nruns:\n- name: run1\n  status: !mine x\n", f"2: {BY_HAND}", id="unknown tag"),
        pytest.param("null\n", f"1: {BY_HAND}", id="a document that is null"),
    ],
)
def test_refuses_what_it_cannot_do_safely(text: str, message: str) -> None:
    with pytest.raises(EditError) as raised:
        set_run(text, "run1", ENTRY)

    assert str(raised.value) == f"runs_status.yaml:{message}"


@pytest.mark.parametrize("code_point", [0xD800, 0xDCE9, 0xDFFF], ids=hex)
def test_a_name_that_no_yaml_text_can_hold_is_refused(code_point: int) -> None:
    run = f"run{chr(code_point)}"
    with pytest.raises(EditError) as raised:
        set_run("", run, ENTRY, name="f.yaml")

    assert str(raised.value) == (
        f"f.yaml: {run!a}, a run's name, isn't UTF-8, as YAML must be: rename its directory"
    )


BEFORE = "a: 1\nruns:\n- name: run1\n  owner: me\n  metrics:\n    mine: 1\n- name: run2\n  status: planned\n"
AFTER = BEFORE.replace("  owner: me", "  status: done\n  owner: me").replace(
    "mine: 1", "mine: 1\n    steps: 7"
)


@pytest.mark.parametrize(
    ("old", "damage"),
    [
        pytest.param(BEFORE, BEFORE, id="nothing set"),
        pytest.param(BEFORE, "# all gone\n", id="no document"),
        pytest.param(BEFORE, AFTER + "- [\n", id="not YAML"),
        pytest.param(BEFORE, AFTER.replace("name: run1", "name: run3"), id="no such entry"),
        pytest.param(BEFORE, AFTER + "- name: run1\n", id="the entry twice"),
        pytest.param(BEFORE, AFTER + "- name: run3\n", id="one more entry"),
        pytest.param(BEFORE, AFTER[: AFTER.index("- name: run2")], id="an entry lost"),
        pytest.param(BEFORE, AFTER.replace("steps: 7", "steps: 8"), id="another value in a section"),
        pytest.param(BEFORE, AFTER.replace("a: 1\n", "a: 2\n", 1), id="another key of the file"),
        pytest.param(BEFORE, AFTER.replace("owner: me", "owner: you"), id="another key of the entry"),
        pytest.param(BEFORE, AFTER.replace("mine: 1", "mine: 2"), id="another key of a section"),
        pytest.param(BEFORE, AFTER.replace("planned", "done"), id="our key in another entry"),
        pytest.param("", AFTER[5 : AFTER.index("- name: run2")] + "b: 1\n", id="a key beside a new list"),
        pytest.param("", AFTER[5:], id="an entry beside a new one"),
    ],
)
def test_an_edit_that_does_other_damage_is_refused(old: str, damage: str) -> None:
    entry: Entry = {"status": "done", "metrics": {"steps": 7}}
    check_edit(compose(BEFORE, "f.yaml"), AFTER, "run1", entry, "f.yaml")

    with pytest.raises(EditError) as raised:
        check_edit(compose(old, "f.yaml"), damage, "run1", entry, "f.yaml")

    assert str(raised.value) == f"f.yaml:1: {BY_HAND}"


NAMES = st.sampled_from(["run1", "run2", "run 3", "7", "null", "a:b"])
COMMENTS = st.sampled_from(["", " # c", "  # é: - {x}"])
SCALARS = st.sampled_from(
    ["1", "x y", "'q'", '"d"', "null", "", "3.5", "[1, 2]", "2025-10-20T14:30:00", "*a", "&b 2"]
)


@st.composite
def files(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A status file as people write them, and the comments in it."""
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    dash = draw(st.sampled_from([0, 2, 4]))
    offset = draw(st.sampled_from([2, 4]))
    step = draw(st.sampled_from([1, 2, 4]))
    lines = [f"# {draw(st.sampled_from(['top', 'runs:']))}", "anchor: &a 5"]
    lines += ["runs:" + draw(COMMENTS)]
    names = draw(st.lists(NAMES, unique=True, min_size=1, max_size=3))
    for run in names:
        keys = draw(st.permutations(["status", "owner", "slurm_job_id", "config", "metrics", "other"]))
        keys = keys[: draw(st.integers(0, 6))]
        rows = [f"name: '{run}'{draw(COMMENTS)}"]
        for key in keys:
            if key in ("config", "metrics", "other") and draw(st.booleans()):
                rows.append(f"{key}:{draw(COMMENTS)}")
                children = draw(st.permutations(["batch_size", "steps", "final_loss", "mine"]))
                for child in children[: draw(st.integers(1, 4))]:
                    if draw(st.booleans()):
                        rows.append(" " * step + "# between")
                    rows.append(" " * step + f"{child}: {draw(SCALARS)}{draw(COMMENTS)}")
            else:
                rows.append(f"{key}: {draw(SCALARS)}{draw(COMMENTS)}")
        at = " " * dash
        lines += [f"{at}-{' ' * (offset - 1)}{rows[0]}", *(f"{at}{' ' * offset}{row}" for row in rows[1:])]
    lines += draw(st.sampled_from([[], ["# end"], ["", "tail: 1  # t"]]))
    text = newline.join(lines) + draw(st.sampled_from(["", newline]))
    return text, re.findall(r"#[^\r\n]*", text)


def expected(before: Any, run: str) -> Any:
    """What a reader of the document must find after `ENTRY` was set."""
    document = copy.deepcopy(before)
    entry = next((item for item in document["runs"] if item["name"] == run), None)
    if entry is None:
        entry = {"name": run}
        document["runs"].append(entry)
    for key, value in ENTRY.items():
        if isinstance(value, dict):
            section = entry.get(key) or {}
            for child, scalar in value.items():
                if scalar is not None or child in section:
                    section[child] = scalar
            entry[key] = section
        elif value is not None or key in entry:
            entry[key] = value
    return document


@settings(max_examples=400, deadline=None)
@given(file=files(), run=NAMES)
def test_nothing_else_changes(file: tuple[str, list[str]], run: str) -> None:
    text, comments = file
    try:
        before = yaml.safe_load(text)
        edited = set_run(text, run, ENTRY)
    except (EditError, yaml.YAMLError):
        # Two anchors of one name, a list or an anchored value where a section belongs: refused, not broken.
        return

    assert yaml.safe_load(edited) == expected(before, run)
    assert sorted(re.findall(r"#[^\r\n]*", edited)) == sorted(comments)
    assert set_run(edited, run, ENTRY) == edited
    assert ("\r\n" in text) == ("\r\n" in edited)
    lost = [line for line in text.splitlines() if line not in edited.splitlines()]
    ours = re.compile(r"\s*(- +)?(status|slurm_job_id|config|metrics|batch_size|steps|final_loss|failure):")
    assert [line for line in lost if not ours.match(line)] == []


@settings(max_examples=300, deadline=None)
@given(text=st.text(alphabet=st.sampled_from(list("runs: -name1{}[]#&*|>\n\r\t'\"é")), max_size=60))
def test_any_text_is_edited_rightly_or_refused(text: str) -> None:
    try:
        edited = set_run(text, "run1", ENTRY)
    except EditError:
        return

    # libyaml takes texts that PyYAML's own parser refuses, such as one that ends in a tab.
    document = yaml.load(edited, Loader=LOADER)
    entries = [e for e in document["runs"] if isinstance(e, dict) and e.get("name") == "run1"]
    assert len(entries) == 1
    assert entries[0]["config"]["batch_size"] == 24
    assert set_run(edited, "run1", ENTRY) == edited


@settings(max_examples=200, deadline=None)
@given(value=st.text(max_size=40), run=st.text(min_size=1, max_size=10))
def test_any_value_and_any_name_are_read_back(value: str, run: str) -> None:
    entry: Entry = {"failure": value, "metrics": {"note": value}}

    edited = set_run("runs:\n- name: first\n", run, entry)

    assert yaml.safe_load(edited)["runs"][-1] == {"name": run, "failure": value, "metrics": {"note": value}}
    assert set_run(edited, run, entry) == edited
