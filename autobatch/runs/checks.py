"""What must hold of a config before it is worth a job: each check takes values out of it, or says why not.

Whatever torchtune itself refuses with a clear message at once is left to it; checked here is what would
cost a job in the queue, or give an answer that doesn't hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autobatch.records import PackingMode
from autobatch.runs import data_files, torchtune_source
from autobatch.runs.config import RunConfig
from autobatch.runs.findings import Findings
from autobatch.runs.interpolation import Unresolved
from autobatch.runs.recipes import Recipe

# Source: torchtune/training/precision.py, PRECISION_STR_TO_DTYPE; every recipe refuses fp16.
_DTYPES = ("bf16", "fp32", "fp64")
_DEVICES = ("cuda", "cpu")


def positive_integer(config: RunConfig, key: str, findings: Findings, default: int | None = None) -> int:
    """The value of `key`; 1 when it isn't a positive integer (the problem is in `findings`)."""
    value = config.get(key)
    if isinstance(value, Unresolved):
        return 1
    if value is None and default is not None:
        return default
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    where = config.where(key)
    if value is None:
        findings.problem(f"no {key}", where, f"add the line `{key}: 1`")
    elif isinstance(value, str) and value.strip().isdigit():
        findings.problem(f"{key} is the string {value!r}", where, f"write {value.strip()} without quotes")
    else:
        findings.problem(f"{key} is {value!r}, not a whole number of at least 1", where, f"write `{key}: 1`")
    return 1


def check_sections(config: RunConfig, findings: Findings) -> None:
    """model, tokenizer and dataset are there, and every torchtune component exists."""
    for section in ("model", "tokenizer", "dataset"):
        value = config.get(section)
        if isinstance(value, Unresolved):
            continue
        entries = value if isinstance(value, list) and section == "dataset" and value else [value]
        for index, entry in enumerate(entries):
            key = f"{section}.{index}" if isinstance(value, list) else section
            if isinstance(entry, Unresolved):
                continue
            if value is None:
                what, remedy = f"no {section} section", f"add `{section}:` with a `_component_`"
            elif not isinstance(entry, Mapping):
                what, remedy = f"{key} is {entry!r}, not a section", "give it a `_component_` and arguments"
            elif not entry.get("_component_"):
                what, remedy = f"{key} has no `_component_`", "add `_component_: dotted.path.of.the.builder`"
            else:
                continue
            findings.problem(what, config.where(key), remedy)
    for key, component in _components(config.values, ""):
        if torchtune_source.is_missing(component):
            close = torchtune_source.similar(component)
            findings.problem(
                f"{key}: the installed torchtune has no {component}",
                config.where(key),
                f"did you mean {' or '.join(close)}?" if close else "correct the path, or update torchtune",
            )


def _components(value: Any, path: str) -> Iterator[tuple[str, str]]:
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, item in pairs:
        below = f"{path}.{key}" if path else str(key)
        if key == "_component_" and isinstance(item, str):
            yield below, item
        elif isinstance(item, (Mapping, list)):
            yield from _components(item, below)


def check_device(config: RunConfig, findings: Findings) -> tuple[str, int, str]:
    """Kind of device (``cuda``, ``cpu``), its index and the dtype that the config trains with."""
    device = config.get("device")
    kind, _, index = str(device).partition(":")
    # Not isdigit, which takes `²` for one.
    numbered = re.fullmatch(r"[0-9]{1,4}", index) is not None
    known = kind in _DEVICES and (numbered or not index)
    if not isinstance(device, Unresolved) and not known:
        findings.problem(
            "no device" if device is None else f"device is {device!r}; autobatch measures cuda and cpu",
            config.where("device"),
            "write `device: cuda`",
        )
    dtype = config.get("dtype")
    if dtype == "fp16":
        findings.problem(
            "dtype is fp16, which torchtune's recipes refuse", config.where("dtype"), "write `dtype: bf16`"
        )
    elif not isinstance(dtype, Unresolved) and dtype not in (*_DTYPES, None):
        findings.problem(
            f"dtype is {dtype!r}; torchtune knows {', '.join(_DTYPES)}",
            config.where("dtype"),
            "write `dtype: bf16`",
        )
    return kind, int(index) if numbered else 0, str(dtype or "fp32")


