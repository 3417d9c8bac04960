"""finetune.yaml out of a config: every config of torchtune's, every option, what the user gives."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from autobatch.errors import EditError, RunProblems, UsageError
from autobatch.runs.torchtune_source import registered_recipes
from autobatch.scaffold.config_text import ConfigText, make_config
from autobatch.scaffold.layout import Plan, plan_run
from autobatch.scaffold.request import InitRequest
from autobatch.scaffold.sources import find_source, our_configs, torchtune_configs

LORA_1B = "llama3_2/1B_lora_single_device"

SINGLE_DEVICE = sorted(
    name
    for name, (_, recipe) in torchtune_configs().items()
    if recipe.endswith("_single_device") and not recipe.startswith("ppo")
)

#: torchtune's configs whose rows can't be packed, and what the note says of them.
UNPACKABLE = {"gemma2/": "gemma2", "llama3_2_vision/": "the_cauldron_dataset", "_dpo_": "pairs"}

#: What init may change in a config of torchtune's that it is given nothing for.
OURS = {"output_dir", "dataset.packed", "tokenizer.max_seq_len", "log_peak_memory_stats"}


def made(tmp_path: Path, config: str, *overrides: str, **options: Any) -> ConfigText:
    """The text for tmp_path/runs/run1, asked for from tmp_path."""
    request = InitRequest("runs/run1", config, overrides, **options)
    return make_config(find_source(config, tmp_path), request, tmp_path / "runs/run1", tmp_path)


def planned(tmp_path: Path, config: str, *overrides: str, **options: Any) -> Plan:
    return plan_run(InitRequest("runs/run1", config, overrides, **options), tmp_path)


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        key: item
        for name, below in value.items()
        for key, item in flat(below, f"{prefix}.{name}".strip(".")).items()
    }


def read(text: str) -> dict[str, Any]:
    container = OmegaConf.to_container(OmegaConf.create(text), resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def unresolved(text: str) -> dict[str, Any]:
    container = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def comments(text: str) -> list[str]:
    return [line[line.index("#") :] for line in text.splitlines() if "#" in line]


def in_order(some: list[str], among: list[str]) -> bool:
    rest = iter(among)
    return all(item in rest for item in some)


def test_torchtune_lists_as_many_as_we_know() -> None:
    assert len(SINGLE_DEVICE) == 62
    assert set(SINGLE_DEVICE) <= set(torchtune_configs())


@pytest.mark.parametrize("name", SINGLE_DEVICE)
def test_every_single_device_config_of_torchtunes(name: str, tmp_path: Path) -> None:
    source = torchtune_configs()[name][0].read_text()
    result = made(tmp_path, name, model_dir="/models/x")

    before, after = flat(yaml.safe_load(source)), flat(yaml.safe_load(result.text))
    changed = {key for key in {*before, *after} if before.get(key) != after.get(key)}
    moved = {key for key in changed if str(after[key]).startswith("/models/x")}
    paths = [value for key, value in after.items() if key.startswith("tokenizer.") and "/" in str(value)]
    why = next((why for part, why in UNPACKABLE.items() if part in name), None)
    assert changed - moved <= OURS
    assert after["checkpointer.checkpoint_dir"] == "/models/x"
    assert paths
    assert all(path.startswith("/models/x/") for path in paths)
    assert in_order(comments(source), comments(result.text))
    assert after.get("dataset.packed", False) is (why is None)
    assert [note for note in result.notes if why is not None and why in note] or why is None
    assert why is not None or after["tokenizer.max_seq_len"] is not None
    assert (result.recipe.name, result.device) == (torchtune_configs()[name][1], "cuda")
    assert result.warnings == ()


@pytest.mark.parametrize("name", ["llama3_2_1b_lora", LORA_1B, "gemma/2B_lora_single_device"])
def test_made_again_from_what_was_made_it_says_the_same(name: str, tmp_path: Path) -> None:
    first = made(tmp_path, name).text
    (tmp_path / "made.yaml").write_text(first)

    again = made(tmp_path, "made.yaml").text

    assert again.split("\n", 1)[1] == first


@pytest.mark.parametrize("name", sorted(our_configs()))
def test_ours_change_by_a_line_that_says_whence(name: str, tmp_path: Path) -> None:
    text = our_configs()[name].read_text()

    assert made(tmp_path, name).text.split("\n", 1)[1] == text


def test_explanations_stand_above_their_keys(tmp_path: Path) -> None:
    lines = made(tmp_path, LORA_1B).text.splitlines()

    for key in ("  packed: True", "batch_size: 4", "gradient_accumulation_steps: 8"):
        index = next(i for i, line in enumerate(lines) if line.startswith(key))
        assert lines[index - 1].lstrip().startswith("# ")
        assert len(lines[index - 1]) > 60


class TestOverrides:
    def test_each_kind_of_value(self, tmp_path: Path) -> None:
        text = made(
            tmp_path,
            LORA_1B,
            "epochs=3",
            "optimizer.lr=1e-4",
            "model.lora_attn_modules=[q_proj]",
            "max_steps_per_epoch=5",
            "seed=None",
            "dataset=torchtune.datasets.instruct_dataset",
            "dataset.column_map.input=question",
            "dataset.column_map.output=answer",
            "checkpointer.checkpoint_files=[a.safetensors,b.safetensors]",
            "run_name=a b",
            "~optimizer.weight_decay",
        ).text

        config = read(text)
        assert (config["epochs"], config["optimizer"]["lr"], config["seed"]) == (3, 1e-4, None)
        assert config["model"]["lora_attn_modules"] == ["q_proj"]
        assert config["max_steps_per_epoch"] == 5
        assert config["dataset"]["_component_"] == "torchtune.datasets.instruct_dataset"
        assert config["dataset"]["column_map"] == {"input": "question", "output": "answer"}
        assert config["checkpointer"]["checkpoint_files"] == ["a.safetensors", "b.safetensors"]
        assert "weight_decay" not in config["optimizer"]
        assert config["run_name"] == "a b"

    def test_they_win_over_what_init_would_choose(self, tmp_path: Path) -> None:
        text = made(
            tmp_path,
            LORA_1B,
            "dataset.packed=False",
            "log_peak_memory_stats=False",
            "output_dir=/tmp/x",
            "tokenizer.max_seq_len=512",
        ).text

        config = read(text)
        assert (config["dataset"]["packed"], config["log_peak_memory_stats"]) == (False, False)
        assert (config["output_dir"], config["tokenizer"]["max_seq_len"]) == ("/tmp/x", 512)
        assert "Packing:" not in text

    def test_as_torchtune_merges_them(self, tmp_path: Path) -> None:
        from torchtune.config._utils import _merge_yaml_and_cli_args

        arguments = [
            "epochs=2",
            "model.lora_rank=4",
            "dataset=torchtune.datasets.wikitext_dataset",
            "x.y=[1,a]",
        ]
        arguments += ["~clip_grad_norm", "~profiler.wait_steps", "seed=None", "dataset.packed=False"]
        source = made(tmp_path, LORA_1B, "dataset.packed=False").text
        theirs = _merge_yaml_and_cli_args(Namespace(**unresolved(source)), arguments)
        (tmp_path / "c.yaml").write_text(source)

        ours = unresolved(made(tmp_path, "c.yaml", *arguments).text)

        assert ours == OmegaConf.to_container(theirs)

    def test_a_new_key_is_said_aloud_with_what_it_may_mean(self, tmp_path: Path) -> None:
        notes = made(tmp_path, LORA_1B, "bacth_size=8").notes

        assert "bacth_size is new to this config: added; did you mean batch_size?" in notes

    @pytest.mark.parametrize(
        ("argument", "message"),
        [
            pytest.param("epochs", "write key=value", id="no value"),
            pytest.param("a=b=c", "with one `=`", id="two signs"),
            pytest.param("=3", "write key=value", id="no key"),
            pytest.param("model..x=3", "write key=value", id="an empty part"),
            pytest.param("epochs=[1", "epochs=.1", id="not YAML"),
            pytest.param("~nothing", "no nothing to remove", id="removes what isn't there"),
            pytest.param("~model", "doesn't remove components", id="removes a component"),
        ],
    )
    def test_what_cannot_be_taken_is_refused(self, argument: str, message: str, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=message):
            made(tmp_path, LORA_1B, argument, "epochs=2")

    def test_all_that_is_wrong_is_said_at_once(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError) as caught:
            made(tmp_path, LORA_1B, "epochs", "~nothing")

        assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == ["epochs", "~nothing"]

    def test_a_value_that_something_else_shares_is_refused_with_its_line(self, tmp_path: Path) -> None:
        shared = "epochs: &n 1\nother: *n\n"
        (tmp_path / "c.yaml").write_text(shared)

        with pytest.raises(EditError, match=r"c\.yaml:1: epochs is shared"):
            made(tmp_path, "c.yaml", "epochs=3")


class TestPaths:
    def test_a_model_directory_in_torchtunes_config(self, tmp_path: Path) -> None:
        config = read(made(tmp_path, LORA_1B, model_dir="models/L").text)

        assert config["tokenizer"]["path"] == "../../models/L/original/tokenizer.model"
        assert config["checkpointer"]["checkpoint_dir"] == "../../models/L"

    def test_a_teacher_keeps_its_own_directory_and_that_is_said(self, tmp_path: Path) -> None:
        result = made(tmp_path, "qwen2/1.5_to_0.5B_KD_lora_single_device", model_dir="/models/x")

        assert any("--model-dir leaves" in note and "teacher_checkpointer" in note for note in result.notes)

    def test_a_model_directory_in_ours_is_a_variable(self, tmp_path: Path) -> None:
        text = made(tmp_path, "llama3_2_1b_lora", model_dir="models/L").text

        assert "\nmodel_dir: ../../models/L\n" in text
        assert "path: ${model_dir}/original/tokenizer.model" in text

    def test_an_output_directory(self, tmp_path: Path) -> None:
        config = read(made(tmp_path, LORA_1B, output_dir="out").text)

        assert config["checkpointer"]["output_dir"] == "../../out"
        assert config["metric_logger"]["log_dir"] == "../../out/logs"

    def test_output_below_tmp_moves_into_the_run_and_elsewhere_stays(self, tmp_path: Path) -> None:
        (tmp_path / "c.yaml").write_text(made(tmp_path, LORA_1B, "output_dir=/scratch/x").text)

        assert read(made(tmp_path, LORA_1B).text)["output_dir"] == "./output"
        assert read(made(tmp_path, "c.yaml").text)["output_dir"] == "/scratch/x"

    def test_a_linked_run_directory(self, tmp_path: Path) -> None:
        """`..` leads out of where a link leads to, not out of where it lies."""
        (tmp_path / "far" / "away").mkdir(parents=True)
        (tmp_path / "runs").symlink_to(tmp_path / "far" / "away")
        (tmp_path / "models").mkdir()

        plan = planned(tmp_path, "llama3_2_1b_lora", model_dir="models")

        directory = read(plan.files[plan.run_dir / "finetune.yaml"])["model_dir"]
        assert (tmp_path / "runs").resolve() / "run1" == plan.run_dir
        assert directory == "../../../models"


def write_rows(path: Path, *columns: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    row = dict.fromkeys(columns, "x")
    if path.suffix == ".jsonl":
        path.write_text(json.dumps(row) + "\n" + json.dumps(row))
    elif path.suffix == ".csv":
        path.write_text(",".join(columns) + "\n" + ",".join(row.values()) + "\n")
    else:
        path.write_text("[\n" + json.dumps(row) + "]")
    return path


class TestData:
    @pytest.mark.parametrize(
        ("name", "source"),
        [("a.json", "json"), ("a.jsonl", "json"), ("a.csv", "csv"), ("a.parquet", "parquet")],
    )
    def test_a_file(self, name: str, source: str, tmp_path: Path) -> None:
        write_rows(tmp_path / "data" / name, "instruction", "output")

        result = made(tmp_path, LORA_1B, data=f"data/{name}")

        dataset = read(result.text)["dataset"]
        assert dataset["_component_"] == "torchtune.datasets.alpaca_cleaned_dataset"
        assert (dataset["source"], dataset["data_files"]) == (source, f"../../data/{name}")
        assert (dataset["split"], dataset["packed"]) == ("train", True)
        assert result.warnings == ()

    def test_a_directory(self, tmp_path: Path) -> None:
        write_rows(tmp_path / "data" / "a.csv", "instruction", "output")

        dataset = read(made(tmp_path, LORA_1B, data="data").text)["dataset"]

        assert (dataset["source"], dataset["data_dir"]) == ("csv", "../../data")
        assert "data_files" not in dataset

    @pytest.mark.parametrize(
        ("given", "key", "value"),
        [
            ("sets/caps.jsonl", "data_files", "../../sets/caps.jsonl"),
            ("sets/words", "data_dir", "../../sets/words"),
        ],
    )
    def test_variables_of_ours(self, given: str, key: str, value: str, tmp_path: Path) -> None:
        write_rows(tmp_path / "sets/caps.jsonl", "input", "output")
        write_rows(tmp_path / "sets/words/a.csv", "input", "output")

        text = made(tmp_path, "llama3_2_1b_lora", data=given).text

        dataset = read(text)["dataset"]
        assert "\ninput_dir: ../../sets\n" in text
        assert dataset[key] == value
        assert {"data_files", "data_dir"} & set(dataset) == {key}

    def test_a_name_of_the_hub(self, tmp_path: Path) -> None:
        result = made(tmp_path, "llama3_2_1b_lora", data="tatsu-lab/alpaca")

        dataset = read(result.text)["dataset"]
        assert dataset["source"] == "tatsu-lab/alpaca"
        assert "data_files" not in dataset
        assert any("Hugging Face hub" in note for note in result.notes)

    def test_a_file_that_is_not_there_yet(self, tmp_path: Path) -> None:
        plan = planned(tmp_path, "llama3_2_1b_lora", data="data/later.json")

        assert any("data/later.json isn't there yet" in warning for warning in plan.warnings)

    def test_files_that_are_there_are_not_missed_though_the_run_is_not_there_yet(
        self, tmp_path: Path
    ) -> None:
        write_rows(tmp_path / "data/a.json", "input", "output")

        plan = planned(tmp_path, "llama3_2_1b_lora", data="data/a.json")

        assert not any("data_files" in warning for warning in plan.warnings)
        assert any("tokenizer.path" in warning for warning in plan.warnings)

    @pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv"])
    def test_columns_that_the_dataset_does_not_read(self, suffix: str, tmp_path: Path) -> None:
        write_rows(tmp_path / f"a{suffix}", "question", "answer")

        def warnings(*overrides: str) -> tuple[str, ...]:
            return made(tmp_path, "llama3_2_1b_lora", *overrides, data=f"a{suffix}").warnings

        (warning,) = warnings()
        assert "has the columns answer, question; instruct_dataset reads input, output" in warning
        assert warnings("dataset.column_map.input=question", "dataset.column_map.output=answer") == ()

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            pytest.param("notes.txt", "a dataset is read from .json", id="another format"),
            pytest.param("empty", "holds no .json", id="empty directory"),
            pytest.param("both", "holds csv and json files", id="two kinds"),
            pytest.param("./nowhere", "no such directory", id="no such path"),
            pytest.param("a b", "no such directory", id="no name"),
        ],
    )
    def test_what_is_no_dataset_is_refused(self, given: str, message: str, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        (tmp_path / "notes.txt").write_text("x")
        write_rows(tmp_path / "both/a.json", "input")
        write_rows(tmp_path / "both/a.csv", "input")

        with pytest.raises(UsageError, match=message):
            made(tmp_path, "llama3_2_1b_lora", data=given)

    def test_a_component_without_a_source_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="ConcatDataset takes no source"):
            made(tmp_path, LORA_1B, "dataset=torchtune.datasets.ConcatDataset", data="a.json")


class TestPackingAndLength:
    def test_a_component_that_cannot_pack_has_it_switched_off(self, tmp_path: Path) -> None:
        result = made(
            tmp_path,
            "llama3_2_1b_lora",
            "dataset._component_=torchtune.datasets.stack_exchange_paired_dataset",
        )

        assert read(result.text)["dataset"]["packed"] is False
        assert any("can't pack" in note for note in result.notes)

    def test_the_same_model_packs_on_a_cpu(self, tmp_path: Path) -> None:
        name = "gemma2/2B_lora_single_device"

        assert read(made(tmp_path, name).text)["dataset"]["packed"] is False
        assert read(made(tmp_path, name, "device=cpu").text)["dataset"]["packed"] is True

    def test_a_length_of_ones_own(self, tmp_path: Path) -> None:
        result = made(tmp_path, LORA_1B, max_seq_len=4096)

        assert read(result.text)["tokenizer"]["max_seq_len"] == 4096
        assert not any("max_seq_len" in note for note in result.notes)

    def test_a_list_of_datasets_is_left_to_the_user(self, tmp_path: Path) -> None:
        text = our_configs()["llama3_2_1b_lora"].read_text()
        start, end = text.index("dataset:\n"), text.index("seed:")
        listed = "dataset:\n  - _component_: torchtune.datasets.alpaca_dataset\n    packed: False\n"
        (tmp_path / "c.yaml").write_text(text[:start] + listed + text[end:])

        result = made(tmp_path, "c.yaml")

        assert listed in result.text
        assert any("each of its entries by hand" in note for note in result.notes)


class TestSources:
    def test_a_name_stays_in_its_comment(self, tmp_path: Path) -> None:
        source = tmp_path / "a\nbatch_size: 99\n.yaml"
        source.write_text(our_configs()["llama3_2_1b_lora"].read_text())

        text = made(tmp_path, source.name).text

        assert text.startswith("# Made by `autobatch init` from a batch_size: 99 .yaml.\n#")

    def test_a_run_directory_brings_its_recipe(self, tmp_path: Path) -> None:
        run = tmp_path / "old"
        run.mkdir()
        (run / "finetune.yaml").write_text(our_configs()["llama3_2_1b_lora"].read_text())
        (run / "finetune.slurm").write_text(
            "tune run full_finetune_single_device --config finetune.yaml epochs=9\n"
        )

        result = made(tmp_path, "old")

        assert result.recipe.name == "full_finetune_single_device"
        assert any("also sets epochs=9" in note for note in result.notes)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            pytest.param("llama3_2_1b_lra", "did you mean llama3_2_1b_lora", id="misspelt, ours"),
            pytest.param("llama3_2/1B_lora_single", f"did you mean {LORA_1B}", id="misspelt, torchtune's"),
            pytest.param("nowhere.yaml", "no such file, and no config of that name", id="no file"),
            pytest.param("binary.yaml", "isn't UTF-8", id="not text"),
            pytest.param("dev/7B_full_early_exit", "can't be read", id="torchtune lists it without a file"),
        ],
    )
    def test_what_is_no_config_is_refused(self, given: str, message: str, tmp_path: Path) -> None:
        (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")

        with pytest.raises(UsageError, match=message):
            made(tmp_path, given)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            pytest.param("a: [1\n", r"c\.yaml:", id="not YAML"),
            pytest.param("", "this file holds nothing", id="empty"),
            pytest.param("- a\n", "a list", id="a list"),
            pytest.param("a: 1\na: 2\n", "a second time", id="a duplicate key"),
            pytest.param("a: 1\n", "the recipe can't be inferred", id="no optimizer"),
        ],
    )
    def test_what_cannot_be_read_is_refused(self, text: str, message: str, tmp_path: Path) -> None:
        (tmp_path / "c.yaml").write_text(text)

        with pytest.raises(RunProblems, match=message):
            made(tmp_path, "c.yaml")

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ("llama3_2/1B_full", "--recipe full_finetune_single_device"),
            ("mistral/7B_full_ppo_low_memory", "generates rollouts"),
            ("generation", "not a training recipe"),
        ],
    )
    def test_what_the_probe_cannot_measure_is_refused(
        self, config: str, message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(RunProblems, match=message):
            made(tmp_path, config)

    def test_a_distributed_config_for_one_device(self, tmp_path: Path) -> None:
        result = made(tmp_path, "llama3_2/1B_full", recipe="full_finetune_single_device")

        assert result.recipe.name == "full_finetune_single_device"
        assert result.recipe.path == registered_recipes()["full_finetune_single_device"].path
