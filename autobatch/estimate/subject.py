"""What is estimated: a run directory, or any config file with nothing beside it.

Unlike a probe's run, neither weights nor tokenizer nor dataset need be there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autobatch.errors import RunProblems, UsageError
from autobatch.estimate.records import NoEstimate
from autobatch.records import ProbeRequest
from autobatch.runs import checks
from autobatch.runs.config import RunConfig, read_config
from autobatch.runs.directory import CONFIG_NAME, SCRIPT_NAME, RunDirectory, read_run_script, working_dir_of
from autobatch.runs.findings import Findings
from autobatch.runs.launching import resolve_world
from autobatch.runs.recipes import Recipe, resolve_recipe
from autobatch.world import World

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass(frozen=True)
class Subject:
    """What is estimated.

    Attributes:
        path: of the config.
        config: unresolved.
        recipe: that trains it.
        working_dir: where the config's relative paths start, and a user's own components are found.
        device: whose memory is meant, ``cuda`` or ``cpu``.
        dtype: that it trains with.
        batch_size: as the config says.
        packed: rows are packs.
        max_seq_len: tokens of a row.
        run_dir: the run directory; None for a config by itself.
        world: the processes of a distributed training; None where there is one without torchrun.
        exports: environment variables that finetune.slurm sets.
        notes: what the user should be told.
    """

    path: Path
    config: DictConfig
    recipe: Recipe
    working_dir: Path
    device: str
    dtype: str
    batch_size: int
    packed: bool
    max_seq_len: int
    run_dir: Path | None
    world: World | None = None
    exports: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def makes_pairs(self) -> bool:
        """Whether rows are pairs of a chosen and a rejected answer."""
        return _makes_pairs(self.recipe)

    def without_files(self) -> DictConfig:
        """The config with a tokenizer that reads nothing."""
        config = self.config.copy()
        config.tokenizer._component_ = "autobatch.estimate.components.NoTokenizer"
        return config

    def resolved(self) -> dict[str, Any]:
        """The config as plain containers."""
        return _plain(self.config)


def read_subject(
    path: Path,
    recipe: str | None = None,
    settings: Sequence[str] = (),
    *,
    processes_per_node: int | None = None,
    nodes: int | None = None,
) -> Subject:
    """Read a run directory or a config.

    Args:
        path: a directory with a finetune.yaml, or a YAML file.
        recipe: name or path; None takes it from finetune.slurm, or infers it.
        settings: ``key=value`` each, set in the config first.
        processes_per_node, nodes: of a distributed recipe; None takes them from finetune.slurm.

    Raises:
        RunProblems: what is wrong with it.
        UsageError: a setting can't be used.
        NoEstimate: it can be trained, but not estimated.
    """
    findings = Findings()
    config_path = _config_path(path.resolve(), path, findings)
    directory = config_path.parent
    is_run = config_path.name == CONFIG_NAME
    script = read_run_script(directory / SCRIPT_NAME, os.environ, findings) if is_run else None
    working_dir = working_dir_of(directory, script, findings)
    config = read_config(config_path, script, findings)
    if config is None:
        raise RunProblems(findings.problems)
    try:
        found = resolve_recipe(recipe, script, config.values, directory, working_dir=working_dir)
    except RunProblems as error:
        raise RunProblems([*findings.problems, *error.problems]) from error
    checks.check_sections(config, findings)
    device, _, dtype = checks.check_device(config, findings)
    batch_size = checks.positive_integer(config, "batch_size", findings, default=1)
    asked = ProbeRequest(str(directory), processes_per_node=processes_per_node, nodes=nodes)
    world = resolve_world(asked, script, found, config, device, findings)
    if findings.problems:
        raise RunProblems(findings.problems)
    subject = Subject(
        path=config_path,
        config=config.config,
        recipe=found,
        working_dir=working_dir,
        device=device,
        dtype=dtype,
        batch_size=batch_size,
        packed=_packs(config, found),
        max_seq_len=0,
        run_dir=directory if is_run else None,
        world=world,
        exports=dict(script.exports) if script is not None else {},
        notes=(*findings.notes, *found.warnings),
    )
    return with_settings(subject, settings)


def subject_of(run: RunDirectory, *, packed: bool) -> Subject:
    """The subject that a probe's run is."""
    return with_settings(
        Subject(
            path=run.config_path,
            config=run.config,
            recipe=run.recipe,
            working_dir=run.working_dir,
            device=run.device,
            dtype=run.dtype,
            batch_size=run.batch_size,
            packed=packed,
            max_seq_len=0,
            run_dir=run.path,
            world=run.world,
        ),
        (),
    )


