"""`autobatch.runs.directory`: a run directory is read whole, and every problem is said at once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from datasets import load_dataset

from autobatch.errors import Problem, RunProblems, UsageError
from autobatch.records import PackingMode, ProbeRequest
from autobatch.runs.directory import RunDirectory, read_run, read_run_script, working_dir_of
from autobatch.runs.findings import Findings
from autobatch.runs.torchtune_source import package_dir

CONFIG = """\
output_dir: out
tokenizer:
  _component_: torchtune.models.llama3.llama3_tokenizer
  path: tokenizer.model
  max_seq_len: 2048
dataset:
  _component_: torchtune.datasets.instruct_dataset
  source: json
  data_files: data.json
  packed: True
model:
  _component_: torchtune.models.llama3_2.lora_llama3_2_1b
  lora_rank: 8
checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: weights
  checkpoint_files: [model.safetensors]
  model_type: LLAMA3_2
batch_size: 4
gradient_accumulation_steps: 8
optimizer:
  _component_: torch.optim.AdamW
  lr: 3e-4
device: cuda
dtype: bf16
"""
SCRIPT = """\
#!/bin/bash
#SBATCH --partition=gpu
tune run lora_finetune_single_device --config finetune.yaml
"""
REQUEST = ProbeRequest(run_dir="unused")
Edit = tuple[str, str]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with nothing wrong: exp/run1."""
    path = tmp_path / "exp" / "run1"
    (path / "weights").mkdir(parents=True)
    for name in ("tokenizer.model", "data.json", "weights/model.safetensors"):
        (path / name).write_text("x")
    (path / "finetune.yaml").write_text(CONFIG)
    (path / "finetune.slurm").write_text(SCRIPT)
    return path


def edit(file: Path, *edits: Edit) -> None:
    text = file.read_text()
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    file.write_text(text)


def read(run: Path, **request: object) -> RunDirectory:
    return read_run(run, replace(REQUEST, **request), environ={}, cwd=run.parent)  # type: ignore[arg-type] # any field


def problems_of(run: Path, **request: object) -> tuple[Problem, ...]:
    with pytest.raises(RunProblems) as caught:
        read(run, **request)
    return caught.value.problems


def test_a_run_with_nothing_wrong(run: Path) -> None:
    directory = read(run)
    assert directory.path == run
    assert directory.name == "run1"
    assert directory.experiment_dir == run.parent
    assert directory.config_path == run / "finetune.yaml"
    assert directory.config_text == CONFIG
    assert directory.script is not None
    assert directory.script.header == {"partition": "gpu"}
    assert directory.recipe.name == "lora_finetune_single_device"
    assert (directory.batch_size, directory.gradient_accumulation_steps) == (4, 8)
    assert (directory.packed, directory.max_seq_len) == (True, 2048)
    assert (directory.device, directory.device_index, directory.dtype) == ("cuda", 0, "bf16")
    assert directory.working_dir == run
    assert directory.plan_path == run.parent / "runs_plan.md"
    assert directory.notes == ()
    assert directory.resolved()["optimizer"]["lr"] == 3e-4


@pytest.mark.parametrize(
    "given",
    [
        pytest.param("run1", id="relative"),
        pytest.param("run1/", id="slash"),
        pytest.param("run1/finetune.yaml", id="its-config"),
        pytest.param("../exp/run1", id="dots"),
        pytest.param("link", id="link"),
    ],
)
def test_ways_to_name_a_run(given: str, run: Path) -> None:
    (run.parent / "link").symlink_to(run)
    directory = read_run(Path(given), REQUEST, environ={}, cwd=run.parent)
    assert (directory.path, directory.name) == (run, "run1")


def test_defaults(run: Path) -> None:
    edit(run / "finetune.yaml", ("gradient_accumulation_steps: 8\n", ""), ("dtype: bf16\n", ""))
    edit(run / "finetune.yaml", ("device: cuda", "device: cuda:1"))
    (run / "finetune.slurm").unlink()
    directory = read(run)
    assert directory.gradient_accumulation_steps == 1
    assert (directory.device, directory.device_index, directory.dtype) == ("cuda", 1, "fp32")
    assert directory.script is None
    assert directory.recipe.source == "inferred"
    assert directory.notes == directory.recipe.warnings


def make(files: dict[str, str]) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        for name, text in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)

    return write


