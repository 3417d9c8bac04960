"""Paths as the run will need them: training runs in the run directory, the user stands elsewhere."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any

from autobatch.edits.yaml_format import Value
from autobatch.scaffold.draft import Draft, Key


def seen_from(run_dir: Path, given: str, cwd: Path) -> str:
    """`given`, a path relative to `cwd`, as a path relative to `run_dir`; an absolute one stays as it is.

    Links on the way are resolved, since ``..`` leads out of where a link leads to; the last part isn't.
    """
    path = Path(given).expanduser()
    if path.is_absolute():
        return str(path)
    inside, last = (path, "") if path.name == ".." else (path.parent, path.name)
    target = (cwd / inside).resolve() / last
    relative = os.path.relpath(target, run_dir.resolve())
    return relative if relative.startswith("..") else f"./{relative}"


def set_model_dir(draft: Draft, directory: str) -> None:
    """Lets everything that lay under the config's checkpoint directory lie under `directory`.

    A config with a variable `model_dir` has that set. In others, it is each path of the tokenizer and of the
    checkpointers that begins with `checkpointer.checkpoint_dir`.
    """
    written = draft.written()
    if isinstance(written.get("model_dir"), str):
        draft.set({("model_dir",): directory})
        return
    old = str(draft.config.get("checkpointer.checkpoint_dir") or "").rstrip("/")
    values: dict[Key, Value] = {}
    left = []
    for section in written:
        if section != "tokenizer" and not section.endswith("checkpointer"):
            continue
        for key, path in _paths(draft.config.get(section), (section,)):
            if old and (path.rstrip("/") == old or path.startswith(f"{old}/")):
                rest = path[len(old) :].strip("/")
                values[key] = str(PurePosixPath(directory) / rest)
            elif key[-1] != "output_dir":
                left.append(f"{'.'.join(key)} ({path})")
    draft.set(values)
    if left:
        draft.notes.append(f"--model-dir leaves what lies elsewhere: {', '.join(left)}")


def set_output_dir(draft: Draft, directory: str) -> None:
    """Sets the directory that checkpoints and logs go to."""
    if isinstance(draft.written().get("output_dir"), str):
        draft.set({("output_dir",): directory})
        return
    draft.set({("checkpointer", "output_dir"): directory})
    if draft.config.get("metric_logger.log_dir") is not None:
        draft.set({("metric_logger", "log_dir"): f"{directory}/logs"})


def _paths(value: Any, key: Key) -> list[tuple[Key, str]]:
    """The values below `value` that are written as paths; names of files in a list aren't."""
    if isinstance(value, dict):
        return [found for name, item in value.items() for found in _paths(item, (*key, str(name)))]
    is_path = isinstance(value, str) and "/" in value and key[-1] != "_component_"
    return [(key, value)] if is_path else []
