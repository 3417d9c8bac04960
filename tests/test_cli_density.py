"""`autobatch density`: from datasets and from logs, as typed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from autobatch.cli.main import main
from autobatch.metrics.logs import read_logs
from autobatch.probing.dataset_density import DensityMeter
from autobatch.probing.job import run_probe
from autobatch.records import ProbeRequest
from tests.conftest import MakeRun, heed_interrupts
from tests.trainings import Training

FORM_A = "INFO: Packed 8000 examples into 2857 sequences\nINFO: Packing efficiency: 87% non-padding tokens\n"
FORM_B = (
    "Loaded 8000 examples\nPacking dataset with max_seq_len=2048...\nDataset packed: 2857 total sequences\n"
)
FORM_C = "Dataset loaded: 8000 examples\nTraining started...\n"


def replace_in(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main(["density", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


class TestRuns:
    def test_counted_without_a_card_and_kept(
        self, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = make_run()
        # A run for a card, of a recipe that the probe refuses: neither has to do with the dataset.
        replace_in(run / "finetune.yaml", "device: cpu", "device: cuda")
        replace_in(run / "finetune.slurm", "lora_finetune_single_device", "lora_finetune_distributed")

        (counted,) = answer(capsys, str(run))
        (kept,) = answer(capsys, str(run))

        density = counted["density"]
        assert (density["examples"], density["packed"], counted["if_packed"]) == (300, True, None)
        assert density["examples_per_pack"] == density["examples"] / density["packs"]
        assert density["efficiency"] == density["tokens"] / (density["packs"] * 128)
        assert (counted["kept"], kept["kept"]) == (False, True)
        assert kept["density"] == density

        data = run.parent / "data" / "train.json"
        data.write_text(json.dumps(json.loads(data.read_text())[:100]))
        (fewer,) = answer(capsys, str(run))
        assert (fewer["density"]["examples"], fewer["kept"]) == (100, False)

    def test_an_experiment_with_a_run_that_does_not_pack(
        self, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = make_run()
        unpacked, broken = run.parent / "run2", run.parent / "run3"
        for other in (unpacked, broken):
            shutil.copytree(run, other)
        replace_in(unpacked / "finetune.yaml", "packed: True", "packed: False")
        # Another variable in its job: libraries may read it when they are imported.
        replace_in(unpacked / "finetune.slurm", "HF_HUB_OFFLINE=1", "HF_HUB_OFFLINE=1 OTHER=1")
        replace_in(broken / "finetune.yaml", "${data_dir}/train.json", "${data_dir}/gone.json")

        code = main(["density", str(run.parent)])

        said = capsys.readouterr()
        header, packs, examples, if_packed = (line.split() for line in said.out.splitlines())
        assert code == 2
        assert "gone.json doesn't exist" in said.err
        assert header[:5] == ["run", "rows", "examples", "packs", "density"]
        assert (packs[:2], examples[:2]) == (["run1", "packs"], ["run2", "examples"])
        assert examples[2:5] == ["300", "300", "1.00"]
        # What packing would give is what it gives; and the examples' length is theirs, packed or not.
        assert if_packed[:3] == ["run2", "if", "packed"]
        assert if_packed[3:] == packs[2:]
        assert examples[6] == packs[7]

        assert main(["density", str(run.parent), "--json"]) == 2
        *counted, refused = json.loads(capsys.readouterr().out)
        assert [Path(one["run"]).name for one in (*counted, refused)] == ["run1", "run2", "run3"]
        assert "gone.json doesn't exist" in refused["error"]
        assert refused["exit_code"] == 2

    def test_what_a_probe_counted_is_not_counted_again(
        self, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = make_run("misbehaving.py", misbehaviour="none")
        result = run_probe(ProbeRequest(str(run), max_batch_size=1, target_fraction=1.0))
        assert result.density is not None

        (found,) = answer(capsys, str(run))

        assert found["kept"]
        assert found["density"]["packs"] == result.density.packs
        assert list((run / "probe" / "density").iterdir()) == [run / "probe" / "density" / "lock"]

    def test_validate_knows_what_was_counted(
        self, make_run: MakeRun, capsys: pytest.CaptureFixture[str]
    ) -> None:
        run = make_run()
        command = [sys.executable, "-m", "autobatch.cli.main", "density", str(run), "--json"]
        counted = subprocess.run(command, capture_output=True, text=True, check=True)
        packs = json.loads(counted.stdout)[0]["density"]["packs"]
        replace_in(run / "finetune.yaml", "\nbatch_size: 4", f"\nbatch_size: {packs + 1}")

        code = main(["validate", str(run), "--no-build"])

        assert code == 1
        assert f"more than the {packs} packs of the dataset" in capsys.readouterr().out
        # What torch's libraries have to say as they are imported.
        assert "torchao" not in counted.stderr

    def test_a_sample(self, make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
        run = make_run()

        (sampled,) = answer(capsys, str(run), "--sample", "60")
        (again,) = answer(capsys, str(run), "--sample", "60")
        (whole,) = answer(capsys, str(run))

        density = sampled["density"]
        assert density["sampled_examples"] < density["examples"] == 300
        assert (sampled["kept"], again["kept"], whole["kept"]) == (False, True, False)
        off = abs(density["examples_per_pack"] - whole["density"]["examples_per_pack"])
        assert off < 4 * density["standard_error"]

    def test_a_dataset_that_fails(self, make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
        run = make_run()
        (run.parent / "data" / "train.json").write_text("[{]")

        code = main(["density", str(run)])

        said = capsys.readouterr()
        assert (code, said.out) == (3, "")
        assert f"autobatch: {run}: the dataset can't be read: " in said.err
        assert f"{run}/probe/density/packed/packing.log" in said.err

    def test_interrupted(self, make_run: MakeRun) -> None:
        run = make_run()
        command = subprocess.Popen(
            [sys.executable, "-m", "autobatch.cli.main", "density", str(run)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=heed_interrupts,
        )
        while not (run / "probe" / "density" / "packed" / "packing.yaml").exists():
            assert command.poll() is None
            time.sleep(0.05)
        time.sleep(0.5)

        # As a terminal does at Ctrl-C: to every process of the group.
        os.killpg(command.pid, signal.SIGINT)
        out, err = command.communicate(timeout=60)

        assert (command.returncode, out) == (130, "")
        assert "autobatch: interrupted" in err
        assert "Traceback" not in err

    def test_the_log_of_a_training_says_the_same(self, trainings: dict[str, Training]) -> None:
        training = trainings["stdout"]
        replace_in(training.run / "finetune.yaml", "split: train", "split: train[:80]")

        counted = DensityMeter().measure(training.run)

        packing = read_logs([training.log]).packing
        assert (packing.total_examples, packing.total_sequences) == (
            counted.density.examples,
            counted.density.packs,
        )


class TestLogs:
    @pytest.fixture
    def log(self, tmp_path: Path) -> Path:
        return tmp_path / "slurm-7.out"

    def test_rows(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        logs = [tmp_path / "a.out", tmp_path / "b.out"]
        for log, text in zip(logs, (FORM_A, FORM_B), strict=True):
            log.write_text(text)

        code = main(["density", "--log", *map(str, logs)])

        said = capsys.readouterr()
        assert (code, said.err) == (0, "")
        assert [line.split() for line in said.out.splitlines()[1:]] == [
            [str(logs[0]), "8000", "2857", "2.80", "87.0", "%", "stated", "in", "the", "log"],
            [str(logs[1]), "8000", "2857", "2.80", "-", "counts", "in", "the", "log"],
        ]

    def test_nothing_said(self, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
        log.write_text(FORM_C)

        code = main(["density", "--log", str(log)])

        said = capsys.readouterr()
        assert code == 1
        assert said.out.splitlines()[1].split() == [str(log), "8000", "-", "-", "-", "-"]
        assert "says no density; --mean-tokens N estimates it" in said.err

    def test_an_estimate_is_labelled(self, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
        log.write_text(FORM_C)

        (found,) = answer(capsys, "--mean-tokens", "640", "--max-seq-len", "2048", "--log", str(log))

        assert found == {
            "log": str(log),
            "total_examples": 8000,
            "total_sequences": 2963,
            "packing_density": 2.7,
            "packing_efficiency": 84.375,
            "source": "estimate",
        }

    def test_what_the_log_says_is_not_estimated(self, log: Path, capsys: pytest.CaptureFixture[str]) -> None:
        log.write_text(FORM_A)

        (found,) = answer(capsys, "--mean-tokens", "5", "--max-seq-len", "2048", "--log", str(log))

        assert (found["source"], found["total_sequences"]) == ("stated in the log", 2857)

    def test_max_seq_len_of_the_config_that_a_real_log_shows(
        self, trainings: dict[str, Training], capsys: pytest.CaptureFixture[str]
    ) -> None:
        log = str(trainings["error"].log)

        (found,) = answer(capsys, "--mean-tokens", "78", "--log", log)

        assert found["source"] == "estimate"
        assert found["total_examples"] == 80

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ([], "name a run directory, or log files with --log"),
            (["run1", "--log", "x"], "not both"),
            (["--log", "LOG", "--sample", "3"], "--sample is about a dataset"),
            (["run1", "--mean-tokens", "3"], "a dataset is counted"),
            (["run1", "--sample", "0"], "--sample 0 is less than 1"),
            (["--log", "LOG", "--max-seq-len", "9"], "add --mean-tokens N"),
            (["--log", "LOG", "--mean-tokens", "9"], "add --max-seq-len N"),
            (["--log", "LOG", "--mean-tokens", "0", "--max-seq-len", "9"], "both must be above 0"),
            (["--log", "LOG", "--mean-tokens", "9", "--max-seq-len", "-3"], "both must be above 0"),
            (["--log", "gone.out"], "gone.out: can't be read: No such file"),
            (["--log", "/"], "can't be read: Is a directory"),
            (["gone"], "no such directory"),
        ],
    )  # fmt: skip
    def test_wrong_usage(
        self, log: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
    ) -> None:
        log.write_text(FORM_C)

        code = main(["density", *(str(log) if word == "LOG" else word for word in words)])

        said = capsys.readouterr()
        assert (code, said.out) == (2, "")
        assert message in said.err