@pytest.mark.parametrize(
    ("files", "given", "what", "remedy"),
    [
        pytest.param({}, "nope", "no such directory", "name a run directory", id="missing"),
        pytest.param({"file": ""}, "file", "not a directory", "finetune.yaml", id="a-file"),
        pytest.param({"d/x": ""}, "d", "no finetune.yaml", "name the directory that holds", id="no-yaml"),
        pytest.param(
            {"d/config.yaml": "", "d/b.yml": ""},
            "d",
            "no finetune.yaml",
            "its YAML files are b.yml, config.yaml; the config must be called finetune.yaml",
            id="other-yaml",
        ),
        pytest.param(
            {"e/run2/finetune.yaml": "", "e/run1/finetune.yaml": "", "e/x.yaml": ""},
            "e",
            "no finetune.yaml",
            "this is an experiment directory; name a run: ",
            id="experiment",
        ),
    ],
)
def test_no_run_there(files: dict[str, str], given: str, what: str, remedy: str, tmp_path: Path) -> None:
    make(files)(tmp_path)
    (problem,) = problems_of(tmp_path / given)
    assert problem.what == what
    assert problem.where == str(tmp_path / given)
    assert remedy in problem.remedy
    if "experiment" in remedy:
        assert problem.remedy.endswith(f"{tmp_path / 'e/run1'}, {tmp_path / 'e/run2'}")


def wrong(name: str, old: str, new: str, line_start: str | None, what: str, remedy: str) -> Any:
    """`new` in place of `old` is a problem on the line that starts with `line_start` (None: of the file)."""
    return pytest.param((old, new), line_start, what, remedy, id=name)


