"""Reading `probe/result.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from autobatch.errors import UsageError
from autobatch.records import SCHEMA_VERSION, ProbeResult, from_json

#: Name of the file in `probe/`.
RESULT = "result.json"


def load_result(path: Path) -> ProbeResult:
    """The result on file.

    Raises:
        UsageError: there is none, it is damaged, or a newer autobatch wrote it.
    """
    try:
        data = load_json(path)
        _refuse_newer(data, path)
        return from_json(ProbeResult, data)
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file: the run wasn't probed yet; call autobatch probe") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: can't be read: {error}; probe again with --force") from error


def find_result(path: Path) -> ProbeResult | None:
    """The result on file; None when there is none or it is damaged.

    Raises:
        UsageError: a newer autobatch wrote it, which this one must not overwrite.
    """
    try:
        data = load_json(path)
    except (OSError, ValueError):
        return None
    _refuse_newer(data, path)
    try:
        return from_json(ProbeResult, data)
    except ValueError:
        return None


def load_json(path: Path) -> Any:
    """What a JSON file of `probe/` holds.

    Raises:
        OSError: it can't be read.
        ValueError: it isn't JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _refuse_newer(data: Any, path: Path) -> None:
    version = data.get("schema_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise UsageError(
            f"{path}: schema_version {version} was written by a newer autobatch, this one knows up to "
            f"{SCHEMA_VERSION}: upgrade autobatch, or move the file away"
        )
