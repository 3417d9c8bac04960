"""Records metrics in the experiment's `runs_status.yaml` and in a run's own `run_metrics.yaml`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from autobatch.edits.files import Change, edit_file, read_text
from autobatch.edits.status_yaml import set_run
from autobatch.errors import EditError
from autobatch.metrics.entry import HEADING, RUN_METRICS, planned_entry, run_file_text, status_entry
from autobatch.metrics.run_metrics import RunMetrics
from autobatch.metrics.status_file import STATUS_NAME, read_status
from autobatch.metrics.trained_config import TrainedConfig

__all__ = ["Change", "record_planned", "record_run_file", "record_status"]


def record_status(metrics: RunMetrics, *, dry_run: bool = False) -> Change:
    """Sets the entry of a run in `runs_status.yaml`, in the directory above it.

    Raises:
        EditError: the file can't be edited safely; it is as it was.
    """
    path = metrics.run.parent / STATUS_NAME
    entry = status_entry(metrics, read_status(path).get(metrics.run.name, {}))
    return _edit(path, lambda text: set_run(text, metrics.run.name, entry, name=str(path)), dry_run)


def record_planned(run: Path, config: TrainedConfig, *, dry_run: bool = False) -> Change | None:
    """Adds the entry of a run that is to be trained; None when there is one of a training already.

    Raises:
        EditError: the file can't be edited safely; it is as it was.
    """
    path = run.parent / STATUS_NAME
    known = read_status(path).get(run.name, {})
    if known.get("status") not in (None, "planned") or _has_metrics(known):
        return None
    entry = planned_entry(config)
    return _edit(path, lambda text: set_run(text, run.name, entry, nulls=True, name=str(path)), dry_run)


def record_run_file(metrics: RunMetrics, *, dry_run: bool = False) -> Change:
    """Writes a run's `run_metrics.yaml` anew.

    Raises:
        EditError: there is a file that autobatch hasn't written, or it can't be written.
    """
    path = metrics.run / RUN_METRICS

    def change(text: str) -> str:
        if text.strip() and not text.startswith(HEADING):
            raise EditError(
                f"{path}:1: wasn't written by autobatch, which would replace it: move it away, then run again"
            )
        return run_file_text(metrics)

    return _edit(path, change, dry_run)


def _has_metrics(entry: dict[str, Any]) -> bool:
    section = entry.get("metrics")
    return isinstance(section, dict) and any(value is not None for value in section.values())


def _edit(path: Path, change: Callable[[str], str], dry_run: bool) -> Change:
    if not dry_run:
        return edit_file(path, change, create="")
    before = read_text(path) if path.exists() else ""
    after = change(before)
    return Change(path, before, after, False)