BATCH = "batch_size: 4"
DATA = "data_files: data.json"
TOKENIZER = "path: tokenizer.model"
LENGTH = "max_seq_len: 2048"
PACKED = "packed: True"
WRONG_CONFIGS = [
    wrong("no-batch-size", f"{BATCH}\n", "", None, "no batch_size", "add the line `batch_size: 1`"),
    wrong("zero", BATCH, "batch_size: 0", "batch_size:", "batch_size is 0,", "batch_size: 1"),
    wrong("negative", BATCH, "batch_size: -4", "batch_size:", "batch_size is -4,", "batch_size: 1"),
    wrong("float", BATCH, "batch_size: 4.0", "batch_size:", "batch_size is 4.0,", "batch_size: 1"),
    wrong("bool", BATCH, "batch_size: True", "batch_size:", "batch_size is True,", "batch_size: 1"),
    wrong("list", BATCH, "batch_size: [4]", "batch_size:", "batch_size is [4],", "batch_size: 1"),
    wrong("text", BATCH, "batch_size: auto", "batch_size:", "batch_size is 'auto',", "batch_size: 1"),
    wrong("string", BATCH, "batch_size: '4'", "batch_size:", "the string '4'", "write 4 without quotes"),
    wrong("accumulation", "steps: 8", "steps: 0", "gradient_acc", "_steps is 0,", "gradient_accumulation"),
    wrong("mps", "device: cuda", "device: mps", "device:", "device is 'mps'", "device: cuda"),
    wrong("cuda-x", "device: cuda", "device: cuda:x", "device:", "device is 'cuda:x'", "device: cuda"),
    wrong(
        "cuda-squared",
        "device: cuda",
        "device: cuda:\u00b2",
        "device:",
        "device is 'cuda:\u00b2'",
        "device: cuda",
    ),
    wrong(
        "cuda-huge",
        "device: cuda",
        f"device: cuda:{'9' * 5000}",
        "device:",
        "device is 'cuda:99",
        "device: cuda",
    ),
    wrong("no-user", DATA, "data_files: ~nobody-here/x", "  data_files:", "doesn't exist", "write the home"),
    wrong("no-device", "device: cuda\n", "", None, "no device", "device: cuda"),
    wrong("fp16", "dtype: bf16", "dtype: fp16", "dtype:", "torchtune's recipes refuse", "dtype: bf16"),
    wrong("dtype", "dtype: bf16", "dtype: int8", "dtype:", "dtype is 'int8'", "dtype: bf16"),
    wrong("not-packed", PACKED, "packed: False", "  packed:", "packed isn't True", "--unpacked probes"),
    wrong("packed-missing", f"  {PACKED}\n", "", "dataset:", "packed isn't True", "--pack sets it"),
    wrong("packed-string", PACKED, "packed: 'True'", "  packed:", "packed is 'True'", "without quotes"),
    wrong("null-length", LENGTH, "max_seq_len: null", "  max_seq", "it is null", "such as 2048"),
    wrong("no-length", f"  {LENGTH}\n", "", "tokenizer:", "it is null", "ship with null"),
    wrong("length-string", LENGTH, "max_seq_len: 2k", "  max_seq", "it is '2k'", "such as 2048"),
    wrong(
        "gemma2",
        "llama3_2.lora_llama3_2_1b",
        "gemma2.lora_gemma2_2b",
        "  _component_: torchtune.models.gemma2",
        "gemma2 models refuse packed",
        "--unpacked",
    ),
    wrong(
        "preference",
        "instruct_dataset",
        "preference_dataset",
        "  packed:",
        "preference_dataset can't pack",
        "--unpacked",
    ),
    wrong(
        "multimodal",
        "instruct_dataset",
        "multimodal.vqa_dataset",
        "  packed:",
        "vqa_dataset can't pack",
        "--unpacked",
    ),
    wrong(
        "component-typo",
        "lora_llama3_2_1b",
        "lora_llama3_2_1B",
        "  _component_: torchtune.models.llama3_2",
        "the installed torchtune has no torchtune.models.llama3_2.lora_llama3_2_1B",
        "did you mean torchtune.models.llama3_2.lora_llama3_2_1b",
    ),
    wrong(
        "no-component",
        "  _component_: torchtune.datasets.instruct_dataset\n",
        "",
        "dataset:",
        "dataset has no `_component_`",
        "dotted.path",
    ),
    wrong("tokenizer", TOKENIZER, "path: t", "  path:", "t doesn't exist", "the training job runs"),
    wrong("home", TOKENIZER, "path: ~/t", "  path:", "doesn't exist", "`~` isn't expanded here"),
    wrong(
        "special-tokens",
        TOKENIZER,
        f"{TOKENIZER}\n  special_tokens_path: /no/s.json",
        "  special",
        "/no/s.json doesn't exist",
        "correct the path",
    ),
    wrong(
        "merges", TOKENIZER, f"{TOKENIZER}\n  merges_file: m", "  merges", "m doesn't exist", "correct the"
    ),
    wrong("data", DATA, "data_files: d", "  data_files:", "d doesn't exist", "the training job runs"),
    wrong("pattern", DATA, "data_files: 'd/*.json'", "  data_files:", "nothing matches", "correct"),
    wrong("data-list", DATA, "data_files: [data.json, e]", "  data_files:", "e doesn't exist", "correct"),
    wrong("data-splits", DATA, "data_files: {train: e}", "  data_files:", "e doesn't exist", "correct"),
    wrong("data-dir", DATA, "data_dir: d", "  data_dir:", "d doesn't exist", "the training job runs"),
    wrong("empty-data-dir", DATA, "data_dir: empty", "  data_dir:", "empty holds no files", "put it there"),
    wrong("no-data", f"  {DATA}\n", "", "  source:", "doesn't say which", "add data_files or data_dir"),
    wrong(
        "source", "source: json", "source: ./src", "  source:", "src doesn't exist", "the training job runs"
    ),
    wrong(
        "open", "output_dir: out", "output_dir: ${nope}", "output_dir:", "'nope' not found", "add that key"
    ),
]


@pytest.mark.parametrize(("change", "line_start", "what", "remedy"), WRONG_CONFIGS)
def test_what_is_wrong_with_a_config(
    change: Edit, line_start: str | None, what: str, remedy: str, run: Path
) -> None:
    (run / "empty").mkdir()
    edit(run / "finetune.yaml", change)
    text = (run / "finetune.yaml").read_text()
    problem = problems_of(run)[0]
    assert what in problem.what
    assert remedy in problem.remedy
    if line_start is None:
        assert problem.where == str(run / "finetune.yaml")
    else:
        line = next(i for i, line in enumerate(text.splitlines(), 1) if line.startswith(line_start))
        assert problem.where == f"{run / 'finetune.yaml'}:{line}"


