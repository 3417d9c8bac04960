"""Packing the dataset once, through the config's own dataset component, in a process of its own.

The rows are stored for the trials (`StoredRows` reads them) and the density is counted from them.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autobatch.packing.counting import count_packs
from autobatch.packing.density import Pack, blocks_to_sample, density_from_blocks, density_of, least_examples
from autobatch.records import Density, to_json

#: Stored rows: memory doesn't depend on what a row says, so a few are repeated as often as needed.
_STORED_BYTES = 64 * 2**20
_STORED_ROWS = 1024

#: Examples whose length is looked at before a sample is drawn.
_PILOT_EXAMPLES = 50

#: Permissions, path (or nothing) and resident KiB of a mapping in /proc/PID/smaps.
_MAPPING = re.compile(r"^[0-9a-f]+-[0-9a-f]+ (\S+) \S+ \S+ \d+ *(.*)\n(?:\w+: .*\n)*?Rss: +(\d+) kB", re.M)


@dataclass(frozen=True)
class PackSpec:
    """What the packing process needs to know.

    Attributes:
        config: path of the run's config, resolved, as YAML.
        packed: pack, or find the longest example.
        sample: pack only about so many examples.
        rows: where to store rows for the trials; None where only the density is asked for.
        answer: where to write the density, or the error, as JSON.
    """

    config: str
    packed: bool
    sample: int | None
    rows: str | None
    answer: str


class DoesNotPack(Exception):
    """The dataset component accepted ``packed: True`` and returned something else."""


def build(spec: PackSpec) -> None:
    """Write the rows, and ``{"density": ..., "held_bytes": ...}`` or ``{"error": ..., "kind": ...}``.

    `held_bytes` is what the dataset adds to the resident set of the process that trains with it.
    """
    began = time.monotonic()
    try:
        density, rows, held = _packed(spec) if spec.packed else _longest(spec)
        if spec.rows is not None:
            _store(rows, Path(spec.rows))
        answer: dict[str, Any] = {
            "density": to_json(replace(density, seconds=time.monotonic() - began)),
            "held_bytes": max(0, held),
        }
    except Exception as error:
        import traceback

        traceback.print_exc()
        answer = {"error": str(error) or repr(error), "kind": type(error).__name__}
    Path(spec.answer).write_text(json.dumps(answer), encoding="utf-8")


def _packed(spec: PackSpec) -> tuple[Density, list[dict[str, Any]], int]:
    config, tokenizer = _load(spec)
    before = _resident_bytes()
    max_seq_len = int(tokenizer.max_seq_len)
    if spec.sample is not None:
        return _sampled(config, tokenizer, spec.sample, max_seq_len)
    if spec.rows is None:
        counted = count_packs(lambda: _dataset(config, tokenizer, {"packed": True}))
        if counted is not None and counted.packs:
            return counted, [], 0
    dataset = _dataset(config, tokenizer, {"packed": True})
    rows = list(_rows(dataset))
    if not rows:
        raise ValueError("the dataset has no examples")
    held = _resident_bytes() - before
    return density_of([_read_pack(row) for row in rows], max_seq_len), rows, held


def _sampled(
    config: Any, tokenizer: Any, sample: int, max_seq_len: int
) -> tuple[Density, list[dict[str, Any]], int]:
    from torch.utils.data import Subset
    from torchtune.datasets import PackedDataset

    before = _resident_bytes()
    dataset = _dataset(config, tokenizer, {"packed": False})
    first = _sections(config)[0]
    # text_completion_dataset is the one component that splits examples across packs unless told otherwise.
    split = first.get("split_across_pack", "text_completion_dataset" in str(first.get("_component_")))
    unpacked = _resident_bytes()
    if not len(dataset):
        raise ValueError("the dataset has no examples")
    some = range(0, len(dataset), max(1, len(dataset) // _PILOT_EXAMPLES))
    least = least_examples([_length(dataset[index]) for index in some], max_seq_len)
    blocks, rows = [], []
    chosen = blocks_to_sample(len(dataset), sample, least)
    for block in chosen:
        packed = list(
            _rows(PackedDataset(Subset(dataset, block), max_seq_len=max_seq_len, split_across_pack=split))
        )
        blocks.append([_read_pack(row) for row in packed])
        rows.extend(packed)
    packs_held = _resident_bytes() - unpacked
    sampled = sum(len(block) for block in chosen)
    if sampled == len(dataset):
        density = density_of(blocks[0], max_seq_len)
    else:
        density = density_from_blocks(
            blocks, examples=len(dataset), sampled_examples=sampled, max_seq_len=max_seq_len
        )
    return density, rows, unpacked - before + packs_held * density.packs // len(rows)


def _longest(spec: PackSpec) -> tuple[Density, list[dict[str, Any]], int]:
    """The longest example alone: a batch of it is the largest that an unpacked dataset can give."""
    from tqdm import tqdm

    before, dataset, max_seq_len = read_unpacked(spec)
    count = len(dataset)
    sample = blocks_to_sample(count, spec.sample) if spec.sample is not None else [range(count)]
    chosen = [index for block in sample for index in block]
    tokens, longest, row = 0, 0, None
    for index in tqdm(chosen, desc="Packing dataset"):
        candidate = dataset[index]
        length = _length(candidate)
        tokens += length
        if length > longest:
            longest, row = length, candidate
    if row is None:
        raise ValueError("the dataset has no examples")
    density = Density(
        packed=False,
        examples=count,
        packs=count,
        tokens=round(tokens * count / len(chosen)),
        max_seq_len=max_seq_len,
        longest_example=longest,
        sampled_examples=len(chosen) if spec.sample is not None else None,
    )
    return density, [_plain(row)], _resident_bytes() - before


def read_unpacked(spec: PackSpec) -> tuple[int, Any, int | None]:
    """(resident bytes before the dataset was made, the dataset unpacked, the tokenizer's max_seq_len)."""
    config, tokenizer = _load(spec)
    before = _resident_bytes()
    dataset = _dataset(config, tokenizer, {"packed": False} if _accepts_packed(config) else {})
    return before, dataset, getattr(tokenizer, "max_seq_len", None)


def _resident_bytes() -> int:
    """Resident set of this process from /proc/self/smaps (proc(5)), without the code of libraries.

    Training runs much of the same code as packing, and has it in memory without any dataset.
    """
    mappings = _MAPPING.findall(Path("/proc/self/smaps").read_text(encoding="utf-8"))
    libraries = {path for permissions, path, _ in mappings if path.startswith("/") and "x" in permissions}
    return sum(int(kib) * 1024 for _, path, kib in mappings if path not in libraries)


def _load(spec: PackSpec) -> tuple[Any, Any]:
    from omegaconf import OmegaConf
    from torchtune import config as torchtune_config

    config = OmegaConf.load(spec.config)
    return config, torchtune_config.instantiate(config.tokenizer)


def _dataset(config: Any, tokenizer: Any, overrides: dict[str, Any]) -> Any:
    """The dataset as recipes make it: one component, or a list of them concatenated."""
    from omegaconf import OmegaConf
    from torchtune import config as torchtune_config
    from torchtune.datasets import ConcatDataset

    made = [
        torchtune_config.instantiate(OmegaConf.merge(section, overrides), tokenizer)
        for section in _sections(config)
    ]
    return made[0] if len(made) == 1 else ConcatDataset(datasets=made)


def _accepts_packed(config: Any) -> bool:
    return all("packed" in section for section in _sections(config))


def _sections(config: Any) -> list[Any]:
    """The dataset sections: recipes take one, or a list of them."""
    from omegaconf import ListConfig

    return list(config.dataset) if isinstance(config.dataset, ListConfig) else [config.dataset]


def _rows(dataset: Any) -> Iterable[dict[str, Any]]:
    for index in range(len(dataset)):
        row = dataset[index]
        if "seq_lens" not in row or "input_pos" not in row:
            raise DoesNotPack(
                "the dataset component accepts packed: True but doesn't pack: its rows have "
                f"{', '.join(sorted(row))} and no seq_lens"
            )
        yield row


def _read_pack(row: dict[str, Any]) -> Pack:
    """A torchtune pack as integers.

    `seq_lens` always sums to max_seq_len: a padded pack has the padding as one more entry. Its positions go
    on where the last example ended, while those of an example begin at 0. Neither the padding token nor the
    ignored label would tell: both occur in real examples.
    """
    lengths = [int(length) for length in row["seq_lens"]]
    positions = row["input_pos"]
    if len(lengths) > 1 and int(positions[-lengths[-1]]) != 0:
        lengths.pop()
    return Pack(tuple(lengths), continues=int(positions[0]) != 0)


def _length(row: dict[str, Any]) -> int:
    """Tokens of an unpacked row; of a preference pair, the longer of the two."""
    lengths = [len(row[name]) for name in ("tokens", "chosen_input_ids", "rejected_input_ids") if name in row]
    if not lengths:
        raise ValueError(
            f"can't tell the length of a row with {', '.join(sorted(row))}: it has neither tokens nor "
            "chosen_input_ids and rejected_input_ids"
        )
    return max(lengths)


def _plain(value: Any) -> Any:
    """Numpy scalars and arrays as Python's: the rows are stored without pickled classes."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist") and not hasattr(value, "untyped_storage"):
        return value.tolist()
    return value


def _store(rows: Sequence[dict[str, Any]], path: Path) -> None:
    import torch

    one = sum(
        value.numel() * value.element_size() for value in rows[0].values() if isinstance(value, torch.Tensor)
    )
    count = max(1, min(len(rows), _STORED_ROWS, _STORED_BYTES // max(one, 1)))
    torch.save(list(rows[:count]), path)
