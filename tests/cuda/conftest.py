"""Runs to probe on simulated GPUs, by a pytest that sees four of them itself:

    autobatch simulate --gpus 4 -- python -m pytest tests/cuda

With that, probes can be called in the tests' own process, and share one fork server. A test that needs another
card, or other variables from the start, runs the command in a process of its own (`simulate`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from autobatch.demo import SmallRun, lay_out
from autobatch.probing.forkserver import ForkServer
from autobatch.probing.job import run_probe
from autobatch.records import ProbeRequest, ProbeResult, from_json
from autobatch.simulated_gpu.environment import SETTINGS, is_simulated
from autobatch.simulated_gpu.gpus import gpu_named
from autobatch.simulated_gpu.library import NoSimulation, find_torch
from tests.conftest import RECIPES
from tests.cuda.in_child import answer

#: What this process sees four of.
CARD = gpu_named("h100-80gb")

MIB, GIB = 2**20, 2**30

MakeRun = Callable[..., Path]
InChild = Callable[..., Any]

#: Compiling takes most of the time of a trial with packed rows. One process does it as fast as several that
#: have to start first, and a small model's steps need no threads.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

#: A small model of one shape in all tests: what was compiled for a batch size is compiled once.
TINY = {
    "device": "cuda",
    "dtype": "bf16",
    "examples": 120,
    "max_seq_len": 128,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "embed_dim": 256,
    "intermediate_dim": 512,
}


def pytest_collect_file() -> None:
    """Nothing is collected, once and with the reason, where these tests can't run."""
    try:
        find_torch()
    except NoSimulation as why:
        pytest.skip(f"the CUDA path: {why}")
    wanted = {f"name={CARD.product}", "count=4", f"total_bytes={CARD.total_bytes}", "taken_bytes=0"}
    if not is_simulated() or not wanted <= set(os.environ[SETTINGS].split(";")):
        raise pytest.UsageError("start it so: autobatch simulate --gpus 4 -- python -m pytest tests/cuda")


@pytest.fixture(scope="session", autouse=True)
def _fork_server(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The one of all probes in this process, for the card, with kernels that are kept for the session."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(shared / "inductor")
    os.environ["TRITON_CACHE_DIR"] = str(shared / "triton")
    before = dict(os.environ)
    ForkServer({}, "cuda").start()
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An experiment each for LoRA and for full fine-tuning."""
    directory = tmp_path_factory.mktemp("layouts")
    for method in ("lora", "full"):
        lay_out(directory / method, SmallRun(method=method, **TINY))  # type: ignore[arg-type]  # a table
    return {method: directory / method for method in ("lora", "full")}


@pytest.fixture
def make_run(layouts: dict[str, Path], tmp_path: Path) -> MakeRun:
    """Copies an experiment; `settings` replace values of finetune.yaml, `more` is added to its end."""

    def make(
        method: str = "lora",
        *,
        recipe: str | None = None,
        more: str = "",
        exports: str = "",
        **settings: object,
    ) -> Path:
        experiment = tmp_path / "experiment"
        shutil.copytree(layouts[method], experiment)
        run = experiment / "run1"
        config = run / "finetune.yaml"
        text = config.read_text()
        for key, value in settings.items():
            text, count = re.subn(rf"(?m)^( *){key}: [^\n#$]*?( *#.*)?$", rf"\1{key}: {value}\2", text)
            assert count == 1, key
        config.write_text(text + more)
        script = run / "finetune.slurm"
        code = script.read_text()
        if recipe is not None:
            single = f"{method}_finetune_single_device"
            assert code.count(f"tune run {single} ") == 1
            code = code.replace(single, recipe)
        script.write_text(code.replace("\nexport HF_HUB", f"\n{exports}\nexport HF_HUB"))
        return run

    return make


@pytest.fixture
def run_on_card(make_run: MakeRun) -> MakeRun:
    """A run whose recipe takes 10 GiB and 4 GiB for each sequence, unless told otherwise: recipes/on_card.py."""

    def make(
        how: str = "plain",
        *,
        fixed_gib: float = 10,
        each_gib: float = 4,
        exports: str = "",
        **settings: object,
    ) -> Path:
        more = f"\nhow: {how}\nfixed_gib: {fixed_gib}\neach_gib: {each_gib}\n"
        return make_run(recipe=str(RECIPES / "on_card.py"), more=more, exports=exports, **settings)

    return make


@pytest.fixture
def in_child(tmp_path: Path) -> InChild:
    """Calls a function of in_child.py in a fork of the server and returns what it does."""

    def call(function: Callable[..., Any], *arguments: Any) -> Any:
        said, log = tmp_path / "said.json", tmp_path / "child.log"
        ended = ForkServer({}, "cuda").run(answer, str(said), function, arguments, log=log, timeout_s=120)
        assert ended.code == 0, log.read_text()
        return json.loads(said.read_text())

    return call


def probe(run: Path, **options: Any) -> ProbeResult:
    """In this process, on a card of the session."""
    return run_probe(ProbeRequest(str(run), **options))


def tried(result: ProbeResult) -> list[tuple[int, str]]:
    """The sizes in the order in which they were measured, with their verdicts."""
    return [(trial.batch_size, trial.verdict.value) for trial in result.trials]


def simulate(
    options: str, *command: str | Path, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """`autobatch simulate` with `options`, of a command of this environment."""
    autobatch = Path(sys.executable).parent / "autobatch"
    clean = {name: value for name, value in os.environ.items() if name not in (SETTINGS, "LD_PRELOAD")}
    return subprocess.run(
        [str(autobatch), "simulate", *options.split(), "--", *map(str, command)],
        env={**clean, **(environment or {})},
        capture_output=True,
        text=True,
        check=False,
    )


def simulate_probe(card: str, run: Path, *options: str) -> ProbeResult:
    """A probe as a user starts it, on another card than the session's."""
    ended = simulate(card, "autobatch", "probe", run, "--cluster", "inline", "--no-estimate", *options)
    assert ended.returncode in (0, 1), ended.stderr
    return from_json(ProbeResult, json.loads((run / "probe" / "result.json").read_text()))
