"""The runs of an experiment side by side, what to mind in comparing them, and what the figures recommend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from autobatch.errors import UsageError
from autobatch.metrics.status_file import STATUS_NAME, read_status
from autobatch.report.caveats import caveats
from autobatch.report.recommendations import recommendations
from autobatch.report.remark import Remark
from autobatch.report.run_figures import RunFigures
from autobatch.report.run_sources import read_figures
from autobatch.runs.directory import CONFIG_NAME
from autobatch.runs.experiment import find_runs


@dataclass(frozen=True)
class Comparison:
    """The runs of an experiment side by side.

    Attributes:
        experiment: path of the experiment directory.
        runs: in the order to be shown.
        caveats: what keeps the figures from being like for like, or was wrong with a source.
        recommendations: what follows from the figures.
    """

    experiment: str
    runs: tuple[RunFigures, ...]
    caveats: tuple[Remark, ...]
    recommendations: tuple[Remark, ...]

    @property
    def has_figures(self) -> bool:
        """Whether any run has a figure."""
        return any(run.has_figures for run in self.runs)


def compare(path: Path, patterns: Sequence[str] = ()) -> Comparison:
    """Compares the runs at `path`.

    Args:
        path: experiment directory or run directory.
        patterns: names or globs of the runs to compare; empty for all.

    Raises:
        UsageError: there is no run at `path` or none of that name, or `runs_status.yaml` can't be read.
    """
    if not path.is_dir():
        kind = "is not a directory" if path.exists() else "no such directory"
        raise UsageError(f"{path}: {kind}: name an experiment directory, such as runs/")
    is_run = (path / CONFIG_NAME).is_file()
    experiment = path.resolve().parent if is_run else path
    entries = read_status(experiment / STATUS_NAME)
    directories = {run.resolve().name: run for run in find_runs(path)}
    if is_run:
        entries = {name: entry for name, entry in entries.items() if name in directories}
    names = [*directories, *(name for name in entries if name not in directories)]
    if not names:
        raise UsageError(f"{path}: no finetune.yaml here or one level below, and no runs in {STATUS_NAME}")
    runs = tuple(
        read_figures(name, directories.get(name), _mapping(entries.get(name)))
        for name in _selected(names, patterns, path)
    )
    return Comparison(str(path), runs, caveats(runs), recommendations(runs))


def _selected(names: Sequence[str], patterns: Sequence[str], path: Path) -> list[str]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UsageError(f"--run {pattern}: {path} has no such run; its runs are {', '.join(names)}")
    return [name for name in names if not patterns or any(fnmatchcase(name, p) for p in patterns)]


def _mapping(entry: Any) -> Mapping[str, Any]:
    return entry if isinstance(entry, Mapping) else {}
