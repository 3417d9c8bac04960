"""`autobatch init` as a user meets it: files, streams, exit codes, and a run that probes."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from autobatch.cli.main import main
from autobatch.records import ProbeRequest, ProbeResult, Status, from_json
from autobatch.runs.directory import read_run
from autobatch.runs.slurm_script import parse_script
from tests.conftest import MakeRun

#: Without torchtune building the model, which takes seconds; `test_what_torchtune_says_counts` does without this.
FAST = "--no-build"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with data/train.json in it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.json").write_text('[{"input": "a", "output": "b"}]')
    monkeypatch.chdir(tmp_path)
    return tmp_path


def init(*words: str, run: str = "runs/run1") -> int:
    return main(["init", run, FAST, *words])


def small_config(run: Path) -> str:
    """The small run's config as somebody might bring it: not packed, no length, its model elsewhere."""
    text = (run / "finetune.yaml").read_text()
    for old, new in {
        "packed: True  # True increases speed": "packed: False  # True increases speed",
        "max_seq_len: 128  #": "max_seq_len: null  #",
        "model_dir: ../model": "model_dir: /nowhere",
        "log_peak_memory_stats: True": "log_peak_memory_stats: False",
    }.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    (run.parent / "small.yaml").write_text(text)
    return "small.yaml"


