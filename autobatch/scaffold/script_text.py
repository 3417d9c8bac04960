"""Makes the text of finetune.slurm out of `slurm/finetune.slurm`: known words of it are replaced."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from autobatch.errors import Problem, RunProblems, UsageError
from autobatch.runs.recipes import Recipe
from autobatch.runs.slurm_script import parse_script
from autobatch.runs.torchtune_source import registered_recipes

#: `#SBATCH` options that init takes, by their long name.
HEADER_OPTIONS = ("partition", "account", "time", "gres", "mem", "cpus-per-task", "constraint")

#: Those that the template has besides, as every run's script gets them.
TEMPLATE_OPTIONS = ("job-name", "output", "nodes", "ntasks")

_TITLE = (
    "# The training job of a run that autobatch has probed. "
    "Copy it into the run directory and fill in the header."
)
_TRAIN = "tune run lora_finetune_single_device --config finetune.yaml"


def make_script(
    template: str, name: str, recipe: str, header: Mapping[str, str], *, device: str, made_from: str
) -> str:
    """The training job of one run.

    Args:
        template: text of `slurm/finetune.slurm`.
        name: of the run, and of the job.
        recipe: as `tune run` takes it.
        header: `#SBATCH` options by their long name; they replace the template's.
        device: that the config trains on. On ``cpu`` the job asks for no card unless `header` does.
        made_from: the config that the run was made from, in words.

    Raises:
        UsageError: a header value can't stand in a script, or the template isn't the one that we know.
    """
    _check_header(header)
    text = re.sub(r"^#( .*)$", lambda m: f"#{m[1].replace('run1', name)}", template, flags=re.M)
    # Only now: the run that it was made from may be called run1.
    text = _replaced(
        text, _TITLE, f"# The training job of {name}, made by `autobatch init` from {made_from}."
    )
    text = _replaced(text, _TRAIN, f"tune run {shlex.quote(recipe)} --config finetune.yaml")
    text = _set_option(text, "job-name", name)
    if device == "cpu" and "gres" not in header:
        text = _without_option(text, "gres")
    for option, value in header.items():
        text = _set_option(text, option, value)
    return _checked(text, name, recipe, header)


def recipe_for_script(recipe: Recipe, run_dir: Path) -> str:
    """The recipe as the `tune run` line names it.

    torchtune turns the path of a recipe file into a module's name ("a/b.py" -> "a.b") and looks for the module
    from where it runs, the run directory (torchtune 0.6.1, `_cli/run.py`).

    Raises:
        RunProblems: a file that torchtune wouldn't find from there.
    """
    registered = registered_recipes().get(recipe.name)
    if registered is not None and registered.path == recipe.path:
        return recipe.name
    try:
        written = recipe.path.relative_to(run_dir.resolve())
    except ValueError:
        written = Path("..")
    if all(part.isidentifier() for part in written.with_suffix("").parts):
        return str(written)
    raise RunProblems(
        [
            Problem(
                f"{recipe.path}: `tune run` finds a recipe file only in the directory in which it runs, or below",
                "--recipe",
                f"copy it into {run_dir}, and name it there: --recipe {run_dir / recipe.path.name}",
            )
        ]
    )


def can_stand(value: str) -> bool:
    """Whether a value can stand in a `#SBATCH` line as it is."""
    return re.fullmatch(r"[^\s\"'\\#]+", value) is not None


def _check_header(header: Mapping[str, str]) -> None:
    for option, value in header.items():
        if not can_stand(value):
            raise UsageError(
                f"--{option} {value!r} can't stand in a #SBATCH line: give a value without spaces"
            )


def _replaced(text: str, known: str, by: str) -> str:
    if text.count(known) != 1:
        raise UsageError(
            f"slurm/finetune.slurm isn't the template that this autobatch knows: it has {known!r} "
            f"{text.count(known)} times, not once\n    install autobatch again"
        )
    return text.replace(known, by)


def _set_option(text: str, option: str, value: str) -> str:
    """Replaces the option's line, or adds one below the last of the header."""
    line = f"#SBATCH --{option}={value}"
    changed, count = re.subn(rf"^#SBATCH --{option}=.*$", lambda _: line, text, count=1, flags=re.M)
    if count:
        return changed
    last = list(re.finditer(r"^#SBATCH .*$", text, flags=re.M))[-1]
    return f"{text[: last.end()]}\n{line}{text[last.end() :]}"


def _without_option(text: str, option: str) -> str:
    return re.sub(rf"^#SBATCH --{option}=.*\n", "", text, count=1, flags=re.M)


def _checked(text: str, name: str, recipe: str, header: Mapping[str, str]) -> str:
    """`text`, when autobatch reads out of it what was put in."""
    script = parse_script(text, Path("finetune.slurm"))
    wanted = {"job-name": name, **header}
    read = {option: script.header.get(option) for option in wanted}
    if read != wanted or script.tune_run is None or script.tune_run.recipe != recipe:
        raise UsageError(
            f"slurm/finetune.slurm can't be filled in with {wanted} and {recipe}: choose plainer names"
        )
    return text
