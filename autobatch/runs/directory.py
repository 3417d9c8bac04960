"""Reads a run directory and says everything that is wrong with it, at once.

Read here: `finetune.yaml`, `finetune.slurm`, torchtune's recipe registry, and whether the local files that
the config names exist. Nothing is written, and neither torch nor torchtune is imported, so that this runs
on a login node in a fraction of a second.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from autobatch.errors import RunProblems
from autobatch.records import ProbeRequest
from autobatch.runs import checks
from autobatch.runs.config import RunConfig, read_config
from autobatch.runs.findings import Findings
from autobatch.runs.launching import resolve_world
from autobatch.runs.recipes import Recipe, resolve_recipe
from autobatch.runs.request import check_held, check_request
from autobatch.runs.slurm_script import SlurmScript, read_script
from autobatch.world import World

CONFIG_NAME = "finetune.yaml"
SCRIPT_NAME = "finetune.slurm"
PLAN_NAME = "runs_plan.md"


@dataclass(frozen=True)
class RunDirectory:
    """A run that can be probed.

    Attributes:
        path: absolute, symbolic links resolved.
        name: of the directory, by which `runs_plan.md` knows the run.
        experiment_dir: the directory above.
        config_path: `finetune.yaml`.
        config_text: its text.
        config: with the overrides of the `tune run` line merged in and interpolations unresolved.
        script: `finetune.slurm`; None when there is none.
        recipe: that trains the run.
        batch_size: as the config says.
        gradient_accumulation_steps: as the config says.
        packed: as the config says, for every dataset; `--pack` and `--unpacked` don't change it.
        max_seq_len: of the tokenizer; None when it has none.
        device: ``cuda`` or ``cpu``.
        device_index: of ``cuda:1`` and the like; 0 where the config gives none.
        dtype: ``bf16``, ``fp32`` or ``fp64``.
        notes: what the user should be told.
        working_dir: in which the training job runs, and to which paths in the config are relative.
        plan_path: `runs_plan.md` of the experiment; it need not exist.
        world: the processes of a distributed training; None where there is one without torchrun.
    """

    path: Path
    name: str
    experiment_dir: Path
    config_path: Path
    config_text: str
    config: DictConfig
    script: SlurmScript | None
    recipe: Recipe
    batch_size: int
    gradient_accumulation_steps: int
    packed: bool
    max_seq_len: int | None
    device: str
    device_index: int
    dtype: str
    notes: tuple[str, ...]
    working_dir: Path
    plan_path: Path
    world: World | None = None

    @property
    def data_parallel(self) -> int:
        """How many processes have rows of their own; 1 without torchrun."""
        return self.world.data_parallel if self.world else 1

    def resolved(self) -> dict[str, Any]:
        """The config as new plain containers, every interpolation replaced by its value."""
        container = OmegaConf.to_container(self.config, resolve=True)
        assert isinstance(container, dict)
        return {str(key): value for key, value in container.items()}

    def with_batch(self, batch_size: int, gradient_accumulation_steps: int) -> RunDirectory:
        """The same run with these two settings, and what refers to them."""
        settings = {"batch_size": batch_size, "gradient_accumulation_steps": gradient_accumulation_steps}
        config = OmegaConf.merge(self.config, settings)
        assert isinstance(config, DictConfig)
        return replace(
            self,
            config=config,
            batch_size=batch_size,
            gradient_accumulation_steps=gradient_accumulation_steps,
        )


def read_run(
    run_dir: Path,
    request: ProbeRequest,
    *,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> RunDirectory:
    """Reads and checks a run.

    Args:
        run_dir: the run directory, or its `finetune.yaml`.
        request: what is asked of the probe. Its `run_dir` isn't read.
        environ: variables of the shell from which the job will be submitted. Default: this process's.
        cwd: where the user is; relative paths are relative to it. Default: the current directory.

    Raises:
        UsageError: `request` has a value out of range.
        RunProblems: everything that is wrong with the run.
    """
    check_request(request)
    findings = Findings()
    cwd = (cwd or Path.cwd()).resolve()
    path = find_directory(cwd / run_dir, findings)
    if path is None:
        raise RunProblems(findings.problems)
    script = read_run_script(path / SCRIPT_NAME, os.environ if environ is None else environ, findings)
    working_dir = working_dir_of(path, script, findings)
    config = read_config(path / CONFIG_NAME, script, findings)
    recipe = None
    if config or request.recipe or (script and script.tune_run):
        try:
            recipe = resolve_recipe(
                request.recipe,
                script,
                config.values if config else {},
                path,
                working_dir=working_dir,
                cwd=cwd,
            )
        except RunProblems as error:
            findings.problems += error.problems
    run = _checked(path, request, config, script, recipe, working_dir, findings) if config else None
    if run is None or findings.problems:
        raise RunProblems(findings.problems)
    return run


def find_directory(given: Path, findings: Findings) -> Path | None:
    """The run directory that was meant, resolved; None when it isn't one."""
    try:
        path = given.resolve()
    except (OSError, RuntimeError) as error:
        # Before Python 3.13, Path.resolve raises RuntimeError for a loop of links.
        why = getattr(error, "strerror", None) or str(error)
        findings.problem(f"can't be read: {why}", str(given), "name a run directory, such as runs/run1")
        return None
    if reason := _why_unusable(str(path)):
        findings.problem(f"{reason}, which a trial's config can't hold", ascii(str(given)), "rename it")
        return None
    if path.is_file() and path.name == CONFIG_NAME:
        path = path.parent
    if not path.exists():
        findings.problem("no such directory", str(given), "name a run directory, such as runs/run1")
        return None
    if not path.is_dir():
        findings.problem("not a directory", str(given), f"name the directory that holds {CONFIG_NAME}")
        return None
    if (path / CONFIG_NAME).is_file():
        return path
    runs = sorted(config.parent.name for config in path.glob(f"*/{CONFIG_NAME}"))
    others = sorted(p.name for pattern in ("*.yaml", "*.yml") for p in path.glob(pattern))
    if CONFIG_NAME in others:
        findings.problem("no regular file", str(given / CONFIG_NAME), "put the config in its place")
        return None
    if runs:
        remedy = f"this is an experiment directory; name a run: {', '.join(f'{given / r}' for r in runs[:8])}"
    elif others:
        remedy = f"its YAML files are {', '.join(others[:8])}; the config must be called {CONFIG_NAME}"
    else:
        remedy = f"name the directory that holds {CONFIG_NAME}"
    findings.problem(f"no {CONFIG_NAME}", str(given), remedy)
    return None


