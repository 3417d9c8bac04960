"""Many runs on a real Slurm: an array, a task a group of runs, trainings behind their own group's task."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RECIPES, MakeRun
from tests.many_runs import copy_run
from tests.slurm.client import Slurm
from tests.slurm.test_probe_endings import _ENDED, _SCRIPT, call

pytestmark = pytest.mark.recipe

_OPTIONS = ("--cluster", "slurm", "--max-batch-size", "2", "--no-estimate", "--train", "--json")


def probe(slurm: Slurm, experiment: Path, capacity: int, *options: str) -> dict[str, dict[str, Any]]:
    """Probe an experiment and train its runs; what was submitted, by run."""
    done = call(slurm, "probe", str(experiment), *_OPTIONS, "--capacity", str(capacity), *options)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["exit_code"] == 0
    return {Path(entry["run"]).name: entry for entry in answer["runs"]}


def status(slurm: Slurm, experiment: Path) -> dict[str, dict[str, Any]]:
    listed = json.loads(call(slurm, "status", str(experiment), "--json").stdout)
    return {Path(one["run"]).name: one for one in listed}


def measured(run: Path) -> list[int]:
    """Sizes that were measured for this run, not another."""
    lines = map(json.loads, (run / "probe" / "trials.jsonl").read_text().splitlines())
    return [line["trial"]["batch_size"] for line in lines if "trial" in line and "run" not in line]


def with_training(run: Path) -> Path:
    (run / "finetune.slurm").write_text(_SCRIPT.format(recipe=RECIPES / "misbehaving.py"))
    return run


def test_an_array_and_trainings_released_group_by_group(
    cluster: Slurm, make_run: MakeRun, capacity: int
) -> None:
    run = with_training(make_run("misbehaving.py", misbehaviour="none"))
    copy_run(run, "run2", lr="1e-5")
    copy_run(run, "run3", misbehaviour="flat")
    copy_run(run, "run4", seed=5, gradient_accumulation_steps=1)
    dry = call(
        cluster, "probe", str(run.parent), "--cluster", "slurm", "--dry-run", "--max-parallel", "1"
    ).stdout

    jobs = probe(cluster, run.parent, capacity, "--max-parallel", "1")

    assert "--array=0-1%1\n" in dry
    assert not (run.parent / "probe").exists() or dry
    first, second = jobs["run1"]["job_id"], jobs["run3"]["job_id"]
    assert (first.endswith("_0"), second.endswith("_1")) == (True, True)
    assert [jobs[name]["job_id"] for name in ("run2", "run4")] == [first, first]
    trained = {
        name: cluster.wait_for(entry["train_job_id"], *_ENDED, timeout_s=150) for name, entry in jobs.items()
    }
    probed = {job: cluster.job(job) for job in (first, second)}
    assert {job["JobState"] for job in (*trained.values(), *probed.values())} == {"COMPLETED"}
    for name, entry in jobs.items():
        assert probed[entry["job_id"]]["EndTime"] <= trained[name]["StartTime"]
        assert (run.parent / name / "trained").read_text().startswith("batch_size: 2 ")
    # Not by the whole array: with one task at a time, the second is still under way.
    assert trained["run1"]["StartTime"] <= probed[second]["EndTime"]
    assert {name: measured(run.parent / name) for name in jobs} == {
        "run1": [1, 2],
        "run2": [],
        "run3": [1, 2],
        "run4": [],
    }
    done = status(cluster, run.parent)
    assert {one["state"] for one in done.values()} == {"done"}
    assert done["run4"]["group"] == ["run1", "run2", "run4"]
    assert done["run4"]["group_done"] == 3
    assert done["run3"]["group"] == []
    plan = (run.parent / "runs_plan.md").read_text()
    assert all(f"| {name} |" in plan for name in jobs)


def test_a_requeued_task_goes_on_and_an_experiment_is_cancelled(
    cluster: Slurm, make_run: MakeRun, capacity: int
) -> None:
    run = with_training(make_run("misbehaving.py", misbehaviour="hang once", at=2))
    second = copy_run(run, "run2", lr="1e-5")
    for name in ("run3", "run4"):
        copy_run(run, name, misbehaviour="hang", at=1, seed=name[-1])
    jobs = probe(cluster, run.parent, capacity, "--time", "9")
    ours, theirs = jobs["run1"]["job_id"], jobs["run3"]["job_id"]
    deadline = time.monotonic() + 90
    while not (run / "hung").exists():
        assert time.monotonic() < deadline, "the second trial didn't begin"
        time.sleep(0.1)

    under_way = status(cluster, run.parent)
    table = call(cluster, "status", str(run.parent)).stdout.splitlines()
    refused = call(cluster, "cancel", str(second))
    again = call(cluster, "probe", str(second), "--cluster", "slurm")
    cluster.run("scontrol", "requeue", ours)
    ended = cluster.wait_for(ours, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", timeout_s=150)
    cancelled = call(cluster, "cancel", str(run.parent))

    assert under_way["run1"]["state"] == under_way["run2"]["state"] == "running"
    assert under_way["run1"]["detail"] == "trial 2: batch_size 2 (1 fits)"
    assert under_way["run2"]["detail"] == "waits for run1, which comes first"
    assert [row.split()[:2] for row in table[1:]] == [
        ["run1", ours],
        ["run2", ours],
        ["run3", theirs],
        ["run4", theirs],
    ]
    assert "0 of 2 done" in table[1]
    assert refused.returncode == 2
    assert f"job {ours} probes run1 with it: --group ends it for all of them" in refused.stderr
    assert again.returncode == 2
    assert f"Slurm job {ours} is to probe this run already" in again.stderr
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1")
    assert (measured(run), measured(second)) == ([1, 2], [])
    assert cancelled.stdout == f"{theirs}\n"
    assert cluster.wait_for(theirs, *_ENDED, timeout_s=60)["JobState"] == "CANCELLED"
    states = [
        cluster.wait_for(jobs[name]["train_job_id"], *_ENDED, timeout_s=60)["JobState"]
        for name in ("run1", "run2", "run3", "run4")
    ]
    assert states == ["COMPLETED", "COMPLETED", "CANCELLED", "CANCELLED"]
    assert call(cluster, "cancel", str(run.parent)).returncode == 1
