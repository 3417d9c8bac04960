"""The JSON form of what a probe asks, measures and answers."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatch.records import (
    Density,
    Device,
    EffectiveBatch,
    Fit,
    Limit,
    Metric,
    PackingMode,
    ProbeRequest,
    ProbeResult,
    Status,
    Trial,
    Verdict,
    from_json,
    to_json,
)

TRIAL = Trial(
    batch_size=8,
    verdict=Verdict.OVER_TARGET,
    peak_bytes=2**40,
    peaks_bytes={"reserved": 2**40, "allocated": 5},
    before_bytes=3,
    step_peaks_bytes=(1, 2, 3),
    alloc_retries=2,
    tokens_per_second=1234.5,
    step_seconds=(1.5, 0.5),
    seconds=1.5,
    start_seconds=0.25,
    training_seconds=0.5,
    detail='größer\nals "alles"',
    log="probe/trials/batch_size_8.log",
)
RESULT = ProbeResult(
    status=Status.DONE,
    message="batch_size 7",
    request=ProbeRequest(
        "/runs/run1",
        recipe="lora_finetune_single_device",
        capacity_bytes=2**35,
        metric=Metric.ALLOCATED,
        max_batch_size=9,
        packing=PackingMode.PACK,
        density_sample=100,
    ),
    recipe="lora",
    device=Device("cuda", "a card", 2**36),
    metric=Metric.ALLOCATED,
    capacity_bytes=2**35,
    target_bytes=2**34,
    batch_size=7,
    batch_size_before=4,
    limit=Limit.MAX_BATCH_SIZE,
    peak_bytes=2**33,
    gradient_accumulation_steps=2,
    before=EffectiveBatch(4, 2, 8, 20.0),
    after=EffectiveBatch(7, 2, 14, 35.0),
    remarks=("a", "b"),
    trials=(Trial(1, Verdict.FITS), TRIAL),
    fit=Fit(1.5, 2.5, 0.001),
    density=Density(
        packed=True,
        examples=10,
        packs=4,
        tokens=90,
        max_seq_len=32,
        longest_example=20,
        sampled_examples=5,
        standard_error=0.1,
    ),
    fingerprint="abc",
    versions={"torch": "2.13.0"},
    written=("finetune.yaml", "../runs_plan.md"),
    started="2026-01-01T00:00:00+00:00",
)


@pytest.mark.parametrize(
    "record",
    [
        pytest.param(TRIAL, id="trial"),
        pytest.param(Trial(1, Verdict.FITS), id="trial of defaults"),
        pytest.param(RESULT, id="result"),
        pytest.param(ProbeResult(Status.CRASHED, "", ProbeRequest("x")), id="result of defaults"),
        pytest.param(ProbeRequest("x"), id="request"),
    ],
)
def test_a_record_comes_back_from_its_json(record: Any) -> None:
    text = json.dumps(to_json(record))

    assert from_json(type(record), json.loads(text)) == record


def test_the_json_form_is_plain() -> None:
    assert to_json(Trial(1, Verdict.OUT_OF_MEMORY, step_peaks_bytes=(1,))) == {
        "batch_size": 1,
        "verdict": "out of memory",
        "peak_bytes": None,
        "peaks_bytes": {},
        "before_bytes": None,
        "step_peaks_bytes": [1],
        "alloc_retries": 0,
        "tokens_per_second": None,
        "step_seconds": [],
        "seconds": 0.0,
        "start_seconds": None,
        "training_seconds": 0.0,
        "detail": "",
        "log": "",
        "cut_short": False,
        "peaks_by_rank": [],
    }


@given(
    st.builds(
        Trial,
        st.integers(1, 10**6),
        st.sampled_from(Verdict),
        peak_bytes=st.none() | st.integers(0, 2**50),
        peaks_bytes=st.dictionaries(st.text(max_size=5), st.integers(0, 2**50), max_size=3),
        step_peaks_bytes=st.lists(st.integers(0, 2**50), max_size=4).map(tuple),
        tokens_per_second=st.none() | st.floats(0, 1e9),
        detail=st.text(max_size=20),
    )
)
def test_any_trial_comes_back(trial: Trial) -> None:
    assert from_json(Trial, json.loads(json.dumps(to_json(trial)))) == trial


def test_unknown_fields_are_passed_over_and_missing_ones_have_their_defaults() -> None:
    data = {"batch_size": 2, "verdict": "fits", "colour": "blue"}

    assert from_json(Trial, data) == Trial(2, Verdict.FITS)


def test_a_whole_number_is_a_float_too() -> None:
    trial = from_json(Trial, {"batch_size": 2, "verdict": "fits", "seconds": 3})

    assert trial.seconds == 3.0
    assert isinstance(trial.seconds, float)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(None, id="null"),
        pytest.param([], id="a list"),
        pytest.param("fits", id="a string"),
        pytest.param({}, id="empty"),
        pytest.param({"batch_size": 1}, id="a field missing"),
        pytest.param({"batch_size": "1", "verdict": "fits"}, id="a number in quotes"),
        pytest.param({"batch_size": 1, "verdict": "perhaps"}, id="an unknown verdict"),
        pytest.param({"batch_size": 1, "verdict": "fits", "peaks_bytes": [1]}, id="a list for a mapping"),
        pytest.param({"batch_size": 1, "verdict": "fits", "peaks_bytes": {"x": "1"}}, id="within a mapping"),
        pytest.param(
            {"batch_size": 1, "verdict": "fits", "step_peaks_bytes": "123"}, id="a string for a list"
        ),
        pytest.param({"batch_size": 1, "verdict": "fits", "step_peaks_bytes": ["1"]}, id="within a list"),
        pytest.param({"batch_size": 1, "verdict": "fits", "seconds": "long"}, id="a word for a float"),
        pytest.param({"batch_size": 1, "verdict": "fits", "seconds": float("nan")}, id="not a number"),
        pytest.param({"batch_size": 1, "verdict": "fits", "seconds": float("inf")}, id="no end"),
        pytest.param({"batch_size": 1, "verdict": "fits", "seconds": 10**400}, id="beyond a float"),
    ],
)
def test_another_shape_is_a_value_error(data: object) -> None:
    with pytest.raises(ValueError, match=r"\S") as caught:
        from_json(Trial, data)

    assert type(caught.value) is ValueError


def test_a_string_is_no_list_of_strings() -> None:
    data = to_json(RESULT) | {"written": "finetune.yaml"}

    with pytest.raises(ValueError, match="not a list") as caught:
        from_json(ProbeResult, data)

    assert str(caught.value) == "not a ProbeResult: 'finetune.yaml' is not a list"


@pytest.mark.parametrize(
    ("status", "code"),
    [
        pytest.param(Status.DONE, 0, id="done"),
        pytest.param(Status.NOTHING_FITS, 1, id="nothing fits"),
        pytest.param(Status.UNSTABLE, 1, id="unstable"),
        pytest.param(Status.TIMED_OUT, 3, id="timed out"),
        pytest.param(Status.CRASHED, 3, id="crashed"),
    ],
)
def test_exit_codes(status: Status, code: int) -> None:
    assert status.exit_code == code


def test_records_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RESULT.batch_size = 8  # type: ignore[misc]  # that is the point


@pytest.mark.parametrize(
    ("density", "at_least"),
    [
        pytest.param(Density(True, 1000, 100, 1, 512, 9), 100, id="all packed"),
        pytest.param(Density(True, 1000, 100, 1, 512, 9, 300, 0.5), 86, id="three standard errors"),
        pytest.param(Density(True, 1000, 100, 1, 512, 9, 300, None), 50, id="error unknown"),
        pytest.param(Density(True, 1000, 100, 1, 512, 9, 1000, 0.5), 100, id="the sample is the dataset"),
        pytest.param(Density(False, 1000, 1000, 1, None, 9, 300), 1000, id="unpacked"),
    ],
)
def test_packs_that_there_are_for_certain(density: Density, at_least: int) -> None:
    assert density.packs_at_least == at_least
