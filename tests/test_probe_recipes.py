"""torchtune's own recipes, probed from end to end on a model of a few hundred thousand parameters.

`run_probe` is called in this process, so that all the probes share one fork server.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autobatch.demo import SmallRun, lay_out
from autobatch.probing.events import Event, Packed
from autobatch.probing.job import run_probe
from autobatch.records import Limit, PackingMode, ProbeRequest, ProbeResult, Status, Verdict
from tests.conftest import files_of

pytestmark = pytest.mark.recipe

TINY = {
    "examples": 200,
    "max_seq_len": 128,
    "num_layers": 1,
    "embed_dim": 128,
    "num_heads": 2,
    "num_kv_heads": 2,
    "intermediate_dim": 256,
}

MakeRun = Callable[..., Path]


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An experiment each for LoRA and for full fine-tuning."""
    directory = tmp_path_factory.mktemp("layouts")
    for method in ("lora", "full"):
        lay_out(directory / method, SmallRun(method=method, **TINY))  # type: ignore[arg-type]  # a table
    return {method: directory / method for method in ("lora", "full")}


@pytest.fixture
def make_run(layouts: dict[str, Path], tmp_path: Path) -> MakeRun:
    """Copies an experiment; `settings` replace values of finetune.yaml, `more` is added to its end."""

    def make(method: str = "lora", *, recipe: str | None = None, more: str = "", **settings: object) -> Path:
        experiment = tmp_path / "experiment"
        shutil.copytree(layouts[method], experiment)
        run = experiment / "run1"
        config = run / "finetune.yaml"
        text = config.read_text()
        for key, value in settings.items():
            text, count = re.subn(rf"(?m)^( *){key}: [^\n#$]*?( *#.*)?$", rf"\1{key}: {value}\2", text)
            assert count == 1, key
        config.write_text(text + more)
        if recipe is not None:
            script = run / "finetune.slurm"
            script.write_text(script.read_text().replace("lora_finetune_single_device", recipe))
        return run

    return make


def probe(run: Path, **options: Any) -> ProbeResult:
    return run_probe(ProbeRequest(str(run), **{"max_batch_size": 2, **options}))


def without_section(text: str, name: str) -> str:
    """YAML without one of its top-level sections."""
    return re.sub(rf"(?m)^{name}:\n(?:[ #].*\n|\n)*", "", text)


def assert_measured(run: Path, result: ProbeResult, before: dict[str, bytes]) -> None:
    """Both sizes were measured, and nothing but the answer was written."""
    assert result.status is Status.DONE, result.message
    assert [(trial.batch_size, trial.verdict) for trial in result.trials] == [
        (1, Verdict.FITS),
        (2, Verdict.FITS),
    ]
    assert (result.batch_size, result.batch_size_before, result.limit) == (2, 4, Limit.MAX_BATCH_SIZE)
    for trial in result.trials:
        assert len(trial.step_peaks_bytes) >= 3
        assert trial.before_bytes is not None
        assert 0 < trial.before_bytes <= trial.step_peaks_bytes[0]
        assert trial.tokens_per_second is not None
        assert trial.tokens_per_second > 0
    assert_only_the_answer_was_written(run, before)


def assert_only_the_answer_was_written(
    run: Path, before: dict[str, bytes], batch_size: int = 2, *changes: tuple[bytes, bytes]
) -> None:
    expected = before["run1/finetune.yaml"]
    for old, new in ((b"\nbatch_size: 4 ", f"\nbatch_size: {batch_size} ".encode()), *changes):
        assert expected.count(old) == 1
        expected = expected.replace(old, new)
    after = files_of(run)
    assert after["run1/finetune.yaml"] == expected
    assert after["run1/finetune.slurm"] == before["run1/finetune.slurm"]
    assert after["runs_plan.md"] != before["runs_plan.md"]
    assert visible(run) == ["finetune.slurm", "finetune.yaml", "probe"]
    assert [p.name for p in run.rglob("*") if p.suffix in (".pt", ".safetensors", ".bin")] == ["rows.pt"]
    assert visible(run.parent) == ["data", "model", "run1", "runs_plan.md"]


