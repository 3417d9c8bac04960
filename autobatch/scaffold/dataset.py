"""`--data`: a file, a directory of files, or a dataset of the Hugging Face hub, as a `dataset` section says it."""

from __future__ import annotations

import csv
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autobatch.edits.yaml_format import Value
from autobatch.errors import UsageError
from autobatch.runs import torchtune_source
from autobatch.scaffold.draft import Draft, Key
from autobatch.scaffold.places import seen_from

#: Suffix -> builder of Hugging Face datasets.
_BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}

#: Columns that torchtune's builders read (torchtune 0.6.1, torchtune/datasets); renamed by `column_map`.
_COLUMNS = {
    "instruct_dataset": {"input", "output"},
    "alpaca_dataset": {"instruction", "output"},
    "alpaca_cleaned_dataset": {"instruction", "output"},
    "grammar_dataset": {"input", "output"},
    "samsum_dataset": {"dialogue", "summary"},
}


@dataclass(frozen=True)
class Data:
    """What `--data` names.

    Attributes:
        builder: ``json``, ``csv`` or ``parquet``; None for a dataset of the hub.
        written: path as seen from the run directory, or name on the hub.
        is_directory: whether it is a directory of files.
        path: of the file or directory; None for a dataset of the hub.
    """

    builder: str | None
    written: str
    is_directory: bool = False
    path: Path | None = None


def find_data(given: str, run_dir: Path, cwd: Path) -> Data:
    """What `given` names: a path of the user's first, else a dataset of the hub.

    Raises:
        UsageError: a kind of file that torchtune's datasets aren't read from, or neither path nor name.
    """
    path = cwd / Path(given).expanduser()
    written = seen_from(run_dir, given, cwd)
    if path.is_dir():
        return Data(_builder_of_directory(path), written, True, path)
    if path.suffix in _BUILDERS:
        return Data(_BUILDERS[path.suffix], written, False, path)
    if path.exists():
        raise UsageError(
            f"--data {given}: a dataset is read from {_kinds()}, and this is {path.suffix or 'of no'} format\n"
            "    convert it, or name its builder: dataset.source=... dataset.data_files=..."
        )
    if given.startswith(("/", ".", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", given):
        raise UsageError(f"--data {given}: no such directory, and its name doesn't end in {_kinds()}")
    return Data(None, given)


def set_data(draft: Draft, data: Data) -> None:
    """Lets the config's dataset read `data`.

    Raises:
        UsageError: the dataset can't be told where to read from.
    """
    section = draft.config.get("dataset")
    if not isinstance(section, Mapping):
        what = "is a list of datasets" if isinstance(section, list) else "isn't a section"
        raise UsageError(
            f"--data: {draft.config.where('dataset')}: dataset {what}: set the files in it by hand"
        )
    component = str(section.get("_component_") or "")
    if torchtune_source.takes(component, "source") is False:
        raise UsageError(
            f"--data: {draft.config.where('dataset')}: {component} takes no source\n    "
            "choose another: dataset=torchtune.datasets.instruct_dataset reads the columns input and output"
        )
    if data.builder is None:
        draft.notes.append(f"{data.written} is no file here: taken as a dataset of the Hugging Face hub")
        _clear(draft, "data_files", "data_dir")
        draft.set({("dataset", "source"): data.written})
        return
    place = _place(draft, data)
    key, other = ("data_dir", "data_files") if data.is_directory else ("data_files", "data_dir")
    _clear(draft, other)
    values: dict[Key, Value] = {("dataset", "source"): data.builder, ("dataset", key): place}
    # A local file or directory has this split alone; the config's own may be another dataset's.
    if not str(section.get("split", "")).startswith("train"):
        values["dataset", "split"] = "train"
    draft.set(values)


def missing_columns(draft: Draft, data: Data) -> str | None:
    """What to say when the file's first row lacks a column that the dataset's builder reads."""
    section = draft.config.get("dataset")
    if data.path is None or not isinstance(section, Mapping):
        return None
    component = str(section.get("_component_") or "").rpartition(".")[2]
    renamed = section.get("column_map")
    wanted = {
        (renamed if isinstance(renamed, Mapping) else {}).get(c, c) for c in _COLUMNS.get(component, ())
    }
    there = _columns(data.path)
    if there is None or wanted <= there:
        return None
    return (
        f"{data.path}: has the columns {', '.join(sorted(there))}; {component} reads {', '.join(sorted(wanted))}: "
        "choose another with dataset=torchtune.datasets.NAME, or map them with dataset.column_map.NAME=COLUMN"
    )


def _builder_of_directory(path: Path) -> str:
    found = {_BUILDERS[file.suffix] for file in path.rglob("*") if file.suffix in _BUILDERS}
    if len(found) == 1:
        return found.pop()
    what = f"holds {' and '.join(sorted(found))} files" if found else f"holds no {_kinds()}"
    raise UsageError(f"--data {path}: {what}: name one file, or a directory with files of one kind")


def _kinds() -> str:
    return ", ".join(_BUILDERS)


def _clear(draft: Draft, *names: str) -> None:
    for name in names:
        draft.remove(("dataset", name))


def _place(draft: Draft, data: Data) -> str:
    """Where the data is, through the variables `input_dir` and `dataset_label` where the config uses them."""
    written = draft.written()
    dataset = written.get("dataset")
    uses = str([dataset.get("data_files"), dataset.get("data_dir")]) if isinstance(dataset, Mapping) else ""
    if not all(
        isinstance(written.get(name), str) and f"${{{name}}}" in uses
        for name in ("input_dir", "dataset_label")
    ):
        return data.written
    path = Path(data.written)
    suffix = "" if data.is_directory else path.suffix
    draft.set({("input_dir",): str(path.parent), ("dataset_label",): path.name.removesuffix(suffix)})
    return f"${{input_dir}}/${{dataset_label}}{suffix}"


def _columns(path: Path) -> set[str] | None:
    """Columns of the first row; None where they can't be told at once."""
    try:
        with path.open(encoding="utf-8") as file:
            if path.suffix == ".csv":
                return set(next(csv.reader(file), []))
            row: Any = _first_row(file.read(1 << 20))
    except (OSError, ValueError, csv.Error):
        return None
    return set(row) if isinstance(row, dict) else None


def _first_row(text: str) -> Any:
    """The first object of a JSON array or of JSON lines."""
    start = "".join(itertools.takewhile(lambda c: c.isspace() or c == "[", text))
    return json.JSONDecoder().raw_decode(text[len(start) :])[0]
