"""Makes a run directory: what it will hold first, then onto disk, and never over what is there unasked."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from autobatch.edits.files import edit_file, read_text, replace_file
from autobatch.errors import UsageError
from autobatch.runs import data_files
from autobatch.runs.config import parse_config
from autobatch.runs.directory import CONFIG_NAME, SCRIPT_NAME
from autobatch.runs.findings import Findings
from autobatch.scaffold.config_text import make_config
from autobatch.scaffold.request import InitRequest
from autobatch.scaffold.script_text import make_script, recipe_for_script
from autobatch.scaffold.sources import Source, find_source
from autobatch.shipped import training_script


@dataclass(frozen=True)
class Plan:
    """A run directory that isn't on disk yet.

    Attributes:
        run_dir: absolute.
        source: the config that it is made from.
        recipe: as the `tune run` line names it.
        files: text by path, in the order in which they are to be written.
        notes: what was chosen, for the user to hear.
        warnings: what the run still lacks.
    """

    run_dir: Path
    source: Source
    recipe: str
    files: dict[Path, str]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def config_path(self) -> Path:
        """Of finetune.yaml."""
        return self.run_dir / CONFIG_NAME

    def occupied(self) -> list[Path]:
        """Those files that are there already, with another content."""
        return [path for path, text in self.files.items() if path.exists() and read_text(path) != text]

    def before(self, path: Path) -> tuple[str, str]:
        """What a file of the plan changes, and the name of that: the file as it is, else what it is made from."""
        if path.exists():
            return read_text(path), str(path)
        if path.name == CONFIG_NAME:
            return self.source.text, str(self.source.path)
        return training_script().read_text(encoding="utf-8"), str(training_script())


def plan_run(request: InitRequest, cwd: Path) -> Plan:
    """What the run directory will hold. Writes nothing.

    Args:
        request: what the user asked for.
        cwd: where the user is.

    Raises:
        UsageError: it can't be made.
    """
    run_dir = (cwd / Path(request.run_dir).expanduser()).resolve()
    if run_dir.exists() and not run_dir.is_dir():
        raise UsageError(f"{request.run_dir} is a file: name a directory for the run")
    if not re.fullmatch(r"\w[\w.+-]*", run_dir.name):
        raise UsageError(
            f"{run_dir.name!r} can't name a run and its Slurm job: use letters, digits, '.', '_', '-' and '+'"
        )
    source = find_source(request.config, cwd)
    config = make_config(source, request, run_dir, cwd)
    recipe = recipe_for_script(config.recipe, run_dir)
    script = make_script(
        training_script().read_text(encoding="utf-8"),
        run_dir.name,
        recipe,
        {**source.header, **request.header},
        device=config.device,
        made_from=source.origin,
    )
    # A run counts as one as soon as its finetune.yaml is there, so that comes last.
    files = {run_dir / SCRIPT_NAME: script, run_dir / CONFIG_NAME: config.text}
    warnings = (*config.warnings, *missing_files(config.text, run_dir))
    return Plan(run_dir, source, recipe, files, config.notes, warnings)


def missing_files(text: str, run_dir: Path) -> list[str]:
    """A sentence for each local file that the config names and that isn't there."""
    config = parse_config(text, run_dir / CONFIG_NAME, None, Findings())
    if config is None:
        return []
    named = [
        *data_files.tokenizer_files(config.values, run_dir),
        *data_files.data_files(config.values, run_dir),
        *data_files.checkpoint_files(config.values, run_dir),
    ]
    # A path through a run directory that isn't there yet would lead nowhere.
    direct = [replace(file, path=Path(os.path.normpath(file.path))) for file in named]
    return [f"{config.where(f.key)}: {f.key}: {f.path} isn't there yet" for f in direct if not f.exists()]


def refuse_occupied(plan: Plan) -> None:
    """Raises a `UsageError` when a file of the plan is there already, with another content."""
    occupied = plan.occupied()
    if occupied:
        names = " and ".join(str(path) for path in occupied)
        raise UsageError(
            f"{names}: there already; name another run directory,\n    or add --force to replace "
            f"{'them' if len(occupied) > 1 else 'it'}; a copy is kept"
        )


def write_run(plan: Plan, *, force: bool) -> dict[Path, Path]:
    """Writes the files of a plan, each whole or not at all.

    Args:
        plan: what to write.
        force: replace files that are there; what they held is kept beside them.

    Returns:
        For each file that was replaced, the copy of what it held.

    Raises:
        UsageError: a file is there already; nothing was written.
        EditError: a file can't be written.
    """
    occupied = plan.occupied()
    if not force:
        refuse_occupied(plan)
    try:
        plan.run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{plan.run_dir}: can't be made ({error.strerror})") from error
    kept = {}
    for path, text in plan.files.items():
        if path in occupied:
            kept[path] = _free_name(path)
            replace_file(kept[path], read_text(path), expected="")
            edit_file(path, lambda _, text=text: text)  # type: ignore[misc]
        elif not path.exists():
            replace_file(path, text, expected="")
    return kept


def _free_name(path: Path) -> Path:
    """``finetune.yaml.old``, ``finetune.yaml.old2``, ...: the first that nothing has."""
    number = 1
    while (free := path.with_name(f"{path.name}.old{number if number > 1 else ''}")).exists():
        number += 1
    return free