def visible(directory: Path) -> list[str]:
    """What is in a directory, but for the locks of edited files, which stay (autobatch/edits/files.py)."""
    return sorted(path.name for path in directory.iterdir() if not re.fullmatch(r"\..*\.lock", path.name))


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        pytest.param("lora", {}, id="LoRA"),
        pytest.param("lora", {"quantize_base": True}, id="QLoRA"),
        pytest.param("lora", {"use_dora": True}, id="DoRA"),
        pytest.param("lora", {"dtype": "bf16"}, id="bf16"),
        pytest.param("lora", {"enable_activation_checkpointing": True}, id="activation checkpointing"),
        pytest.param("lora", {"gradient_accumulation_steps": 4}, id="gradient_accumulation_steps 4"),
        pytest.param("full", {}, id="full"),
        pytest.param("full", {"optimizer_in_bwd": True}, id="full, optimizer_in_bwd"),
    ],
)
def test_methods(make_run: MakeRun, method: str, settings: dict[str, object]) -> None:
    run = make_run(method, **settings)
    before = files_of(run)

    result = probe(run)

    assert_measured(run, result, before)


def test_knowledge_distillation(make_run: MakeRun) -> None:
    base = make_run("lora", recipe="knowledge_distillation_single_device")
    config = base / "finetune.yaml"
    text = config.read_text()
    model = re.search(r"(?m)^model:\n((?:  .*\n)+)", text)
    checkpointer = re.search(r"(?m)^checkpointer:\n((?:  .*\n)+)", text)
    assert model
    assert checkpointer
    teacher = "".join(
        line for line in model.group(1).splitlines(True) if not re.search("lora|dora|quantize", line)
    )
    config.write_text(
        text
        + "\nteacher_model:\n  _component_: torchtune.models.llama3_2.llama3_2\n"
        + teacher
        + f"teacher_checkpointer:\n{checkpointer.group(1)}"
        + "kd_loss:\n  _component_: torchtune.modules.loss.ForwardKLWithChunkedOutputLoss\nkd_ratio: 0.5\n"
    )
    before = files_of(base)

    result = probe(base)

    assert result.density is not None
    assert result.density.packed
    assert_measured(base, result, before)


def test_dpo_with_unpacked_pairs(make_run: MakeRun) -> None:
    run = make_run("lora", recipe="lora_dpo_single_device")
    pairs = [
        {
            "chosen": _conversation("yes " * (5 + 3 * index)),
            "rejected": _conversation("no " * (40 - 3 * index)),
        }
        for index in range(12)
    ]
    (run.parent / "data" / "pairs.json").write_text(json.dumps(pairs))
    config = run / "finetune.yaml"
    text = without_section(without_section(config.read_text(), "dataset"), "loss")
    config.write_text(
        text + "\ndataset:\n  _component_: torchtune.datasets.preference_dataset\n  source: json\n"
        "  data_files: ${data_dir}/pairs.json\n  split: train\n"
        "loss:\n  _component_: torchtune.rlhf.loss.DPOLoss\n"
    )
    before = files_of(run)

    result = probe(run, packing=PackingMode.UNPACKED)

    assert result.density is not None
    assert (result.density.packed, result.density.examples) == (False, 12)
    assert result.density.longest_example > 40
    assert_measured(run, result, before)


def _conversation(answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "Is it so?"}, {"role": "assistant", "content": answer}]


def test_pack_sets_packed_for_training_too(make_run: MakeRun) -> None:
    run = make_run(packed=False)
    before = files_of(run)

    result = probe(run, packing=PackingMode.PACK)

    assert result.status is Status.DONE, result.message
    assert result.density is not None
    assert result.density.packed
    assert_only_the_answer_was_written(run, before, 2, (b"\n  packed: False ", b"\n  packed: True "))


def test_unpacked_probes_with_the_longest_example(make_run: MakeRun) -> None:
    run = make_run(packed=False)
    before = files_of(run)

    result = probe(run, packing=PackingMode.UNPACKED)

    assert result.density is not None
    assert (result.density.packed, result.density.packs) == (False, 200)
    assert result.density.longest_example == 128
    assert_measured(run, result, before)


