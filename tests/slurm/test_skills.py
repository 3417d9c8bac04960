"""The commands of skills that need a cluster, on a real one: probe, then training that waits for it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from autobatch.cli.main import main
from tests.skill_commands import BLOCKS, substituted, write_autobatch
from tests.slurm.client import Slurm

pytestmark = pytest.mark.recipe

#: What makes the probe short; where it runs is as a skill leaves it.
ALSO = {"probe": "--max-batch-size 2"}

LINES = [line for block in BLOCKS if block.info == "sh slurm" for line in block.commands]


def test_there_are_some() -> None:
    assert {line.split()[0] for line in LINES} == {"autobatch", "sbatch", "squeue"}


@pytest.mark.parametrize("line", LINES)
def test_a_command_that_needs_a_cluster(line: str, cluster: Slurm, laid_out: Path, tmp_path: Path) -> None:
    run = tmp_path / "experiment" / "run1"
    if not line.startswith("squeue"):
        shutil.copytree(laid_out, run.parent)
        as_init_makes_it(run)
    write_autobatch(tmp_path / "bin")
    path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])

    ended = subprocess.run(
        ["bash", "-c", substituted(line, ALSO)],
        cwd=tmp_path,
        env=cluster.environment | {"PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )

    assert ended.returncode == 0, f"{line}\n{ended.stdout}{ended.stderr}"
    if line.startswith("squeue"):
        assert "JOBID" in ended.stdout
        return
    training = re.findall(r"\d+", ended.stdout)[-1]
    cluster.wait_for(training, "COMPLETED", "FAILED", timeout_s=240)
    logs = {path.name: path.read_text() for path in tmp_path.rglob("slurm-*.out")}
    assert cluster.job(training)["JobState"] == "COMPLETED", logs
    assert "batch_size: 2 " in (run / "finetune.yaml").read_text()
    assert list((run / "output").iterdir())


def as_init_makes_it(run: Path) -> None:
    """The run's config and training job as `autobatch init` writes them, to train two steps on this node."""
    made = run.with_name("made")
    words = ["init", str(made), "--config", str(run / "finetune.yaml"), "--mem", "4G", "--cpus", "2"]
    assert main([*words, "max_steps_per_epoch=2"]) == 0
    shutil.rmtree(run)
    made.rename(run)