def _why_unusable(path: str) -> str:
    if "${" in path:
        return "its path has a `${` in it"
    # Line breaks and the like, and bytes that aren't UTF-8, which Python reads as surrogates.
    if re.search("[\x00-\x1f\x7f\ud800-\udfff]", path):
        return "its path has characters in it that can't be printed"
    return ""


def read_run_script(path: Path, environ: Mapping[str, str], findings: Findings) -> SlurmScript | None:
    """The `finetune.slurm` at `path`; None when there is none, or it can't be read."""
    if not path.is_file():
        return None
    try:
        script = read_script(path, environ)
    except OSError as error:
        findings.problem(f"can't be read: {error.strerror}", str(path), "check its permissions")
        return None
    for note in script.notes:
        findings.note(note)
    return script


def working_dir_of(path: Path, script: SlurmScript | None, findings: Findings) -> Path:
    """Where the training job runs: `#SBATCH --chdir`, a literal `cd` in the script, or the run directory."""
    if script is None:
        return path
    working_dir = path
    chdir = script.header.get("chdir")
    if chdir:
        working_dir = path / chdir
        if not os.path.isdir(working_dir):  # noqa: PTH112  # unlike Path.is_dir, no error without permission
            findings.problem(
                f"--chdir={chdir} is not a directory",
                script.where(script.header_lines.get("chdir")),
                "correct it, or remove it to run in the directory from which sbatch is called",
            )
    if script.directory is None:
        return working_dir
    working_dir /= script.directory
    if script.directory_line and not os.path.isdir(working_dir):  # noqa: PTH112
        findings.problem(
            f"cd leads to {working_dir}, which is not a directory",
            script.where(script.directory_line),
            "correct it, or make the directory: the probe runs in it, as the training does",
        )
    return working_dir


def _checked(
    path: Path,
    request: ProbeRequest,
    config: RunConfig,
    script: SlurmScript | None,
    recipe: Recipe | None,
    working_dir: Path,
    findings: Findings,
) -> RunDirectory | None:
    """Runs every check on the config; None when there is no recipe."""
    checks.check_sections(config, findings)
    device, device_index, dtype = checks.check_device(config, findings)
    batch_size = checks.positive_integer(config, "batch_size", findings)
    steps = checks.positive_integer(config, "gradient_accumulation_steps", findings, default=1)
    packed = checks.check_packing(config, request.packing, recipe, device, findings)
    check_held(config, request, findings)
    checks.check_optimizer(config, device, findings)
    checks.check_files(config, working_dir, request.load_weights, findings)
    check_trained_config(config, script, working_dir, findings)
    if recipe is None:
        return None
    findings.notes += recipe.warnings
    length = config.get("tokenizer.max_seq_len")
    return RunDirectory(
        path=path,
        name=path.name,
        experiment_dir=path.parent,
        config_path=config.path,
        config_text=config.text,
        config=config.config,
        script=script,
        recipe=recipe,
        batch_size=batch_size,
        gradient_accumulation_steps=steps,
        packed=packed,
        max_seq_len=length if isinstance(length, int) else None,
        device=device,
        device_index=device_index,
        dtype=dtype,
        world=resolve_world(request, script, recipe, config, device, findings),
        notes=tuple(findings.notes),
        working_dir=working_dir,
        plan_path=path.parent / PLAN_NAME,
    )


def check_trained_config(
    config: RunConfig, script: SlurmScript | None, working_dir: Path, findings: Findings
) -> None:
    """The `tune run` line trains with this `finetune.yaml`, not with another file."""
    tune_run = script.tune_run if script else None
    if script is None or tune_run is None or tune_run.config is None or {"$", "`"} & set(tune_run.config):
        return
    trained = working_dir / tune_run.config
    where = script.where(tune_run.line)
    if trained.name != CONFIG_NAME:
        findings.note(f"{where}: trains with --config {tune_run.config}; the probe reads {CONFIG_NAME}")
    elif Path(tune_run.config).is_absolute() and trained.resolve() != config.path:
        findings.problem(
            f"trains with {tune_run.config}, the config of another run",
            where,
            f"write --config {config.path}, or --config {CONFIG_NAME}",
        )
