"""The planning document's three test cases (section 6), as typed, with real trainings on a real Slurm.

Its first case asks for 1B and 3B models; here one small model is trained on the CPU, with packs of two lengths.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.slurm.client import Slurm
from tests.slurm.test_probe_endings import _ENDED, call

pytestmark = pytest.mark.recipe

#: Of the machine's memory, so that the probe ends at a small batch_size within seconds.
_PROBE = ("--cluster", "slurm", "--capacity", "1.2GiB", "--max-batch-size", "3", "--train")


@pytest.fixture
def source(laid_out: Path) -> Path:
    """The run directory whose config is the starting point: its data and model stay where they are."""
    return laid_out / "run1"


def init(slurm: Slurm, run: Path, source: Path, *words: str) -> None:
    """Lay a run out with the data of `source`, and with its config unless `words` name another."""
    experiment = source.parent
    config = () if "--config" in words else ("--config", str(source))
    done = call(
        slurm,
        *("init", str(run), *config),
        *("--model-dir", str(experiment / "model"), "--data", str(experiment / "data" / "train.json")),
        *(
            "max_steps_per_epoch=3",
            "lr_scheduler.num_warmup_steps=1",
            "--cpus",
            "1",
            "--mem",
            "2G",
            "--no-build",
        ),
        *words,
    )
    assert done.returncode == 0, done.stderr


def probe_and_train(slurm: Slurm, run: Path, *options: str) -> tuple[dict[str, str], dict[str, str]]:
    """Submit both, wait for both; what Slurm says of each at its end."""
    done = call(slurm, "probe", str(run), *_PROBE, *options)
    assert done.returncode == 0, done.stderr
    job, train = done.stdout.split()
    probed = slurm.wait_for(job, *_ENDED, timeout_s=120)
    trained = slurm.wait_for(train, *_ENDED, timeout_s=120)
    assert probed["JobState"] == "COMPLETED", (run / "probe" / "job" / f"{job}_0_log.err").read_text()
    assert trained["JobState"] == "COMPLETED", (run / f"slurm-{train}.out").read_text()
    return probed, trained


def batch_size_of(run: Path) -> int:
    return int(yaml.safe_load((run / "finetune.yaml").read_text())["batch_size"])


def trained_batch_size(run: Path) -> int:
    """As the recipe itself printed the config that it ran with."""
    (log,) = run.glob("slurm-*.out")
    return int(re.findall(r"^batch_size: (\d+)", log.read_text(), flags=re.M)[0])


def test_case_1_a_new_experiment_with_packing(cluster: Slurm, source: Path, tmp_path: Path) -> None:
    experiment = tmp_path / "experiment"
    runs = [experiment / "short", experiment / "long"]
    init(cluster, runs[0], source)
    init(cluster, runs[1], source, "--max-seq-len", "256")

    validated = call(cluster, "validate", str(experiment), "--no-build", "--strict")
    ends = [probe_and_train(cluster, run) for run in runs]
    compared = call(cluster, "compare", str(experiment), "--json")

    assert validated.returncode == 0, validated.stdout + validated.stderr
    plan = (experiment / "runs_plan.md").read_text()
    status = yaml.safe_load((experiment / "runs_status.yaml").read_text())
    entries = {entry["name"]: entry for entry in status["runs"]}
    for run, (probed, trained) in zip(runs, ends, strict=True):
        assert probed["EndTime"] <= trained["StartTime"]
        assert trained_batch_size(run) == batch_size_of(run) > 0
        assert re.search(rf"^\| {run.name} .*\| True .* ex/seq ", plan, flags=re.M)
        # Written by the training job itself, at its end.
        assert entries[run.name]["status"] == "completed"
        assert entries[run.name]["slurm_job_id"] == int(trained["JobId"])
        assert entries[run.name]["metrics"]["steps"] == 3
        assert entries[run.name]["metrics"]["packing_source"] == "probe"
    assert compared.returncode == 0, compared.stderr
    assert [row["run"] for row in json.loads(compared.stdout)["runs"]] == ["long", "short"]


def test_case_2_an_unpacked_dataset(cluster: Slurm, source: Path, tmp_path: Path) -> None:
    run = tmp_path / "experiment" / "unpacked"
    init(cluster, run, source, "dataset.packed=False", "batch_size=16")

    validated = call(cluster, "validate", str(run), "--no-build", "--json")
    probe_and_train(cluster, run, "--unpacked")

    assert validated.returncode == 0
    (said,) = json.loads(validated.stdout)
    assert said["facts"]["packed"] is False
    assert trained_batch_size(run) == batch_size_of(run)
    assert "packed: False" in (run / "finetune.yaml").read_text()


def test_case_3_from_unpacked_to_packed(cluster: Slurm, source: Path, tmp_path: Path) -> None:
    run = tmp_path / "experiment" / "migrated"
    small = (source / "finetune.yaml").read_text()
    tokenizer = re.findall(r"tokenizer-\w+\.model", small)[0]
    # The rule of thumb is one for models of a billion parameters and more.
    billion = ("--config", "llama3_2_1b_lora", f"tokenizer.path={source.parent / 'model' / tokenizer}")
    init(cluster, run, source, *billion, "dataset.packed=False", "batch_size=16")
    config = run / "finetune.yaml"

    def validate(before: str, after: str) -> subprocess.CompletedProcess[str]:
        assert before in config.read_text()
        config.write_text(config.read_text().replace(before, after))
        return call(cluster, "validate", str(run), "--no-build")

    caught = validate("packed: False", "packed: True")
    at_the_limit = validate("batch_size: 16", "batch_size: 8")
    below_it = validate("batch_size: 8", "batch_size: 4")

    assert caught.returncode == 1
    assert "batch_size 16 is above 8" in caught.stdout
    assert at_the_limit.returncode == below_it.returncode == 0
    assert "may run out of memory" in at_the_limit.stdout
    assert "batch-size-limit" not in below_it.stdout

    init(cluster, run, source, "--force", "batch_size=4")
    probe_and_train(cluster, run)

    assert trained_batch_size(run) == batch_size_of(run)
    assert call(cluster, "verify", str(run)).returncode == 0
