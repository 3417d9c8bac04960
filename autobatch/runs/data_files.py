"""The local files that a config names: data, tokenizer, checkpoint.

A relative path is relative to the directory in which the training job runs. What lies on the Hugging Face
hub, behind a URL or in a component's own defaults isn't a local file and isn't listed.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Builders of Hugging Face datasets that read files named in data_files or data_dir (datasets 5.2,
#: packaged_modules/__init__.py). No set: what a config has for a source may be a list.
FILE_BUILDERS = (
    "arrow", "audiofolder", "csv", "hdf5", "imagefolder", "json", "pandas", "parquet", "text", "videofolder",
    "webdataset", "xml",
)  # fmt: skip
_GLOB_CHARACTERS = frozenset("*?[")


@dataclass(frozen=True)
class NamedFile:
    """A file, directory or glob pattern that the config names.

    Attributes:
        key: dotted path of the key that names it.
        written: as it stands in the config.
        path: absolute.
        is_pattern: whether `path` is a glob pattern.
    """

    key: str
    written: str
    path: Path
    is_pattern: bool = False

    def exists(self) -> bool:
        """Whether it is there; a pattern must match something, a directory hold a file."""
        return next(self.files(), None) is not None

    def files(self) -> Iterator[Path]:
        """The regular files that it stands for, sorted within each directory."""
        if self.is_pattern:
            # Path.glob takes no absolute pattern.
            found = glob.glob(str(self.path), recursive=True)  # noqa: PTH207
            matches = [Path(match) for match in sorted(found)]
        else:
            matches = [self.path]
        for match in matches:
            if match.is_dir():
                for directory, subdirectories, names in os.walk(match):
                    subdirectories.sort()
                    yield from (Path(directory, name) for name in sorted(names))
            elif match.exists():
                yield match


def is_taken_for_a_pattern(named: NamedFile) -> bool:
    """Whether Hugging Face datasets doesn't find a file that is there: it expands the directory's name, too.

    Source: datasets 5.2, data_files.py, resolve_pattern: fsspec's glob, on the working directory and the path.
    """
    if named.is_pattern or _GLOB_CHARACTERS.isdisjoint(str(named.path)) or not named.exists():
        return False
    from fsspec.implementations.local import LocalFileSystem

    try:
        return not LocalFileSystem().glob(str(named.path))
    except ValueError:
        return True


def data_files(config: Mapping[str, Any], working_dir: Path) -> list[NamedFile]:
    """What the `dataset` section (one dataset or a list of them) names."""
    dataset = config.get("dataset")
    if isinstance(dataset, list):
        entries = [(f"dataset.{index}", entry) for index, entry in enumerate(dataset)]
    else:
        entries = [("dataset", dataset)]
    return [
        named
        for key, entry in entries
        if isinstance(entry, Mapping)
        for named in _files_of_dataset(key, entry, working_dir)
    ]


def _files_of_dataset(key: str, entry: Mapping[str, Any], working_dir: Path) -> Iterator[NamedFile]:
    source = entry.get("source")
    base = working_dir
    # Relative to what, is known of file builders and local directories only: with any other source
    # data_files may be files of a repository on the hub.
    anchored = source in FILE_BUILDERS
    if isinstance(source, str) and source.startswith(("/", "./", "../", "~")):
        base = _resolve(source, working_dir)
        anchored = True
        yield NamedFile(f"{key}.source", source, base)

    def is_listed(written: Any) -> bool:
        return isinstance(written, str) and "://" not in written and (anchored or written.startswith("/"))

    data_dir = entry.get("data_dir")
    if isinstance(data_dir, str) and is_listed(data_dir):
        base = _resolve(data_dir, base)
        if entry.get("data_files") is None:
            yield NamedFile(f"{key}.data_dir", data_dir, base)
    for written in filter(is_listed, _strings(entry.get("data_files"))):
        pattern = not _GLOB_CHARACTERS.isdisjoint(written)
        yield NamedFile(f"{key}.data_files", written, _resolve(written, base), pattern)


def tokenizer_files(config: Mapping[str, Any], working_dir: Path) -> list[NamedFile]:
    """What the `tokenizer` section names.

    A component that isn't torchtune's may take a `path` that is no file, such as a name on the hub: of it
    only absolute paths are listed.
    """
    tokenizer = config.get("tokenizer")
    if not isinstance(tokenizer, Mapping):
        return []
    own = str(tokenizer.get("_component_")).startswith("torchtune.")
    found = []
    for key, written in tokenizer.items():
        # path, special_tokens_path, vocab_path, merges_file, merges_path: names vary by model.
        names_file = str(key) == "path" or str(key).endswith(("_path", "_file"))
        if names_file and isinstance(written, str) and (own or written.startswith("/")):
            # No `~` here: tokenizers open the path as it is.
            found.append(NamedFile(f"tokenizer.{key}", written, working_dir / written))
    return found


def checkpoint_files(config: Mapping[str, Any], working_dir: Path) -> list[NamedFile]:
    """The weights that the sections named `...checkpointer` read."""
    found: list[NamedFile] = []
    for section, values in config.items():
        if not str(section).endswith("checkpointer") or not isinstance(values, Mapping):
            continue
        directory = values.get("checkpoint_dir")
        if not isinstance(directory, str):
            continue
        base = working_dir / directory
        names = _checkpoint_names(values.get("checkpoint_files"))
        if base.is_dir():
            found += [NamedFile(f"{section}.checkpoint_files", name, base / name) for name in names]
        else:
            found.append(NamedFile(f"{section}.checkpoint_dir", directory, base))
    return found


def _checkpoint_names(listed: Any) -> list[str]:
    """File names of `checkpoint_files`: a list, or `filename_format` with `max_filename`.

    Source: torchtune/training/checkpointing/_utils.py, FormattedCheckpointFiles.
    """
    if not isinstance(listed, Mapping):
        return list(_strings(listed))
    pattern, last = str(listed.get("filename_format", "")), str(listed.get("max_filename", ""))
    # A width, as in `{:9999999999}`, could ask for more memory than there is.
    if not last.isdecimal() or ":" in pattern:
        return []
    try:
        return [pattern.format(str(i + 1).zfill(len(last)), last) for i in range(min(int(last), 1000))]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        return []


def _resolve(written: str, base: Path) -> Path:
    """`base / written`, with `~` as Hugging Face datasets expands it."""
    # Path.expanduser raises where there is no such user; there the path is simply missing.
    return base / (os.path.expanduser(written) if written.startswith("~") else written)  # noqa: PTH111


def _strings(value: Any) -> Iterator[str]:
    """The strings of a string, or of a list or mapping of strings or lists."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
