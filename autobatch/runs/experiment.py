"""What lies in an experiment directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autobatch.errors import UsageError
from autobatch.runs.directory import CONFIG_NAME


def find_runs(path: Path) -> list[Path]:
    """The run directories at `path`: itself, or those directly below it, by name."""
    if (path / CONFIG_NAME).is_file():
        return [path]
    return sorted(config.parent for config in path.glob(f"*/{CONFIG_NAME}"))


def is_for_many(paths: Sequence[Path]) -> bool:
    """Whether paths may stand for several runs: an experiment directory, or more than one path."""
    return len(paths) > 1 or (not (paths[0] / CONFIG_NAME).is_file() and bool(find_runs(paths[0])))


def runs_at(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """The runs at several paths: runs, their configs, or directories with runs directly below.

    Returns:
        The run directories, each once, as they were named; and what was passed over, in words.

    Raises:
        UsageError: a path doesn't exist, or there is no run at any.
    """
    found: dict[Path, Path] = {}
    notes: list[str] = []
    missing = [f"{path}: no such file or directory" for path in paths if not path.exists()]
    for path in paths:
        runs = [path.parent] if path.name == CONFIG_NAME else find_runs(path)
        if not runs:
            notes.append(f"{path}: no {CONFIG_NAME} here or one level below; passed over")
        for run in runs:
            found.setdefault(run.resolve(), run)
    if missing:
        raise UsageError("\n".join(missing))
    if not found:
        raise UsageError("\n".join(f"{path}: no {CONFIG_NAME} here or one level below" for path in paths))
    return list(found.values()), notes
