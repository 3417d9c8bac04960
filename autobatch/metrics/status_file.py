"""Reads `runs_status.yaml`; `autobatch.edits.status_yaml` writes it."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import yaml

from autobatch.edits.files import read_text
from autobatch.edits.status_nodes import NAME, RUNS
from autobatch.edits.yaml_nodes import LOADER, Use, compose
from autobatch.errors import UsageError

STATUS_NAME = "runs_status.yaml"


def read_status(path: Path) -> dict[str, dict[str, Any]]:
    """The entries of a status file by run name, as plain data; empty when there is no file.

    Times that are written without quotes become text, as those in quotes are.

    Raises:
        UsageError: it can't be read, or isn't YAML of that shape; with file and line.
    """
    if not path.exists():
        return {}
    text = read_text(path).removeprefix("\ufeff")
    root = compose(text, str(path))
    lines = _entry_lines(root, path)
    try:
        document = yaml.load(text, Loader=LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise UsageError(
            f"{path}:{mark.line + 1 if mark else 1}: {error.problem}: correct the file"
        ) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"{path}: can't be loaded: {error}: correct the file") from error
    entries: dict[str, dict[str, Any]] = {}
    for line, entry in zip(lines, (document or {}).get(RUNS) or [], strict=False):
        run = str(entry.get(NAME)) if isinstance(entry, dict) and entry.get(NAME) is not None else None
        if run is None:
            raise UsageError(f"{path}:{line}: this entry has no name: begin it with `- name: RUN`")
        if run in entries:
            raise UsageError(f"{path}:{line}: a second entry is called {run}: keep one")
        entries[run] = _plain(entry, {})
    return entries


def _entry_lines(root: Use | None, path: Path) -> list[int]:
    """Lines of the entries, once the shape is right."""
    if root is None or (root.node.kind == "scalar" and not root.node.text):
        return []
    found = root.node.entries(RUNS) if root.node.kind == "mapping" else None
    if found is None:
        raise UsageError(f"{path}:{root.line}: holds no mapping: write it as `runs:` and a list below")
    if not found:
        return []
    runs = found[-1][1]
    if runs.node.kind == "scalar" and runs.node.text in ("", "null", "~"):
        return []
    if runs.node.kind != "sequence":
        raise UsageError(f"{path}:{runs.line}: runs isn't a list: write an entry a run, `- name: ...`")
    return [item.line for item in runs.node.children]


def _plain(value: Any, known: dict[int, Any]) -> Any:
    """`value` without dates; what an alias shares is shared in the copy, what contains itself becomes None."""
    if isinstance(value, date):
        return value.isoformat()
    if not isinstance(value, (dict, list)):
        return value
    if id(value) not in known:
        known[id(value)] = None
        if isinstance(value, dict):
            known[id(value)] = {str(key): _plain(item, known) for key, item in value.items()}
        else:
            known[id(value)] = [_plain(item, known) for item in value]
    return known[id(value)]
