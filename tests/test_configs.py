"""The configs under configs/: they load, they are torchtune's for their model, and they explain themselves."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from autobatch.records import from_json
from autobatch.runs.checks import check_sections
from autobatch.runs.config import parse_config
from autobatch.runs.findings import Findings
from autobatch.runs.torchtune_source import registered_recipes
from autobatch.scaffold.comments import ACCUMULATION, BATCH_SIZE, PACKED, explain
from autobatch.scaffold.sources import our_configs, torchtune_configs
from tests.benchmarks.packing_memory import CASES, Measured, failed_bars, report, row

#: Each of ours -> torchtune's for the same model.
COUNTERPARTS = {
    "finetune_template": "llama3_2/1B_lora_single_device",
    "llama3_2_1b_lora": "llama3_2/1B_lora_single_device",
    "llama3_2_3b_lora": "llama3_2/3B_lora_single_device",
    "llama3_1_8b_lora": "llama3_1/8B_lora_single_device",
    "qwen2_5_3b_lora": "qwen2_5/3B_lora_single_device",
}

#: Read only when the profiler is on.
UNUSED = "profiler."

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "tests" / "benchmarks" / "results"

EACH = pytest.mark.parametrize("name", sorted(COUNTERPARTS))


def values_of(path: Path) -> dict[str, Any]:
    values = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def keys_of(values: dict[str, Any], prefix: str = "") -> set[str]:
    found = set()
    for key, value in values.items():
        found |= keys_of(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}"}
    return found


def test_every_config_has_its_counterpart() -> None:
    assert set(our_configs()) == set(COUNTERPARTS)


@EACH
def test_nothing_that_torchtunes_config_has_is_missing(name: str) -> None:
    ours = values_of(our_configs()[name])
    theirs = values_of(torchtune_configs()[COUNTERPARTS[name]][0])

    missing = {key for key in keys_of(theirs) - keys_of(ours) if not key.startswith(UNUSED)}

    assert missing == set()
    for key in ("loss", "device", "dtype", "enable_activation_checkpointing", "enable_activation_offloading"):
        assert ours[key] == theirs[key]
    for section, key in (
        ("model", "_component_"),
        ("tokenizer", "_component_"),
        ("checkpointer", "_component_"),
        ("checkpointer", "checkpoint_files"),
        ("checkpointer", "model_type"),
    ):
        assert ours[section][key] == theirs[section][key]


@EACH
def test_files_lie_in_the_model_directory_as_in_torchtunes(name: str) -> None:
    ours = values_of(our_configs()[name])
    theirs = values_of(torchtune_configs()[COUNTERPARTS[name]][0])
    base = theirs["checkpointer"]["checkpoint_dir"].rstrip("/")

    for key in set(theirs["tokenizer"]) - {"_component_", "max_seq_len"}:
        below = theirs["tokenizer"][key].removeprefix(base)
        assert ours["tokenizer"][key] == ours["model_dir"] + below


@EACH
def test_it_packs_rows_of_2048_tokens_and_is_careful(name: str) -> None:
    config = values_of(our_configs()[name])

    assert config["dataset"]["packed"] is True
    assert config["tokenizer"]["max_seq_len"] == 2048
    assert config["model"]["lora_alpha"] == 2 * config["model"]["lora_rank"]
    assert config["log_peak_memory_stats"] is True
    # The planning document's cautious sizes; one effective batch for all models.
    size = {"1b": 4, "3b": 2, "8b": 1}[config["model"]["_component_"].rpartition("_")[2]]
    assert (config["batch_size"], config["batch_size"] * config["gradient_accumulation_steps"]) == (size, 4)


@EACH
def test_every_component_is_there_and_the_model_builds(name: str) -> None:
    import torch
    from torchtune import config as torchtune_config
    from torchtune.config._utils import _get_component_from_path

    findings = Findings()
    path = our_configs()[name]
    config = parse_config(path.read_text(), path, None, findings)
    assert config is not None
    check_sections(config, findings)

    assert findings.problems == []
    for section in (
        "tokenizer",
        "checkpointer",
        "dataset",
        "optimizer",
        "lr_scheduler",
        "loss",
        "metric_logger",
    ):
        assert callable(_get_component_from_path(config.get(f"{section}._component_")))
    with torch.device("meta"):
        model = torchtune_config.instantiate(config.config.model)
    billions = sum(parameter.numel() for parameter in model.parameters()) / 1e9
    size = float(config.get("model._component_").rpartition("_")[2].removesuffix("b"))
    assert billions == pytest.approx(size, rel=0.25)


@EACH
def test_the_comments_are_the_ones_that_init_writes(name: str) -> None:
    text = our_configs()[name].read_text()

    for lines, key in ((PACKED, "  packed:"), (BATCH_SIZE, "batch_size:"), (ACCUMULATION, "gradient_accum")):
        indent = key[: len(key) - len(key.lstrip())]
        assert "".join(f"{indent}# {line}\n" for line in lines) + key in text
    assert explain(text, packed=True, name=name) == text


@EACH
def test_it_names_its_recipe_and_a_command_that_exists(name: str) -> None:
    text = our_configs()[name].read_text()

    assert text.splitlines()[0].endswith("recipe lora_finetune_single_device.")
    assert "lora_finetune_single_device" in registered_recipes()
    assert f"autobatch init run1 --config {name} " in text


class TestFiguresOnPacking:
    """What configs/README.md says of memory is what the benchmark measured."""

    @pytest.fixture
    def figures(self) -> dict[str, Any]:
        loaded = json.loads((RESULTS / "packing-memory-cpu.json").read_text())
        assert isinstance(loaded, dict)
        return loaded

    @pytest.fixture
    def measured(self, figures: dict[str, Any]) -> list[Measured]:
        return [from_json(Measured, case) for case in figures["cases"]]

    def test_every_case_was_measured_and_every_bar_holds(self, measured: list[Measured]) -> None:
        assert tuple(m.case for m in measured) == CASES
        assert failed_bars(measured) == []

    def test_a_peak_that_depends_on_density_would_fail_a_bar(self, measured: list[Measured]) -> None:
        grown = replace(measured[0].more, peak_bytes=2 * (measured[0].more.peak_bytes or 0))

        assert failed_bars([replace(measured[0], more=grown), *measured[1:]]) != []

    def test_the_table_is_that_of_the_figures(
        self, figures: dict[str, Any], measured: list[Measured]
    ) -> None:
        assert (RESULTS / "packing-memory-cpu.md").read_text() == "\n".join(report(figures, measured)) + "\n"

    def test_the_readme_quotes_them(self, measured: list[Measured]) -> None:
        table = (ROOT / "configs" / "README.md").read_text().split("## What packing does to memory")[1]
        quoted = re.findall(r"\d+\.\d MiB \| \d+\.\d MiB \| \d+\.\d MiB", table)

        assert len(quoted) == 7
        assert set(quoted) <= {" | ".join(row(m)[-3:]) for m in measured}
