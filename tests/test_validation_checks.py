"""Each check of validation: a config that triggers it, and one that doesn't."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset
from datasets.exceptions import DatasetsError

from autobatch.records import Density, to_json
from autobatch.runs.fingerprint import data_signature
from autobatch.validation.build import sections_of
from autobatch.validation.findings import Collector, Finding, Severity
from autobatch.validation.subject import read_subject
from autobatch.validation.validator import validate
from tests.validated import changed, errors, found, report_of, severities, write_run

LORA_RECIPE = "lora_finetune_single_device"


def test_a_config_without_fault_has_no_findings(tmp_path: Path) -> None:
    report = report_of(write_run(tmp_path, recipe=LORA_RECIPE))

    assert report.findings == ()
    assert report.passes(strict=True)
    assert report.facts["size"] == "1B"
    assert report.facts["effective_batch_size"] == 4


CASES = [
    # check, changes, recipe, severities
    pytest.param("batch-size-limit", {"batch_size": 9}, LORA_RECIPE, ["error"], id="packed, above"),
    pytest.param("batch-size-limit", {"batch_size": 8}, LORA_RECIPE, ["warning"], id="packed, at the limit"),
    pytest.param("batch-size-limit", {"batch_size": 7}, LORA_RECIPE, [], id="packed, below"),
    pytest.param("batch-size-limit", {"batch_size": 9}, None, ["error"], id="packed, recipe inferred"),
    pytest.param(
        "batch-size-limit", {"batch_size": 9}, "lora_finetune_distributed", ["info"], id="several devices"
    ),
    pytest.param(
        "batch-size-limit",
        {"batch_size": 21, "dataset__packed": False},
        LORA_RECIPE,
        ["warning"],
        id="unpacked",
    ),
    pytest.param(
        "batch-size-limit",
        {"batch_size": 20, "dataset__packed": False},
        LORA_RECIPE,
        [],
        id="unpacked, at it",
    ),
    pytest.param("batch-size-limit", {"batch_size": 99, "device": "cpu"}, LORA_RECIPE, [], id="no card"),
    pytest.param(
        "batch-size-limit",
        {"batch_size": 1, "model___component_": "torchtune.models.llama3.lora_llama3_70b"},
        LORA_RECIPE,
        [],
        id="70B at 1, and there is no smaller one",
    ),
    pytest.param(
        "batch-size-limit",
        {"batch_size": 99, "model___component_": "mine.builder"},
        LORA_RECIPE,
        [],
        id="a model of unknown size",
    ),
    pytest.param("batch-size", {"batch_size": "16"}, LORA_RECIPE, ["error"], id="batch_size in quotes"),
    pytest.param("batch-size", {"batch_size": ...}, LORA_RECIPE, ["error"], id="no batch_size"),
    pytest.param(
        "gradient-accumulation", {"gradient_accumulation_steps": 0}, LORA_RECIPE, ["error"], id="0 steps"
    ),
    pytest.param("packing", {"tokenizer__max_seq_len": None}, LORA_RECIPE, ["error"], id="no max_seq_len"),
    pytest.param(
        "packing",
        {"tokenizer__max_seq_len": None, "dataset__packed": False},
        LORA_RECIPE,
        [],
        id="no max_seq_len, unpacked",
    ),
    pytest.param(
        "packing",
        {"model___component_": "torchtune.models.gemma2.lora_gemma2_2b"},
        LORA_RECIPE,
        ["error"],
        id="gemma2 packed",
    ),
    pytest.param(
        "packing",
        {"dataset___component_": "torchtune.datasets.preference_dataset"},
        LORA_RECIPE,
        ["error"],
        id="a dataset that can't pack",
    ),
    pytest.param("packing", {}, "lora_dpo_single_device", ["error"], id="DPO packed"),
    pytest.param("packing", {"dataset__packed": False}, "lora_dpo_single_device", [], id="DPO unpacked"),
    pytest.param("packing", {"dataset__packed": "True"}, LORA_RECIPE, ["error"], id="packed in quotes"),
    pytest.param("packing", {"dataset__packed": "???"}, LORA_RECIPE, [], id="packed isn't known"),
    pytest.param("sections", {"dataset": ...}, LORA_RECIPE, ["error"], id="no dataset"),
    pytest.param(
        "sections",
        {"model___component_": "torchtune.models.llama3_2.lora_llama_3_2_1b"},
        LORA_RECIPE,
        ["error"],
        id="a component that isn't there",
    ),
    pytest.param("device", {"dtype": "fp16"}, LORA_RECIPE, ["error"], id="fp16"),
    pytest.param("device", {"device": "mps"}, LORA_RECIPE, ["info"], id="a device that isn't measured"),
    pytest.param(
        "device", {"device": "mps", "dtype": "fp16"}, LORA_RECIPE, ["error", "info"], id="mps, fp16"
    ),
    pytest.param("device", {"device": "gpu"}, LORA_RECIPE, ["error"], id="no such device"),
    pytest.param("config", {"output_dir": "${nowhere}/a"}, LORA_RECIPE, ["error"], id="unresolved"),
    pytest.param("config", {"a": "${oc.env:AUTOBATCH_NOT_SET}"}, LORA_RECIPE, ["error"], id="unset variable"),
    pytest.param("config", {"a": "${batch_size}"}, LORA_RECIPE, [], id="resolved"),
    pytest.param("files", {"tokenizer__path": "../gone"}, LORA_RECIPE, ["error"], id="no tokenizer"),
    pytest.param("files", {"dataset__data_files": "../gone"}, LORA_RECIPE, ["error"], id="no data"),
    pytest.param("files", {"dataset__data_files": ...}, LORA_RECIPE, ["error"], id="which data"),
    pytest.param(
        "files", {"checkpointer__checkpoint_dir": "../gone"}, LORA_RECIPE, ["warning"], id="no weights"
    ),
    pytest.param(
        "activation-offloading",
        {"enable_activation_offloading": True, "enable_activation_checkpointing": False},
        LORA_RECIPE,
        ["error"],
        id="offloading without checkpointing",
    ),
    pytest.param(
        "activation-offloading",
        {"enable_activation_offloading": True},
        LORA_RECIPE,
        [],
        id="offloading with it",
    ),
    pytest.param(
        "activation-offloading",
        {"enable_activation_offloading": True, "device": "cpu"},
        LORA_RECIPE,
        ["error"],
        id="offloading without a card",
    ),
    pytest.param(
        "optimizer-in-bwd",
        {"optimizer_in_bwd": True, "gradient_accumulation_steps": 2},
        "full_finetune_single_device",
        ["error"],
        id="optimizer in backward, accumulating",
    ),
    pytest.param(
        "optimizer-in-bwd",
        {"optimizer_in_bwd": True, "clip_grad_norm": 1.0},
        "full_finetune_single_device",
        ["error"],
        id="optimizer in backward, clipping",
    ),
    pytest.param(
        "optimizer-in-bwd",
        {"optimizer_in_bwd": True},
        "full_finetune_single_device",
        [],
        id="optimizer in backward alone",
    ),
    pytest.param(
        "optimizer-in-bwd",
        {"optimizer_in_bwd": True, "gradient_accumulation_steps": 2},
        LORA_RECIPE,
        [],
        id="LoRA recipes don't read it",
    ),
    pytest.param("lora", {"model__lora_alpha": 8}, LORA_RECIPE, ["info"], id="alpha = rank"),
    pytest.param("lora", {"model__lora_alpha": 0}, LORA_RECIPE, ["error"], id="alpha 0 trains nothing"),
    pytest.param("lora", {"model__lora_alpha": "16"}, LORA_RECIPE, ["error"], id="alpha in quotes"),
    pytest.param("lora", {"model__lora_rank": 64, "model__lora_alpha": 128}, LORA_RECIPE, [], id="2 x rank"),
    pytest.param(
        "recipe",
        {"model": {"_component_": "torchtune.models.llama3_2.llama3_2_1b"}},
        LORA_RECIPE,
        ["error"],
        id="a LoRA recipe, and no adapters",
    ),
    pytest.param("recipe", {}, "full_finetune_single_device", ["error"], id="a full recipe, and adapters"),
    pytest.param("recipe", {}, "lora_finetune_distributd", ["error"], id="no such recipe"),
    pytest.param("recipe", {}, "./run1/mine.py", ["error"], id="a recipe file that isn't there"),
    pytest.param("processes", {}, "lora_finetune_distributed", ["error"], id="no torchrun"),
    pytest.param("processes", {}, f"--nproc_per_node 2 {LORA_RECIPE}", ["error"], id="two for one device"),
    pytest.param(
        "processes", {}, "--nproc_per_node gpu lora_finetune_distributed", [], id="as many as there are GPUs"
    ),
    pytest.param("processes", {}, LORA_RECIPE, [], id="one"),
    pytest.param(
        "small-unpacked-batch", {"dataset__packed": False}, LORA_RECIPE, ["info"], id="small and unpacked"
    ),
    pytest.param(
        "small-unpacked-batch",
        {"dataset__packed": False, "batch_size": 5},
        LORA_RECIPE,
        [],
        id="unpacked, not small",
    ),
    pytest.param(
        "small-unpacked-batch",
        {"dataset__packed": False},
        "lora_dpo_single_device",
        [],
        id="small, and DPO can't pack",
    ),
    pytest.param("steps", {"epochs": 0}, LORA_RECIPE, ["error"], id="no epochs"),
    pytest.param("steps", {"max_steps_per_epoch": 0}, LORA_RECIPE, ["error"], id="no steps"),
    pytest.param("warm-up", {"max_steps_per_epoch": 10}, LORA_RECIPE, ["warning"], id="all of it warm-up"),
    pytest.param(
        "warm-up", {"max_steps_per_epoch": 9, "epochs": 2}, LORA_RECIPE, ["info"], id="warm-up > epoch"
    ),
    pytest.param("warm-up", {"max_steps_per_epoch": 11}, LORA_RECIPE, [], id="a step after the warm-up"),
    pytest.param("split", {"dataset__split": "validation"}, LORA_RECIPE, ["error"], id="no such split"),
    pytest.param("field", {"dataset__field": "train"}, LORA_RECIPE, ["error"], id="a list has no fields"),
]


@pytest.mark.parametrize(("check", "changes", "recipe", "expected"), CASES)
def test_each_check(
    check: str, changes: dict[str, Any], recipe: str | None, expected: list[str], tmp_path: Path
) -> None:
    report = report_of(write_run(tmp_path, config=changed(**changes), recipe=recipe))

    assert severities(report, check) == expected
    for finding in found(report, check):
        assert finding.what
        assert finding.where.startswith(str(tmp_path))
        assert finding.remedy or finding.severity is Severity.INFO


def test_a_finding_names_the_line_and_the_way_out(tmp_path: Path) -> None:
    run = write_run(tmp_path, config=changed(batch_size=16), recipe=LORA_RECIPE)
    line = 1 + (run / "finetune.yaml").read_text().splitlines().index("batch_size: 16")

    (finding,) = found(report_of(run), "batch-size-limit")

    assert finding == Finding(
        Severity.ERROR,
        "batch-size-limit",
        "batch_size 16 is above 8, the rule of thumb for 1B, packed, on one 80 GB card",
        f"{run}/finetune.yaml:{line}",
        "measure it: autobatch probe RUN; until then batch_size: 8, or packed: False, with which the rule allows "
        "20",
    )


def test_the_tune_run_line_counts(tmp_path: Path) -> None:
    run = write_run(tmp_path, recipe=f"{LORA_RECIPE} --config finetune.yaml model.lora_alpha=0 #")

    (finding,) = found(report_of(run), "lora")

    assert "lora_alpha" in finding.what
    assert finding.where.endswith("finetune.slurm:3")


def test_outside_of_a_run_missing_files_are_infos(tmp_path: Path) -> None:
    run = write_run(tmp_path, config=changed(tokenizer__path="/tmp/Llama/nothing"))
    alone = tmp_path / "mine.yaml"
    (run / "finetune.yaml").rename(alone)

    report = report_of(alone)

    assert set(severities(report, "files")) == {"info"}
    assert report.passes(strict=True)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        pytest.param("# for full_finetune_distributed.py", ["info"], id="several devices"),
        pytest.param("# for lora_finetune_single_device.py", ["error"], id="one"),
        pytest.param("# to generate, quantize, eleuther_eval", ["error"], id="no training recipe"),
    ],
)
def test_a_config_alone_may_name_its_recipe_in_its_first_comment(
    header: str, expected: list[str], tmp_path: Path
) -> None:
    run = write_run(tmp_path, config=changed(batch_size=16))
    alone = tmp_path / "mine.yaml"
    alone.write_text(f"{header}\n#\n\n{(run / 'finetune.yaml').read_text()}")

    assert severities(report_of(alone), "batch-size-limit") == expected


def test_what_trains_nothing_gets_no_training_checks(tmp_path: Path) -> None:
    alone = tmp_path / "eval.yaml"
    alone.write_text("model:\n  _component_: torchtune.models.llama3_2.llama3_2_1b\nbatch_size: 99\n")

    report = report_of(alone)

    assert [finding.check for finding in report.findings] == ["kind"]


# -- the number of packs, from probe/density.json


def keep_density(run: Path, packs: int, sampled: int | None = None) -> None:
    subject = read_subject(run / "finetune.yaml", Collector())
    assert subject is not None
    signature = data_signature(subject.config.values, subject.working_dir)
    density = Density(True, 10 * packs, packs, 1000, 2048, 50, sampled, 0.1 if sampled else None)
    (run / "probe").mkdir()
    key = json.dumps(["any", signature, True, sampled])
    kept = {"key": key, "density": to_json(density), "held_bytes": 0, "rows_bytes": 0}
    (run / "probe" / "density.json").write_text(json.dumps(kept))


@pytest.mark.parametrize(
    ("packs", "expected"),
    [pytest.param(31, ["error"], id="one too few"), pytest.param(32, [], id="just one step")],
)
def test_a_dataset_must_fill_a_step(packs: int, expected: list[str], tmp_path: Path) -> None:
    run = write_run(tmp_path, config=changed(gradient_accumulation_steps=8))
    keep_density(run, packs)

    report = report_of(run)

    assert severities(report, "steps") == expected
    assert report.facts["examples_per_pack"] == 10.0


def test_steps_of_the_dataset_are_held_against_the_warm_up(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    keep_density(run, packs=43)

    (finding,) = found(report_of(run), "warm-up")

    assert "num_warmup_steps 10, and training has at most 10 steps" in finding.what


def test_a_density_of_other_data_says_nothing(tmp_path: Path) -> None:
    run = write_run(tmp_path, config=changed(gradient_accumulation_steps=8))
    keep_density(run, packs=1)
    data = tmp_path / "data" / "train.json"
    data.write_text(data.read_text() + " ")

    report = report_of(run)

    assert found(report, "steps") == []
    assert report.facts["examples_per_pack"] is None


@pytest.mark.parametrize("damage", ["", "{}", '{"key": 1}', '{"key": [], "density": {}}'], ids=str)
def test_a_damaged_density_says_nothing(damage: str, tmp_path: Path) -> None:
    run = write_run(tmp_path, config=changed(gradient_accumulation_steps=8))
    keep_density(run, packs=1)
    (run / "probe" / "density.json").write_text(damage)

    assert found(report_of(run), "steps") == []


# -- split and field, against Hugging Face datasets themselves

LIST = '[{"a": 1}, {"a": 2}]'
OBJECT = '{"train": [{"a": 1}], "validation": [{"a": 2}]}'
LINES = '{"a": 1}\n{"a": 2}\n'


@pytest.mark.parametrize(
    ("text", "arguments", "loads"),
    [
        pytest.param(LIST, {"split": "train"}, True, id="a file is the split train"),
        pytest.param(LIST, {"split": "train[:50%]"}, True, id="a part of it"),
        pytest.param(LIST, {"split": "all"}, True, id="all"),
        pytest.param(LIST, {"split": "validation"}, False, id="no other"),
        pytest.param(LIST, {"split": "train+test"}, False, id="one of two is missing"),
        pytest.param(LIST, {"split": "train", "field": "train"}, False, id="field of a list"),
        pytest.param(LINES, {"split": "train"}, True, id="lines"),
        pytest.param(LINES, {"split": "train", "field": "a"}, False, id="field of lines"),
        pytest.param(OBJECT, {"split": "train", "field": "train"}, True, id="field"),
        pytest.param(OBJECT, {"split": "train", "field": "test"}, False, id="no such field"),
        pytest.param(LIST, {"split": "test", "data_files": {"test": "train.json"}}, True, id="a named split"),
        pytest.param(
            LIST, {"split": "train", "data_files": {"test": "train.json"}}, False, id="not the named one"
        ),
        pytest.param(LIST, {"split": "train", "field": "a", "source": "csv"}, False, id="field of csv"),
    ],
)
def test_split_and_field_are_errors_where_loading_fails(
    text: str, arguments: dict[str, Any], loads: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = {"source": "json", "data_files": "train.json", **arguments}
    config = changed(**{f"dataset__{key}": value for key, value in dataset.items()})
    run = write_run(tmp_path, config=config)
    (run / "train.json").write_text(text)
    monkeypatch.chdir(run)
    source = dataset.pop("source")
    try:
        load_dataset(source, cache_dir=str(tmp_path / "cache"), **dataset)
        did_load = True
    except (ValueError, TypeError, DatasetsError):
        did_load = False

    report = report_of(run)

    assert did_load == loads
    assert (severities(report, "split") + severities(report, "field") == []) == loads


def test_an_object_without_a_field_is_one_row(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    (tmp_path / "data" / "train.json").write_text(OBJECT)

    (finding,) = found(report_of(run), "field")

    assert finding.severity is Severity.WARNING
    assert "read as one example with the columns train, validation" in finding.what


# -- torchtune asked


def test_arguments_that_a_component_does_not_take(tmp_path: Path) -> None:
    config = changed(
        model__lora_rnk=8, optimizer__learning_rate=1e-4, tokenizer___component_="nowhere.tokenizer"
    )
    run = write_run(tmp_path, config=config, recipe=LORA_RECIPE)

    report = report_of(run, build=True)

    assert sorted((f.severity.value, f.what.partition(":")[0]) for f in found(report, "component")) == [
        ("error", "model"),
        ("error", "optimizer"),
        ("warning", "tokenizer"),
    ]


def test_keys_of_every_kind_can_be_asked_about(tmp_path: Path) -> None:
    model = {"_component_": "torchtune.models.llama3_2.llama3_2_1b", 1: 2, "a": {2: 3, "b": [None]}}
    run = write_run(tmp_path, config=changed(model=model, optimizer__betas={1: 2, "a": 3}))

    (finding,) = found(report_of(run, build=True), "component")

    assert "unexpected keyword argument '1'" in finding.what


def test_the_model_is_counted_where_its_name_says_nothing(tmp_path: Path) -> None:
    model = {
        "_component_": "torchtune.models.llama3_2.llama3_2",
        "vocab_size": 128_256,
        "num_layers": 28,
        "num_heads": 24,
        "num_kv_heads": 8,
        "embed_dim": 3072,
        "max_seq_len": 131_072,
        "intermediate_dim": 8192,
    }
    run = write_run(tmp_path, config=changed(model=model, batch_size=8), recipe="full_finetune_single_device")

    report = report_of(run, build=True)

    assert report.facts["parameters"] == 3_212_749_824  # as torchtune's llama3_2_3b has
    assert severities(report, "batch-size-limit") == ["error"]
    assert severities(report_of(run), "batch-size-limit") == []


def test_a_component_of_ones_own_is_found_where_training_runs(tmp_path: Path) -> None:
    model = {"_component_": "tiny_model.build", "width": 3}
    run = write_run(tmp_path, config=changed(model=model), recipe=LORA_RECIPE)
    (run / "tiny_model.py").write_text(
        "import torch\ndef build(width):\n    return torch.nn.Linear(width, 5)\n"
    )

    report = report_of(run, build=True)

    assert found(report, "component") == []
    assert report.facts["parameters"] == 20


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("import os\nos.kill(os.getpid(), 11)\n", id="killed at import"),
        pytest.param("def build():\n    import os\n    os._exit(3)\n", id="exits"),
        pytest.param("def build():\n    raise RuntimeError('no')\n", id="raises"),
        pytest.param("def build(:\n", id="not Python"),
    ],
)
def test_a_component_that_crashes_hurts_no_other(body: str, tmp_path: Path) -> None:
    crashing = write_run(tmp_path, "crashing", changed(model={"_component_": "crashing.build"}))
    (crashing / "crashing.py").write_text(body)
    (crashing.parent / "run2").mkdir()
    good = crashing.parent / "run2" / "finetune.yaml"
    good.write_text(json.dumps(changed()))

    reports = {report.name: report for report in validate([tmp_path], build=True)}

    assert errors(reports["crashing"]) == []
    assert reports["crashing"].facts["parameters"] is None
    assert reports["run2"].facts["parameters"] == 1_235_814_400


def test_runs_with_one_model_ask_one_question(tmp_path: Path) -> None:
    paths = [write_run(tmp_path, f"run{n}", changed(optimizer__lr=n)) for n in range(40)]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")

    reports = validate(paths, build=True)

    keys = {section.key(path) for path in paths for section in sections_of(changed())}
    assert len(keys) == len(sections_of(changed()))
    assert {report.facts["parameters"] for report in reports} == {1_235_814_400}
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == visible