@pytest.mark.parametrize("section", ["model", "dataset", "tokenizer"])
@pytest.mark.parametrize(("value", "what"), [("null", "no {} section"), ("some.path", "not a section")])
def test_sections_that_must_be_there(section: str, value: str, what: str, run: Path) -> None:
    lines = (run / "finetune.yaml").read_text().splitlines(keepends=True)
    start = lines.index(f"{section}:\n")
    end = next(i for i in range(start + 1, len(lines)) if not lines[i].startswith(" "))
    (run / "finetune.yaml").write_text("".join([*lines[:start], f"{section}: {value}\n", *lines[end:]]))
    problem = problems_of(run)[0]
    assert what.format(section) in problem.what
    assert problem.where == f"{run / 'finetune.yaml'}:{start + 1}"


def test_a_source_that_is_no_name(run: Path) -> None:
    config = run / "finetune.yaml"
    edit(config, ("source: json", "source: [json]"))
    assert read(run).batch_size > 0


def test_all_problems_are_said_at_once(run: Path) -> None:
    edit(
        run / "finetune.yaml",
        ("steps: 8", "steps: 0"),
        ("dtype: bf16", "dtype: fp16"),
        ("packed: True", "packed: False"),
        ("output_dir: out", "output_dir: ${nope}"),
        ("path: tokenizer.model", "path: nope.model"),
    )
    edit(run / "finetune.slurm", ("lora_finetune_single_device", "lora_finetune_singel_device"))
    edit(run / "finetune.slurm", ("finetune.yaml", "finetune.yaml batch_size=3 a=b=c"))
    problems = problems_of(run)
    assert len(problems) == 8, problems
    message = str(RunProblems(problems))
    assert f"{run / 'finetune.yaml'}:20: gradient_accumulation_steps is 0" in message
    assert f"{run / 'finetune.slurm'}:3: no recipe 'lora_finetune_singel_device'" in message


def test_problems_of_the_script_are_said_though_the_config_is_broken(run: Path) -> None:
    (run / "finetune.yaml").write_text("a: [\n")
    edit(run / "finetune.slurm", ("lora_finetune_single_device", "nope"))
    assert [p.where.rpartition("/")[2] for p in problems_of(run)] == ["finetune.yaml:2", "finetune.slurm:3"]


def test_problems_of_values_from_the_tune_run_line_name_it(run: Path) -> None:
    edit(run / "finetune.slurm", ("finetune.yaml", "finetune.yaml dtype=fp16"))
    (problem,) = problems_of(run)
    assert problem.where == f"{run / 'finetune.slurm'}:3"


@pytest.mark.parametrize(
    ("packed", "mode", "says"),
    [
        pytest.param("True", PackingMode.CONFIG, (True, []), id="packed"),
        pytest.param("True", PackingMode.PACK, (True, []), id="packed-pack"),
        pytest.param("True", PackingMode.UNPACKED, (True, ["--unpacked probes"]), id="packed-unpacked"),
        pytest.param("False", PackingMode.PACK, (False, ["--pack sets it"]), id="unpacked-pack"),
        pytest.param("False", PackingMode.UNPACKED, (False, []), id="unpacked-unpacked"),
        pytest.param("null", PackingMode.UNPACKED, (False, []), id="null-unpacked"),
    ],
)
def test_packing_modes(packed: str, mode: PackingMode, says: tuple[bool, list[str]], run: Path) -> None:
    edit(run / "finetune.yaml", ("packed: True", f"packed: {packed}"))
    directory = read(run, packing=mode)
    assert directory.packed is says[0]
    assert len(directory.notes) == len(says[1])
    assert all(part in note for part, note in zip(says[1], directory.notes, strict=True))


def test_unpacked_needs_no_length(run: Path) -> None:
    edit(run / "finetune.yaml", ("packed: True", "packed: False"), ("max_seq_len: 2048", "max_seq_len: null"))
    assert read(run, packing=PackingMode.UNPACKED).max_seq_len is None


def test_pack_checks_what_packing_needs(run: Path) -> None:
    edit(run / "finetune.yaml", ("packed: True", "packed: False"), ("max_seq_len: 2048", "max_seq_len: null"))
    (problem,) = problems_of(run, packing=PackingMode.PACK)
    assert "packing needs tokenizer.max_seq_len" in problem.what


def test_not_packed_and_without_a_length_says_both(run: Path) -> None:
    edit(run / "finetune.yaml", ("packed: True", "packed: False"), ("max_seq_len: 2048", "max_seq_len: null"))
    (problem,) = problems_of(run)
    assert problem.remedy.startswith("--pack sets it and needs tokenizer.max_seq_len, for training too;")


