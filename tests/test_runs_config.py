"""`autobatch.runs.config`, `interpolation` and `yaml_source`: finetune.yaml as torchtune reads it."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from autobatch.errors import Problem
from autobatch.runs.config import RunConfig, read_config
from autobatch.runs.findings import Findings
from autobatch.runs.interpolation import Unresolved
from autobatch.runs.slurm_script import parse_script
from autobatch.runs.yaml_source import key_line

TEXT = """\
# a comment
output_dir: /tmp/out
batch_size: 4
model:
  _component_: torchtune.models.llama2.lora_llama2_7b
  lora_rank: 8
optimizer:
  _component_: torch.optim.AdamW
  lr: 3e-4
checkpointer:
  output_dir: ${output_dir}/ckpt
  checkpoint_files:
    max_filename: "00005"
dataset:
- _component_: a.b
  packed: True
- _component_: c.d
extra: {deep: {deeper: 1}}
"""


def read(tmp_path: Path, text: str, script: str | None = None) -> tuple[RunConfig | None, Findings]:
    path = tmp_path / "finetune.yaml"
    path.write_text(text)
    findings = Findings()
    slurm = parse_script(script, tmp_path / "finetune.slurm") if script is not None else None
    return read_config(path, slurm, findings), findings


def read_with(tmp_path: Path, *overrides: str) -> tuple[RunConfig, Findings]:
    quoted = " ".join(f"'{o}'" for o in overrides)
    config, findings = read(tmp_path, TEXT, f"\ntune run x --config finetune.yaml {quoted}\n")
    assert config is not None
    return config, findings


def only_problem(findings: Findings) -> Problem:
    assert len(findings.problems) == 1, findings.problems
    return findings.problems[0]


def test_values_are_resolved_and_the_config_is_not(tmp_path: Path) -> None:
    config, findings = read(tmp_path, TEXT)
    assert config is not None
    assert findings == Findings()
    assert config.get("checkpointer.output_dir") == "/tmp/out/ckpt"
    assert config.get("optimizer.lr") == 3e-4
    assert config.get("dataset.0.packed") is True
    assert config.get("dataset.7.packed") is None
    assert config.get("batch_size.nothing") is None
    assert "${output_dir}" in OmegaConf.to_yaml(config.config)


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("output_dir", 2),
        ("model", 4),
        ("model.lora_rank", 6),
        ("model.missing", 4),
        ("model.missing.deep", 4),
        ("dataset.0.packed", 16),
        ("dataset.1", 17),
        ("dataset.1.packed", 17),
        ("extra.deep.deeper", 18),
        ("missing", None),
    ],
)
def test_key_line(path: str, line: int | None) -> None:
    assert key_line(TEXT, path) == line


@pytest.mark.parametrize(
    ("text", "path", "line"),
    [
        pytest.param("a: &a\n  b: 1\nc:\n  <<: *a\n  d: 2\n", "c.b", 2, id="merged-in"),
        pytest.param("a: &a\n  b: 1\nc:\n  <<: *a\n  b: 2\n", "c.b", 5, id="beside-a-merge"),
        pytest.param("a: &a {b: 1}\nc: *a\n", "c.b", 1, id="alias"),
        pytest.param("a: [", "a", None, id="not-yaml"),
        pytest.param("", "a", None, id="empty"),
        pytest.param("a: &a [*a]", "a", None, id="cycle"),
    ],
)
def test_key_line_of_unusual_yaml(text: str, path: str, line: int | None) -> None:
    assert key_line(text, path) == line


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10)
)


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        pytest.param("a: 1\nb: [1\nc: 2\n", 3, "not YAML", id="syntax"),
        pytest.param("a: 1\n\tb: 2\n", 2, "not YAML", id="tab"),
        pytest.param("a: 'x\n", 2, "not YAML", id="quote"),
        pytest.param("a: 1\n---\nb: 2\n", 2, "not YAML", id="two-documents"),
        pytest.param("a: \x07\n", None, "not YAML", id="control-character"),
        pytest.param("", 1, "holds nothing", id="empty"),
        pytest.param("# only\n", 1, "holds nothing", id="only-comments"),
        pytest.param("- a\n- b\n", 1, "holds a list", id="list"),
        pytest.param("5\n", 1, "holds a single value", id="scalar"),
        pytest.param("a: 1\nb:\n  c: 1\n  c: 2\n", 4, "the first is on line 3", id="duplicate"),
        pytest.param("a: 1\nb: 2\na: 3\n", 3, "a stands here a second time", id="duplicate-top"),
        pytest.param(
            "a: !!python/object/apply:os.system ['touch pwned']\n", 1, "Python objects", id="python"
        ),
        pytest.param("a: !!python/name:os.system\n", 1, "Python objects", id="python-name"),
        pytest.param("a: 1\nb: !mine 3\n", 2, "could not determine a constructor", id="unknown-tag"),
        pytest.param("a: &a [*a]\n", None, "contains itself", id="cycle"),
        pytest.param("a: &a {b: *a}\n", None, "contains itself", id="cycle-mapping"),
        pytest.param(BOMB, None, "more than 200,000 values", id="bomb"),
        pytest.param("a: " + "[" * 60 + "]" * 60, None, "levels deep", id="deep"),
        pytest.param("a: " + "[" * 5000 + "]" * 5000, None, "levels deep", id="very-deep"),
        pytest.param("a: " + "x" * 600_000, None, "characters are not a config", id="huge"),
        pytest.param("a: !!set {x, y}\n", 1, "not a supported primitive type", id="set"),
        pytest.param("a: !!int x\n", None, "torchtune can't load it", id="wrong-tag"),
        pytest.param("a:\n  b: ${c\n", 2, "a.b", id="open-interpolation"),
        pytest.param("a: 1\nx:\n  null: 4\n", 2, "Incompatible key type", id="null-key"),
    ],
)
def test_what_cannot_be_loaded(text: str, line: int | None, what: str, tmp_path: Path) -> None:
    started = time.monotonic()
    config, findings = read(tmp_path, text)
    assert time.monotonic() - started < 5
    assert config is None
    problem = only_problem(findings)
    assert what in problem.what
    assert problem.where == f"{tmp_path / 'finetune.yaml'}" + (f":{line}" if line else "")
    assert problem.remedy
    assert not Path("pwned").exists()


def test_every_duplicate_is_reported(tmp_path: Path) -> None:
    _, findings = read(tmp_path, "a: 1\na: 2\nb: {c: 1, c: 2}\n".replace(", c", ",\n  c"))
    assert sorted(p.where.rpartition(":")[2] for p in findings.problems) == ["2", "4"]


def test_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "finetune.yaml"
    path.write_bytes(b"a: \xff\n")
    findings = Findings()
    assert read_config(path, None, findings) is None
    assert "not UTF-8" in only_problem(findings).what


@pytest.mark.parametrize(
    ("text", "line", "what", "remedy"),
    [
        pytest.param(
            "a: 1\nb: ${c}/x\n", 2, "b: Interpolation key 'c' not found", "add that key", id="no-key"
        ),
        pytest.param("a:\n  b: ${a.c.d}\n", 2, "a.b:", "add that key", id="no-nested-key"),
        pytest.param(
            "a: ${oc.env:AUTOBATCH_NOT_SET}\n", 1, "AUTOBATCH_NOT_SET", "export AUTOBATCH", id="no-env"
        ),
        pytest.param(
            "a:\n- ${b:1}\n", 2, "a.0: torchtune knows no `${b:...}`", "write the value", id="resolver"
        ),
        pytest.param("a: 1\nb: ???\n", 2, "b is ???", "write the value", id="missing-value"),
        pytest.param("a: ${a}\n", 1, "leads back to itself", "write one", id="self"),
        pytest.param("a:\n  b: ${a}\n", 2, "leads back to itself", "write one", id="own-section"),
        pytest.param(
            "a: {b: '${c}'}\nc: {d: '${a}'}\n", 1, "contain one another", "write the", id="sections"
        ),
    ],
)
def test_what_cannot_be_resolved(text: str, line: int, what: str, remedy: str, tmp_path: Path) -> None:
    config, findings = read(tmp_path, text)
    assert config is not None
    problem = findings.problems[0]
    assert what in problem.what
    assert problem.where == f"{tmp_path / 'finetune.yaml'}:{line}"
    assert remedy in problem.remedy


def test_every_failing_interpolation_is_reported_and_the_rest_is_there(tmp_path: Path) -> None:
    config, findings = read(tmp_path, "a: ${b}\nb: ${a}\nc: ${d}\ne: 5\nf: ${e}\n")
    assert config is not None
    assert [p.where.rpartition(":")[2] for p in findings.problems] == ["1", "2", "3"]
    assert config.get("f") == 5
    assert isinstance(config.get("a"), Unresolved)
    assert isinstance(config.get("a.below"), Unresolved)


def test_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOBATCH_SET", "/here")
    config, findings = read(
        tmp_path,
        "a: ${oc.env:AUTOBATCH_SET}/a\nb: ${oc.env:AUTOBATCH_X,/default}/b\nc: ${oc.env:AUTOBATCH_Y,3}\n",
        "export AUTOBATCH_X=/exported\ntune run x --config finetune.yaml\n",
    )
    assert config is not None
    assert findings.problems == []
    assert config.values == {"a": "/here/a", "b": "/exported/b", "c": "3"}
    assert OmegaConf.to_container(config.config, resolve=True) == config.values


def test_the_key_that_torchtune_reserves(tmp_path: Path) -> None:
    _, findings = read(tmp_path, "a: 1\nconfig: 2\n")
    assert only_problem(findings).where.endswith("finetune.yaml:2")


MERGED = [
    pytest.param(["model=my.model"], id="component-shorthand"),
    pytest.param(["model.lora_rank=16", "optimizer.lr=1e-5"], id="nested"),
    pytest.param(["output_dir=None"], id="none"),
    pytest.param(["new=[1,2]", "newer.deep=true"], id="new-keys"),
    pytest.param(["checkpointer.checkpoint_files.max_filename=00012"], id="leading-zeroes"),
    pytest.param(["~output_dir", "output_dir=/x"], id="remove-then-set"),
    pytest.param(["~extra.deep.deeper"], id="remove-leaves-nothing"),
    pytest.param(["~model.lora_rank"], id="remove-argument"),
    pytest.param(
        ["~checkpointer.output_dir", "~checkpointer.checkpoint_files.max_filename"], id="remove-all"
    ),
    pytest.param(["dataset=my.dataset"], id="list-by-string"),
    pytest.param(["output_dir=${model._component_}"], id="interpolation"),
    pytest.param(["empty=", 'quoted="a b"', "zero=0"], id="values"),
]
REFUSED = [
    pytest.param("model.lora_rank", id="no-value"),
    pytest.param("a=b=c", id="two-equals"),
    pytest.param("--learning-rate=3", id="dashes"),
    pytest.param("~model", id="remove-component"),
    pytest.param("~model._component_", id="remove-component-key"),
    pytest.param("~nothing.here", id="remove-missing"),
    pytest.param("~output_dir.below", id="remove-below-a-value"),
    pytest.param("a=[1", id="not-yaml"),
    pytest.param("dataset.0.packed=False", id="item-of-list"),
]


@pytest.fixture(scope="module")
def torchtune_merge() -> Any:
    """torchtune's own merging, which only this test imports."""
    from torchtune.config._utils import _merge_yaml_and_cli_args

    def merge(overrides: list[str]) -> Any:
        values = OmegaConf.to_container(OmegaConf.create(TEXT), resolve=False)
        assert isinstance(values, dict)
        merged = _merge_yaml_and_cli_args(
            argparse.Namespace(**{str(k): v for k, v in values.items()}), overrides
        )
        return OmegaConf.to_container(merged, resolve=False)

    return merge


