"""`split` and `field` of a dataset that is read from local files.

The planning document calls `split` with local files an error and wants `field` in its place. That isn't how
Hugging Face datasets reads files (5.2, tried): a file without further ado is the split `train`, which
torchtune's builders ask for, and `field`, of JSON alone, names the key below which a file's examples stand.
Checked is what does fail, or reads something else than was meant.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autobatch.runs import data_files
from autobatch.validation.findings import Collector
from autobatch.validation.subject import Subject

#: Bytes of a JSON file that is still read whole to see what it holds.
_MOST_BYTES = 20_000_000


def check_local_data(subject: Subject, c: Collector) -> None:
    """`split` is one that the files make, `field` one that they have."""
    dataset = subject.config.get("dataset")
    entries = dataset if isinstance(dataset, list) else [dataset]
    for index, entry in enumerate(entries):
        if isinstance(entry, Mapping) and entry.get("source") in data_files.FILE_BUILDERS:
            key = f"dataset.{index}" if isinstance(dataset, list) else "dataset"
            _check_split(subject, key, entry, c)
            _check_field(subject, key, entry, c)


def _check_split(subject: Subject, key: str, entry: Mapping[str, Any], c: Collector) -> None:
    split, files = entry.get("split"), entry.get("data_files")
    if not isinstance(split, str) or not isinstance(files, (str, list, Mapping)):
        return  # what data_dir alone holds is split by the files' names
    made = [str(name) for name in files] if isinstance(files, Mapping) else ["train"]
    asked = [re.split(r"[\[(]", part.strip(), maxsplit=1)[0] for part in split.split("+")]
    missing = [name for name in asked if name and name != "all" and name not in made]
    if missing:
        c.error(
            "split",
            f"{key}.split is {split!r}, and data_files makes only {', '.join(made)}",
            subject.config.where(f"{key}.split"),
            f"write split: {made[0]}, or data_files as a mapping {{{missing[0]}: FILE}}",
        )


def _check_field(subject: Subject, key: str, entry: Mapping[str, Any], c: Collector) -> None:
    field, source = entry.get("field"), entry["source"]
    where = subject.config.where(f"{key}.field" if field is not None else f"{key}.source")
    if source != "json":
        if field is not None:
            c.error(
                "field",
                f"{key}.field is {field!r}, and only JSON files have fields, not {source}",
                where,
                "remove it; to choose some of the rows there is split: train[:10%]",
            )
        return
    named = data_files.data_files({"dataset": dict(entry)}, subject.working_dir)
    first = next((file for name in named for file in name.files()), None)
    keys = _keys_of(first) if first is not None and first.is_file() else None
    if first is None or keys is None:
        return
    if field is not None and field not in keys:
        holds = f"the keys {', '.join(keys)}" if keys else "a list or lines of examples"
        c.error(
            "field",
            f"{key}.field is {field!r}, and {first.name} holds {holds}",
            where,
            f"write field: {keys[0]}" if keys else "remove field",
        )
    elif field is None and len(keys) > 0:
        c.warning(
            "field",
            f"{first.name} is a single JSON object, read as one example with the columns {', '.join(keys)}",
            where,
            f"if the examples stand below one of these keys: field: {keys[0]}",
        )


def _keys_of(file: Path) -> tuple[str, ...] | None:
    """Keys of a file that is one JSON object; empty for a list or lines; None when that isn't known."""
    status = file.stat()
    if status.st_size > _MOST_BYTES:
        return None
    return _read_keys(file.resolve(), status.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _read_keys(file: Path, mtime_ns: int) -> tuple[str, ...] | None:
    """A file that many runs name is read once; `mtime_ns` tells its states apart."""
    try:
        with file.open(encoding="utf-8") as opened:
            beginning = opened.read(4096).lstrip()
            if not beginning.startswith("{"):
                return ()
            text = (beginning + opened.read()).rstrip()
        whole, end = json.JSONDecoder().raw_decode(text)
    except (OSError, ValueError, RecursionError):
        return None
    return tuple(whole) if end == len(text) else ()