def with_settings(subject: Subject, settings: Sequence[str]) -> Subject:
    """`subject` with ``key=value`` set in its config.

    Raises:
        UsageError: one isn't ``key=value``, or what it sets doesn't fit there.
        NoEstimate: the rows have no length.
    """
    from omegaconf import DictConfig, OmegaConf

    config = subject.config.copy()
    for setting in settings:
        key, is_setting, _ = setting.partition("=")
        if not is_setting or not key.strip():
            raise UsageError(
                f"{setting!r} sets nothing: write key=value, with the key as in the config, such as "
                "enable_activation_checkpointing=True or model.lora_rank=16"
            )
        if "." in key and OmegaConf.select(config, key.rpartition(".")[0]) is None:
            raise UsageError(f"{setting!r}: {subject.path} has no section {key.rpartition('.')[0]}")
        try:
            given = OmegaConf.from_dotlist([setting])
            if OmegaConf.is_dict(OmegaConf.select(config, key)):
                # As torchtune takes it: the name of another component.
                given = OmegaConf.from_dotlist([f"{key}._component_={setting.partition('=')[2]}"])
            merged = OmegaConf.merge(config, given)
            assert isinstance(merged, DictConfig)
            config = merged
        except Exception as error:  # what stands behind `=` is YAML too
            what = str(error).splitlines()[0]
            raise UsageError(f"{setting!r} can't be set in {subject.path}: {what}") from error
    length = OmegaConf.select(config, "tokenizer.max_seq_len")
    if not isinstance(length, int) or isinstance(length, bool) or length < 1:
        raise NoEstimate(
            f"{subject.path}: tokenizer.max_seq_len is {'null' if length is None else repr(length)}: rows have no "
            "fixed length. Set it in the config, or for the estimate with --set tokenizer.max_seq_len=2048"
        )
    batch_size = OmegaConf.select(config, "batch_size")
    packed = subject.packed
    if any(setting.startswith("dataset.packed=") for setting in settings):
        packed = OmegaConf.select(config, "dataset.packed") is True
    device = str(OmegaConf.select(config, "device")).partition(":")[0]
    if packed and _makes_pairs(subject.recipe):
        raise NoEstimate(f"{subject.path}: {subject.recipe.name} doesn't pack; set packed: False")
    if packed and checks.refuses_packs(RunConfig(subject.path, "", config, _plain(config)), device):
        raise NoEstimate(
            f"{subject.path}: gemma2 models refuse packed datasets on CUDA: set dataset.packed: False"
        )
    return replace(
        subject,
        config=config,
        device=device,
        packed=packed,
        max_seq_len=length,
        world=_sharing_rows(subject.world, config),
        dtype=str(OmegaConf.select(config, "dtype") or "fp32"),
        batch_size=batch_size if isinstance(batch_size, int) and batch_size > 0 else 1,
    )


def _sharing_rows(world: World | None, config: DictConfig) -> World | None:
    """`world` with as many ranks sharing their rows as `config` says; one that can't be is left to the recipe."""
    from omegaconf import OmegaConf

    dim = OmegaConf.select(config, "tensor_parallel_dim") or 1
    if world is None or not isinstance(dim, int) or dim < 1 or world.size % dim:
        return world
    return replace(world, data_parallel=world.size // dim)


def _plain(config: DictConfig) -> dict[str, Any]:
    from omegaconf import OmegaConf

    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _config_path(path: Path, given: Path, findings: Findings) -> Path:
    if path.is_dir() and (path / CONFIG_NAME).is_file():
        return path / CONFIG_NAME
    if path.is_file():
        return path
    what = f"no {CONFIG_NAME}" if path.is_dir() else "no such file or directory"
    findings.problem(
        what, str(given), "name a run directory, such as runs/run1, or a config, such as my.yaml"
    )
    raise RunProblems(findings.problems)


def _makes_pairs(recipe: Recipe) -> bool:
    """Whether rows are pairs of a chosen and a rejected answer."""
    return "dpo" in recipe.name.split("_")


def _packs(config: RunConfig, recipe: Recipe) -> bool:
    dataset = config.get("dataset")
    entries = dataset if isinstance(dataset, list) else [dataset]
    return not _makes_pairs(recipe) and all(
        isinstance(entry, dict) and entry.get("packed") is True for entry in entries
    )
