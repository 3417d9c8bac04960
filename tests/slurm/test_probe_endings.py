"""However a probe's job ends on a real Slurm: does training start, are the files right, what does status say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from slurm.devcluster import cluster as devcluster
from tests.conftest import RECIPES, MakeRun, files_of
from tests.slurm.client import Slurm

pytestmark = pytest.mark.recipe

#: The training job: it trains only behind a probe that holds, and leaves a trace.
_SCRIPT = """\
#!/bin/bash
#SBATCH --output=train-%j.out
set -e
autobatch verify .
grep '^batch_size:' finetune.yaml > trained
exit 0
tune run {recipe} --config finetune.yaml
"""

_INLINE = """\
#!/bin/bash
#SBATCH --output=train-%j.out
set -e
autobatch probe . --cluster inline --capacity {capacity} --max-batch-size 2 --no-estimate
grep '^batch_size:' finetune.yaml > trained
exit 0
tune run {recipe} --config finetune.yaml
"""

_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")


@dataclass(frozen=True)
class Probe:
    """A probe that was submitted with its training job."""

    slurm: Slurm
    run: Path
    job: str
    train: str

    def wait_for_trial(self) -> None:
        """Until a trial has begun."""
        events = self.run / "probe" / "events.jsonl"
        deadline = time.monotonic() + 60
        while not (events.exists() and '"TrialBegan"' in events.read_text()):
            assert time.monotonic() < deadline, "no trial began"
            time.sleep(0.1)

    def status(self) -> dict[str, str]:
        """What `autobatch status --json` says."""
        done = call(self.slurm, "status", str(self.run), "--json")
        (status,) = json.loads(done.stdout)
        return dict(status)

    @property
    def measured(self) -> list[int]:
        """Batch sizes in the journal."""
        lines = (self.run / "probe" / "trials.jsonl").read_text().splitlines()
        return [json.loads(line)["trial"]["batch_size"] for line in lines if "trial" in json.loads(line)]


def call(slurm: Slurm, *words: str) -> subprocess.CompletedProcess[str]:
    """autobatch, speaking to the cluster."""
    return subprocess.run(
        [sys.executable, "-m", "autobatch.cli.main", *words],
        env=environment(slurm),
        capture_output=True,
        text=True,
        timeout=60,
    )


def environment(slurm: Slurm) -> dict[str, str]:
    """With this environment's `autobatch` first on the PATH."""
    return slurm.environment | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def submit(slurm: Slurm, run: Path, capacity: int, *options: str) -> Probe:
    """Probe and train, as typed."""
    (run / "finetune.slurm").write_text(_SCRIPT.format(recipe=RECIPES / "misbehaving.py"))
    words = ("probe", str(run), "--cluster", "slurm", "--train", "--capacity", str(capacity))
    done = call(slurm, *words, "--max-batch-size", "2", "--no-estimate", *options)
    assert done.returncode == 0, done.stderr
    job, train = done.stdout.split()
    return Probe(slurm, run, job, train)


def pid_of_job(run: Path) -> int:
    """The process that carries out the probe, found by the lock that it holds on the run."""
    inode = (run / "probe" / "lock").stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if "FLOCK" in fields and fields[-3].split(":")[-1] == str(inode):
            return int(fields[-4])
    raise AssertionError("nobody holds the lock")


def kill(probe: Probe) -> None:
    probe.wait_for_trial()
    os.kill(pid_of_job(probe.run), signal.SIGKILL)


def scancel(probe: Probe) -> None:
    probe.wait_for_trial()
    done = call(probe.slurm, "cancel", str(probe.run))
    assert done.stdout == f"{probe.job}\n"


def nothing(probe: Probe) -> None:
    pass