def test_load_weights_reads_the_checkpoint_and_takes_as_much_memory_as_zeros(make_run: MakeRun) -> None:
    run = make_run()
    before = files_of(run)

    result = probe(run, load_weights=True)
    with_weights = [
        b"ConstantCheckpointer" not in path.read_bytes() for path in (run / "probe" / "trials").glob("*.yaml")
    ]

    assert_measured(run, result, before)
    zeros = probe(run, max_batch_size=1)
    assert with_weights == [True, True]
    assert zeros.fingerprint != result.fingerprint
    assert zeros.peak_bytes == pytest.approx(result.trials[0].peak_bytes, rel=0.01)


def test_load_weights_without_a_checkpoint_is_the_recipes_error(make_run: MakeRun) -> None:
    run = make_run()
    (run.parent / "model" / "model.pt").write_bytes(b"not a checkpoint")
    before = files_of(run)

    result = probe(run, load_weights=True)

    assert result.status is Status.CRASHED
    assert "batch_size 1: the recipe failed: " in result.message
    assert files_of(run) == before


def test_density_sample(make_run: MakeRun) -> None:
    run = make_run()
    before = files_of(run)

    result = probe(run, density_sample=100)

    assert_measured(run, result, before)
    assert result.density is not None
    assert result.density.sampled_examples is not None
    assert 50 <= result.density.sampled_examples < 200
    assert result.density.standard_error is not None
    assert "ex/seq (sampled)" in (run.parent / "runs_plan.md").read_text()


def test_a_list_of_datasets(make_run: MakeRun) -> None:
    run = make_run()
    config = run / "finetune.yaml"
    section = re.search(r"(?m)^dataset:\n((?:  .*\n)+)", config.read_text())
    assert section
    entry = "  - " + section.group(1)[2:].replace("\n  ", "\n    ")
    config.write_text(config.read_text().replace(section.group(1), entry * 2))
    before = files_of(run)

    result = probe(run)

    assert_measured(run, result, before)
    assert result.density is not None
    assert result.density.examples == 400


@pytest.mark.parametrize(
    ("accumulation", "cap"), [pytest.param(1, 3, id="1 step"), pytest.param(2, 1, id="accumulated")]
)
def test_a_dataset_with_fewer_packs_than_memory_allows(
    make_run: MakeRun, accumulation: int, cap: int
) -> None:
    run = make_run(gradient_accumulation_steps=accumulation)
    data = run.parent / "data" / "train.json"
    data.write_text(json.dumps([{"input": "one two three", "output": "four " * 110}] * 3))
    before = files_of(run)
    events: list[Event] = []

    result = run_probe(ProbeRequest(str(run)), events.append)

    assert result.density is not None
    assert result.density.packs == 3
    assert [(event.cap, event.cap_reason) for event in events if isinstance(event, Packed)] == [
        (cap, "dataset")
    ]
    assert (result.batch_size, result.limit) == (cap, Limit.DATASET)
    assert result.message.endswith(
        f"the dataset is the limit, not the memory: 3 packs // {accumulation} gradient_accumulation_steps"
    )
    assert_only_the_answer_was_written(run, before, cap)


@pytest.mark.parametrize(
    ("component", "message"),
    [
        pytest.param(
            "accepts_packed_and_ignores_it",
            "the dataset component accepts packed: True but doesn't pack: its rows have labels, tokens",
            id="doesn't pack",
        ),
        pytest.param("empty", "the dataset has no examples", id="empty"),
    ],
)
def test_a_dataset_that_cannot_be_packed(make_run: MakeRun, component: str, message: str) -> None:
    run = make_run()
    config = run / "finetune.yaml"
    config.write_text(
        config.read_text().replace(
            "torchtune.datasets.instruct_dataset", f"tests.recipes.datasets.{component}"
        )
    )
    before = files_of(run)

    result = probe(run)

    assert result.status is Status.CRASHED
    assert message in result.message
    assert "probe/packing.log" in result.message
    assert result.trials == ()
    assert files_of(run) == before
