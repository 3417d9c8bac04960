"""Which recipe trains a run, and whether autobatch can measure it.

`--recipe` comes first, then the `tune run` line of `finetune.slurm`; without either the recipe is
inferred from the config, and the note says so. Names resolve through torchtune's registry, which is read
as a file: torchtune isn't imported.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autobatch.errors import Problem, RunProblems
from autobatch.runs.slurm_script import SlurmScript, TuneRun
from autobatch.runs.torchtune_source import RegisteredRecipe, registered_recipes

# How names of recipes that don't train begin; words in the names of those that train on rollouts.
NOT_TRAINING = ("generate", "eleuther_eval", "quantize")
ROLLOUTS = ("ppo", "grpo")


@dataclass(frozen=True)
class Recipe:
    """The recipe that a run trains with.

    Attributes:
        name: in torchtune's registry, or the stem of the recipe file.
        path: absolute path of the recipe file.
        source: where the name came from.
        note: the name and where it came from, in words.
        supports_distributed: whether torchtune runs it on several devices.
        warnings: what the user should be told about the choice.
        is_registered: it is torchtune's own, not a file of the user's.
    """

    name: str
    path: Path
    source: Literal["option", "finetune.slurm", "inferred"]
    note: str
    supports_distributed: bool
    warnings: tuple[str, ...] = ()
    is_registered: bool = False

    @property
    def is_distributed(self) -> bool:
        """Whether torchrun starts it, by torchtune's word or its own name."""
        return self.supports_distributed or self.name.endswith("_distributed")

    @property
    def identity(self) -> str:
        """The name and a hash of the file, for a fingerprint: an edited recipe is another recipe."""
        return f"{self.name} sha256:{hashlib.sha256(self.path.read_bytes()).hexdigest()}"


def resolve_recipe(
    given: str | None,
    script: SlurmScript | None,
    config: Mapping[str, Any],
    run_dir: Path,
    *,
    working_dir: Path | None = None,
    cwd: Path | None = None,
) -> Recipe:
    """Finds the recipe of a run.

    Args:
        given: value of `--recipe`: a name in torchtune's registry or a path, relative to `cwd` or `run_dir`.
        script: the run's `finetune.slurm`; None when it has none.
        config: the resolved config, from which the recipe is inferred when nothing names it.
        run_dir: the run directory.
        working_dir: where the training job runs, to which a recipe's path on the `tune run` line is relative.
            Default: `run_dir`.
        cwd: where the user is. Default: the current directory.

    Raises:
        RunProblems: no such recipe, or one that autobatch can't measure.
    """
    recipe = find_recipe(given, script, config, run_dir, working_dir=working_dir, cwd=cwd)
    _check_measurable(recipe, script, run_dir)
    return recipe


def find_recipe(
    given: str | None,
    script: SlurmScript | None,
    config: Mapping[str, Any],
    run_dir: Path,
    *,
    working_dir: Path | None = None,
    cwd: Path | None = None,
) -> Recipe:
    """`resolve_recipe` without the question whether autobatch can measure the recipe."""
    registry = registered_recipes()
    if not registry:
        raise _problem(
            "torchtune is not installed in this Python environment",
            str(run_dir),
            "activate the environment that trains, and install autobatch there: pip install autobatch",
        )
    tune_run = script.tune_run if script else None
    if given is not None:
        return _from_option(given, registry, (cwd or Path.cwd(), run_dir), tune_run)
    if script and tune_run:
        return _from_tune_run(tune_run, script.where(tune_run.line), registry, working_dir or run_dir)
    return _inferred(config, str(run_dir / "finetune.yaml"), registry, script)


def _check_measurable(recipe: Recipe, script: SlurmScript | None, run_dir: Path) -> None:
    """Raises `RunProblems` when `recipe` isn't one that autobatch can measure."""
    registry = registered_recipes()
    where = "--recipe" if recipe.source == "option" else str(run_dir / "finetune.yaml")
    tune_run = script.tune_run if script else None
    if recipe.source == "finetune.slurm" and script and tune_run:
        where = script.where(tune_run.line)
    _refuse_unmeasurable(recipe, where, registry)


def refuse_distributed(recipe: Recipe, where: str, what: str) -> None:
    """Raises `RunProblems` when `recipe` trains on several devices, which `what` isn't made for yet."""
    if recipe.is_distributed:
        single = recipe.name.replace("_distributed", "_single_device")
        raise _problem(
            f"{recipe.name} trains on several devices; {what} is for one device so far",
            where,
            f"--recipe {single} reads the same config and needs one device that holds the whole model"
            if single in registered_recipes()
            else "torchtune has no recipe for one device that reads this config",
        )


def infer_name(config: Mapping[str, Any]) -> str:
    """Name of the torchtune recipe that reads a config with these keys.

    Distinguishes the single-device training recipes; where torchtune has only a distributed recipe for
    such a config (full DPO, quantization-aware training), that one.
    """
    lora = _uses_lora(config.get("model"))
    if "reward_and_value_model" in config or "ppo_epochs" in config:
        return "ppo_full_finetune_single_device"
    if "teacher_model" in config:
        return "knowledge_distillation_single_device"
    if _component(config.get("loss")).startswith("torchtune.rlhf.") or "ref_checkpointer" in config:
        return "lora_dpo_single_device" if lora else "full_dpo_distributed"
    if "quantizer" in config:
        return "qat_lora_finetune_distributed" if lora else "qat_distributed"
    return "lora_finetune_single_device" if lora else "full_finetune_single_device"


def _component(section: Any) -> str:
    return str(section.get("_component_") or "") if isinstance(section, Mapping) else ""


