"""The events that a probe writes while it runs, and whoever follows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from autobatch.probing.events import (
    Began,
    Ended,
    Event,
    EventLog,
    EventReader,
    Failed,
    FoundDevice,
    Packed,
    Packing,
    Said,
    Stepped,
    TrialBegan,
    TrialEnded,
    Wrote,
)
from autobatch.records import Density, Device, ProbeRequest, ProbeResult, Status, Trial, Verdict

DENSITY = Density(packed=True, examples=10, packs=4, tokens=90, max_seq_len=32, longest_example=20)
ALL: list[Event] = [
    Began("run1", "lora, from finetune.slurm:12", ("a note", "another, with ä")),
    FoundDevice(Device("cpu", "a CPU", 2**30), 2**30, 2**29, "resident"),
    Packing(3, 10),
    Packed(DENSITY, 4, "dataset"),
    TrialBegan(1, 0, None),
    TrialBegan(3, 1, 5),
    Stepped(1, 2),
    TrialEnded(Trial(1, Verdict.FITS, peak_bytes=5, step_peaks_bytes=(4, 5)), resumed=False),
    Wrote("run1/finetune.yaml", "-batch_size: 4\n+batch_size: 2\n"),
    Said("once more"),
    Ended(ProbeResult(Status.DONE, "batch_size 2", ProbeRequest("run1"), density=DENSITY, batch_size=2)),
    Failed("no such card", 2),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "probe" / "events.jsonl"


def test_every_event_comes_back_as_it_was(path: Path) -> None:
    log = EventLog(path, "mine")
    for event in ALL:
        log(event)

    assert list(EventReader(path, "mine").new()) == ALL
    assert {type(event) for event in ALL} == set(get_args(Event))


def test_a_line_names_its_event_attempt_and_time(path: Path) -> None:
    EventLog(path, "mine")(Packing(3, 10))

    line = json.loads(path.read_text())
    assert line.pop("time") > 1_700_000_000
    assert line == {"event": "Packing", "attempt": "mine", "done": 3, "total": 10}


def test_a_reader_before_the_file_exists(path: Path) -> None:
    reader = EventReader(path, "mine")
    before = list(reader.new())
    EventLog(path, "mine")(Said("hello"))

    assert before == []
    assert list(reader.new()) == [Said("hello")]


def test_each_event_is_given_once(path: Path) -> None:
    reader = EventReader(path, "mine")
    log = EventLog(path, "mine")
    seen = []
    for event in ALL:
        log(event)
        seen.append(list(reader.new()))

    assert seen == [[event] for event in ALL]
    assert list(reader.new()) == []


def test_another_attempts_events_are_ignored(path: Path) -> None:
    EventLog(path, "theirs")(Said("theirs"))
    EventLog(path, "mine")(Said("mine"))
    EventLog(path, "theirs")(Failed("theirs", 2))

    assert list(EventReader(path, "mine").new()) == [Said("mine")]


@pytest.mark.parametrize(
    "length",
    [
        pytest.param(1, id="shorter than before"),
        pytest.param(13, id="as long as before"),
        pytest.param(40, id="longer than before"),
    ],
)
def test_a_file_that_is_begun_anew_between_two_looks(path: Path, length: int) -> None:
    began = Began("run1", "recipe", ())
    said = Said("as before")
    before = EventLog(path, "before")
    before(began)
    for _ in range(12):
        before(said)
    reader = EventReader(path, "mine..")
    assert list(reader.new()) == []
    mine = EventLog(path, "mine..")
    mine(began)
    for _ in range(length):
        mine(said)

    assert list(reader.new()) == [began, *[said] * length]


def test_a_half_written_line_is_read_when_it_is_whole(path: Path) -> None:
    EventLog(path, "mine")(Said("ä first"))
    EventLog(path, "mine")(Said("second"))
    content = path.read_bytes()
    reader = EventReader(path, "mine")
    seen = []
    for cut in (20, len(content) // 2 + 10, len(content) - 1, len(content)):
        path.write_bytes(content[:cut])
        seen.append(list(reader.new()))

    assert seen == [[], [Said("ä first")], [], [Said("second")]]


@pytest.mark.parametrize(
    "line",
    [
        pytest.param("not JSON", id="not JSON"),
        pytest.param("[]", id="a list"),
        pytest.param('{"event": "Said", "text": "x"}', id="no attempt"),
        pytest.param('{"event": "Sang", "attempt": "mine"}', id="of a later version"),
        pytest.param('{"event": "Said", "attempt": "mine"}', id="a field is missing"),
        pytest.param('{"event": "Packing", "attempt": "mine", "done": "3", "total": 4}', id="a wrong type"),
        pytest.param("\udcff", id="not UTF-8"),
    ],
)
def test_lines_that_are_no_event_are_passed_over(path: Path, line: str) -> None:
    path.parent.mkdir()
    path.write_bytes(line.encode("utf-8", "surrogateescape") + b"\n")
    EventLog(path, "mine")(Said("after"))

    assert list(EventReader(path, "mine").new()) == [Said("after")]
