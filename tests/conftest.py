"""Runs to probe: laid out once, copied for each test."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from autobatch.demo import SmallRun, lay_out
from autobatch.probing.forkserver import ForkServer
from autobatch.probing.job import run_probe
from autobatch.probing.meter import MALLOC_ENVIRONMENT
from autobatch.records import ProbeRequest
from tests.trainings import Training, train_all

RECIPES = Path(__file__).parent / "recipes"

#: Of tests/recipes/misbehaving.py.
MIB_EACH = 40

MakeRun = Callable[..., Path]

#: On a busy machine, threads that wait for one another make a step of a small model take a second. Set here,
#: before any test starts the fork server, which hands it to every trial.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _fork_server() -> None:
    """Starts it as a probe does: a process has one, and it keeps the environment that it began with."""
    if "MUTANT_UNDER_TEST" in os.environ:
        # Each mutant runs in a fork of the process that ran the tests before: a server isn't the fork's child.
        return
    before = dict(os.environ)
    ForkServer(MALLOC_ENVIRONMENT, "cpu").start()
    _restore(before)


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    """A probe in this process sets variables for its trials; the next test begins without them."""
    before = dict(os.environ)
    yield
    _restore(before)


def _restore(environment: dict[str, str]) -> None:
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)


@pytest.fixture(scope="session")
def laid_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's experiment, shorter: 300 examples in packs of 128 tokens."""
    directory = tmp_path_factory.mktemp("laid_out") / "experiment"
    lay_out(directory, SmallRun(examples=300, max_seq_len=128, num_layers=2))
    return directory


@pytest.fixture(scope="session")
def trainings(laid_out: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Training]:
    """Real trainings by name, see tests/trainings.py."""
    return train_all(laid_out, tmp_path_factory.mktemp("trainings"))


@pytest.fixture
def make_run(laid_out: Path, tmp_path: Path) -> MakeRun:
    """Copies the experiment; with a recipe of tests/recipes, if named, and settings for finetune.yaml."""

    def make(recipe: str | None = None, **settings: object) -> Path:
        experiment = tmp_path / "experiment"
        shutil.copytree(laid_out, experiment)
        run = experiment / "run1"
        if recipe is not None:
            with_recipe(run, recipe, **settings)
        return run

    return make


@pytest.fixture(scope="session")
def capacity(laid_out: Path, tmp_path_factory: pytest.TempPathFactory) -> int:
    """Bytes of which 70 % hold 590 MiB more than the misbehaving recipe takes without a batch.

    Measured, since what a process needs for its imports differs between machines.
    """
    experiment = tmp_path_factory.mktemp("capacity") / "experiment"
    shutil.copytree(laid_out, experiment)
    run = experiment / "run1"
    with_recipe(run, "misbehaving.py", misbehaviour="none")
    before = dict(os.environ)
    result = run_probe(ProbeRequest(str(run), max_batch_size=1, target_fraction=1.0))
    _restore(before)
    assert result.peak_bytes is not None
    return round((result.peak_bytes + (590 - MIB_EACH) * 2**20) / 0.7)


def with_recipe(run: Path, recipe: str, **settings: object) -> None:
    """Let a run train with a recipe of tests/recipes, and add settings to its finetune.yaml."""
    script = run / "finetune.slurm"
    script.write_text(script.read_text().replace("lora_finetune_single_device", str(RECIPES / recipe)))
    config = run / "finetune.yaml"
    lines = [f"{key}: {value}\n" for key, value in settings.items()]
    config.write_text(config.read_text() + "\n" + "".join(lines))


def heed_interrupts() -> None:
    """`preexec_fn` of a process that is sent SIGINT: a shell that put this one behind `&` had it ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def files_of(run: Path) -> dict[str, bytes]:
    """The user's files around a run, for comparing before and after."""
    return {
        str(path.relative_to(run.parent)): path.read_bytes()
        for path in (run / "finetune.yaml", run / "finetune.slurm", run.parent / "runs_plan.md")
    }
