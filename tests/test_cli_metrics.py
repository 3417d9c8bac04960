"""`autobatch metrics` as a user meets it, on trainings of torchtune that really ran; and in the training job."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from autobatch.demo import SmallRun, lay_out
from autobatch.metrics.status_file import read_status
from tests.conftest import RECIPES, MakeRun

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent

#: `tune run` runs a recipe of one's own by its module's name alone.
AS_TUNE_DOES = "import runpy, sys; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')"

Ended = subprocess.CompletedProcess[str]

#: Slurm's clients must not be found where there are any: the jobs here were never in a cluster.
NO_SLURM = {"PATH": str(BIN)}


def call(*words: object, cwd: Path | None = None) -> Ended:
    """`autobatch metrics`, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "autobatch.cli.main", "metrics", *map(str, words)],
        env=os.environ | NO_SLURM | {"PYTHONPATH": str(ROOT)},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )


def train(run: Path, job: int, *command: object) -> int:
    """Trains, the output where Slurm would put it."""
    with (run / f"slurm-{job}.out").open("w") as log:
        return subprocess.run(
            [*map(str, command), "--config", "finetune.yaml"],
            env=os.environ | {"TIKTOKEN_CACHE_DIR": "", "HF_HUB_OFFLINE": "1"},
            cwd=run,
            stdout=log,
            stderr=subprocess.STDOUT,
        ).returncode


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment whose run1 was trained for two epochs of two steps."""
    experiment = tmp_path_factory.mktemp("trained") / "experiment"
    run = lay_out(
        experiment, SmallRun(examples=200, max_seq_len=128, num_layers=1, epochs=2, max_steps_per_epoch=2)
    )
    code = train(run, 77, BIN / "tune", "run", "lora_finetune_single_device")
    assert code == 0, (run / "slurm-77.out").read_text()
    return experiment


@pytest.fixture
def experiment(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(trained, tmp_path / "experiment")
    return tmp_path / "experiment"


def entry_of(experiment: Path, run: str = "run1") -> dict[str, object]:
    document = yaml.safe_load((experiment / "runs_status.yaml").read_text())
    (entry,) = [entry for entry in document["runs"] if entry["name"] == run]
    return dict(entry)


@pytest.mark.recipe
class TestTrained:
    def test_is_recorded(self, experiment: Path) -> None:
        ended = call(experiment)

        assert ended.returncode == 0, ended.stderr
        assert ended.stderr == f"recorded in {experiment / 'runs_status.yaml'}\n"
        heading, line = ended.stdout.splitlines()
        assert heading.split()[:2] == ["run", "status"]
        assert line.split()[:3] == ["run1", "completed", "4"]
        entry = entry_of(experiment)
        assert (entry["status"], entry["slurm_job_id"]) == ("completed", 77)
        assert entry["config"] == {
            "model": "llama3_2", "recipe": "lora_finetune_single_device", "batch_size": 4, "packed": True,
            "max_seq_len": 128, "gradient_accumulation_steps": 1, "effective_batch_size": 4, "lora_rank": 8,
            "lora_alpha": 16, "epochs": 2, "learning_rate": 0.0003, "dtype": "fp32",
        }  # fmt: skip
        metrics = entry["metrics"]
        assert isinstance(metrics, dict)
        logged = (next((experiment / "run1" / "output" / "logs").iterdir())).read_text().splitlines()
        assert metrics["steps"] == len(logged) == 4
        assert f"loss:{metrics['final_loss']:.3f}"[:-1] in logged[-1]
        assert metrics["tokens_per_second"] > 0
        assert "peak_gpu_memory_gb" not in metrics

    def test_again_changes_nothing(self, experiment: Path) -> None:
        call(experiment)
        before = (experiment / "runs_status.yaml").read_bytes()

        ended = call("run1", cwd=experiment)

        assert ended.returncode == 0
        assert (experiment / "runs_status.yaml").read_bytes() == before

    def test_in_a_file_of_its_own(self, experiment: Path) -> None:
        assert call(".", "--per-run", cwd=experiment / "run1").returncode == 0
        written = (experiment / "run1" / "run_metrics.yaml").read_text()
        assert call(experiment, "--per-run").returncode == 0

        assert (experiment / "run1" / "run_metrics.yaml").read_text() == written
        document = yaml.safe_load(written)
        assert document["run_name"] == "run1"
        assert [(epoch["epoch"], epoch["steps"]) for epoch in document["per_epoch_metrics"]] == [
            (0, 2),
            (1, 2),
        ]
        assert document["packing_metrics"]["dataset_path"] == "../data/train.json"
        assert not (experiment / "runs_status.yaml").exists()

    def test_a_file_of_the_users_in_its_place_is_left(self, experiment: Path) -> None:
        (experiment / "run1" / "run_metrics.yaml").write_text("mine: 1\n")

        ended = call(experiment, "--per-run")

        assert ended.returncode == 2
        assert "run_metrics.yaml:1: wasn't written by autobatch" in ended.stderr
        assert (experiment / "run1" / "run_metrics.yaml").read_text() == "mine: 1\n"

    def test_a_dry_run_prints_the_change_and_writes_nothing(self, experiment: Path) -> None:
        (experiment / "runs_status.yaml").write_text("runs:\n  - name: run1\n    status: planned # mine\n")

        ended = call(experiment, "--dry-run")

        assert ended.returncode == 0
        assert "-    status: planned # mine\n+    status: completed # mine\n" in ended.stdout
        assert (experiment / "runs_status.yaml").read_text().endswith("planned # mine\n")

    def test_json_has_the_epochs_and_where_it_comes_from(self, experiment: Path) -> None:
        ended = call(experiment, "--json", "--job", "78")

        (run,) = json.loads(ended.stdout)
        assert run["slurm_job_id"] == 78
        assert Path(run["sources"][0]).name == "slurm-77.out"
        assert len(run["per_epoch_metrics"]) == 2
        assert run["notes"] == ["Slurm says nothing of job 78"]
        assert run["written"] is True

    def test_a_training_that_diverged(self, experiment: Path) -> None:
        log = experiment / "run1" / "slurm-77.out"
        log.write_text(re.sub(r"Loss: [\d.]+", "Loss: nan", log.read_text()))

        ended = call(experiment, "--json")
        recorded = (experiment / "runs_status.yaml").read_text()
        call(experiment)

        (run,) = json.loads(ended.stdout, parse_constant=lambda name: pytest.fail(f"{name} isn't JSON"))
        assert "final_loss" not in run["performance_metrics"]
        assert "the loss of the last step is nan" in run["notes"]
        assert "      final_loss: .nan\n" in recorded
        assert (experiment / "runs_status.yaml").read_text() == recorded
        compared = subprocess.run(
            [sys.executable, "-m", "autobatch.cli.main", "compare", str(experiment)],
            env=os.environ | NO_SLURM | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert "its final loss is nan: the training diverged" in compared.stdout + compared.stderr

    def test_planned_then_trained(self, experiment: Path) -> None:
        planned = call(experiment, "--init")
        entry = entry_of(experiment)
        trained = call(experiment)
        again = call(experiment, "--init")

        assert (planned.returncode, trained.returncode, again.returncode) == (0, 0, 0)
        assert entry["status"] == "planned"
        assert isinstance(entry["metrics"], dict)
        assert set(entry["metrics"].values()) == {None}
        assert {"total_examples", "packing_density", "peak_gpu_memory_gb", "final_loss"} <= set(
            entry["metrics"]
        )
        after = entry_of(experiment)
        assert after["status"] == "completed"
        assert isinstance(after["metrics"], dict)
        assert list(after["metrics"]) == list(entry["metrics"])
        assert after["metrics"]["peak_gpu_memory_gb"] is None
        assert "was trained already" in again.stderr

    def test_of_several_runs_those_that_have_trained(self, experiment: Path) -> None:
        shutil.copytree(
            experiment / "run1", experiment / "run2", ignore=shutil.ignore_patterns("*.out", "output")
        )

        ended = call(experiment)

        assert ended.returncode == 0
        assert "run2: no training yet" in ended.stderr
        assert len(yaml.safe_load((experiment / "runs_status.yaml").read_text())["runs"]) == 1

    def test_one_log_by_name(self, experiment: Path) -> None:
        (experiment / "run1" / "slurm-77.out").rename(experiment / "elsewhere.txt")

        ended = call(experiment / "run1", "--log", experiment / "elsewhere.txt", "--json")

        (run,) = json.loads(ended.stdout)
        assert run["sources"] == [str(experiment / "elsewhere.txt")]
        assert run["performance_metrics"]["steps"] == 4


@pytest.mark.recipe
@pytest.mark.parametrize(
    ("misbehaviour", "failure"),
    [
        pytest.param("crash", "ValueError: the loss is not a number at batch_size 4", id="crash"),
        pytest.param("oom", "out of memory", id="out of memory"),
    ],
)
def test_a_training_that_died(misbehaviour: str, failure: str, make_run: MakeRun) -> None:
    run = make_run("misbehaving.py", misbehaviour=misbehaviour, at=4)
    code = train(run, 12, sys.executable, "-c", AS_TUNE_DOES, RECIPES / "misbehaving.py")

    ended = call(run, "--exit-code", code)

    assert code != 0
    assert ended.returncode == 0, ended.stderr
    entry = entry_of(run.parent)
    assert (entry["status"], entry["failure"]) == ("failed", failure)
    assert ended.stdout.splitlines()[1].endswith(failure)


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "code", "what"),
        [
            pytest.param(["nowhere"], 2, "no finetune.yaml here", id="no run"),
            pytest.param(["."], 1, "run1: no training yet", id="not trained"),
            pytest.param(
                [".", "--job", "7"], 2, "--job is of one run, and . holds 2", id="one job, two runs"
            ),
            pytest.param(["run1", "--job", "x"], 2, "--job 'x' is no job's id", id="no job id"),
            pytest.param(["run1", "--log", "no.out"], 2, "no.out", id="no log"),
            pytest.param(
                ["run1", "--init", "--exit-code", "0"], 2, "drop one of them", id="planned and ended"
            ),
            pytest.param(["run1", "--init", "--per-run"], 2, "not allowed with", id="two files"),
        ],
    )
    def test_in_one_sentence(self, words: list[str], code: int, what: str, tmp_path: Path) -> None:
        for name in ("run1", "run2"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "finetune.yaml").write_text("batch_size: 4\n")

        ended = call(*words, cwd=tmp_path)

        assert ended.returncode == code
        assert what in ended.stderr
        assert "Traceback" not in ended.stderr
        assert ended.stdout == ""
        assert not (tmp_path / "runs_status.yaml").exists()

    def test_a_name_that_yaml_can_not_hold_costs_no_other_run(self, tmp_path: Path) -> None:
        for name in ("caf\udce9", "new\nline", "run1"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "finetune.yaml").write_text("batch_size: 4\n")

        ended = call(tmp_path, "--init")

        assert ended.returncode == 2
        assert ended.stderr.endswith("a run's name, isn't UTF-8, as YAML must be: rename its directory\n")
        assert "Traceback" not in ended.stderr
        assert list(read_status(tmp_path / "runs_status.yaml")) == ["new\nline", "run1"]

    @pytest.mark.parametrize(
        ("text", "what"),
        [
            pytest.param("runs: [{name: a}]\n", "runs_status.yaml:1: runs is a list in brackets", id="flow"),
            pytest.param(
                "runs:\n- name: run1\n- name: run1\n", "runs_status.yaml:3: a second entry", id="twice"
            ),
            pytest.param("runs: {\n", "runs_status.yaml:2: not valid YAML", id="not YAML"),
        ],
    )
    def test_a_status_file_that_can_not_be_edited_is_left(self, text: str, what: str, tmp_path: Path) -> None:
        (tmp_path / "run1").mkdir()
        (tmp_path / "run1" / "finetune.yaml").write_text("batch_size: 4\n")
        (tmp_path / "runs_status.yaml").write_text(text)

        ended = call("run1", "--init", cwd=tmp_path)

        assert ended.returncode == 2
        assert what in ended.stderr
        assert "Traceback" not in ended.stderr
        assert (tmp_path / "runs_status.yaml").read_text() == text


@pytest.mark.parametrize("tune_code", [0, 7])
@pytest.mark.parametrize("metrics_code", [0, 3])
@pytest.mark.parametrize("has_card", [True, False], ids=["card", "no card"])
def test_the_training_job_ends_as_training_did(
    tune_code: int, metrics_code: int, has_card: bool, tmp_path: Path
) -> None:
    # A training lasts longer than its sampler takes to start.
    sampled = "until [[ -s gpu_metrics.csv ]]; do sleep 0.05; done\n" if has_card else ""
    programs = {
        "tune": f'echo "tune $*" >> calls\n{sampled}exit {tune_code}\n',
        "autobatch": f'echo "autobatch $*" >> calls\n[[ $1 == verify ]] || exit {metrics_code}\n',
    }
    if has_card:
        programs["nvidia-smi"] = (
            "trap 'echo sampler stopped >> calls; exit' TERM\necho header\nwhile :; do sleep 0.05; done\n"
        )
    (tmp_path / "bin").mkdir()
    for name, script in programs.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\n{script}")
        path.chmod(0o755)
    run = tmp_path / "run1"
    run.mkdir()
    (run / "finetune.yaml").write_text("batch_size: 4\n")
    environment = {
        "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",
        "SLURM_SUBMIT_DIR": str(run),
        "SLURM_JOB_ID": "12",
    }

    ended = subprocess.run(
        ["bash", ROOT / "slurm" / "finetune.slurm"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
    )

    assert ended.returncode == tune_code, ended.stderr
    assert (run / "calls").read_text().splitlines() == [
        "autobatch verify .",
        "tune run lora_finetune_single_device --config finetune.yaml",
        *(["sampler stopped"] if has_card else []),
        f"autobatch metrics . --exit-code {tune_code} --job 12",
    ]
    assert (run / "gpu_metrics.csv").exists() == has_card
