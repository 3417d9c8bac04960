"""Reads what a run says of its dataset, and checks no more of the run than that needs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from autobatch.errors import RunProblems
from autobatch.records import PackingMode
from autobatch.runs import checks
from autobatch.runs.config import read_config
from autobatch.runs.directory import (
    CONFIG_NAME,
    SCRIPT_NAME,
    find_directory,
    read_run_script,
    working_dir_of,
)
from autobatch.runs.findings import Findings


@dataclass(frozen=True)
class RunDataset:
    """The dataset of a run, as its config describes it.

    Attributes:
        path: the run directory, absolute, symbolic links resolved.
        config: with the overrides of the `tune run` line merged in and interpolations unresolved.
        packed: as the config says, for every dataset.
        max_seq_len: of the tokenizer; None when it has none.
        working_dir: to which paths in the config are relative.
        exports: variables that `finetune.slurm` sets for the training.
        notes: what the user should be told.
    """

    path: Path
    config: DictConfig
    packed: bool
    max_seq_len: int | None
    working_dir: Path
    exports: Mapping[str, str]
    notes: tuple[str, ...]

    def resolved(self) -> dict[str, Any]:
        """The config as new plain containers, every interpolation replaced by its value."""
        container = OmegaConf.to_container(self.config, resolve=True)
        assert isinstance(container, dict)
        return {str(key): value for key, value in container.items()}


def read_dataset(run_dir: Path) -> RunDataset:
    """Reads a run's dataset. Recipe and device may be anything: packing needs neither.

    Raises:
        RunProblems: everything that keeps it from being read.
    """
    findings = Findings()
    path = find_directory(Path.cwd() / run_dir, findings)
    if path is None:
        raise RunProblems(findings.problems)
    script = read_run_script(path / SCRIPT_NAME, os.environ, findings)
    working_dir = working_dir_of(path, script, findings)
    config = read_config(path / CONFIG_NAME, script, findings)
    notes = tuple(findings.notes)
    packed = False
    if config is not None:
        checks.check_sections(config, findings)
        device = str(config.get("device")).partition(":")[0]
        packed = checks.check_packing(config, PackingMode.UNPACKED, None, device, Findings())
        mode = PackingMode.CONFIG if packed else PackingMode.UNPACKED
        checks.check_packing(config, mode, None, device, findings)
        checks.check_files(config, working_dir, False, findings)
    if config is None or findings.problems:
        raise RunProblems(findings.problems)
    length = config.get("tokenizer.max_seq_len")
    return RunDataset(
        path=path,
        config=config.config,
        packed=packed,
        max_seq_len=length if isinstance(length, int) and length > 0 else None,
        working_dir=working_dir,
        exports=script.exports if script is not None else {},
        notes=notes,
    )
