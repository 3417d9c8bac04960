"""What a real Slurm says of a training job, with accounting and without, and from within the job."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.slurm.client import Slurm

ROOT = Path(__file__).parents[2]

#: A training as far as `autobatch metrics` can tell: torchtune's lines, and the exit code.
_SCRIPT = """\
#!/bin/bash
#SBATCH --output=slurm-%j.out
#SBATCH --gres=gpu:2
echo 'Step 1 | loss:2.5 lr:3e-4 tokens_per_second_per_gpu:1800.0 peak_memory_reserved:45.2 '
{middle}
{python} -m autobatch.cli.main metrics . --exit-code {code} --job "$SLURM_JOB_ID" >> metrics.txt 2>&1 || true
exit {code}
"""


def lay_out(directory: Path, middle: str, code: int) -> Path:
    run = directory / "run1"
    run.mkdir()
    (run / "finetune.yaml").write_text("batch_size: 4\ndevice: cuda\n")
    script = _SCRIPT.format(middle=middle, python=sys.executable, code=code)
    (run / "finetune.slurm").write_text(script)
    return run


def entry_of(run: Path) -> dict[str, object]:
    (entry,) = yaml.safe_load((run.parent / "runs_status.yaml").read_text())["runs"]
    return dict(entry)


@pytest.mark.parametrize("accounting", [True, False], ids=["accounting", "no accounting"])
@pytest.mark.parametrize(
    ("middle", "code", "state", "status", "failure"),
    [
        pytest.param("sleep 2", 0, "COMPLETED", "completed", None, id="completed"),
        pytest.param(
            "echo 'torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB'",
            1, "FAILED", "failed", "out of memory", id="out of memory",
        ),
    ],
)  # fmt: skip
def test_recorded_by_the_job_and_again_from_outside(
    accounting: bool,
    middle: str,
    code: int,
    state: str,
    status: str,
    failure: str | None,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    slurm: Slurm = request.getfixturevalue("cluster_with_accounting" if accounting else "cluster")
    run = lay_out(tmp_path, middle, code)
    job = slurm.sbatch(run, f"--export=ALL,PYTHONPATH={ROOT}", "finetune.slurm")
    slurm.wait_for(job, state, timeout_s=90)

    inside = entry_of(run)
    again = subprocess.run(
        [sys.executable, "-m", "autobatch.cli.main", "metrics", "."],
        cwd=run,
        env=slurm.environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert (inside["status"], inside.get("failure")) == (status, failure), (run / "metrics.txt").read_text()
    assert again.returncode == 0, again.stderr
    outside = entry_of(run)
    shown = slurm.job(job)
    assert (outside["status"], outside.get("failure")) == (status, failure)
    assert outside["slurm_job_id"] == inside["slurm_job_id"] == int(job)
    assert outside["started"] == inside["started"] == shown["StartTime"]
    assert outside["completed"] == shown["EndTime"]
    metrics = outside["metrics"]
    assert isinstance(metrics, dict)
    seconds = int(shown["RunTime"].split(":")[-1])
    # Two GPUs: allocated, or as the job asked for them where Slurm keeps no account.
    assert metrics.get("gpu_hours", 0) == pytest.approx(2 * seconds / 3600, abs=2 * 1.5 / 3600)
    assert metrics["peak_gpu_memory_gb"] == 45.2


def test_a_job_that_was_cancelled(cluster_with_accounting: Slurm, tmp_path: Path) -> None:
    run = lay_out(tmp_path, "sleep 100", 0)
    job = cluster_with_accounting.sbatch(run, "finetune.slurm")
    cluster_with_accounting.wait_for(job, "RUNNING")

    cluster_with_accounting.run("scancel", job)
    cluster_with_accounting.wait_for(job, "CANCELLED")
    ended = subprocess.run(
        [sys.executable, "-m", "autobatch.cli.main", "metrics", run],
        env=cluster_with_accounting.environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert ended.returncode == 0, ended.stderr
    assert entry_of(run)["status"] == "cancelled"


def test_the_log_lies_where_sbatch_was_called(cluster: Slurm, tmp_path: Path) -> None:
    run = lay_out(tmp_path, f"cd {tmp_path}/run1", 0)
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()

    job = cluster.sbatch(elsewhere, f"--export=ALL,PYTHONPATH={ROOT}", f"{run}/finetune.slurm")
    cluster.wait_for(job, "COMPLETED", timeout_s=90)

    metrics = entry_of(run)["metrics"]
    assert isinstance(metrics, dict)
    assert metrics["peak_gpu_memory_gb"] == 45.2
