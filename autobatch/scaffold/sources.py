"""The config that a run starts from: one of ours, one of torchtune's, or a file."""

from __future__ import annotations

import difflib
import importlib.metadata
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import autobatch
from autobatch.errors import UsageError
from autobatch.runs.directory import CONFIG_NAME, SCRIPT_NAME
from autobatch.runs.slurm_script import read_script
from autobatch.runs.torchtune_source import RegisteredRecipe, registered_recipes
from autobatch.scaffold.script_text import HEADER_OPTIONS, TEMPLATE_OPTIONS, can_stand
from autobatch.shipped import configs_dir


@dataclass(frozen=True)
class Source:
    """A config to start from.

    Attributes:
        path: of the file.
        text: of the file.
        origin: where it comes from, in words that can stand in a comment.
        recipe: that torchtune lists it under, or that the `finetune.slurm` beside it runs; None when
            neither says.
        header: options of the `finetune.slurm` beside it that the new run's gets, too.
        notes: what is taken over from there, and what isn't.
    """

    path: Path
    text: str
    origin: str
    recipe: str | None = None
    header: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def our_configs() -> dict[str, Path]:
    """autobatch's configs by name."""
    return {path.stem: path for path in sorted(configs_dir().glob("*.yaml"))}


def torchtune_configs() -> dict[str, tuple[Path, str]]:
    """torchtune's configs by the name that `tune ls` prints: file, and the first recipe that lists it."""
    found: dict[str, tuple[Path, str]] = {}
    for recipe in registered_recipes().values():
        for path in recipe.configs:
            found.setdefault(_config_name(path, recipe), (path, recipe.name))
    return found


def find_source(given: str, cwd: Path) -> Source:
    """The config that `given` names.

    Args:
        given: name of one of autobatch's or torchtune's configs, path of a file, or of a run directory.
        cwd: where the user is.

    Raises:
        UsageError: there is none, or it can't be read.
    """
    ours = our_configs()
    if given in ours:
        origin = f"{given} of autobatch {autobatch.__version__}"
        text = _read(ours[given], given)
        recipe_named = re.match(r"#.* recipe (\w+)\.\n", text)
        return Source(ours[given], text, origin, recipe_named.group(1) if recipe_named else None)
    theirs = torchtune_configs()
    if given in theirs:
        path, recipe = theirs[given]
        origin = f"{given} of torchtune {importlib.metadata.version('torchtune')}"
        return Source(path, _read(path, given), origin, recipe)
    path = cwd / Path(given).expanduser()
    if path.is_dir() and (path / CONFIG_NAME).is_file():
        path /= CONFIG_NAME
    if path.is_file():
        recipe_there, header, notes = _script_beside(path)
        origin = "".join(c if c.isprintable() else " " for c in given)
        return Source(path.resolve(), _read(path, given), origin, recipe_there, header, notes)
    raise _unknown(given, [*ours, *theirs], list(ours))


def _config_name(path: Path, recipe: RegisteredRecipe) -> str:
    """Its path below torchtune's configs; for all but one, whose file is missing, that is the name."""
    configs = next(parent for parent in path.parents if parent.name == "configs")
    return str(path.relative_to(configs).with_suffix(""))


def _script_beside(path: Path) -> tuple[str | None, dict[str, str], tuple[str, ...]]:
    """The recipe and the header of the `finetune.slurm` beside a run's config, and notes."""
    script_path = path.with_name(SCRIPT_NAME)
    if path.name != CONFIG_NAME or not script_path.is_file():
        return None, {}, ()
    try:
        script = read_script(script_path)
    except OSError as error:
        return None, {}, (f"{script_path}: can't be read ({error.strerror}): nothing of it is taken over",)
    header = {name: script.header[name] for name in HEADER_OPTIONS if can_stand(script.header.get(name, ""))}
    notes = []
    if header:
        taken = ", ".join(f"{name}={value}" for name, value in header.items())
        notes.append(f"{script_path}: its header is taken over: {taken}")
    left = [f"#SBATCH --{name}" for name in script.header if name not in (*header, *TEMPLATE_OPTIONS)]
    left += [f"export {name}" for name in script.exports]
    if left:
        notes.append(f"{script_path}: not taken over: {', '.join(left)}")
    if script.tune_run is None:
        return None, header, tuple(notes)
    overrides = " ".join((*script.tune_run.overrides, *script.tune_run.unknown))
    if overrides:
        where = script.where(script.tune_run.line)
        notes.append(f"{where}: its `tune run` also sets {overrides}; not taken over")
    return script.tune_run.recipe, header, tuple(notes)


def _read(path: Path, given: str) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise UsageError(f"--config {given}: {path} can't be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UsageError(
            f"--config {given}: {path} isn't UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8"
        ) from error


def _unknown(given: str, names: list[str], ours: list[str]) -> UsageError:
    close = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?\n    " if close else ""
    return UsageError(
        f"--config {given}: no such file, and no config of that name\n    {hint}autobatch's are "
        f"{', '.join(ours)}; `tune ls` lists torchtune's"
    )
