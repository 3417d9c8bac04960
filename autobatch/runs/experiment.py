"""What lies in an experiment directory."""

from __future__ import annotations

from pathlib import Path

from autobatch.runs.directory import CONFIG_NAME


def find_runs(path: Path) -> list[Path]:
    """The run directories at `path`: itself, or those directly below it, by name."""
    if (path / CONFIG_NAME).is_file():
        return [path]
    return sorted(config.parent for config in path.glob(f"*/{CONFIG_NAME}"))
