"""`autobatch.runs.fingerprint`: what shares a measurement, and when a stored density holds."""

from __future__ import annotations

import copy
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatch.runs.fingerprint import IRRELEVANT, can_change_memory, data_signature, fingerprint

CONFIG: dict[str, Any] = {
    "output_dir": "/out",
    "input_dir": "/in",
    "batch_size": 4,
    "epochs": 1,
    "max_steps_per_epoch": None,
    "seed": 1,
    "shuffle": True,
    "log_every_n_steps": 1,
    "log_peak_memory_stats": True,
    "log_level": "INFO",
    "resume_from_checkpoint": False,
    "save_adapter_weights_only": False,
    "metric_logger": {"_component_": "a.Logger", "log_dir": "/logs"},
    "profiler": {"_component_": "a.profiler", "enabled": False},
    "lr_scheduler": {"_component_": "a.cosine", "num_warmup_steps": 100},
    "model": {"_component_": "a.model", "lora_rank": 8, "lora_alpha": 16, "lora_attn_modules": ["q", "v"]},
    "tokenizer": {"_component_": "a.tokenizer", "path": "/t", "max_seq_len": 2048},
    "dataset": {
        "_component_": "a.dataset",
        "packed": True,
        "source": "json",
        "data_files": "a.json",
        "data_dir": "/d",
        "split": "train",
        "column_map": {"input": "q"},
    },
    "checkpointer": {
        "_component_": "a.Checkpointer",
        "checkpoint_dir": "/w",
        "checkpoint_files": ["a.bin"],
        "output_dir": "/out",
        "recipe_checkpoint": None,
        "adapter_checkpoint": None,
        "model_type": "LLAMA3",
    },
    "teacher_checkpointer": {"_component_": "a.Checkpointer", "checkpoint_dir": "/w", "model_type": "LLAMA3"},
    "optimizer": {
        "_component_": "a.AdamW",
        "lr": 3e-4,
        "betas": [0.9, 0.95],
        "eps": 1e-8,
        "weight_decay": 0.1,
        "fused": True,
    },
    "gradient_accumulation_steps": 2,
    "clip_grad_norm": 1.0,
    "compile": False,
    "device": "cuda",
    "dtype": "bf16",
    "enable_activation_checkpointing": True,
    "loss": {"_component_": "a.Loss", "num_output_chunks": 8},
}
KEPT_BY = [
    "output_dir", "input_dir", "batch_size", "epochs", "max_steps_per_epoch", "seed", "shuffle",
    "log_every_n_steps", "log_peak_memory_stats", "log_level", "resume_from_checkpoint",
    "save_adapter_weights_only", "metric_logger", "metric_logger.log_dir", "profiler", "profiler.enabled",
    "lr_scheduler", "lr_scheduler.num_warmup_steps", "model.lora_alpha", "dataset.source",
    "dataset.data_files", "dataset.data_dir", "dataset.split", "checkpointer.checkpoint_dir",
    "checkpointer.checkpoint_files", "checkpointer.output_dir", "checkpointer.recipe_checkpoint",
    "checkpointer.adapter_checkpoint", "teacher_checkpointer.checkpoint_dir", "optimizer.lr",
    "optimizer.betas", "optimizer.eps",
]  # fmt: skip
#: Only whether these are null, 0 and above 1 counts.
PARTLY = ["clip_grad_norm", "optimizer.weight_decay", "gradient_accumulation_steps"]


def leaves(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else key)
    else:
        yield path


def is_below(path: str, keys: list[str]) -> bool:
    return any(path == key or path.startswith(f"{key}.") for key in keys)


CHANGED_BY = [path for path in leaves(CONFIG) if not is_below(path, KEPT_BY + PARTLY)]