def test_gemma2_packs_on_cpu(run: Path) -> None:
    edit(run / "finetune.yaml", ("llama3_2.lora_llama3_2_1b", "gemma2.lora_gemma2_2b"))
    edit(run / "finetune.yaml", ("device: cuda", "device: cpu"))
    assert read(run).device == "cpu"


@pytest.mark.parametrize(
    ("packed", "problems"),
    [
        pytest.param("  packed: False\n", 0, id="false"),
        pytest.param("", 0, id="missing"),
        pytest.param("  packed: True\n", 1, id="true"),
    ],
)
def test_a_preference_dataset_is_probed_unpacked(packed: str, problems: int, run: Path) -> None:
    edit(run / "finetune.yaml", ("instruct_dataset", "preference_dataset"), ("  packed: True\n", packed))
    edit(run / "finetune.slurm", ("lora_finetune", "lora_dpo"))
    if problems:
        (problem,) = problems_of(run, packing=PackingMode.UNPACKED)
        assert "training would fail" in problem.what
    else:
        assert read(run, packing=PackingMode.UNPACKED).packed is False


def test_a_dpo_recipe_does_not_pack_datasets_of_ones_own_either(run: Path) -> None:
    edit(
        run / "finetune.yaml",
        ("torchtune.datasets.instruct_dataset", "my.pairs"),
        ("packed: True", "packed: False"),
    )
    edit(run / "finetune.slurm", ("lora_finetune", "lora_dpo"))
    (problem,) = problems_of(run)
    assert "lora_dpo_single_device doesn't pack" in problem.what
    assert "--unpacked" in problem.remedy


TWO_DATASETS = """\
dataset:
- _component_: torchtune.datasets.instruct_dataset
  source: json
  data_files: data.json
  packed: {}
- _component_: my.own.dataset
  packed: {}
"""


@pytest.mark.parametrize(
    ("first", "second", "mode", "outcome"),
    [
        pytest.param("True", "True", PackingMode.CONFIG, True, id="both"),
        pytest.param("True", "False", PackingMode.CONFIG, "dataset.1: not packed, beside", id="mixed"),
        pytest.param(
            "True", "False", PackingMode.UNPACKED, "dataset.1: not packed, beside", id="mixed-unpacked"
        ),
        pytest.param("True", "False", PackingMode.PACK, "--pack can't set packed in a list", id="mixed-pack"),
        pytest.param("False", "False", PackingMode.CONFIG, "dataset.0.packed isn't True", id="neither"),
    ],
)
def test_several_datasets(first: str, second: str, mode: PackingMode, outcome: bool | str, run: Path) -> None:
    start, end = CONFIG.index("dataset:"), CONFIG.index("model:")
    (run / "finetune.yaml").write_text(CONFIG[:start] + TWO_DATASETS.format(first, second) + CONFIG[end:])
    if isinstance(outcome, bool):
        assert read(run, packing=mode).packed is outcome
    else:
        (problem,) = problems_of(run, packing=mode)
        assert outcome in problem.what


@pytest.mark.parametrize(
    ("files", "missing"),
    [
        pytest.param("[model.safetensors]", [], id="there"),
        pytest.param("[a.safetensors, model.safetensors]", ["a.safetensors"], id="one-missing"),
        pytest.param(
            "{filename_format: 'm-{}-of-{}.bin', max_filename: '00002'}",
            ["m-00001-of-00002.bin", "m-00002-of-00002.bin"],
            id="format",
        ),
    ],
)
def test_checkpoint_files(files: str, missing: list[str], run: Path) -> None:
    edit(run / "finetune.yaml", ("[model.safetensors]", files))
    if missing:
        assert [p.what.rpartition("/")[2] for p in problems_of(run, load_weights=True)] == [
            f"{name} doesn't exist" for name in missing
        ]
        (note,) = read(run).notes
        assert f"{missing[0]} isn't there; the probe goes on with zeros" in note
    else:
        assert read(run, load_weights=True).notes == ()


def test_a_missing_checkpoint_directory_is_only_said(run: Path) -> None:
    shutil.rmtree(run / "weights")
    (note,) = read(run).notes
    assert note.startswith(f"{run / 'finetune.yaml'}:16: {run / 'weights'} isn't there")
    (problem,) = problems_of(run, load_weights=True)
    assert problem.what == f"checkpointer.checkpoint_dir: {run / 'weights'} doesn't exist"