def _uses_lora(model: Any) -> bool:
    name = _component(model).rpartition(".")[2]
    return name.startswith(("lora_", "qlora_", "dora_", "qdora_")) or (
        isinstance(model, Mapping) and "lora_rank" in model
    )


def _from_option(
    given: str, registry: dict[str, RegisteredRecipe], bases: tuple[Path, ...], tune_run: TuneRun | None
) -> Recipe:
    warnings = []
    single = given in registry and not registry[given].supports_distributed
    if single and tune_run and tune_run.processes != 1:
        warnings.append(
            "finetune.slurm trains with several processes; the probe measures one device that holds the "
            "whole model"
        )
    if tune_run and tune_run.recipe != given:
        warnings.append(f"--recipe {given} is measured; finetune.slurm trains with {tune_run.recipe}")
    note = f"{given}, from --recipe"
    if given in registry:
        return _registered(registry[given], "option", note, *warnings)
    for base in bases:
        file = base / os.path.expanduser(given)  # noqa: PTH111 - Path.expanduser raises for an unknown user
        if file.is_file():
            return Recipe(file.stem, file.resolve(), "option", note, False, tuple(warnings))
    raise _unknown(given, "--recipe", registry)


def _from_tune_run(
    tune_run: TuneRun, where: str, registry: dict[str, RegisteredRecipe], working_dir: Path
) -> Recipe:
    name = tune_run.recipe
    note = f"{name}, from finetune.slurm:{tune_run.line}"
    if name in registry:
        recipe = _registered(registry[name], "finetune.slurm", note)
    else:
        if (file := _recipe_file(name, working_dir)) is None:
            raise _unknown(name, where, registry)
        warning = (
            f"{where}: torchtune 0.6 turns the path {name} into a module name and fails; "
            "write it relative to the directory in which the job runs, without a leading `./`"
        )
        warnings = (warning,) if name.startswith(("/", ".")) else ()
        recipe = Recipe(file.stem, file, "finetune.slurm", note, False, warnings)
    return recipe


def _recipe_file(written: str, working_dir: Path) -> Path | None:
    """File of a recipe that isn't in the registry, found as `tune run` finds it.

    torchtune turns a path into a module name ("a/b.py" -> "a.b") and runs the module, with the working
    directory on `sys.path` (torchtune 0.6.1, `_cli/run.py`).
    """
    direct = working_dir / written
    if direct.suffix == ".py" and direct.is_file():
        return direct.resolve()
    parts = written.removesuffix(".py").replace("/", ".").split(".")
    if not all(parts):
        return None
    roots = [working_dir / parts[0]]
    try:
        spec = importlib.util.find_spec(parts[0])
    except (ImportError, ValueError):
        spec = None
    if spec and spec.submodule_search_locations:
        roots += [Path(location) for location in spec.submodule_search_locations]
    elif spec and spec.origin and len(parts) == 1:
        roots.append(Path(spec.origin).with_suffix(""))
    for root in roots:
        module = root.joinpath(*parts[1:])
        for file in (module.with_name(f"{module.name}.py"), module / "__main__.py"):
            if file.is_file():
                return file.resolve()
    return None


def _inferred(
    config: Mapping[str, Any], where: str, registry: dict[str, RegisteredRecipe], script: SlurmScript | None
) -> Recipe:
    if "optimizer" not in config:
        raise _problem(
            "the recipe can't be inferred: the config has no optimizer, "
            + ("and finetune.slurm no `tune run`" if script else "and there is no finetune.slurm"),
            where,
            "name it: --recipe NAME, one of " + ", ".join(_measurable(registry)),
        )
    name = infer_name(config)
    missing = f"{script.path.name} has no `tune run`" if script else "there is no finetune.slurm"
    if name not in registry:
        raise _unknown(name, where, registry)
    note = f"{name}, inferred from the config ({missing})"
    warning = f"{missing}: if the run doesn't train with {name}, name its recipe with --recipe"
    return _registered(registry[name], "inferred", note, warning)


def _registered(
    entry: RegisteredRecipe,
    source: Literal["option", "finetune.slurm", "inferred"],
    note: str,
    *warnings: str,
) -> Recipe:
    return Recipe(entry.name, entry.path, source, note, entry.supports_distributed, warnings, True)


def _refuse_unmeasurable(recipe: Recipe, where: str, registry: dict[str, RegisteredRecipe]) -> None:
    name = recipe.name.rpartition("/")[2]
    measurable = ", ".join(_measurable(registry))
    if name.startswith(NOT_TRAINING) and recipe.path == getattr(registry.get(recipe.name), "path", None):
        raise _problem(
            f"{recipe.name} is not a training recipe",
            where,
            f"name the one that trains: --recipe NAME, one of {measurable}",
        )
    if any(part in ROLLOUTS for part in name.split("_")):
        raise _problem(
            f"{recipe.name} generates rollouts, and their memory isn't measured",
            where,
            f"autobatch measures {measurable}, and recipes of your own that train on a dataset",
        )


def _measurable(registry: dict[str, RegisteredRecipe]) -> list[str]:
    return [
        entry.name
        for entry in registry.values()
        if not entry.name.rpartition("/")[2].startswith((*NOT_TRAINING, *ROLLOUTS))
    ]


def _unknown(name: str, where: str, registry: dict[str, RegisteredRecipe]) -> RunProblems:
    close = difflib.get_close_matches(name, registry, n=3)
    hint = f"did you mean {' or '.join(close)}? " if close else ""
    return _problem(
        f"no recipe {name!r}: neither in torchtune's registry nor a file",
        where,
        f"{hint}valid names: {', '.join(_measurable(registry))}; or the path of a recipe file",
    )


def _problem(what: str, where: str, remedy: str) -> RunProblems:
    return RunProblems([Problem(what, where, remedy)])
