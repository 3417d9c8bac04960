"""What the answer says in `runs_plan.md`: cells, bullets and the model's label."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autobatch.edits.plan_values import PerRun, Stated
from autobatch.errors import EditError
from autobatch.probing.events import Event
from autobatch.probing.writeback import plan_bullets, plan_row, write_back
from autobatch.records import Density, Device, Fit, Metric, ProbeRequest, ProbeResult, Status
from autobatch.runs.directory import read_run
from autobatch.runs.model_name import model_label
from tests.conftest import MakeRun, files_of

GIB = 2**30
DENSITY = Density(packed=True, examples=8000, packs=108, tokens=219_414, max_seq_len=2048, longest_example=66)
RESULT = ProbeResult(
    status=Status.DONE,
    message="",
    request=ProbeRequest("/runs/run1"),
    device=Device("cuda", "NVIDIA H100 80GB HBM3", 80 * GIB),
    metric=Metric.RESERVED,
    capacity_bytes=80 * GIB,
    batch_size=24,
    peak_bytes=int(55.1 * GIB),
    gradient_accumulation_steps=4,
    fit=Fit(1.8 * GIB, 2.22 * GIB, 0.001),
    density=DENSITY,
)
ROW = {
    "Batch Size": "24",
    "Packed": "True",
    "Packing Density": "74.1 ex/seq",
    "Memory Usage": "55.1 GiB (68.9 %)",
    "GPU Type": "NVIDIA H100 80GB HBM3",
}
SAMPLED = replace(DENSITY, sampled_examples=500, standard_error=0.456)
UNPACKED = replace(DENSITY, packed=False, packs=8000)


@pytest.mark.parametrize(
    ("result", "cells"),
    [
        pytest.param(RESULT, {}, id="a card"),
        pytest.param(
            replace(RESULT, device=Device("cpu", "Xeon", 16 * GIB)),
            {"GPU Type": "none (CPU: Xeon)"},
            id="a CPU",
        ),
        pytest.param(
            replace(RESULT, request=ProbeRequest("r", capacity_bytes=80 * GIB)),
            {"Memory Usage": "55.1 GiB (68.9 % of 80.0 GiB)"},
            id="a planned capacity",
        ),
        pytest.param(
            replace(RESULT, density=SAMPLED),
            {"Packing Density": "about 74.1 ± 0.5 ex/seq (sampled)"},
            id="sampled",
        ),
        pytest.param(
            replace(RESULT, density=replace(SAMPLED, standard_error=None)),
            {"Packing Density": "about 74.1 ex/seq (sampled)"},
            id="sampled, error unknown",
        ),
        pytest.param(
            replace(RESULT, density=UNPACKED),
            {"Packed": "False", "Packing Density": "1.0 ex/seq"},
            id="unpacked",
        ),
    ],
)
def test_plan_row(result: ProbeResult, cells: dict[str, str]) -> None:
    assert plan_row(result) == ROW | cells


def test_plan_bullets() -> None:
    assert plan_bullets("run1", RESULT) == {
        "Dataset packing": (
            Stated("True", "examples are concatenated up to max_seq_len"),
            (
                ("Packing density", PerRun("run1", "74.1 ex/seq")),
                (
                    "Impact on memory",
                    PerRun("run1", "1.80 GiB and 2.22 GiB for each sequence of 2048 tokens"),
                ),
            ),
        ),
        "Batch sizes": PerRun("run1", "24 (measured)"),
        "Gradient accumulation": PerRun(
            "run1", "4 (effective batch size: 96 sequences, about 7111 examples)"
        ),
    }


def test_plan_bullets_of_an_unpacked_run_with_one_measured_size() -> None:
    bullets = plan_bullets("run1", replace(RESULT, density=UNPACKED, fit=None, gradient_accumulation_steps=1))

    assert bullets == {
        "Dataset packing": (
            Stated("False", "measured with batches of the longest example"),
            (
                ("Packing density", PerRun("run1", "1.0 ex/seq")),
                ("Impact on memory", PerRun("run1", "one batch_size was measured")),
            ),
        ),
        "Batch sizes": PerRun("run1", "24 (measured)"),
        "Gradient accumulation": PerRun("run1", "1 (effective batch size: 24 sequences)"),
    }


@pytest.mark.parametrize(
    ("component", "label"),
    [
        ("torchtune.models.llama3_2.lora_llama3_2_1b", "1B"),
        ("torchtune.models.llama3_2.qlora_llama3_2_3b", "3B"),
        ("torchtune.models.llama3_1.qlora_llama3_1_70b", "70B"),
        ("torchtune.models.llama3_1.llama3_1_405b", "405B"),
        ("torchtune.models.llama3_2_vision.lora_llama3_2_vision_11b", "11B"),
        ("torchtune.models.llama3.llama3_8b", "8B"),
        ("torchtune.models.llama3_3.lora_llama3_3_70b", "70B"),
        ("torchtune.models.llama2.lora_llama2_13b", "13B"),
        ("torchtune.models.llama2.llama2_reward_7b", "7B"),
        ("torchtune.models.code_llama2.code_llama2_70b", "70B"),
        ("torchtune.models.qwen2.qwen2_0_5b", "0.5B"),
        ("torchtune.models.qwen2.lora_qwen2_1_5b", "1.5B"),
        ("torchtune.models.qwen2.qwen2_7b", "7B"),
        ("torchtune.models.qwen2_5.qwen2_5_0_5b", "0.5B"),
        ("torchtune.models.qwen2_5.lora_qwen2_5_1_5b_instruct", "1.5B"),
        ("torchtune.models.qwen2_5.qwen2_5_14b_base", "14B"),
        ("torchtune.models.gemma.gemma_2b", "2B"),
        ("torchtune.models.gemma2.lora_gemma2_27b", "27B"),
        ("torchtune.models.mistral.mistral_7b", "7B"),
        ("torchtune.models.phi4.phi4_14b", "14B"),
        ("torchtune.models.phi3.phi3_mini", "phi3_mini"),
        ("torchtune.models.llama3_2.lora_llama3_2", "lora_llama3_2"),
        ("my_models.tiny", "tiny"),
    ],
)
def test_model_label(component: str, label: str) -> None:
    assert model_label({"_component_": component}) == label


@pytest.mark.parametrize("model", [None, {}, "lora_llama3_2_1b", ["x"]])
def test_no_model_no_label(model: object) -> None:
    assert model_label(model) == ""


@pytest.mark.parametrize("ending", [b"\r\n", b"\r"], ids=["Windows", "old Mac"])
def test_line_endings_stay(make_run: MakeRun, ending: bytes) -> None:
    path = make_run()
    config = path / "finetune.yaml"
    before = config.read_bytes().replace(b"\n", ending)
    config.write_bytes(before)

    written = write_back(read_run(path, RESULT.request), RESULT, lambda event: None)

    assert written == ("finetune.yaml", "../runs_plan.md")
    assert config.read_bytes() == before.replace(b"batch_size: 4", b"batch_size: 24", 1)


def test_a_plan_that_cannot_be_edited_leaves_the_config_too(make_run: MakeRun) -> None:
    path = make_run()
    (path.parent / "runs_plan.md").write_text("# Plan\n```\nnever closed")
    before = files_of(path)
    told: list[Event] = []

    with pytest.raises(EditError) as caught:
        write_back(read_run(path, RESULT.request), RESULT, told.append)

    assert "isn't closed" in str(caught.value)
    assert files_of(path) == before
    assert told == []
