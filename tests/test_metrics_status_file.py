"""`read_status` gives plain data, or says what is wrong where."""

from __future__ import annotations

from pathlib import Path

import pytest

from autobatch.errors import UsageError
from autobatch.metrics.status_file import read_status


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(None, id="no file"),
        pytest.param("", id="empty"),
        pytest.param("# notes\n", id="comments"),
        pytest.param("---\n", id="document without content"),
        pytest.param("runs:\n", id="runs is empty"),
        pytest.param("runs: null\n", id="runs is null"),
        pytest.param("runs: []\n", id="empty list"),
        pytest.param("owner: me\n", id="no runs"),
    ],
)
def test_nothing_is_no_entry(text: str | None, tmp_path: Path) -> None:
    path = tmp_path / "runs_status.yaml"
    if text is not None:
        path.write_text(text)

    assert read_status(path) == {}


def test_entries_as_plain_data(tmp_path: Path) -> None:
    path = tmp_path / "runs_status.yaml"
    path.write_text(
        "\ufeffruns:\r\n  - name: run1\r\n    started: 2025-10-20T14:30:00\r\n    day: 2025-10-20\r\n"
        "    config: &c {batch_size: 4, 7: x}\r\n  - name: 2\r\n    config: *c\r\n    self: &s [*s]\r\n"
    )

    assert read_status(path) == {
        "run1": {
            "name": "run1",
            "started": "2025-10-20T14:30:00",
            "day": "2025-10-20",
            "config": {"batch_size": 4, "7": "x"},
        },
        "2": {"name": 2, "config": {"batch_size": 4, "7": "x"}, "self": [None]},
    }


def test_aliases_are_not_expanded(tmp_path: Path) -> None:
    path = tmp_path / "runs_status.yaml"
    rows = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 40)]
    path.write_text("a0: &a0 x\n" + "".join(rows) + "runs:\n- {name: run1, bomb: *a39}\n")

    assert list(read_status(path)) == ["run1"]


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        pytest.param("- name: run1\n", 1, "holds no mapping", id="list at the top"),
        pytest.param("a: 1\nruns: {run1: 1}\n", 2, "isn't a list", id="mapping"),
        pytest.param("runs:\n- name: run1\n- run2\n", 3, "has no name", id="entry is text"),
        pytest.param("runs:\n- status: planned\n", 2, "has no name", id="no name"),
        pytest.param("runs:\n- name: a\n- name: a\n", 3, "second entry is called a", id="twice"),
        pytest.param("runs:\n- name: 'a\n", 3, "not valid YAML", id="not YAML"),
        pytest.param("runs:\n- name: a\n---\nb: 1\n", 3, "second document", id="documents"),
        pytest.param("runs:\n- name: a\n  b: !!python/name:os.system x\n", 3, "correct the file", id="tag"),
        pytest.param("runs:\n- name: a\n  ? [x]\n  : y\n", 3, "correct the file", id="list as a key"),
    ],
)
def test_what_is_wrong_is_said_with_the_line(text: str, line: int, what: str, tmp_path: Path) -> None:
    path = tmp_path / "runs_status.yaml"
    path.write_text(text)

    with pytest.raises(UsageError, match=what) as raised:
        read_status(path)

    assert str(raised.value).startswith(f"{path}:{line}: ")
