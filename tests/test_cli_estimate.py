"""`autobatch estimate`: what it prints, and how it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from autobatch.cli.main import main
from autobatch.records import Density, ProbeRequest, ProbeResult, Status, to_json

MakeRun = Callable[..., Path]


@pytest.fixture
def config(laid_out: Path, tmp_path: Path) -> Path:
    """A config for a card, with nothing beside it."""
    content = OmegaConf.load(laid_out / "run1" / "finetune.yaml")
    content.device = "cuda"
    path = tmp_path / "my.yaml"
    path.write_text(OmegaConf.to_yaml(content), encoding="utf-8")
    return path


def test_a_run_on_cpu_is_estimated_for_a_card(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run()

    code = main(["estimate", str(run), "--capacity", "8GiB", "--what-if", "model.lora_rank=64"])

    shown = capsys.readouterr()
    assert code == 0
    lines = shown.out.splitlines()
    assert lines[0].startswith(f"{run}/finetune.yaml: lora_finetune_single_device, from finetune.slurm")
    assert lines[0].endswith("packs of 128 tokens")
    assert "fits in 70 % of --capacity (8.00 GiB)" in lines[1]
    for word in (
        "parameters",
        "optimizer state",
        "activations",
        "as it is",
        "model.lora_rank=64",
        "h100-80gb",
    ):
        assert any(line.endswith(word) for line in lines), word
    assert "device is cpu; the figures are for a card" in shown.err
    assert not (run / "probe").exists()


def test_json_holds_the_same(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["estimate", str(config), "--gpu", "t4-16gb", "--batch-size", "3", "--json"])

    found = json.loads(capsys.readouterr().out)
    assert code == 0
    assert found["batch_size"] == 3
    assert found["reserved_bytes"] >= found["allocated_bytes"] > found["before_bytes"] > 0
    assert found["fitting"]["card"] == "t4-16gb"


def test_a_density_is_shown_only_of_packs_as_long(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run()
    config = run / "finetune.yaml"
    config.write_text(config.read_text().replace("device: cpu", "device: cuda"))
    density = Density(True, examples=600, packs=100, tokens=9000, max_seq_len=128, longest_example=66)
    result = ProbeResult(Status.DONE, "", ProbeRequest(str(run)), density=density)
    (run / "probe").mkdir()
    (run / "probe" / "result.json").write_text(json.dumps(to_json(result)))
    found = {}

    for setting in ("seed=7", "tokenizer.max_seq_len=64"):
        assert main(["estimate", str(run), "--set", setting, "--json"]) == 0
        found[setting] = json.loads(capsys.readouterr().out)["density"]

    assert found == {"seed=7": 6.0, "tokenizer.max_seq_len=64": None}
    # What is on file is the run as it is.
    assert not (run / "probe" / "estimate.json").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        pytest.param(["--gpu", "gtx-1080"], 2, "h100-80gb", id="unknown card"),
        pytest.param(["--capacity", "big"], 2, "not a size", id="no size"),
        pytest.param(["--target", "70"], 2, "not in (0, 1]", id="percent"),
        pytest.param(["--batch-size", "0"], 2, "less than 1", id="batch_size 0"),
        pytest.param(["--timeout", "-1"], 2, "not a time", id="no time"),
        pytest.param(["--what-if", "lora_rank"], 2, "write key=value", id="no value"),
        pytest.param(["--set", "modell.lora_rank=4"], 2, "no section modell", id="no section"),
        pytest.param(["--recipe", "lora_finetune"], 2, "no recipe", id="unknown recipe"),
        pytest.param(
            ["--recipe", "lora_finetune_distributed"], 2, "--nproc-per-node N", id="how many devices"
        ),
        pytest.param(["--set", "tokenizer.max_seq_len=null"], 1, "no estimate: ", id="no length"),
        pytest.param(["--timeout", "0.001"], 1, "took longer than", id="no time left"),
        pytest.param(["--set", "model.num_kv_heads=3"], 1, "no estimate: ", id="the recipe fails"),
    ],
)
def test_refusals(
    config: Path, arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = config.read_bytes()

    ended = main(["estimate", str(config), *arguments])

    shown = capsys.readouterr()
    assert ended == code
    assert said in shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert config.read_bytes() == before
    assert [path.name for path in config.parent.iterdir()] == ["my.yaml"]


def test_something_that_isnt_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["estimate", str(tmp_path / "absent")])

    assert code == 2
    assert "no such file or directory" in capsys.readouterr().err
