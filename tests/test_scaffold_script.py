"""finetune.slurm out of the template: filled in, still a script, and nothing guessed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from autobatch.errors import RunProblems, UsageError
from autobatch.runs.recipes import Recipe, resolve_recipe
from autobatch.runs.slurm_script import parse_script
from autobatch.scaffold.script_text import make_script, recipe_for_script
from autobatch.shipped import training_script

TEMPLATE = training_script().read_text()
FULL = "full_finetune_single_device"


def made(name: str = "run7", recipe: str = FULL, device: str = "cuda", **header: str) -> str:
    options = {option.replace("_", "-"): value for option, value in header.items()}
    return make_script(TEMPLATE, name, recipe, options, device=device, made_from="a config")


def changed(text: str) -> tuple[list[str], list[str]]:
    before, after = TEMPLATE.splitlines(), text.splitlines()
    return [line for line in before if line not in after], [line for line in after if line not in before]


def test_name_and_recipe_are_filled_in_and_nothing_else_changes() -> None:
    training_line = next(line for line in TEMPLATE.splitlines() if line.startswith("tune run "))

    gone, new = changed(made())

    assert new == [
        "# The training job of run7, made by `autobatch init` from a config.",
        "#   sbatch --dependency=afterok:$(autobatch probe run7/) run7/finetune.slurm",
        "# or both at once:   autobatch probe run7/ --train",
        "#SBATCH --job-name=run7",
        training_line.replace("lora_finetune_single_device", FULL),
    ]
    assert len(gone) == len(new)


def test_the_run_that_it_was_made_from_keeps_its_name() -> None:
    text = make_script(TEMPLATE, "run2", FULL, {}, device="cuda", made_from="runs/run1")

    assert "# The training job of run2, made by `autobatch init` from runs/run1.\n" in text


def test_the_header_that_was_asked_for() -> None:
    text = made(
        partition="gpu",
        account="lab",
        time="1:00:00",
        gres="gpu:a100:1",
        mem="32G",
        cpus_per_task="4",
        constraint="x",
    )

    header = parse_script(text, Path("finetune.slurm")).header
    assert (
        header
        | {
            "job-name": "run7",
            "partition": "gpu",
            "account": "lab",
            "time": "1:00:00",
            "gres": "gpu:a100:1",
            "mem": "32G",
            "cpus-per-task": "4",
            "constraint": "x",
        }
        == header
    )


def test_on_a_cpu_no_card_is_asked_for_unless_said() -> None:
    assert "gres" not in parse_script(made(device="cpu"), Path()).header
    assert parse_script(made(device="cpu", gres="gpu:1"), Path()).header["gres"] == "gpu:1"


def test_it_is_a_script_that_verifies_before_it_trains(tmp_path: Path) -> None:
    text = made(partition="gpu")
    (tmp_path / "finetune.slurm").write_text(text)

    checked = subprocess.run(
        ["bash", "-n", tmp_path / "finetune.slurm"], capture_output=True, text=True, check=False
    )

    assert (checked.returncode, checked.stderr) == (0, "")
    assert text.index("\nautobatch verify .\n") < text.index("\ntune run ")


@pytest.mark.parametrize(
    "line", ["tune run lora_finetune_single_device --config finetune.yaml", "# The training job"]
)
def test_a_template_that_lacks_a_known_line_is_refused(line: str) -> None:
    without = "\n".join(text for text in TEMPLATE.splitlines() if not text.startswith(line))

    with pytest.raises(UsageError, match="isn't the template"):
        make_script(without, "run1", "x", {}, device="cuda", made_from="a config")


@pytest.mark.parametrize("value", ["", "a b", "a\n#SBATCH --x=y", "'", "gpu#1"])
def test_a_value_that_would_break_the_header_is_refused(value: str) -> None:
    with pytest.raises(UsageError, match="--partition"):
        made(partition=value)


class TestRecipe:
    def test_a_registered_one_goes_by_its_name(self, tmp_path: Path) -> None:
        recipe = resolve_recipe("lora_dpo_single_device", None, {}, tmp_path)

        assert recipe_for_script(recipe, tmp_path) == "lora_dpo_single_device"

    def test_a_file_in_the_run_goes_by_its_path_from_there(self, tmp_path: Path) -> None:
        recipe = Recipe("mine", tmp_path / "code" / "mine.py", "option", "", False)

        written = recipe_for_script(recipe, tmp_path)

        tune_run = parse_script(made(recipe=written), Path()).tune_run
        assert written == "code/mine.py"
        assert tune_run is not None
        assert tune_run.recipe == written

    @pytest.mark.parametrize("place", ["elsewhere/mine.py", "run/my-recipe.py"])
    def test_a_file_that_tune_run_would_not_find_is_refused(self, place: str, tmp_path: Path) -> None:
        recipe = Recipe(Path(place).stem, tmp_path / place, "option", "", False)

        with pytest.raises(RunProblems, match="finds a recipe file only"):
            recipe_for_script(recipe, tmp_path / "run")
