"""A probe on two nodes of a real Slurm: one job of the training's shape, a launcher on each node."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.devcluster import cluster as devcluster
from slurm.devcluster.conf import Options
from tests.conftest import RECIPES, MakeRun, files_of
from tests.slurm.client import Slurm, processes_of, wait_until
from tests.slurm.conftest import require
from tests.slurm.test_probe_endings import _ENDED, call, pid_of_job

pytestmark = pytest.mark.recipe

_SCRIPT = """\
#!/bin/bash
#SBATCH --output=train-%j.out
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=2
#SBATCH --mem=4G
set -e
autobatch verify .
head=$(hostname)
srun tune run --nnodes 2 --nproc_per_node 1 --rdzv_backend c10d --rdzv_id $SLURM_JOB_ID \\
    --rdzv_endpoint $head:{port} {recipe} --config finetune.yaml max_steps_per_epoch=2
"""


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    """A cluster of two nodes."""
    require(Options(nodes=2))
    directory = tmp_path_factory.mktemp("two_nodes")
    try:
        yield Slurm(devcluster.up(directory, Options(nodes=2), owner_pid=os.getpid()))
    finally:
        devcluster.down(directory)


def prepared(make_run: MakeRun, recipe: str, settings: str) -> Path:
    """A run whose script trains on two nodes with a recipe of tests/recipes."""
    run = make_run()
    (run / recipe).symlink_to(RECIPES / recipe)
    # What stands here is torchrun's to listen on; the test's own process id makes it differ between sessions.
    script = _SCRIPT.format(recipe=recipe, port=20000 + os.getpid() % 10000)
    (run / "finetune.slurm").write_text(script)
    config = run / "finetune.yaml"
    config.write_text(f"{config.read_text()}\n{settings}\n")
    return run


def test_a_probe_on_two_nodes_and_the_training_behind_it(two_nodes: Slurm, make_run: MakeRun) -> None:
    run = prepared(make_run, "on_cpu.py", "on_cpu: lora_finetune_distributed")

    done = call(two_nodes, "probe", str(run), "--max-batch-size", "1", "--train")

    assert done.returncode == 0, done.stderr
    probe, train = done.stdout.split()
    probed = two_nodes.wait_for(probe, *_ENDED, timeout_s=120)
    assert probed["JobState"] == "COMPLETED", (run / "probe" / "job" / f"{probe}_0_log.err").read_text()
    assert two_nodes.job(probe)["NumNodes"] == "2"
    result = json.loads((run / "probe" / "result.json").read_text())
    (trial,) = result["trials"]
    said = (run / "probe" / "events.jsonl").read_text()
    assert "world size 2: 2 nodes with 1 process each, from finetune.slurm:10" in said
    assert result["world"] == {"nodes": 2, "processes_per_node": 1, "data_parallel": 2}
    assert len(trial["peaks_by_rank"]) == 2
    trained = two_nodes.wait_for(train, *_ENDED, timeout_s=120)
    assert trained["JobState"] == "COMPLETED", (run / f"train-{train}.out").read_text()
    assert "1|2|Loss" in (run / f"train-{train}.out").read_text()


def test_a_crash_on_the_second_node(two_nodes: Slurm, make_run: MakeRun) -> None:
    run = prepared(make_run, "misbehaving_ranks.py", "misbehaviour: crash\non_rank: 1")
    before = files_of(run)

    done = call(two_nodes, "probe", str(run), "--no-estimate", "--train")

    probe, train = done.stdout.split()
    assert two_nodes.wait_for(probe, *_ENDED, timeout_s=120)["JobState"] == "FAILED"
    assert two_nodes.wait_for(train, *_ENDED)["JobState"] == "CANCELLED"
    result = json.loads((run / "probe" / "result.json").read_text())
    assert "the loss is not a number at batch_size 1 (rank 1 of 2)" in result["message"]
    assert files_of(run) == before
    assert ranks_of(run) == []


def test_the_job_is_killed_while_a_rank_hangs(two_nodes: Slurm, make_run: MakeRun) -> None:
    run = prepared(make_run, "misbehaving_ranks.py", "misbehaviour: hang\non_rank: 1")

    done = call(two_nodes, "probe", str(run), "--no-estimate")
    second = run / "probe" / "trials" / "batch_size_1.rank1.events"
    wait_until(lambda: second.exists() and '"step"' in second.read_text(), timeout_s=120)
    assert len(ranks_of(run)) >= 2
    os.kill(pid_of_job(run), signal.SIGKILL)

    assert two_nodes.wait_for(done.stdout.strip(), *_ENDED, timeout_s=60)["JobState"] == "FAILED"
    wait_until(lambda: ranks_of(run) == [])


def ranks_of(run: Path) -> list[str]:
    """Launchers, and the ranks forked from them: their command lines name the trial's files."""
    return [command for command in processes_of(run) if "autobatch.probing.node" in command]
