"""The journal: what a killed probe goes on from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autobatch.probing.journal import Decision, Journal
from autobatch.records import EffectiveBatch, Trial, Verdict, to_json

KEY: dict[str, Any] = {"fingerprint": "abc", "device": {"kind": "cpu", "name": "x", "total_bytes": 1}}
ONE = Trial(
    1, Verdict.FITS, peak_bytes=10, peaks_bytes={"resident": 10}, before_bytes=5, step_peaks_bytes=(9, 10)
)
TWO = Trial(2, Verdict.OVER_TARGET, peak_bytes=20, peaks_bytes={"resident": 20}, tokens_per_second=1.5)
BEFORE = EffectiveBatch(4, 2, 8, 40.0)
THREE = Trial(3, Verdict.OUT_OF_MEMORY, detail="CUDA out of memory")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "probe" / "trials.jsonl"


def written(path: Path, *trials: Trial, decision: Decision | None = None) -> None:
    journal = Journal(path, KEY)
    for trial in trials:
        journal.add_trial(trial)
    if decision is not None:
        journal.add_decision(decision)


def lines_of(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def test_a_new_journal_is_its_key(path: Path) -> None:
    journal = Journal(path, KEY)

    assert journal.trials == []
    assert journal.decision is None
    assert lines_of(path) == [json.dumps({"key": KEY, "schema_version": 1})]


def test_everything_comes_back(path: Path) -> None:
    written(path, ONE, TWO, THREE, decision=Decision(1, 8, BEFORE))

    journal = Journal(path, KEY)

    assert journal.trials == [ONE, TWO, THREE]
    assert journal.decision == Decision(1, 8, BEFORE)


def test_the_last_decision_counts(path: Path) -> None:
    written(path, ONE, decision=Decision(1, 8, BEFORE))
    Journal(path, KEY).add_decision(Decision(2, 4, BEFORE))

    assert Journal(path, KEY).decision == Decision(2, 4, BEFORE)


@pytest.mark.parametrize(
    "key",
    [
        pytest.param({**KEY, "fingerprint": "def"}, id="another fingerprint"),
        pytest.param({**KEY, "device": {**KEY["device"], "name": "y"}}, id="another device"),
        pytest.param({**KEY, "min_steps": 9}, id="a further entry"),
        pytest.param({"fingerprint": "abc"}, id="an entry less"),
    ],
)
def test_another_key_starts_anew(path: Path, key: dict[str, Any]) -> None:
    written(path, ONE, TWO, decision=Decision(1, 8, BEFORE))

    journal = Journal(path, key)

    assert journal.trials == []
    assert journal.decision is None
    assert lines_of(path) == [json.dumps({"key": key, "schema_version": 1})]


def test_another_schema_starts_anew(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(
        json.dumps({"key": KEY, "schema_version": 2}) + "\n" + json.dumps({"trial": to_json(ONE)})
    )

    assert Journal(path, KEY).trials == []
    assert len(lines_of(path)) == 1


def test_fresh_forgets(path: Path) -> None:
    written(path, ONE, TWO)

    assert Journal(path, KEY, fresh=True).trials == []
    assert Journal(path, KEY).trials == []


def test_force_keeps_what_its_own_attempt_has_measured(path: Path) -> None:
    written(path, ONE, TWO)

    begun = Journal(path, KEY, fresh=True, attempt="a")
    discarded = list(begun.trials)
    begun.add_trial(THREE)

    assert discarded == []
    assert Journal(path, KEY, fresh=True, attempt="a").trials == [THREE]
    assert Journal(path, KEY).trials == [THREE]
    assert json.loads(lines_of(path)[0]) == {"key": KEY, "schema_version": 1, "forced": "a"}
    assert Journal(path, {**KEY, "min_steps": 9}, fresh=True, attempt="a").trials == []
    assert json.loads(lines_of(path)[0])["forced"] == "a"


@pytest.mark.parametrize(
    ("began", "attempt"),
    [
        pytest.param("a", "b", id="another's"),
        pytest.param("a", "", id="of a probe that is no job"),
        pytest.param("", "", id="neither is a job"),
    ],
)
def test_force_discards_what_another_attempt_has_measured(path: Path, began: str, attempt: str) -> None:
    Journal(path, KEY, fresh=True, attempt=began).add_trial(ONE)

    assert Journal(path, KEY, fresh=True, attempt=attempt).trials == []


def test_an_attempt_without_force_leaves_no_mark(path: Path) -> None:
    Journal(path, KEY, attempt="a").add_trial(ONE)

    assert "forced" not in json.loads(lines_of(path)[0])
    assert Journal(path, KEY, fresh=True, attempt="a").trials == []


@pytest.mark.parametrize("verdict", [Verdict.CRASHED, Verdict.TIMED_OUT, Verdict.UNSTABLE])
def test_what_says_nothing_about_memory_is_not_reused(path: Path, verdict: Verdict) -> None:
    written(path, ONE, Trial(2, verdict, detail="the disk was full"), THREE)

    assert Journal(path, KEY).trials == [ONE, THREE]
    assert len(lines_of(path)) == 4


def torn(text: str) -> str:
    return text[: len(text) - len(text.splitlines()[-1]) // 2]


def without_end(text: str) -> str:
    return text.removesuffix("\n")


@pytest.mark.parametrize(
    ("kill", "known"),
    [
        pytest.param(torn, [ONE], id="in the middle of a line"),
        pytest.param(without_end, [ONE, TWO], id="between a line and its end"),
    ],
)
def test_a_torn_last_line(path: Path, kill: Callable[[str], str], known: list[Trial]) -> None:
    written(path, ONE, TWO)
    path.write_text(kill(path.read_text()))

    journal = Journal(path, KEY)
    journal.add_trial(THREE)

    assert journal.trials == known
    assert Journal(path, KEY).trials == [*known, THREE]


def test_torn_within_a_character(path: Path) -> None:
    written(path, ONE)
    with path.open("ab") as file:
        file.write(b'{"trial": {"batch_size": 2, "detail": "\xe2\x82')

    journal = Journal(path, KEY)
    journal.add_trial(TWO)

    assert Journal(path, KEY).trials == [ONE, TWO]


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("", id="empty"),
        pytest.param("not JSON", id="not JSON"),
        pytest.param("[1, 2]", id="a list"),
        pytest.param("{}", id="neither trial nor decision"),
        pytest.param('{"trial": "1"}', id="a trial that is a string"),
        pytest.param('{"trial": null}', id="a trial that is null"),
        pytest.param('{"trial": {"batch_size": 1}}', id="without a verdict"),
        pytest.param('{"trial": {"batch_size": "1", "verdict": "fits"}}', id="a size in quotes"),
        pytest.param('{"trial": {"batch_size": 1, "verdict": "perhaps"}}', id="an unknown verdict"),
        pytest.param(
            '{"trial": {"batch_size": 1, "verdict": "fits", "step_peaks_bytes": "12"}}', id="peaks in quotes"
        ),
        pytest.param('{"decision": {"batch_size": 1}}', id="half a decision"),
    ],
)
def test_a_damaged_line_is_passed_over(path: Path, line: str) -> None:
    written(path, ONE)
    with path.open("a") as file:
        file.write(line + "\n")
    Journal(path, KEY).add_trial(TWO)

    journal = Journal(path, KEY)

    assert journal.trials == [ONE, TWO]
    assert journal.decision is None


@pytest.mark.parametrize("first", ["", "\n", "not JSON\n", '{"trial": {}}\n', "\x00\x00\n"])
def test_a_damaged_key_starts_anew(path: Path, first: str) -> None:
    written(path, ONE)
    trials = "\n".join(lines_of(path)[1:])
    path.write_text(first + trials)

    assert Journal(path, KEY).trials == []
    assert lines_of(path) == [json.dumps({"key": KEY, "schema_version": 1})]


def test_fields_of_a_later_version_are_passed_over(path: Path) -> None:
    written(path, ONE)
    with path.open("a") as file:
        file.write(json.dumps({"trial": {**to_json(TWO), "colour": "blue"}}) + "\n")

    assert Journal(path, KEY).trials == [ONE, TWO]
