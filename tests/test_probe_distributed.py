"""Probes of several processes: torchtune's distributed recipes, and ranks that misbehave.

Real ranks with gloo. torchtune's recipes run through `recipes/on_cpu.py`, as they ask for CUDA otherwise.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from autobatch.demo import SmallRun, lay_out
from autobatch.probing.job import run_probe
from autobatch.records import Limit, PackingMode, ProbeRequest, ProbeResult, Status, Verdict
from autobatch.world import World
from tests.conftest import MIB_EACH, RECIPES, files_of
from tests.test_probe_recipes import TINY, without_section

pytestmark = pytest.mark.recipe

MIB = 2**20

MakeRun = Callable[..., Path]


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An experiment each for LoRA and for full fine-tuning."""
    directory = tmp_path_factory.mktemp("distributed")
    for method in ("lora", "full"):
        lay_out(directory / method, SmallRun(method=method, **TINY))  # type: ignore[arg-type]  # a table
    return {method: directory / method for method in ("lora", "full")}


@pytest.fixture
def make_run(layouts: dict[str, Path], tmp_path: Path) -> MakeRun:
    """Copies an experiment whose script trains with `recipe`, started with torchrun's `options`."""

    def make(
        recipe: Path, *, method: str = "lora", options: str = "--nproc_per_node 2", more: str = ""
    ) -> Path:
        experiment = tmp_path / "experiment"
        shutil.copytree(layouts[method], experiment)
        run = experiment / "run1"
        script = run / "finetune.slurm"
        single = f"tune run {method}_finetune_single_device"
        assert single in script.read_text()
        script.write_text(script.read_text().replace(single, f"tune run {options} {recipe}"))
        config = run / "finetune.yaml"
        config.write_text(config.read_text() + more)
        return run

    return make


def probe(run: Path, **options: Any) -> ProbeResult:
    return run_probe(ProbeRequest(str(run), **options))


def section(text: str, name: str) -> str:
    """The lines of a top-level section of YAML, without its name."""
    found = re.search(rf"(?m)^{name}:\n((?:  .*\n)+)", text)
    assert found
    return found.group(1)


def distillation(run: Path) -> None:
    config = run / "finetune.yaml"
    text = config.read_text()
    teacher = "".join(
        line for line in section(text, "model").splitlines(True) if not re.search("lora|dora|quantize", line)
    )
    config.write_text(
        f"{text}\nteacher_model:\n  _component_: torchtune.models.llama3_2.llama3_2\n{teacher}"
        f"teacher_checkpointer:\n{section(text, 'checkpointer')}"
        "kd_loss:\n  _component_: torchtune.modules.loss.ForwardKLWithChunkedOutputLoss\nkd_ratio: 0.5\n"
    )


def preferences(run: Path) -> None:
    pairs = [
        {
            name: [{"role": "user", "content": "So?"}, {"role": "assistant", "content": word * (5 + index)}]
            for name, word in (("chosen", "yes "), ("rejected", "no "))
        }
        for index in range(12)
    ]
    (run.parent / "data" / "pairs.json").write_text(json.dumps(pairs))
    config = run / "finetune.yaml"
    text = config.read_text()
    for name in ("dataset", "loss", "lr_scheduler"):
        text = without_section(text, name)
    config.write_text(
        f"{text}\ndataset:\n  _component_: torchtune.datasets.preference_dataset\n  source: json\n"
        "  data_files: ${data_dir}/pairs.json\n  split: train\n"
        "loss:\n  _component_: torchtune.rlhf.loss.DPOLoss\n"
        "lr_scheduler:\n  _component_: torchtune.training.get_cosine_schedule_with_warmup\n"
        "  num_warmup_steps: 1\n"
        f"ref_checkpointer:\n{section(text, 'checkpointer')}"
    )


def quantized_training(run: Path) -> None:
    config = run / "finetune.yaml"
    config.write_text(
        config.read_text() + "\nquantizer:\n"
        "  _component_: torchtune.training.quantization.Int8DynActInt4WeightQATQuantizer\n  groupsize: 32\n"
    )