def with_value(path: str, value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(CONFIG)
    *above, last = path.split(".")
    section = changed
    for key in above:
        section = section[key]
    section[last] = value
    return changed


def without(path: str) -> dict[str, Any]:
    changed = with_value(path, None)
    *above, last = path.split(".")
    section = changed
    for key in above:
        section = section[key]
    del section[last]
    return changed


def hash_of(config: dict[str, Any], **extras: str) -> str:
    return fingerprint(config, extras)


def test_is_sha256_and_stable() -> None:
    assert len(hash_of(CONFIG)) == 64
    assert hash_of(CONFIG) == hash_of(copy.deepcopy(CONFIG))


@pytest.mark.parametrize("path", KEPT_BY)
@given(value=st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.lists(st.text())))
def test_keys_that_cannot_change_memory(path: str, value: Any) -> None:
    assert hash_of(with_value(path, value)) == hash_of(CONFIG)
    assert not can_change_memory(path) or path.startswith("dataset.")


@pytest.mark.parametrize("path", KEPT_BY)
def test_keys_that_cannot_change_memory_may_be_missing(path: str) -> None:
    assert hash_of(without(path)) == hash_of(CONFIG)


@pytest.mark.parametrize("path", CHANGED_BY)
def test_every_other_key_counts(path: str) -> None:
    assert hash_of(with_value(path, "another")) != hash_of(CONFIG)
    assert hash_of(without(path)) != hash_of(CONFIG)
    assert can_change_memory(path)


@pytest.mark.parametrize("key", ["save_every_n_steps", "dataset_label", "run_name", "experiment_name"])
def test_listed_keys_may_appear(key: str) -> None:
    assert hash_of({**CONFIG, key: "x"}) == hash_of(CONFIG)
    assert not can_change_memory(key)


@given(
    key=st.text(alphabet="abcdefghijklmnopqrstuvwxyz_", min_size=1).filter(
        lambda key: key not in CONFIG and can_change_memory(key)
    ),
    value=st.integers(),
)
def test_unknown_keys_count(key: str, value: int) -> None:
    assert hash_of({**CONFIG, key: value}) != hash_of(CONFIG)
    assert hash_of(with_value(f"model.{key}", value)) != hash_of(CONFIG)


@given(st.randoms(use_true_random=False))
def test_the_order_of_keys_does_not_count(shuffler: random.Random) -> None:
    def shuffled(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        items = [(key, shuffled(item)) for key, item in value.items()]
        shuffler.shuffle(items)
        return dict(items)

    assert hash_of(shuffled(CONFIG), a="1", b="2") == hash_of(CONFIG, b="2", a="1")


def test_the_order_of_a_list_counts() -> None:
    assert hash_of(with_value("model.lora_attn_modules", ["v", "q"])) != hash_of(CONFIG)


@pytest.mark.parametrize(
    ("path", "one", "other", "same"),
    [
        pytest.param("clip_grad_norm", 1.0, 0.5, True, id="clip-value"),
        pytest.param("clip_grad_norm", 1.0, None, False, id="clip-or-not"),
        pytest.param("clip_grad_norm", 1.0, 0.0, True, id="clip-to-zero"),
        pytest.param("optimizer.weight_decay", 0.1, 0.01, True, id="decay-value"),
        pytest.param("optimizer.weight_decay", 0.1, 0.0, False, id="decay-or-not"),
        pytest.param("gradient_accumulation_steps", 2, 8, True, id="accumulation-from-2"),
        pytest.param("gradient_accumulation_steps", 1, 2, False, id="accumulation-or-not"),
        pytest.param("gradient_accumulation_steps", None, 1, True, id="accumulation-missing"),
        pytest.param("compile", 0, False, False, id="zero-is-not-false"),
        pytest.param("tokenizer.max_seq_len", 2048, "2048", False, id="number-is-not-string"),
    ],
)
def test_values(path: str, one: Any, other: Any, same: bool) -> None:
    assert (hash_of(with_value(path, one)) == hash_of(with_value(path, other))) is same


def test_extras_count() -> None:
    assert hash_of(CONFIG, torch="2.13") != hash_of(CONFIG, torch="2.14")
    assert hash_of(CONFIG) != hash_of(CONFIG, torch="2.13")


@pytest.mark.parametrize(
    "path", ["dataset.source", "dataset.data_files", "dataset.data_dir", "dataset.split"]
)
def test_the_data_counts_when_rows_have_no_fixed_length(path: str) -> None:
    unpacked = with_value("dataset.packed", False)
    changed = copy.deepcopy(unpacked)
    changed["dataset"][path.partition(".")[2]] = "another"
    assert hash_of(changed) != hash_of(unpacked)


def test_several_datasets() -> None:
    entry = CONFIG["dataset"]
    both = {**CONFIG, "dataset": [entry, {**entry, "source": "csv"}]}
    other = {**CONFIG, "dataset": [entry, {**entry, "source": "text"}]}
    mixed = {**CONFIG, "dataset": [entry, {**entry, "source": "text", "packed": False}]}
    assert hash_of(both) == hash_of(other)
    assert hash_of(mixed) != hash_of(other)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "parts").mkdir()
    for name in ("train.json", "parts/a.json", "parts/b.json", "tokenizer.model", "unrelated"):
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, ns=(1, 1))
    return tmp_path


