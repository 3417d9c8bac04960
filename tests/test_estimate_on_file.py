"""An estimate on file: what it says of sizes, and when a probe may begin with it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from autobatch.estimate.on_file import KEPT, TrialForecast, config_key, forecast, keep, kept_for
from autobatch.estimate.subject import subject_of
from autobatch.probing.forecast import Occasion
from autobatch.records import Device, Metric, ProbeRequest, Trial, Verdict
from autobatch.runs.directory import RunDirectory, read_run
from autobatch.simulated_gpu.gpus import GPUS

MakeRun = Callable[..., Path]

GIB = 2**30
H100 = GPUS["h100-80gb"]


def trial(batch_size: int, reserved_gib: float, *, cut_short: bool = False) -> Trial:
    """A trial whose peak is what the line 4 GiB + 2 GiB for each sequence has at it, or what is given."""
    reserved = round(reserved_gib * GIB)
    peaks = {
        Metric.RESERVED.value: reserved,
        Metric.ALLOCATED.value: reserved - GIB,
        Metric.DEVICE.value: reserved,
    }
    return Trial(batch_size, Verdict.FITS, reserved, peaks, cut_short=cut_short)


TRIALS = (trial(1, 6), trial(10, 24), trial(11, 26), trial(12, 27, cut_short=True))


@pytest.fixture
def run(make_run: MakeRun) -> RunDirectory:
    """A run for a GPU."""
    path = make_run()
    config = path / "finetune.yaml"
    config.write_text(config.read_text().replace("device: cpu", "device: cuda"))
    return read_run(path, ProbeRequest(str(path)))


def occasion(run: RunDirectory, device: str = H100.product) -> Occasion:
    return Occasion(run, packed=True, device=Device("cuda", device, H100.total_bytes), metric=Metric.RESERVED)


def kept(run: RunDirectory) -> RunDirectory:
    """`run`, with an estimate on file."""
    key = config_key(subject_of(run, packed=True), os.environ)
    keep(run.path, key, H100, TRIALS, {10: {"model": 5}})
    return run


@pytest.mark.parametrize(
    ("target_gib", "cap", "largest"),
    [
        pytest.param(24.5, 100, 10, id="between two trials"),
        pytest.param(26.5, 100, 11, id="below the one that was cut short"),
        pytest.param(20, 100, 8, id="on the line"),
        pytest.param(64, 100, 30, id="beyond all trials"),
        pytest.param(64, 20, 20, id="the dataset is the limit"),
        pytest.param(5, 100, 0, id="not even 1"),
    ],
)
def test_the_largest_that_fits(target_gib: float, cap: int, largest: int) -> None:
    assert TrialForecast(TRIALS, Metric.RESERVED).largest(round(target_gib * GIB), cap) == largest


def test_peaks_are_those_of_trials_and_of_their_line() -> None:
    reserved = TrialForecast(TRIALS, Metric.RESERVED)
    allocated = TrialForecast(TRIALS, Metric.ALLOCATED)

    assert reserved.peak_bytes(10) == 24 * GIB
    assert reserved.peak_bytes(20) == pytest.approx(44 * GIB)
    # The peak of a trial that was cut short is the least that it takes.
    assert reserved.peak_bytes(12) == pytest.approx(28 * GIB)
    assert allocated.peak_bytes(10) == 23 * GIB
    # No context is in a simulated GPU's memory.
    assert TrialForecast(TRIALS, Metric.DEVICE).peak_bytes(10) == 24 * GIB
    assert TrialForecast(TRIALS[:1], Metric.RESERVED).peak_bytes(7) is None


def test_a_size_that_ran_out_of_memory_bounds_the_guess() -> None:
    ran_out = Trial(9, Verdict.OUT_OF_MEMORY)

    assert TrialForecast((*TRIALS[:2], ran_out), Metric.RESERVED).largest(64 * GIB, 100) == 10


def test_a_probe_begins_with_the_estimate_of_its_run(run: RunDirectory) -> None:
    found = forecast(occasion(kept(run)))

    assert found is not None
    assert found.largest(round(24.5 * GIB), 100) == 10


def test_the_same_architecture_has_the_same_kernels(run: RunDirectory) -> None:
    assert forecast(occasion(kept(run), "NVIDIA H200")) is not None
    assert forecast(occasion(run, "NVIDIA H100 PCIe")) is not None
    assert forecast(occasion(run, "NVIDIA A100-SXM4-80GB")) is None
    assert forecast(occasion(run, "Quadro P600")) is None


def test_an_estimate_of_something_else_says_nothing(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(run)
    config = run.path / "finetune.yaml"
    before = config.read_text()

    config.write_text(before.replace("lora_rank: 8", "lora_rank: 16"))
    assert forecast(occasion(read_run(run.path, ProbeRequest(str(run.path))))) is None

    config.write_text(before)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    assert forecast(occasion(run)) is None


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="empty"),
        pytest.param("{}", id="no keys"),
        pytest.param('{"key": 1}', id="no text"),
    ],
)
def test_a_damaged_file_is_none(run: RunDirectory, text: str) -> None:
    (run.path / "probe").mkdir()
    (run.path / "probe" / KEPT).write_text(text)

    assert forecast(occasion(run)) is None


def test_trials_on_file_stay_when_others_come(run: RunDirectory) -> None:
    key = config_key(subject_of(kept(run), packed=True), os.environ)
    again = trial(10, 25)

    keep(run.path, key, H100, [again, trial(30, 64)], {30: {"model": 7}})

    found = kept_for(run.path, key, H100)
    assert [t.batch_size for t in found.trials] == [1, 11, 12, 10, 30]
    assert again in found.trials
    assert found.parts == {"10": {"model": 5}, "30": {"model": 7}}
    assert kept_for(run.path, "another", H100).trials == ()
    assert kept_for(run.path, key, GPUS["h200-141gb"]).trials == ()


def test_without_an_estimate_on_file_a_probe_is_told_nothing(run: RunDirectory) -> None:
    assert forecast(occasion(run)) is None