@pytest.mark.parametrize(
    ("settings", "options", "provoke", "says"),
    [
        pytest.param(
            {"misbehaviour": "none"}, ["--target", "0.01"], nothing, "nothing fits", id="nothing-fits"
        ),
        pytest.param(
            {"misbehaviour": "crash", "at": 1}, [], nothing, "the loss is not a number", id="recipe-crashes"
        ),
        pytest.param(
            {"misbehaviour": "leaves early"}, [], nothing, "ended by itself", id="recipe-exits-with-0"
        ),
        pytest.param({"misbehaviour": "hang", "at": 1}, [], kill, "without a result", id="job-killed"),
        pytest.param({"misbehaviour": "hang", "at": 1}, [], scancel, "CANCELLED", id="cancelled"),
        pytest.param(
            {"misbehaviour": "none"},
            ["--profile", "broken"],
            nothing,
            "without a result",
            id="setup-line-fails",
        ),
    ],
)
def test_training_never_starts_behind_a_probe_without_an_answer(
    settings: dict[str, object],
    options: list[str],
    provoke: Callable[[Probe], None],
    says: str,
    cluster: Slurm,
    make_run: MakeRun,
    capacity: int,
) -> None:
    run = make_run("misbehaving.py", **settings)
    (run / "autobatch.yaml").write_text("profiles: {broken: {setup: ['false']}}\n")
    probe = submit(cluster, run, capacity, *options)
    before = files_of(run)

    provoke(probe)

    assert cluster.wait_for(probe.job, *_ENDED, timeout_s=90)["JobState"] in ("FAILED", "CANCELLED")
    assert cluster.wait_for(probe.train, *_ENDED)["JobState"] == "CANCELLED"
    assert not (run / "trained").exists()
    assert files_of(run) == before
    status = probe.status()
    assert status["state"] == "failed"
    assert says in status["detail"]


def test_success_trains_at_the_measured_size_and_after_the_probe(
    cluster: Slurm, make_run: MakeRun, capacity: int
) -> None:
    probe = submit(cluster, make_run("misbehaving.py", misbehaviour="none"), capacity)

    probed = cluster.wait_for(probe.job, *_ENDED, timeout_s=90)
    trained = cluster.wait_for(probe.train, *_ENDED, timeout_s=60)

    assert (probed["JobState"], trained["JobState"]) == ("COMPLETED", "COMPLETED")
    assert probed["EndTime"] <= trained["StartTime"]
    assert (probe.run / "trained").read_text().startswith("batch_size: 2 ")
    assert probe.status()["state"] == "done"


def test_success_inline(cluster: Slurm, make_run: MakeRun, capacity: int) -> None:
    run = make_run("misbehaving.py", misbehaviour="none")
    script = _INLINE.format(recipe=RECIPES / "misbehaving.py", capacity=capacity)
    (run / "finetune.slurm").write_text(script)

    path = environment(cluster)["PATH"]
    job = cluster.sbatch(run, f"--export=ALL,PATH={path}", "finetune.slurm")

    assert cluster.wait_for(job, *_ENDED, timeout_s=90)["JobState"] == "COMPLETED"
    assert (run / "trained").read_text().startswith("batch_size: 2 ")


def test_a_failed_inline_probe_ends_the_job_before_training(
    cluster: Slurm, make_run: MakeRun, capacity: int
) -> None:
    run = make_run("misbehaving.py", misbehaviour="crash", at=1)
    script = _INLINE.format(recipe=RECIPES / "misbehaving.py", capacity=capacity)
    (run / "finetune.slurm").write_text(script)
    before = files_of(run)

    path = environment(cluster)["PATH"]
    job = cluster.sbatch(run, f"--export=ALL,PATH={path}", "finetune.slurm")

    ended = cluster.wait_for(job, *_ENDED, timeout_s=90)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "3:0")
    assert not (run / "trained").exists()
    assert files_of(run) == before