def quantized(run: Path) -> None:
    config = run / "finetune.yaml"
    # NF4's factors are shared out as well: each weight must have blocks for every rank.
    sizes = {"embed_dim": 256, "num_heads": 4, "num_kv_heads": 4, "intermediate_dim": 512}
    text = re.sub(rf"(?m)^  (quantize_base|{'|'.join(sizes)}): .*\n", "", config.read_text())
    more = "".join(f"  {name}: {size}\n" for name, size in sizes.items())
    config.write_text(text.replace("\nmodel:\n", f"\nmodel:\n  quantize_base: True\n{more}"))


def tensor_parallel(run: Path) -> None:
    config = run / "finetune.yaml"
    # torchtune's plan has no place for Llama 3.2's output layer, which shares the embedding's weights.
    untied = config.read_text().replace(
        "torchtune.models.llama3_2.llama3_2", "torchtune.models.llama3.llama3"
    )
    config.write_text(
        untied + "\ntensor_parallel_dim: 2\n"
        "tensor_parallel_plan:\n  _component_: torchtune.models.llama3.base_llama_tp_plan\n"
    )


@pytest.mark.parametrize(
    ("recipe", "method", "change", "ranks", "data_parallel"),
    [
        pytest.param("lora_finetune_distributed", "lora", None, 2, 2, id="LoRA"),
        pytest.param("lora_finetune_distributed", "lora", quantized, 2, 2, id="QLoRA"),
        pytest.param("full_finetune_distributed", "full", tensor_parallel, 4, 2, id="full, tensor parallel"),
        pytest.param("lora_dpo_distributed", "lora", preferences, 2, 2, id="LoRA, DPO"),
        pytest.param("full_dpo_distributed", "full", preferences, 2, 2, id="DPO"),
        pytest.param("knowledge_distillation_distributed", "lora", distillation, 2, 2, id="distillation"),
        pytest.param("qat_distributed", "full", quantized_training, 2, 2, id="QAT"),
    ],
)
def test_recipes_of_torchtune(
    make_run: MakeRun,
    recipe: str,
    method: str,
    change: Callable[[Path], None] | None,
    ranks: int,
    data_parallel: int,
) -> None:
    run = make_run(
        RECIPES / "on_cpu.py",
        method=method,
        options=f"--nproc_per_node {ranks}",
        more=f"\non_cpu: {recipe}\n",
    )
    if change is not None:
        change(run)
    mode = PackingMode.UNPACKED if change is preferences else PackingMode.CONFIG

    request = ProbeRequest(str(run), max_batch_size=1, packing=mode)
    result = run_probe(request)

    assert result.status is Status.DONE, result.message
    assert result.world == World(1, ranks, data_parallel)
    (trial,) = result.trials
    assert trial.verdict is Verdict.FITS
    assert len(trial.step_peaks_bytes) >= 3
    peaks = [peaks["resident"] for peaks in trial.peaks_by_rank]
    assert len(peaks) == ranks
    assert trial.peak_bytes == max(peaks)
    assert min(peaks) > 0.9 * max(peaks)
    assert trial.before_bytes is not None
    assert 0 < trial.before_bytes <= trial.step_peaks_bytes[0]
    assert trial.tokens_per_second is not None
    assert trial.tokens_per_second > 0
    assert not list(run.rglob("*.safetensors"))