@pytest.mark.parametrize("overrides", MERGED)
def test_overrides_merge_as_in_torchtune(overrides: list[str], tmp_path: Path, torchtune_merge: Any) -> None:
    config, findings = read_with(tmp_path, *overrides)
    assert findings.problems == []
    assert OmegaConf.to_container(config.config, resolve=False) == torchtune_merge(overrides)


@pytest.mark.parametrize("override", REFUSED)
def test_overrides_that_torchtune_refuses_are_problems(
    override: str, tmp_path: Path, torchtune_merge: Any
) -> None:
    # torchtune refuses a flag before it merges (config/_parse.py).
    if not override.startswith("--"):
        with pytest.raises(Exception):  # noqa: B017, PT011 # TypeError, ValueError, YAML and OmegaConf errors
            torchtune_merge([override])
    _, findings = read_with(tmp_path, override)
    problem = only_problem(findings)
    assert f"`{override}`" in problem.what
    assert problem.where == f"{tmp_path / 'finetune.slurm'}:2"


@pytest.mark.parametrize("override", ["batch_size=8", "batch_size=$B", "~batch_size"])
def test_batch_size_on_the_tune_run_line_is_a_problem(override: str, tmp_path: Path) -> None:
    _, findings = read(tmp_path, TEXT, f"\ntune run x --config finetune.yaml {override}\n")
    problem = findings.problems[0]
    assert problem.where == f"{tmp_path / 'finetune.slurm'}:2"
    assert "overrides the batch_size that the probe writes" in problem.what
    assert problem.remedy == "remove it from the `tune run` line"