class TestWriting:
    def test_the_files_stand_on_stdout_and_the_next_command_on_stderr(
        self, here: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code = init(
            "--config", "llama3_2_1b_lora", "--data", "data/train.json", "--partition", "gpu", "epochs=2"
        )

        out, err = capsys.readouterr()
        assert (code, out) == (0, "runs/run1/finetune.slurm\nruns/run1/finetune.yaml\n")
        assert err.splitlines()[-1] == "next: autobatch probe runs/run1"
        assert OmegaConf.load("runs/run1/finetune.yaml").epochs == 2
        assert "\n#SBATCH --partition=gpu\n" in Path("runs/run1/finetune.slurm").read_text()
        assert sorted(path.name for path in Path("runs/run1").iterdir()) == [
            "finetune.slurm",
            "finetune.yaml",
        ]

    def test_the_same_again_changes_nothing(self, here: Path) -> None:
        words = ("--config", "llama3_2_1b_lora")
        init(*words)
        before = {path: path.stat().st_mtime_ns for path in Path("runs/run1").iterdir()}

        assert init(*words) == 0
        assert {path: path.stat().st_mtime_ns for path in Path("runs/run1").iterdir()} == before

    def test_what_is_there_stays_without_force(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run = Path("runs/run1")
        run.mkdir(parents=True)
        (run / "finetune.yaml").write_text("mine: 1\n")

        code = init("--config", "llama3_2_1b_lora")

        assert code == 2
        assert "finetune.yaml: there already" in capsys.readouterr().err
        assert (run / "finetune.yaml").read_text() == "mine: 1\n"
        assert not (run / "finetune.slurm").exists()

    def test_force_keeps_what_was_there(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        run = Path("runs/run1")
        run.mkdir(parents=True)
        for text in ("first: 1\n", "second: 1\n"):
            (run / "finetune.yaml").write_text(text)
            assert init("--config", "llama3_2_1b_lora", "--force") == 0

        assert (run / "finetune.yaml.old").read_text() == "first: 1\n"
        assert (run / "finetune.yaml.old2").read_text() == "second: 1\n"
        assert "replaced; what it held is in finetune.yaml.old2" in capsys.readouterr().err

    def test_a_dry_run_prints_diffs_and_writes_nothing(
        self, here: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code = init("--config", "llama3_2/1B_lora_single_device", "--dry-run")

        out = capsys.readouterr().out
        assert code == 0
        assert "\n-  packed: False  # True increases speed\n" in out
        assert "\n+  packed: True  # True increases speed\n" in out
        assert "\n+#SBATCH --job-name=run1\n" in out
        assert not Path("runs").exists()

    def test_json(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code = init("--config", "llama3_2_1b_lora", "--json")

        said = json.loads(capsys.readouterr().out)
        assert code == 0
        assert said["recipe"] == "lora_finetune_single_device"
        assert said["next"] == "autobatch probe runs/run1"
        assert {Path(path).name for path in said["files"]} == {"finetune.yaml", "finetune.slurm"}
        assert all(Path(path).read_text() == text for path, text in said["files"].items())

    def test_json_when_a_check_fails(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code = init("--config", "llama3_2_1b_lora", "--json", "batch_size=0")

        said = json.loads(capsys.readouterr().out)
        assert (code, said["written"]) == (1, False)
        assert [f["check"] for f in said["findings"] if f["severity"] == "error"] == ["batch-size"]
        assert not Path("runs").exists()

    def test_from_another_run(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["--data", "data/train.json", "--partition", "a100", "--time", "2:00:00"]
        assert init("--config", "llama3_2_1b_lora", *words) == 0
        script = Path("runs/run1/finetune.slurm")
        script.write_text(script.read_text().replace("set -euo", "#SBATCH --qos=high\nexport A=1\nset -euo"))

        code = init("--config", "runs/run1", "--time", "1:00:00", run="runs/run2")

        made = parse_script(Path("runs/run2/finetune.slurm").read_text(), Path())
        err = capsys.readouterr().err
        assert code == 0
        assert made.header.items() >= {"partition": "a100", "time": "1:00:00", "job-name": "run2"}.items()
        assert "qos" not in made.header
        assert "finetune.slurm: its header is taken over: partition=a100, time=2:00:00, " in err
        assert "finetune.slurm: not taken over: #SBATCH --qos, export A\n" in err

    def test_settings_may_stand_anywhere_behind_the_run(self, here: Path) -> None:
        code = main(
            ["init", "run1", "epochs=2", "--config", "llama3_2_1b_lora", "seed=1", FAST, "model.lora_rank=4"]
        )

        config = OmegaConf.load("run1/finetune.yaml")
        assert code == 0
        assert (config.epochs, config.seed, config.model.lora_rank) == (2, 1, 4)


class TestRefusals:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            pytest.param(["--config", "nowhere"], "no such file, and no config of that name", id="config"),
            pytest.param(["--config", "llama3_2/1B_full"], "trains on several devices", id="distributed"),
            pytest.param(["--config", "llama3_2_1b_lora", "epochs"], "epochs: write key=value", id="setting"),
            pytest.param(
                ["--config", "llama3_2_1b_lora", "--recipe", "lora"], "no recipe 'lora'", id="recipe"
            ),
            pytest.param(
                ["--config", "llama3_2_1b_lora", "--partition", "a b"], "--partition 'a b'", id="header"
            ),
            pytest.param(
                ["--config", "llama3_2_1b_lora", "--data", "./no"], "--data ./no: no such", id="data"
            ),
        ],
    )
    def test_wrong_usage_is_exit_code_2_and_writes_nothing(
        self, words: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code = init(*words)

        out, err = capsys.readouterr()
        assert (code, out) == (2, "")
        assert message in err
        assert not Path("runs").exists()

    @pytest.mark.parametrize(
        "words",
        [
            pytest.param([], id="no config"),
            pytest.param(["--config", "llama3_2_1b_lora", "--max-seq-len", "0"], id="no length"),
            pytest.param(["--config", "llama3_2_1b_lora", "--bogus", "1"], id="no such option"),
        ],
    )
    def test_what_the_parser_refuses(self, words: list[str], here: Path) -> None:
        assert init(*words) == 2

    @pytest.mark.parametrize(
        ("run", "message"),
        [
            pytest.param("data/train.json", "is a file", id="a file"),
            pytest.param("my run", "can't name a run", id="a name with a space"),
            pytest.param("data/train.json/run1", "can't be made", id="below a file"),
        ],
    )
    def test_where_no_run_can_be(
        self, run: str, message: str, here: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert init("--config", "llama3_2_1b_lora", run=run) == 2
        assert message in capsys.readouterr().err

    def test_a_failed_check_writes_nothing_unless_told_to(
        self, here: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = ("--config", "llama3_2_1b_lora", "batch_size=16")

        code = init(*words)

        out, err = capsys.readouterr()
        assert "batch_size 16 is above 8" in err
        assert (code, out) == (1, "")
        assert not Path("runs").exists()
        assert init(*words, "--skip-validation") == 0
        lines = Path("runs/run1/finetune.yaml").read_text().splitlines()
        line = lines.index("batch_size: 16") + 1
        assert f"error  batch-size-limit  finetune.yaml:{line}\n" in err

    def test_what_torchtune_says_counts(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """An argument that the model's builder doesn't take, found by torchtune itself."""
        code = main(["init", "run1", "--config", "llama3_2_1b_lora", "model.lora_rnak=4"])

        assert code == 1
        assert "lora_rnak" in capsys.readouterr().err.split("did you mean model.lora_rank")[1]

    def test_a_person_is_asked(self, here: Path) -> None:
        words = [sys.executable, "-m", "autobatch.cli.main", "init", "run1", FAST]
        leader, follower = pty.openpty()
        os.write(leader, b"y\n")

        ended = subprocess.run(
            [*words, "--config", "llama3_2_1b_lora", "batch_size=16"],
            stdin=follower,
            stdout=subprocess.PIPE,
            stderr=follower,
            check=False,
            timeout=120,
        )

        os.close(follower)
        asked = os.read(leader, 100_000).decode()
        os.close(leader)
        assert ended.returncode == 0
        assert "Continue anyway?" in asked
        assert Path("run1/finetune.yaml").exists()


class TestRun:
    def test_a_missing_model_is_a_warning(self, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
        code = init("--config", "llama3_2_1b_lora", "--data", "data/train.json")

        err = capsys.readouterr().err
        assert code == 0
        assert "warning: " in err
        assert "models/Llama-3.2-1B-Instruct isn't there yet" in err
        assert "train.json" not in err

    def test_it_probes_and_trains(
        self, make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """From a config that isn't packed to a measured batch_size and a trained model."""
        old = make_run()
        monkeypatch.chdir(old.parent)
        words = ["--model-dir", "model", "--data", "data/train.json", "--max-seq-len", "128"]

        settings = [
            "gradient_accumulation_steps=2",
            "max_steps_per_epoch=1",
            "lr_scheduler.num_warmup_steps=0",
        ]

        code = main(["init", "run2", "--config", small_config(old), *words, *settings])

        assert code == 0
        err = capsys.readouterr().err
        assert "warning" not in err
        run = read_run(Path("run2"), ProbeRequest("run2"))
        assert (run.packed, run.max_seq_len, run.device) == (True, 128, "cpu")
        assert "gres" not in (run.script.header if run.script else {"gres": ""})
        probe = ["probe", "run2", "--cluster", "inline", "--max-batch-size", "2", "--capacity", "2GiB"]
        assert main(probe) == 0
        result = from_json(ProbeResult, json.loads(Path("run2/probe/result.json").read_text()))
        assert (result.status, result.batch_size) == (Status.DONE, 2)
        assert result.density is not None
        assert result.density.examples == 300
        text = Path("run2/finetune.yaml").read_text()
        assert "\nbatch_size: 2  # sequences, not examples\n" in text
        assert "`autobatch probe` measures the" in text

        tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        trained = subprocess.run(
            ["bash", "run2/finetune.slurm"],
            env=os.environ | {"PATH": tools, "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert trained.returncode == 0, trained.stderr
        assert "the measurement holds" in trained.stdout
        assert list(Path("run2/output").rglob("adapter_model*"))
