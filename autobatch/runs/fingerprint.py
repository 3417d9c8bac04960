"""Hashes that say whether an earlier measurement still holds.

`fingerprint` covers everything that decides how much memory a step takes: two runs with one fingerprint
share a probe. It is conservative: a key counts unless it stands in the lists below. `data_signature`
covers what decides how the dataset packs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autobatch.runs.data_files import data_files, tokenizer_files

#: Keys that can't change the memory of a step, by section; tests.benchmarks.fingerprint_keys measures them, and
#: autobatch/README.md lists them for users. Of the top-level ones, batch_size is what a probe searches;
#: metric_logger and profiler are replaced in a trial; lr_scheduler holds numbers, not tensors; the names of
#: directories and labels act only through `${...}`, and where they do the value stands in the resolved section.
IRRELEVANT: Mapping[str, frozenset[str]] = {
    "top level": frozenset({
        "batch_size", "data_dir", "dataset_label", "epochs", "experiment_name", "input_dir", "log_dir",
        "log_every_n_steps", "log_level", "log_peak_memory_stats", "lr_scheduler", "max_steps_per_epoch",
        "metric_logger", "model_dir", "output_dir", "profiler", "resume_from_checkpoint", "run_name", "seed",
        "shuffle",
    }),
    "checkpointer": frozenset(
        {"adapter_checkpoint", "checkpoint_dir", "checkpoint_files", "output_dir", "recipe_checkpoint"}
    ),
    "model": frozenset({"lora_alpha"}),
    "optimizer": frozenset({"betas", "eps", "lr"}),
    # Only of a packed dataset, whose rows always have max_seq_len tokens.
    "dataset": frozenset({"data_dir", "data_files", "name", "source", "split", "subset"}),
}  # fmt: skip

#: Top-level keys that begin so are irrelevant, too.
_IRRELEVANT_PREFIX = "save_"


def fingerprint(config: Mapping[str, Any], extras: Mapping[str, str]) -> str:
    """Hash of everything that decides the memory of a step.

    Args:
        config: the config as it is trained with, resolved, as plain containers; ``dataset.packed`` as it is
            probed with.
        extras: what decides memory besides the config: recipe, versions, device, whether weights are
            loaded, the allocator's settings; for an unpacked dataset also its `data_signature`, as the
            longest examples decide.

    Returns:
        sha256 in hexadecimal.
    """
    kept: dict[str, Any] = {}
    for key, value in config.items():
        if _is_irrelevant(str(key)):
            continue
        kept[str(key)] = _without(value, _irrelevant_of(str(key), value))
    steps = config.get("gradient_accumulation_steps") or 1
    # The gradients of the second micro-batch are the last to add memory.
    kept["gradient_accumulation_steps"] = min(steps, 2) if isinstance(steps, int) else steps
    # Clipping takes the norm of every gradient, whatever the limit is.
    kept["clip_grad_norm"] = config.get("clip_grad_norm") is not None
    # With any weight decay, Adam and SGD copy all gradients (torch/optim/adam.py, _multi_tensor_adam:
    # `device_grads = torch._foreach_add(...)`).
    optimizer = kept.get("optimizer")
    if isinstance(optimizer, dict) and "weight_decay" in optimizer:
        optimizer["weight_decay"] = bool(optimizer["weight_decay"])
    return _hash({"config": kept, "extras": dict(extras)})


def can_change_memory(key: str) -> bool:
    """Whether setting `key` (a dotted path such as ``optimizer.lr``) can change memory or density."""
    section, _, rest = key.partition(".")
    if not rest or _is_irrelevant(section):
        return not _is_irrelevant(section)
    irrelevant = frozenset() if section == "dataset" else _irrelevant_of(section, None)
    return rest.partition(".")[0] not in irrelevant


def data_signature(config: Mapping[str, Any], working_dir: Path) -> str:
    """Hash of what decides how the dataset packs, to tell whether a stored density still holds.

    Covers the `dataset` and `tokenizer` sections, and size and modification time of every local file that
    they name. A dataset on the Hugging Face hub is covered by its name alone.

    Args:
        config: the config, resolved, as plain containers.
        working_dir: where relative paths in it resolve.
    """
    files: dict[str, Any] = {}
    for named in (*data_files(config, working_dir), *tokenizer_files(config, working_dir)):
        for file in named.files():
            status = file.stat()
            # Two runs may name one file by paths of their own, such as run1/../data and run2/../data.
            files[str(file.resolve())] = [status.st_size, status.st_mtime_ns]
    sections = {"dataset": config.get("dataset"), "tokenizer": config.get("tokenizer")}
    return _hash({**sections, "files": files})


def data_bytes(config: Mapping[str, Any], working_dir: Path) -> int:
    """Size of all local files that the `dataset` section names; 0 for a dataset on the hub.

    Args:
        config: the config, resolved, as plain containers.
        working_dir: where relative paths in it resolve.
    """
    return sum(file.stat().st_size for named in data_files(config, working_dir) for file in named.files())


def _is_irrelevant(top_level_key: str) -> bool:
    return top_level_key in IRRELEVANT["top level"] or top_level_key.startswith(_IRRELEVANT_PREFIX)


def _irrelevant_of(section: str, value: Any) -> frozenset[str]:
    if section.endswith("checkpointer"):
        return IRRELEVANT["checkpointer"]
    if section == "dataset":
        entries = value if isinstance(value, list) else [value]
        packed = all(isinstance(entry, Mapping) and entry.get("packed") is True for entry in entries)
        return IRRELEVANT["dataset"] if packed else frozenset()
    return IRRELEVANT[section] if section in ("model", "optimizer") else frozenset()


def _without(value: Any, keys: frozenset[str]) -> Any:
    if isinstance(value, Mapping):
        return {key: item for key, item in value.items() if key not in keys}
    if isinstance(value, list):
        return [_without(item, keys) for item in value]
    return value


def _hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(_canonical(content)).encode()).hexdigest()


def _canonical(value: Any) -> Any:
    """`value` in a form whose JSON doesn't depend on the order of keys, and with keys of any type."""
    if isinstance(value, Mapping):
        return {"mapping": sorted([repr(key), _canonical(item)] for key, item in value.items())}
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    return value if value is None or isinstance(value, (str, int, float, bool)) else repr(value)
