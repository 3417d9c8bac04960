"""The development cluster does with jobs what a real one does: each test submits to a running Slurm."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from slurm.devcluster import cluster as devcluster
from tests.slurm.client import Slurm, runs, stubborn, wait_until


@pytest.fixture(scope="module", autouse=True)
def out_of_time(cluster: Slurm, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A job whose time is over. Slurm notices every 30 s only: begun with the first test, awaited by the last."""
    job = cluster.wrap(tmp_path_factory.mktemp("out_of_time"), "sleep 1000", "--time=20")
    cluster.wait_for(job, "RUNNING")
    cluster.run("scontrol", "update", f"JobId={job}", "EndTime=now")
    return job


def test_a_job_runs_and_completes(cluster: Slurm, tmp_path: Path) -> None:
    job = cluster.wrap(tmp_path, "echo from the job")

    cluster.wait_for(job, "COMPLETED")

    assert (tmp_path / f"{job}.out").read_text() == "from the job\n"


def test_a_job_sees_the_gpu_it_was_given(cluster: Slurm, tmp_path: Path) -> None:
    jobs = [cluster.wrap(tmp_path, "echo $CUDA_VISIBLE_DEVICES; sleep 2", "--gres=gpu:1") for _ in range(2)]

    for job in jobs:
        cluster.wait_for(job, "COMPLETED")

    assert {(tmp_path / f"{job}.out").read_text() for job in jobs} == {"0\n", "1\n"}


def test_srun_runs_in_an_allocation(cluster: Slurm) -> None:
    assert cluster.run("srun", "--gres=gpu:2", "sh", "-c", "echo $CUDA_VISIBLE_DEVICES") == "0,1\n"


def test_a_child_starts_after_success_only(cluster: Slurm, tmp_path: Path) -> None:
    def with_child(shell: str) -> tuple[str, str]:
        parent = cluster.wrap(tmp_path, shell)
        child = cluster.wrap(
            tmp_path, "echo ran", f"--dependency=afterok:{parent}", "--kill-on-invalid-dep=yes"
        )
        return parent, child

    good, after_good = with_child("exit 0")
    bad, after_bad = with_child("exit 3")
    cluster.wait_for(after_good, "COMPLETED")
    cluster.wait_for(after_bad, "CANCELLED")

    assert cluster.job(good)["ExitCode"] == "0:0"
    assert cluster.job(bad)["JobState"] == "FAILED"
    assert cluster.job(bad)["ExitCode"] == "3:0"
    assert (tmp_path / f"{after_good}.out").read_text() == "ran\n"
    assert not (tmp_path / f"{after_bad}.out").exists()


def test_a_requeued_job_starts_again(cluster: Slurm, tmp_path: Path) -> None:
    # The second start finds the file of the first.
    job = cluster.wrap(tmp_path, "mkdir first && sleep 1000; echo restart $SLURM_RESTART_COUNT")
    cluster.wait_for(job, "RUNNING")
    wait_until((tmp_path / "first").exists)

    cluster.run("scontrol", "requeue", job)

    assert cluster.wait_for(job, "COMPLETED")["Restarts"] == "1"
    assert "restart 1\n" in (tmp_path / f"{job}.out").read_text()


def test_a_preempted_job_is_signalled_first(cluster: Slurm, tmp_path: Path) -> None:
    job = cluster.wrap(
        tmp_path,
        "trap 'touch signalled; exit' USR2; while :; do sleep 0.2; done",
        "--gres=gpu:2",
        "--signal=B:USR2@60",
    )
    cluster.wait_for(job, "RUNNING")

    urgent = cluster.wrap(tmp_path, "exit", "--gres=gpu:1", "--partition=urgent")

    cluster.wait_for(urgent, "COMPLETED")
    assert (tmp_path / "signalled").exists()
    assert cluster.wait_for(job, "COMPLETED")["Restarts"] == "0", "it has ended by itself, within the grace"


def test_a_preempted_job_is_requeued(cluster: Slurm, tmp_path: Path) -> None:
    job = cluster.wrap(tmp_path, "mkdir first && sleep 1000; exit 0", "--gres=gpu:2")
    cluster.wait_for(job, "RUNNING")
    wait_until((tmp_path / "first").exists)

    # The end of a grace is noticed every 30 s only.
    cluster.run("scontrol", "update", "PartitionName=main", "GraceTime=0")
    try:
        urgent = cluster.wrap(tmp_path, "exit", "--gres=gpu:1", "--partition=urgent")
        cluster.wait_for(urgent, "COMPLETED")
    finally:
        cluster.run("scontrol", "update", "PartitionName=main", "GraceTime=5")

    assert cluster.wait_for(job, "COMPLETED")["Restarts"] == "1"


def test_scancel_leaves_no_process(cluster: Slurm, tmp_path: Path) -> None:
    job, pids = stubborn(cluster, tmp_path)

    cluster.run("scancel", job)

    wait_until(lambda: not any(map(runs, pids[:2])))
    # It can't be told from anyone else's process; `down` finds it all the same.
    os.kill(pids[2], signal.SIGKILL)
    cluster.wait_for(job, "CANCELLED")


def test_a_job_outlives_a_restart_of_slurmctld(cluster: Slurm, tmp_path: Path) -> None:
    job = cluster.wrap(tmp_path, "until [ -e go ]; do sleep 0.2; done")
    cluster.wait_for(job, "RUNNING")
    before = devcluster.status(cluster.cluster).daemons

    devcluster.restart(cluster.cluster, "slurmctld")

    after = devcluster.status(cluster.cluster).daemons
    assert before["slurmctld"] != after["slurmctld"]
    assert before["slurmd"] == after["slurmd"]
    (tmp_path / "go").touch()
    cluster.wait_for(job, "COMPLETED")


def test_sacct_answers_with_accounting(cluster_with_accounting: Slurm, tmp_path: Path) -> None:
    job = cluster_with_accounting.wrap(tmp_path, "exit 4")

    def states() -> str:
        return cluster_with_accounting.run(
            "sacct", "--allocations", "--noheader", "--parsable2", f"--jobs={job}", "--format=State,ExitCode"
        )

    wait_until(lambda: states() == "FAILED|4:0\n")


def test_two_clusters_side_by_side(cluster: Slurm, cluster_with_accounting: Slurm, tmp_path: Path) -> None:
    jobs = []
    for slurm in (cluster, cluster_with_accounting):
        job = slurm.wrap(
            tmp_path, "echo $SLURM_CLUSTER_NAME", f"--job-name={slurm.cluster.layout.cluster_name}"
        )
        jobs.append((slurm, job))

    for slurm, job in jobs:
        assert slurm.wait_for(job, "COMPLETED")["JobName"] == slurm.cluster.layout.cluster_name
    first, second = (
        {process.pid for process in slurm.cluster.processes()} for slurm in (cluster, cluster_with_accounting)
    )
    assert len(first) >= 4
    assert len(second) >= 6
    assert not first & second


def test_a_time_limit_can_be_brought_forward(cluster: Slurm, out_of_time: str) -> None:
    cluster.wait_for(out_of_time, "TIMEOUT", timeout_s=60)