def test_gradient_accumulation_on_the_tune_run_line_is_kept(tmp_path: Path) -> None:
    config, findings = read_with(tmp_path, "gradient_accumulation_steps=4")
    assert findings.problems == []
    assert config.get("gradient_accumulation_steps") == 4


def test_where_names_the_override_that_sets_a_key(tmp_path: Path) -> None:
    config, _ = read_with(tmp_path, "model=my.model", "extra.deep={x: 1}")
    slurm, own = f"{tmp_path / 'finetune.slurm'}:2", f"{tmp_path / 'finetune.yaml'}"
    assert config.where("model._component_") == slurm
    assert config.where("model.lora_rank") == f"{own}:6"
    assert config.where("extra.deep.x") == slurm
    assert config.where("nothing") == own


@pytest.mark.parametrize(
    ("argument", "is_problem"),
    [
        pytest.param("output_dir=$OUT", False, id="output"),
        pytest.param("optimizer.lr=${LR}", False, id="learning-rate"),
        pytest.param("checkpointer.checkpoint_dir=$MODEL", False, id="weights"),
        pytest.param("$EXTRA", False, id="whole-argument"),
        pytest.param("tokenizer.max_seq_len=$LENGTH", True, id="length"),
        pytest.param("dataset.data_files=$DATA", True, id="data"),
        pytest.param("model.lora_rank=`rank`", True, id="backticks"),
    ],
)
def test_arguments_whose_value_is_not_known(argument: str, is_problem: bool, tmp_path: Path) -> None:
    config, findings = read(tmp_path, TEXT, f"tune run x --config finetune.yaml {argument}\n")
    assert config is not None
    assert OmegaConf.to_container(config.config) == OmegaConf.to_container(OmegaConf.create(TEXT))
    said = [p.what for p in findings.problems] if is_problem else findings.notes
    assert len(findings.problems) + len(findings.notes) == 1
    assert f"`{argument}`" in said[0]