def signature(data: Path, **dataset: Any) -> str:
    config = {
        "dataset": {"_component_": "torchtune.datasets.instruct_dataset", "source": "json", **dataset},
        "tokenizer": {"_component_": "torchtune.models.llama3.llama3_tokenizer", "path": "tokenizer.model"},
        "batch_size": data.stat().st_ino,
    }
    return data_signature(config, data)


@pytest.mark.parametrize(
    "named",
    [
        pytest.param({"data_files": "train.json"}, id="file"),
        pytest.param({"data_files": ["parts/a.json", "train.json"]}, id="list"),
        pytest.param({"data_files": {"train": "train.json"}}, id="splits"),
        pytest.param({"data_files": "*.json"}, id="pattern"),
        pytest.param({"data_files": "**/train.json"}, id="recursive-pattern"),
        pytest.param({"data_dir": "."}, id="directory"),
        pytest.param({"data_dir": "parts", "data_files": "../train.json"}, id="relative-to-data-dir"),
        pytest.param({"source": "./"}, id="source"),
    ],
)
def test_a_signature_holds_until_the_data_changes(named: dict[str, Any], data: Path) -> None:
    before = signature(data, **named)
    assert signature(data, **named) == before
    os.utime(data / "train.json", ns=(1, 2))
    touched = signature(data, **named)
    (data / "train.json").write_text("longer")
    os.utime(data / "train.json", ns=(1, 2))
    grown = signature(data, **named)
    assert len({before, touched, grown}) == 3


def test_a_signature_covers_the_directory_and_the_tokenizer(data: Path) -> None:
    before = signature(data, data_dir="parts")
    (data / "unrelated").write_text("changed")
    assert signature(data, data_dir="parts") == before
    (data / "parts" / "c.json").write_text("x")
    grown = signature(data, data_dir="parts")
    (data / "tokenizer.model").write_text("changed")
    assert len({before, grown, signature(data, data_dir="parts")}) == 3


def test_a_signature_covers_the_sections(data: Path) -> None:
    assert signature(data, source="org/name") != signature(data, source="org/name", split="test")


def test_files_of_a_hub_dataset_are_not_looked_for_here(data: Path) -> None:
    before = signature(data, source="org/name", data_files="train.json")
    os.utime(data / "train.json", ns=(1, 2))
    assert signature(data, source="org/name", data_files="train.json") == before


def test_files_that_are_not_there_are_left_out(data: Path) -> None:
    assert signature(data, data_files="gone.json") != signature(data, data_files="train.json")


def test_the_list_that_users_read_is_this_one() -> None:
    readme = (Path(__file__).parent.parent / "autobatch" / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## What shares a measurement\n")[2].partition("\n## ")[0]
    listed = {
        name: set(re.findall(r"`(\w+)`", keys))
        for name, keys in re.findall(r"(?m)^- ([a-z ]+)[^:]*: ((?:.|\n  )*)", section)
    }
    assert listed == {name: set(keys) for name, keys in IRRELEVANT.items()}
