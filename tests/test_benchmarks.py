"""The benchmarks' pure parts, and that both commands start."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from autobatch.records import Trial, Verdict
from tests.benchmarks import gpu_cases
from tests.benchmarks.cases import CASES
from tests.benchmarks.gpu_judging import HEADER as GPU_HEADER
from tests.benchmarks.gpu_judging import GpuMeasured, failed_gpu_bars, gpu_row
from tests.benchmarks.judging import HEADER, Measured, failed_bars, markdown_table, row, true_answer
from tests.benchmarks.plain import GIB, PlainRun, logged_peaks, parse_step_log

MIB = 2**20


def plain(batch_size: int, mib: float) -> PlainRun:
    return PlainRun(batch_size, 4, {"resident": round(mib * MIB)}, round(mib * MIB), 8.0)


def trial(batch_size: int, mib: float, target_mib: float = 700) -> Trial:
    verdict = Verdict.FITS if mib <= target_mib else Verdict.OVER_TARGET
    return Trial(
        batch_size, verdict, peak_bytes=round(mib * MIB), seconds=4, start_seconds=0.1, training_seconds=3
    )


GOOD = Measured(
    name="good",
    capacity_bytes=1000 * MIB,
    target_bytes=700 * MIB,
    batch_size=3,
    message="batch_size 3",
    seconds=20.0,
    trials=(trial(1, 500), trial(3, 690), trial(4, 780)),
    plain=(plain(1, 501), plain(2, 595), plain(3, 691), plain(4, 781), plain(5, 870)),
)


@pytest.mark.parametrize(
    ("peaks", "answer"),
    [
        pytest.param({1: 10, 2: 20, 3: 30}, 2, id="between two"),
        pytest.param({1: 10, 2: 25}, 2, id="a peak at the target fits"),
        pytest.param({1: 26, 2: 30}, None, id="nothing fits"),
        pytest.param({1: 10, 2: None}, 1, id="out of memory doesn't fit"),
        pytest.param({1: 10, 2: 26, 3: 24}, 3, id="the largest counts, whatever lies below"),
    ],
)
def test_the_true_answer_is_the_largest_that_fits(peaks: dict[int, int | None], answer: int | None) -> None:
    assert true_answer(peaks, 25) == answer


def test_a_case_as_it_should_be_fails_no_bar() -> None:
    assert failed_bars(GOOD) == []
    assert row(GOOD)[:5] == ("good", "1000.0 MiB", "3", "3", "yes")
    assert len(row(GOOD)) == len(HEADER)


@pytest.mark.parametrize(
    ("measured", "failed"),
    [
        pytest.param(
            replace(GOOD, batch_size=1), ["answer 1, but 3 is right"], id="an answer that is too small"
        ),
        pytest.param(
            replace(GOOD, batch_size=None, message="the recipe failed"),
            ["the probe has no answer: the recipe failed"],
            id="no answer",
        ),
        pytest.param(
            replace(GOOD, trials=(trial(1, 500), trial(3, 680), trial(4, 780))),
            ["peak off by -1.59 % (limit 1 %)"],
            id="a peak that is too low",
        ),
        pytest.param(
            replace(GOOD, trials=(*GOOD.trials, *(trial(b, 900) for b in (5, 6, 7)))),
            ["6 trials (limit 5)"],
            id="too many trials",
        ),
        pytest.param(
            replace(GOOD, trials=(*GOOD.trials, Trial(9, Verdict.OUT_OF_MEMORY))),
            ["1 trials out of memory (limit 0)"],
            id="out of memory",
        ),
        pytest.param(replace(GOOD, seconds=29.0), ["29.0 s (limit 28.5 s)"], id="too slow"),
        pytest.param(
            replace(GOOD, trials=tuple(replace(t, start_seconds=2.0) for t in GOOD.trials)),
            ["2.00 s to start a trial (limit 1.5 s)"],
            id="slow starts",
        ),
    ],
)
def test_a_bar_that_fails_is_named(measured: Measured, failed: list[str]) -> None:
    assert failed_bars(measured) == failed


def test_a_capacity_is_for_about_batch_size_six() -> None:
    for case in CASES:
        assert case.capacity_bytes % MIB == 0
    assert len({case.name for case in CASES}) == len(CASES) >= 8


def test_peaks_are_read_from_torchtunes_step_log() -> None:
    text = (
        "Step 1 | loss:11.7 lr:3e-06 tokens_per_second_per_gpu:1234.5 peak_memory_active:7.25 "
        "peak_memory_alloc:7.2 peak_memory_reserved:7.9 \n"
        "Step 2 | loss:11.6 lr:6e-06 tokens_per_second_per_gpu:2000.0 peak_memory_active:7.5 "
        "peak_memory_alloc:7.5 peak_memory_reserved:7.75 \n"
    )
    steps = parse_step_log(text)
    assert [step["loss"] for step in steps] == [11.7, 11.6]
    assert logged_peaks(steps) == {"reserved": round(7.9 * GIB), "allocated": round(7.5 * GIB)}
    assert logged_peaks([{"loss": 1.0}]) == {}


def gpu_run(batch_size: int, gib: float) -> PlainRun:
    return PlainRun(batch_size, 20, {"reserved": round(gib * GIB), "allocated": GIB}, None, 60.0)


GOOD_GPU = GpuMeasured(
    name="lora-1b",
    metric="reserved",
    capacity_bytes=80 * GIB,
    target_bytes=56 * GIB,
    batch_size=10,
    limit="memory",
    message="batch_size 10",
    seconds=40.0,
    answer_within_s=60,
    trials=(Trial(10, Verdict.FITS, peak_bytes=55 * GIB, peaks_bytes={"reserved": 55 * GIB}),),
    at_answer=gpu_run(10, 55.1),
    at_next=gpu_run(11, 60.0),
)


@pytest.mark.parametrize(
    ("measured", "failed"),
    [
        pytest.param(GOOD_GPU, [], id="as it should be"),
        pytest.param(
            replace(GOOD_GPU, at_next=PlainRun(11, 2, {}, None, 9.0, out_of_memory=True)),
            [],
            id="the next size is out of memory",
        ),
        pytest.param(
            replace(GOOD_GPU, at_next=gpu_run(11, 55.9)),
            ["batch_size 11 fits as well: tune run takes 69.9 %"],
            id="the next size fits",
        ),
        pytest.param(
            replace(GOOD_GPU, at_answer=gpu_run(10, 56.0)),
            ["peak off by -1.25 % of the card (limit 0.5 %)"],
            id="another peak in training",
        ),
        pytest.param(replace(GOOD_GPU, seconds=61.0), ["answer after 61.0 s (limit 60 s)"], id="too slow"),
        pytest.param(replace(GOOD_GPU, error="status 1"), ["status 1"], id="a training that failed"),
    ],
)
def test_a_gpu_bar_that_fails_is_named(measured: GpuMeasured, failed: list[str]) -> None:
    assert failed_gpu_bars(measured) == failed
    assert len(gpu_row(measured)) == len(GPU_HEADER)


def test_a_gpu_table_has_a_row_for_each_config() -> None:
    lines = markdown_table(GPU_HEADER, [gpu_row(GOOD_GPU)])
    assert lines[2].startswith("| lora-1b | 10 | 1 | 10 | 0 | 40.0 | 60 | - | 55.0 GiB |")
    assert len({line.count("|") for line in lines}) == 1


def test_a_shape_names_the_builder_of_its_method() -> None:
    section = gpu_cases.SHAPES["8b"].section("qlora")
    assert section["_component_"] == "torchtune.models.llama3_1.lora_llama3_1_8b"
    assert section["quantize_base"] is True
    assert gpu_cases.SHAPES["1b"].section("full") == {"_component_": "torchtune.models.llama3_2.llama3_2_1b"}


@pytest.mark.parametrize("name", ["exactness", "gpu", "faults", "fuzz"])
def test_help_is_there(name: str) -> None:
    said = subprocess.run(
        [sys.executable, "-m", f"tests.benchmarks.{name}", "--help"], capture_output=True, text=True
    )
    assert said.returncode == 0
    assert f"python -m tests.benchmarks.{name}" in said.stdout


@pytest.mark.parametrize("name", ["exactness", "gpu"])
def test_an_unknown_config_lists_those_that_there_are(name: str) -> None:
    option = {"exactness": "--configs", "gpu": "--only"}[name]
    said = subprocess.run(
        [sys.executable, "-m", f"tests.benchmarks.{name}", option, "nonsense"], capture_output=True, text=True
    )
    assert said.returncode != 0
    assert said.stderr.startswith("no such config: nonsense; there are lora-")