def check_packing(
    config: RunConfig, mode: PackingMode, recipe: Recipe | None, device: str, findings: Findings
) -> bool:
    """Whether the config packs; problems when it can't be probed in `mode`."""
    dataset = config.get("dataset")
    entries = dataset if isinstance(dataset, list) else [dataset]
    keys = [f"dataset.{i}" for i in range(len(entries))] if isinstance(dataset, list) else ["dataset"]
    sections = {k: e for k, e in zip(keys, entries, strict=True) if isinstance(e, Mapping)}
    packed = {key: _packed(config, key, section, findings) for key, section in sections.items()}
    says_packed = bool(packed) and all(packed.values())
    if len(sections) < len(entries) or not sections:
        return says_packed  # check_sections has said so
    refusing = {k: why for k, s in sections.items() if (why := why_it_cannot_pack(s, recipe))}
    for key, why in refusing.items():
        if mode is not PackingMode.UNPACKED:
            findings.problem(
                why,
                config.where(f"{key}.packed"),
                "probe with --unpacked: batches of the longest examples"
                + (f", and set {key}.packed: False, for training would fail" if packed[key] else ""),
            )
        elif packed[key]:
            findings.problem(
                f"{why}, so that training would fail", config.where(f"{key}.packed"), "set packed: False"
            )
    if refusing:
        return says_packed
    if says_packed and mode is PackingMode.UNPACKED:
        where = config.where(f"{keys[0]}.packed")
        findings.note(f"{where}: packed is True, but --unpacked probes one example a row")
        return True
    _check_packed_everywhere(config, mode, packed, findings)
    if says_packed or mode is PackingMode.PACK:
        _check_packable(config, device, findings)
    return says_packed


def check_optimizer(config: RunConfig, device: str, findings: Findings) -> None:
    """A note where the optimizer keeps its state outside of what is measured."""
    component = str(config.get("optimizer._component_") or "")
    if device == "cuda" and "Paged" in component.rpartition(".")[2]:
        findings.note(
            f"{config.where('optimizer._component_')}: {component.rpartition('.')[2]} keeps its state in unified "
            "memory, which PyTorch's allocator doesn't count; --metric device does while it is on the card"
        )


def _packed(config: RunConfig, key: str, section: Mapping[str, Any], findings: Findings) -> bool:
    value = section.get("packed")
    if value is not None and not isinstance(value, (bool, Unresolved)):
        findings.problem(
            f"{key}.packed is {value!r}, neither True nor False",
            config.where(f"{key}.packed"),
            "write `packed: True` without quotes",
        )
    return bool(value) if not isinstance(value, Unresolved) else True


def why_it_cannot_pack(section: Mapping[str, Any], recipe: Recipe | None) -> str:
    """Why a dataset section can't pack, in words; empty when it can, as far as is known."""
    component = str(section.get("_component_") or "")
    if recipe and "dpo" in recipe.name.split("_"):
        return f"{recipe.name} doesn't pack: its rows are pairs of a chosen and a rejected answer"
    if torchtune_source.can_pack(component) is False:
        return f"{component} can't pack"
    return ""


def _check_packed_everywhere(
    config: RunConfig, mode: PackingMode, packed: dict[str, bool], findings: Findings
) -> None:
    unpacked = [key for key, value in packed.items() if not value]
    if not unpacked:
        return
    where = config.where(f"{unpacked[0]}.packed")
    if mode is PackingMode.PACK and isinstance(config.get("dataset"), list):
        findings.problem(
            "--pack can't set packed in a list of datasets", where, "write `packed: True` into each entry"
        )
    elif mode is PackingMode.PACK:
        findings.note(f"{where}: packed isn't True there; --pack sets it when the probe is done")
    elif len(unpacked) < len(packed):
        findings.problem(
            f"{', '.join(unpacked)}: not packed, beside datasets that are; torchtune refuses such a mix",
            where,
            "set packed to the same value in every entry of dataset",
        )
    elif mode is PackingMode.CONFIG:
        needs = " and needs tokenizer.max_seq_len" if config.get("tokenizer.max_seq_len") is None else ""
        findings.problem(
            f"{unpacked[0]}.packed isn't True",
            where,
            f"--pack sets it{needs}, for training too; --unpacked probes with batches of the longest "
            "examples, the worst case",
        )


