"""The config that a training ran with, as far as it can be read: what is wrong with it stops nobody here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autobatch.runs.config import read_config
from autobatch.runs.directory import CONFIG_NAME, SCRIPT_NAME
from autobatch.runs.findings import Findings
from autobatch.runs.model_name import model_component
from autobatch.runs.slurm_script import SlurmScript, read_script

#: Of an entry's `config`, in this order.
CONFIG_KEYS = (
    "model", "recipe", "batch_size", "packed", "max_seq_len", "gradient_accumulation_steps",
    "effective_batch_size", "lora_rank", "lora_alpha", "epochs", "learning_rate", "dtype",
)  # fmt: skip

Value = int | float | str | bool | None


@dataclass(frozen=True)
class TrainedConfig:
    """A config, resolved, and the recipe that it was for.

    Attributes:
        values: as plain containers; an interpolation that failed is something else than a plain value.
        recipe: as the `tune run` line names it, else as the log does; None when neither does.
        processes: that `tune run` starts; None when that isn't known.
        notes: what the user should be told.
    """

    values: Mapping[str, Any] = field(default_factory=dict)
    recipe: str | None = None
    processes: int | None = 1
    notes: tuple[str, ...] = ()

    def get(self, path: str) -> Value:
        """The plain value at a dotted path; None where there is none."""
        value: Any = self.values
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value if isinstance(value, (int, float, str, bool)) else None

    def integer(self, path: str) -> int | None:
        """The whole number above 0 at a dotted path."""
        value = self.get(path)
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

    @property
    def datasets(self) -> list[Mapping[str, Any]]:
        """Every section of `dataset`, which may be a list of them."""
        given = self.values.get("dataset")
        entries = given if isinstance(given, list) else [given]
        return [entry for entry in entries if isinstance(entry, Mapping)]

    @property
    def packed(self) -> bool | None:
        """Whether every dataset is packed; None without any."""
        return all(entry.get("packed") is True for entry in self.datasets) if self.datasets else None

    @property
    def dataset_path(self) -> str | None:
        """Where the rows come from: the files, else the name on the hub."""
        paths = [
            str(entry.get("data_files") or entry.get("data_dir") or entry.get("source") or "")
            for entry in self.datasets
        ]
        return ", ".join(path for path in paths if path) or None

    @property
    def effective_batch_size(self) -> int | None:
        """Sequences of an optimizer step."""
        batch_size = self.integer("batch_size")
        steps = self.integer("gradient_accumulation_steps") or 1
        return batch_size * steps * self.ranks if batch_size and self.ranks else None

    @property
    def ranks(self) -> int | None:
        """Processes that take a batch each: those that share a model by tensor parallelism share their rows."""
        return (self.processes or 0) // (self.integer("tensor_parallel_dim") or 1) or None

    def static(self) -> dict[str, Value]:
        """What an entry's `config` holds, under `CONFIG_KEYS`; None where the config doesn't say."""
        values = (
            model_component(self.get("model._component_")),
            self.recipe,
            self.integer("batch_size"),
            self.packed,
            self.integer("tokenizer.max_seq_len"),
            (self.integer("gradient_accumulation_steps") or 1) if self.values else None,
            self.effective_batch_size,
            self.integer("model.lora_rank"),
            self.get("model.lora_alpha"),
            self.integer("epochs"),
            self.get("optimizer.lr"),
            self.get("dtype"),
        )
        finite = [None if isinstance(v, float) and not math.isfinite(v) else v for v in values]
        return dict(zip(CONFIG_KEYS, finite, strict=True))


def read_trained_config(run: Path, logged: Mapping[str, Any], recipe: str | None) -> TrainedConfig:
    """The config that a run was trained with.

    Args:
        run: the run directory.
        logged: the config that the recipe printed; it counts before `finetune.yaml`, which may have been
            edited since. Empty when it printed none.
        recipe: that the log names.
    """
    script = _script(run)
    tune_run = script.tune_run if script is not None else None
    name = tune_run.recipe if tune_run is not None else recipe
    processes = tune_run.processes if tune_run is not None else 1
    if logged:
        return TrainedConfig(logged, name, processes)
    if not (run / CONFIG_NAME).is_file():
        return TrainedConfig({}, name, processes)
    findings = Findings()
    config = read_config(run / CONFIG_NAME, script, findings)
    if config is None:
        problem = findings.problems[0]
        return TrainedConfig({}, name, processes, (f"{problem.where}: can't be read: {problem.what}",))
    return TrainedConfig(config.values, name, processes)


def _script(run: Path) -> SlurmScript | None:
    try:
        return read_script(run / SCRIPT_NAME, {})
    except OSError:
        return None