@pytest.mark.parametrize(
    "line", [pytest.param("#SBATCH --chdir=../data", id="chdir"), pytest.param("cd ../data", id="cd")]
)
def test_relative_paths_are_relative_to_where_the_job_runs(line: str, run: Path) -> None:
    shutil.copytree(run, run.parent / "data")
    for name in ("tokenizer.model", "data.json"):
        (run / name).unlink()
    assert len(problems_of(run)) == 2
    edit(run / "finetune.slurm", ("#SBATCH --partition=gpu", line))
    assert read(run).working_dir.resolve() == run.parent / "data"


@pytest.mark.parametrize(
    ("name", "data", "is_found"),
    [
        ("*", "data.json", True),
        ("a]b", "../data/data.json", True),
        ("*", "../data/data.json", False),
        ("[x]", "data.json", False),
        ("**a**", "data.json", False),
    ],
)
def test_a_directory_that_is_taken_for_a_pattern(
    name: str, data: str, is_found: bool, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Hugging Face datasets finds the file, or doesn't."""
    named = run.rename(run.parent / name)
    (named.parent / "data").mkdir()
    for directory in (named, named.parent / "data"):
        (directory / "data.json").write_text('[{"input": "So?", "output": "So."}]')
    edit(named / "finetune.yaml", ("data_files: data.json", f"data_files: {data}"))

    monkeypatch.chdir(named)
    try:
        load_dataset("json", data_files=data, cache_dir=str(tmp_path / "cache"))
    except (FileNotFoundError, ValueError):
        found = False
    else:
        found = True

    assert found is is_found
    if is_found:
        read(named)
    else:
        (problem,) = problems_of(named)
        assert problem.what.startswith(
            f"dataset.data_files: {named / data} is there, but Hugging Face datasets"
        )
        assert problem.remedy == "rename the directory"


def test_a_chdir_that_is_not_there(run: Path) -> None:
    edit(run / "finetune.slurm", ("--partition=gpu", "--chdir=/not/there"))
    problem = problems_of(run)[0]
    assert (problem.what, problem.where) == (
        "--chdir=/not/there is not a directory",
        f"{run / 'finetune.slurm'}:2",
    )


def working_dir_after(line: str, run: Path) -> tuple[Path, list[Problem]]:
    """Where the job trains when `line` stands before its `tune run`, on line 3; HOME is the experiment."""
    edit(run / "finetune.slurm", ("tune run", f"{line}\ntune run"))
    findings = Findings()
    script = read_run_script(run / "finetune.slurm", {"HOME": str(run.parent)}, findings)
    return working_dir_of(run, script, findings), findings.problems


@pytest.mark.parametrize(
    "line", ["cd ../data", "cd ~/data", 'cd "$HOME/data"', "cd /not/there; cd $HOME/data"]
)
@pytest.mark.parametrize("kind", ["nothing", "file", "directory"])
def test_a_cd_to_what_is_no_directory(kind: str, line: str, run: Path) -> None:
    data = run.parent / "data"
    if kind == "file":
        data.write_text("")
    elif kind == "directory":
        data.mkdir()
    working_dir, problems = working_dir_after(line, run)
    assert working_dir.resolve() == data
    if kind == "directory":
        assert problems == []
    else:
        (problem,) = problems
        assert problem.what == f"cd leads to {working_dir}, which is not a directory"
        assert problem.where == f"{run / 'finetune.slurm'}:3"


@pytest.mark.parametrize(
    "line", ["cd ~bob", "cd -", 'cd "$UNKNOWN"', "cd -; cd not/there", "(cd /not/there)"]
)
def test_a_cd_that_is_not_known_is_no_problem(line: str, run: Path) -> None:
    assert working_dir_after(line, run)[1] == []


def test_a_cd_to_where_nothing_is_stops_the_probe(run: Path) -> None:
    edit(run / "finetune.slurm", ("tune run", "cd /not/there\ntune run"))
    assert problems_of(run)[0].what == "cd leads to /not/there, which is not a directory"


def test_a_script_that_trains_another_run(run: Path) -> None:
    edit(run / "finetune.slurm", ("--config finetune.yaml", f"--config {run.parent}/run2/finetune.yaml"))
    (problem,) = problems_of(run)
    assert "the config of another run" in problem.what
    assert problem.where == f"{run / 'finetune.slurm'}:3"


@pytest.mark.parametrize(
    "config", ["finetune.yaml", "run1/finetune.yaml", '"$RUN_DIR/finetune.yaml"', "{run}/finetune.yaml"]
)
def test_ways_to_name_this_config_on_the_tune_run_line(config: str, run: Path) -> None:
    edit(run / "finetune.slurm", ("--config finetune.yaml", f"--config {config}".replace("{run}", str(run))))
    assert read(run).notes == ()


def test_a_script_that_trains_with_a_copy(run: Path) -> None:
    edit(run / "finetune.slurm", ("--config finetune.yaml", "--config tmp/copy.yaml"))
    (note,) = read(run).notes
    assert (
        note
        == f"{run / 'finetune.slurm'}:3: trains with --config tmp/copy.yaml; the probe reads finetune.yaml"
    )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("target_fraction", 0.0, "(0, 1]"),
        ("target_fraction", 1.5, "target 1.5"),
        ("target_fraction", float("nan"), "(0, 1]"),
        ("capacity_bytes", 0, "--capacity 0"),
        ("max_batch_size", 0, "--max-batch-size 0 is less than 1"),
        ("min_steps", 1, "--steps 1 is less than 2"),
        ("density_sample", 0, "--density-sample"),
        ("trial_timeout_s", 0.0, "--trial-timeout 0"),
    ],
)
def test_requests_out_of_range(field: str, value: float, message: str, run: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read(run, **{field: value})
    assert not isinstance(caught.value, RunProblems)
    assert message in str(caught.value)


def test_every_request_problem_is_said(run: Path) -> None:
    with pytest.raises(UsageError) as caught:
        read(run, target_fraction=2.0, min_steps=0, trial_timeout_s=-1.0)
    assert str(caught.value).count("\n") == 2


def shipped_configs() -> list[Path]:
    package = package_dir()
    assert package is not None
    return sorted((package.parent / "recipes" / "configs").rglob("*.yaml"))


REASONS = (
    "gemma2",
    "can't pack",
    "doesn't pack",
    "has no optimizer",
    "no dataset section",
    "trains on several devices",
    "packing needs tokenizer.max_seq_len",
    "rollouts",
)


def test_every_config_that_torchtune_ships_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    passed: list[Path] = []
    refused: dict[Path, tuple[Problem, ...]] = {}
    for config in shipped_configs():
        run = tmp_path / config.parent.name / config.stem
        run.mkdir(parents=True)
        lines = [
            line.partition(":")[0] + f": {tmp_path / 'file'}"
            if line.strip().startswith(("path:", "merges_file:", "vocab_path:", "merges_path:"))
            else line.replace("packed: False", "packed: True").replace(
                "max_seq_len: null", "max_seq_len: 512"
            )
            for line in config.read_text().splitlines()
        ]
        (run / "finetune.yaml").write_text("\n".join(lines))
        try:
            assert read_run(run, REQUEST, environ={}).packed
            passed.append(config)
        except RunProblems as error:
            refused[config] = error.problems
    assert len(passed) > 90
    for problems in refused.values():
        assert all(Path(p.where.partition(":")[0]).name == "finetune.yaml" for p in problems)
        assert any(reason in p.what for p in problems for reason in REASONS)
    assert not [
        c for c in refused if "lora_single" in c.stem and "gemma" not in str(c) and "11B" not in c.stem
    ]


def test_reading_a_run_imports_no_heavy_package(run: Path) -> None:
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from autobatch.records import ProbeRequest\n"
        "from autobatch.runs.directory import read_run\n"
        "from autobatch.runs.fingerprint import data_signature, fingerprint\n"
        f"run = read_run(Path({str(run)!r}), ProbeRequest(run_dir=''))\n"
        "fingerprint(run.resolved(), {}), data_signature(run.resolved(), run.working_dir)\n"
        "roots = {name.partition('.')[0] for name in sys.modules}\n"
        "print(sorted(roots & {'torch', 'torchtune', 'torchao', 'datasets', 'submitit', 'numpy'}))\n"
        "print(any(name.startswith('autobatch.edits') for name in sys.modules))\n"
    )
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert finished.stdout.splitlines() == ["[]", "False"]