def _check_packable(config: RunConfig, device: str, findings: Findings) -> None:
    """The tokenizer has a max_seq_len, and the model takes packed rows."""
    length = config.get("tokenizer.max_seq_len")
    if isinstance(config.get("tokenizer"), Mapping) and not isinstance(length, Unresolved):
        valid = isinstance(length, int) and not isinstance(length, bool) and length > 0
        if not valid:
            written = "null" if length is None else repr(length)
            findings.problem(
                f"packing needs tokenizer.max_seq_len, and it is {written}",
                config.where("tokenizer.max_seq_len"),
                "set tokenizer.max_seq_len to the tokens of a packed row, such as 2048 "
                "(torchtune's configs ship with null)",
            )
    if refuses_packs(config, device):
        findings.problem(
            "gemma2 models refuse packed datasets on CUDA",
            config.where("model._component_"),
            "set dataset.packed: False and probe with --unpacked",
        )


def refuses_packs(config: RunConfig, device: str) -> bool:
    """Whether the model refuses packed rows on this kind of device."""
    # Source: torchtune/models/gemma2/_attention.py raises on block masks, which packing uses on CUDA.
    return device == "cuda" and str(config.get("model._component_")).startswith("torchtune.models.gemma2.")


def check_files(config: RunConfig, working_dir: Path, load_weights: bool, findings: Findings) -> None:
    """The local files that the config names are there."""
    of_dataset = data_files.data_files(config.values, working_dir)
    for named in (*data_files.tokenizer_files(config.values, working_dir), *of_dataset):
        if not named.exists():
            _report_missing(config, named, findings)
    for named in filter(data_files.is_taken_for_a_pattern, of_dataset):
        findings.problem(
            f"{named.key}: {named.path} is there, but Hugging Face datasets takes its *, ? or [ for a pattern",
            config.where(named.key),
            "rename the directory",
        )
    _check_file_builders(config, findings)
    missing = [f for f in data_files.checkpoint_files(config.values, working_dir) if not f.exists()]
    for named in missing if load_weights else []:
        _report_missing(config, named, findings)
    if missing and not load_weights:
        findings.note(
            f"{config.where(missing[0].key)}: {missing[0].path} isn't there; the probe goes on with zeros of "
            "the same shapes, training will need it"
        )


def _check_file_builders(config: RunConfig, findings: Findings) -> None:
    dataset = config.get("dataset")
    for index, entry in enumerate(dataset if isinstance(dataset, list) else [dataset]):
        if not isinstance(entry, Mapping) or entry.get("source") not in data_files.FILE_BUILDERS:
            continue
        if entry.get("data_files") is None and entry.get("data_dir") is None:
            key = f"dataset.{index}" if isinstance(dataset, list) else "dataset"
            findings.problem(
                f"{key} reads {entry['source']} files, and doesn't say which",
                config.where(f"{key}.source"),
                "add data_files or data_dir",
            )


def _report_missing(config: RunConfig, named: data_files.NamedFile, findings: Findings) -> None:
    hint = "correct the path, or put it there"
    if named.path.is_dir():
        what = f"{named.path} holds no files"
    elif named.is_pattern:
        what = f"nothing matches {named.path}"
    else:
        what = f"{named.path} doesn't exist"
    if not Path(named.written).is_absolute():
        hint += "; a relative path is relative to the directory in which the training job runs"
    if named.written.startswith("~") and str(named.path).endswith(named.written):
        hint = "write the home directory out: `~` isn't expanded here"
    findings.problem(f"{named.key}: {what}", config.where(named.key), hint)
