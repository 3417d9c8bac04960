"""The experiments that faults happen to, and what an undisturbed probe makes of them."""

from __future__ import annotations

import json
import time
from functools import cache
from pathlib import Path

from autobatch.demo import SmallRun, lay_out
from tests.benchmarks.fault_scene import Base, Scene, names_in, without_figures
from tests.conftest import MIB_EACH, with_recipe

#: The answer to the misbehaving recipe: three trials, each a small one.
ANSWER = 6


@cache
def make_base(scratch: Path, name: str) -> Base:
    """Lay out an experiment and probe a copy of it.

    Args:
        scratch: directory for it.
        name: ``misbehaving``, whose capacity holds ANSWER sequences, or ``torchtune`` for its LoRA recipe.
    """
    directory = scratch / name
    experiment = directory / "experiment"
    capacity = None if name == "misbehaving" else "1.1GiB"
    lay_out(experiment, SmallRun(examples=300, max_seq_len=128, num_layers=2))
    if name == "misbehaving":
        with_recipe(experiment / "run1", "misbehaving.py", misbehaviour="none")
    before = without_figures(experiment)
    options: tuple[str, ...] = ("--cluster", "inline", "--no-estimate")
    bare = Base(experiment, options, 0.0, before, {}, (), 0, experiment)
    if capacity is None:
        scene = Scene(bare, directory / "size", 0)
        ended = scene.probe("--max-batch-size", "1", "--target", "1.0", "--json")
        peak = json.loads(ended.out)["peak_bytes"]
        capacity = str(round((peak + (ANSWER - 1 + 0.5) * MIB_EACH * 2**20) / 0.7))
    options = (*options, "--capacity", capacity)
    scene = Scene(Base(experiment, options, 0.0, before, {}, (), 0, experiment), directory / "undisturbed", 0)
    began = time.monotonic()
    ended = scene.probe("--json")
    seconds = time.monotonic() - began
    if ended.code != 0:
        raise RuntimeError(f"an undisturbed probe ended with {ended.code}: {ended.err}")
    answer = int(json.loads(ended.out)["batch_size"])
    names = names_in(scene.experiment)
    return Base(experiment, options, seconds, before, scene.files(), names, answer, scene.experiment)
