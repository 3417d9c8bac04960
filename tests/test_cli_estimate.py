"""How `autobatch estimate` refuses, without a simulated GPU; tests/cuda/test_estimate.py has what it answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from autobatch.cli.main import main


@pytest.fixture
def config(laid_out: Path, tmp_path: Path) -> Path:
    """A config for a GPU, with nothing beside it."""
    content = OmegaConf.load(laid_out / "run1" / "finetune.yaml")
    content.device = "cuda"
    path = tmp_path / "my.yaml"
    path.write_text(OmegaConf.to_yaml(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        pytest.param(["--gpu", "gtx-1080"], 2, "h100-80gb", id="unknown GPU"),
        pytest.param(["--gpu", "h100-80gb:9g.1gb"], 2, "3g.40gb", id="unknown slice"),
        pytest.param(["--gpu", "t4-16gb:1g.5gb"], 2, "no MIG slices", id="no slices"),
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
        pytest.param([], 1, "use the environment that trains on a GPU", id="no CUDA build of torch"),
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