@pytest.mark.parametrize("how", ["requeued without a signal", "preempted"])
def test_a_requeued_probe_goes_on_and_measures_nothing_twice(
    how: str, cluster: Slurm, make_run: MakeRun, capacity: int, tmp_path: Path
) -> None:
    probe = submit(
        cluster, make_run("misbehaving.py", misbehaviour="hang once", at=2), capacity, "--time", "5"
    )
    deadline = time.monotonic() + 60
    while not (probe.run / "hung").exists():
        assert time.monotonic() < deadline, "the second trial didn't begin"
        time.sleep(0.1)

    if how == "preempted":
        cluster.wrap(tmp_path, "sleep 1", "--partition=urgent", "--exclusive")
    else:
        cluster.run("scontrol", "requeue", probe.job)

    probed = cluster.wait_for(probe.job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", timeout_s=150)
    assert probed["JobState"] == "COMPLETED"
    assert int(probed["Restarts"]) == 1
    assert probe.measured == [1, 2]
    assert cluster.wait_for(probe.train, *_ENDED, timeout_s=60)["JobState"] == "COMPLETED"
    assert probe.status()["state"] == "done"


def test_the_time_limit_stops_the_search_with_what_was_measured(
    cluster: Slurm, make_run: MakeRun, capacity: int
) -> None:
    run = make_run("misbehaving.py", misbehaviour="hang", at=2)
    probe = submit(cluster, run, capacity, "--time", "1")
    before = files_of(run)

    assert cluster.wait_for(probe.job, *_ENDED, timeout_s=90)["JobState"] == "FAILED"

    assert cluster.wait_for(probe.train, *_ENDED)["JobState"] == "CANCELLED"
    assert files_of(run) == before
    assert json.loads((run / "probe" / "result.json").read_text())["status"] == "out of time"
    status = probe.status()
    assert status["state"] == "failed"
    assert "after 1 trials: batch_size 1 fits" in status["detail"]


def test_what_was_measured_by_the_time_limit_can_be_accepted(
    cluster_with_accounting: Slurm, make_run: MakeRun, capacity: int
) -> None:
    run = make_run("misbehaving.py", misbehaviour="hang", at=2)
    probe = submit(cluster_with_accounting, run, capacity, "--time", "1", "--accept-partial")

    assert cluster_with_accounting.wait_for(probe.job, *_ENDED, timeout_s=90)["JobState"] == "COMPLETED"

    assert cluster_with_accounting.wait_for(probe.train, *_ENDED, timeout_s=60)["JobState"] == "COMPLETED"
    assert (run / "trained").read_text().startswith("batch_size: 1 ")
    assert "time limit ended the search" in probe.status()["detail"]


def test_after_another_job_and_in_a_directory_with_spaces(
    cluster_with_accounting: Slurm, make_run: MakeRun, capacity: int, tmp_path: Path
) -> None:
    run = make_run("misbehaving.py", misbehaviour="none").rename(tmp_path / "experiment" / "a run's name")
    first = cluster_with_accounting.wrap(tmp_path, "sleep 15")

    probe = submit(cluster_with_accounting, run, capacity, "--after", first)
    queued = probe.status()

    assert queued["state"] == "queued"
    assert cluster_with_accounting.wait_for(probe.train, *_ENDED, timeout_s=120)["JobState"] == "COMPLETED"
    ended, began = cluster_with_accounting.job(first), cluster_with_accounting.job(probe.job)
    assert ended["EndTime"] <= began["StartTime"]
    assert (run / "trained").read_text().startswith("batch_size: 2 ")
    assert "a run's name" in (run.parent / "runs_plan.md").read_text()


def test_the_controller_restarts_during_a_probe(cluster: Slurm, make_run: MakeRun, capacity: int) -> None:
    probe = submit(cluster, make_run("misbehaving.py", misbehaviour="none"), capacity)
    probe.wait_for_trial()

    devcluster.restart(cluster.cluster, "slurmctld")

    assert cluster.wait_for(probe.job, *_ENDED, timeout_s=90)["JobState"] == "COMPLETED"
    assert cluster.wait_for(probe.train, *_ENDED, timeout_s=60)["JobState"] == "COMPLETED"


def test_a_purged_probe_lets_training_start_and_verify_refuses(
    cluster: Slurm, make_run: MakeRun, tmp_path: Path
) -> None:
    run = make_run("misbehaving.py", misbehaviour="none")
    (run / "finetune.slurm").write_text(_SCRIPT.format(recipe=RECIPES / "misbehaving.py"))
    path = environment(cluster)["PATH"]

    job = cluster.sbatch(run, "--dependency=afterok:999999", f"--export=ALL,PATH={path}", "finetune.slurm")

    ended = cluster.wait_for(job, *_ENDED, timeout_s=60)
    assert (ended["JobState"], ended["ExitCode"]) == ("FAILED", "1:0")
    assert not (run / "trained").exists()
    assert "wasn't probed yet" in (run / f"train-{job}.out").read_text()


def test_stdout_is_exactly_the_job_id(cluster: Slurm, make_run: MakeRun, capacity: int) -> None:
    run = make_run("misbehaving.py", misbehaviour="none")

    done = call(
        cluster, "probe", str(run), "--cluster", "slurm", "--capacity", str(capacity), "--no-estimate"
    )

    job = done.stdout.removesuffix("\n")
    assert job.isdigit()
    assert cluster.job(job)["JobName"] == "autobatch-run1"
    assert call(cluster, "cancel", str(run)).returncode == 0
