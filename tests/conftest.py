"""Runs to probe: laid out once, copied for each test."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from autobatch.demo import SmallRun, lay_out

RECIPES = Path(__file__).parent / "recipes"

MakeRun = Callable[..., Path]


@pytest.fixture(scope="session")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's experiment, shorter: 300 examples in packs of 128 tokens."""
    directory = tmp_path_factory.mktemp("laid_out") / "experiment"
    lay_out(directory, SmallRun(examples=300, max_seq_len=128, num_layers=2))
    return directory


@pytest.fixture
def make_run(laid_out: Path, tmp_path: Path) -> MakeRun:
    """Copies the experiment; keyword arguments are added to finetune.yaml as they stand.

    `recipe` names a file of tests/recipes for finetune.slurm.
    """

    def make(recipe: str | None = None, **settings: object) -> Path:
        experiment = tmp_path / "experiment"
        shutil.copytree(laid_out, experiment)
        run = experiment / "run1"
        if recipe is not None:
            script = run / "finetune.slurm"
            text = script.read_text()
            script.write_text(text.replace("lora_finetune_single_device", str(RECIPES / recipe)))
        config = run / "finetune.yaml"
        lines = [f"{key}: {value}\n" for key, value in settings.items()]
        config.write_text(config.read_text() + "\n" + "".join(lines))
        return run

    return make


def files_of(run: Path) -> dict[str, bytes]:
    """The user's files around a run, for comparing before and after."""
    return {
        str(path.relative_to(run.parent)): path.read_bytes()
        for path in (run / "finetune.yaml", run / "finetune.slurm", run.parent / "runs_plan.md")
    }