class TestMisbehavingRanks:
    @pytest.fixture
    def misbehaving(self, make_run: MakeRun) -> MakeRun:
        def make(how: str, on_rank: int = 1, options: str = "--nproc_per_node 2", at: int = 1) -> Path:
            return make_run(
                RECIPES / "misbehaving_ranks.py",
                options=options,
                more=f"\nmisbehaviour: {how}\non_rank: {on_rank}\nat: {at}\n",
            )

        return make

    def test_the_largest_rank_counts(self, misbehaving: MakeRun) -> None:
        result = probe(misbehaving("unequal", on_rank=2, options="--nproc_per_node 3"), max_batch_size=4)

        assert [trial.batch_size for trial in result.trials] == [1, 4]
        for trial in result.trials:
            peaks = [peaks["resident"] for peaks in trial.peaks_by_rank]
            assert trial.peak_bytes == peaks[2]
            assert peaks[2] - peaks[1] == pytest.approx(trial.batch_size * MIB_EACH * MIB / 2, abs=8 * MIB)
            assert trial.tokens_per_second is not None
        assert len(trial.step_seconds) == len(trial.step_peaks_bytes)

    def test_one_rank_over_the_target_ends_the_trial_of_all(self, misbehaving: MakeRun) -> None:
        run = misbehaving("unequal")
        peak = probe(run, max_batch_size=1).peak_bytes
        assert peak is not None

        result = probe(run, capacity_bytes=peak + MIB_EACH * MIB, target_fraction=1.0)

        assert result.batch_size == 1
        assert [len(trial.step_peaks_bytes) for trial in result.trials] == [3, 1]
        over = result.trials[1]
        assert (over.verdict, over.cut_short) == (Verdict.OVER_TARGET, True)
        assert result.target_bytes is not None
        assert over.peaks_by_rank[0]["resident"] <= result.target_bytes < over.peaks_by_rank[1]["resident"]

    def test_out_of_memory_on_one_rank(self, misbehaving: MakeRun) -> None:
        result = probe(misbehaving("oom", at=2), max_batch_size=2)

        assert [trial.verdict for trial in result.trials] == [Verdict.FITS, Verdict.OUT_OF_MEMORY]
        assert result.batch_size == 1
        assert "(rank 1 of 2)" in result.trials[1].detail
        assert result.trials[1].log == "probe/trials/batch_size_2.rank1.log"

    def test_a_crash_on_one_rank(self, misbehaving: MakeRun) -> None:
        run = misbehaving("crash")
        before = files_of(run)

        result = probe(run)

        assert result.status is Status.CRASHED
        assert "ValueError: the loss is not a number at batch_size 1" in result.message
        assert "(rank 1 of 2)" in result.message
        assert "batch_size_1.rank1.log" in result.message
        assert files_of(run) == before
        assert_nothing_runs(run)

    def test_a_rank_killed_once_is_measured_again(self, misbehaving: MakeRun) -> None:
        run = misbehaving("killed once")

        result = probe(run, max_batch_size=1)

        assert result.status is Status.DONE, result.message
        assert (run / "killed").exists()

    def test_a_rank_killed_again_is_no_measurement(self, misbehaving: MakeRun) -> None:
        run = misbehaving("killed always", on_rank=0)

        result = probe(run)

        assert result.status is Status.CRASHED
        assert "killed by signal 9 (SIGKILL) before its last step (rank 0 of 2)" in result.message
        assert_nothing_runs(run)

    def test_a_hanging_rank_ends_the_trial_and_is_named(self, misbehaving: MakeRun) -> None:
        run = misbehaving("hang")
        began = time.monotonic()

        result = probe(run, trial_timeout_s=8)

        assert result.status is Status.TIMED_OUT
        assert time.monotonic() - began < 60
        rank_0, rank_1 = result.message.split("rank 1, ")
        assert "after 1 optimizer steps" in rank_0
        assert "in hang_here" in rank_1
        assert "in hang_here" not in rank_0
        assert_nothing_runs(run)

    def test_a_leak_on_one_rank(self, misbehaving: MakeRun) -> None:
        result = probe(misbehaving("leak"))

        assert result.status is Status.UNSTABLE
        assert "still grows after 8 optimizer steps" in result.message
        assert "(rank 1 of 2)" in result.message

    def test_the_packs_are_shared_out(self, misbehaving: MakeRun) -> None:
        run = misbehaving("none", options="--nproc_per_node 2")
        rows = [{"input": "one two three", "output": "four " * 110}] * 5
        (run.parent / "data" / "train.json").write_text(json.dumps(rows))

        result = probe(run)

        # DistributedSampler repeats a row, so that both ranks have 3 of the 5.
        assert (result.batch_size, result.limit) == (3, Limit.DATASET)
        assert "5 packs // 2 ranks // 1 gradient_accumulation_steps" in result.message


def assert_nothing_runs(run: Path) -> None:
    """No process works in the run's directory."""
    left = []
    for process in Path("/proc").glob("[0-9]*"):
        # One that has ended meanwhile, or is another user's.
        with suppress(OSError):
            if (process / "cwd").readlink() == run:
                left.append((process / "cmdline").read_text())
    assert left == []
