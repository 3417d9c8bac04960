"""A config that is validated, and what is known of the run that it belongs to."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from autobatch.errors import RunProblems
from autobatch.runs import torchtune_source
from autobatch.runs.config import RunConfig, read_config
from autobatch.runs.directory import CONFIG_NAME, SCRIPT_NAME, read_run_script, working_dir_of
from autobatch.runs.findings import Findings
from autobatch.runs.interpolation import Unresolved
from autobatch.runs.recipes import NOT_TRAINING, ROLLOUTS, Recipe, find_recipe
from autobatch.runs.slurm_script import SlurmScript
from autobatch.validation.findings import Collector

#: How the names of torchtune's training recipes end.
_TRAINING_NAME = re.compile(r"\w+_(?:single_device|distributed)\b")


class Kind(Enum):
    """What a config is for, as far as the checks differ."""

    TRAINING = "training on a dataset"
    ROLLOUTS = "training on rollouts"
    OTHER = "generation, evaluation or quantization"


@dataclass(frozen=True)
class Subject:
    """A config, and where it stands.

    Attributes:
        config: with the overrides of the `tune run` line.
        name: of the run directory; else of the file.
        run_dir: the run directory; None for a config that stands alone.
        script: `finetune.slurm` of the run.
        working_dir: to which paths in the config are relative.
        recipe: that reads the config; None when it isn't known.
        kind: what the config is for.
        several_devices: whether the model is shared out over several devices.
    """

    config: RunConfig
    name: str
    run_dir: Path | None
    script: SlurmScript | None
    working_dir: Path
    recipe: Recipe | None
    kind: Kind
    several_devices: bool

    @property
    def packed(self) -> bool:
        """Whether any dataset of the config packs, as torchtune takes it: any value that is true, text too."""
        return any(value and not isinstance(value, Unresolved) for value in self._packed_values())

    @property
    def may_pack(self) -> bool:
        """Whether it packs, or that can't be told because a value isn't resolved."""
        return any(self._packed_values())

    def integer(self, key: str, default: int | None = None) -> int | None:
        """The positive integer at `key`; `default` where there is none; None where it is anything else."""
        value = self.config.get(key)
        if value is None:
            return default
        return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None

    def _packed_values(self) -> list[Any]:
        dataset = self.config.get("dataset")
        entries = dataset if isinstance(dataset, list) else [dataset]
        return [entry.get("packed") for entry in entries if isinstance(entry, dict)]


def read_subject(path: Path, collector: Collector) -> Subject | None:
    """Reads a config; None when it can't be loaded. What is wrong with it goes to `collector`.

    Args:
        path: of the config. One called `finetune.yaml` belongs to a run directory; any other stands alone.
        collector: gets the findings.
    """
    path = path.resolve()
    run_dir = path.parent if path.name == CONFIG_NAME else None
    findings = Findings()
    script = read_run_script(run_dir / SCRIPT_NAME, os.environ, findings) if run_dir else None
    working_dir = working_dir_of(run_dir, script, findings) if run_dir else Path.cwd()
    collector.take("script", findings, str(script.path if script else path))
    findings = Findings()
    config = read_config(path, script, findings)
    collector.take("config", findings, str(path))
    if config is None:
        return None
    recipe = _find_recipe(config, script, working_dir, collector)
    name = run_dir.name if run_dir else path.name
    tune_run = script.tune_run if script else None
    several = recipe is not None and (recipe.supports_distributed or recipe.name.endswith("_distributed"))
    several = several or (tune_run is not None and tune_run.processes != 1)
    kind = _kind_of(config, recipe, run_dir is not None)
    return Subject(config, name, run_dir, script, working_dir, recipe, kind, several)


def _find_recipe(
    config: RunConfig, script: SlurmScript | None, working_dir: Path, collector: Collector
) -> Recipe | None:
    if not (script and script.tune_run):
        shipped = _recipe_that_it_names(config)
        if shipped is not None:
            return shipped
        if "optimizer" not in config.values:
            return None
    try:
        recipe = find_recipe(None, script, config.values, config.path.parent, working_dir=working_dir)
    except RunProblems as error:
        for problem in error.problems:
            collector.error("recipe", problem.what, problem.where, problem.remedy)
        return None
    findings = Findings(notes=list(recipe.warnings) if recipe.source == "finetune.slurm" else [])
    collector.take("recipe", findings, str(config.path))
    return recipe


def _recipe_that_it_names(config: RunConfig) -> Recipe | None:
    """The recipe with which torchtune ships this config, or that the comment on its first lines names.

    Every config of torchtune begins with such a comment, and `tune cp` copies it.
    """
    registry = torchtune_source.registered_recipes()
    comment = re.match(r"(?:[ \t]*(?:#.*)?\n)*", config.text)
    words = _TRAINING_NAME.findall(comment.group()) if comment else []
    named = [entry for entry in registry.values() if config.path in entry.configs]
    named += [registry[word] for word in words if word in registry]
    if not named:
        return None
    found = named[0]
    return Recipe(found.name, found.path, "inferred", found.name, found.supports_distributed)


def _kind_of(config: RunConfig, recipe: Recipe | None, is_run: bool) -> Kind:
    parts = recipe.name.rpartition("/")[2] if recipe else ""
    if parts.startswith(NOT_TRAINING):
        return Kind.OTHER
    if any(part in ROLLOUTS for part in parts.split("_")):
        return Kind.ROLLOUTS
    trains = is_run or any(key in config.values for key in ("optimizer", "dataset", "epochs"))
    return Kind.TRAINING if trains else Kind.OTHER
