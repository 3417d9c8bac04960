"""Training logs: of real trainings, in the shapes that other versions, loggers and Slurm write, and as junk."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autobatch.errors import UsageError
from autobatch.metrics.log_packing import estimated, packs_of_an_epoch
from autobatch.metrics.logs import find_logs, read_logs
from autobatch.metrics.records import LogMetrics, PackingMetrics, Source
from tests.trainings import Training

GPU_STEP = (
    "Step {0} | loss:2.31 lr:3e-06 tokens_per_second_per_gpu:{1} peak_memory_active:7.25 "
    "peak_memory_alloc:7.2 peak_memory_reserved:{2} \n"
)
HEADER = """Running LoRAFinetuneRecipeSingleDevice with resolved config:

batch_size: {batch_size}
dataset:
  _component_: torchtune.datasets.instruct_dataset
  packed: {packed}
epochs: 2
gradient_accumulation_steps: {accumulation}
max_steps_per_epoch: {limit}
optimizer:
  _component_: torch.optim.AdamW
  lr: 2.0e-05
resume_from_checkpoint: {resume}
tokenizer:
  _component_: torchtune.models.llama3.llama3_tokenizer
  max_seq_len: 2048

"""
EVALUATION = """Running EleutherEvalRecipe with resolved config:

batch_size: 8
model:
  _component_: torchtune.models.llama3_2.llama3_2_1b
tasks:
- truthfulqa_mc2

"""


def header(
    *,
    batch_size: int = 1,
    accumulation: int = 1,
    packed: bool = True,
    limit: str = "null",
    resume: bool = False,
) -> str:
    return HEADER.format(
        batch_size=batch_size, accumulation=accumulation, packed=packed, limit=limit, resume=resume
    )


def bar(epoch: int, step: int, done: int, total: int, loss: str = "2.31", elapsed: str = "00:19") -> str:
    share = 100 * done // total
    return (
        f"\r{epoch}|{step}|Loss: {loss}: {share:3d}%|█▌        | {done}/{total} [{elapsed}<01:44,  2.00it/s]"
    )


def packing_bar(examples: int) -> str:
    return (
        f"\rPacking dataset:   0%|          | 0/{examples} [00:00<?, ?it/s]"
        f"\rPacking dataset: 100%|██████████| {examples}/{examples} [00:00<00:00, 9642.14it/s]\n"
    )


@pytest.fixture
def read(tmp_path: Path) -> ReadText:
    return ReadText(tmp_path)


class ReadText:
    """Reads texts as logs of one training."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def __call__(self, *texts: str | bytes) -> LogMetrics:
        paths = []
        for number, text in enumerate(texts):
            path = self._directory / f"{number}.log"
            path.write_bytes(text if isinstance(text, bytes) else text.encode())
            paths.append(path)
        return read_logs(paths)


class TestRealTrainings:
    def test_disk_logger_beside_progress_bars(self, trainings: dict[str, Training]) -> None:
        run, log = trainings["disk"].run, trainings["disk"].log

        files = find_logs(run)
        found = read_logs(files)

        written = sorted((run / "output" / "logs").glob("log_*.txt"))
        assert files == [log, *written]
        logged = [line.split() for line in written[0].read_text().splitlines()]
        speeds = [float(line[5].partition(":")[2]) for line in logged]
        assert (found.recipe, found.steps, len(logged)) == ("LoRAFinetuneRecipeSingleDevice", 34, 34)
        assert found.config["tokenizer"]["max_seq_len"] == 128
        assert found.loss == float(logged[-1][3].partition(":")[2])
        assert found.tokens_per_second == sorted(speeds[1:])[16]
        assert [(epoch.epoch, epoch.steps) for epoch in found.epochs] == [(0, 17), (1, 17)]
        assert found.epochs[0].loss == float(logged[16][3].partition(":")[2])
        assert found.epochs[1].tokens_per_second == sorted(speeds[17:])[8]
        assert found.training_seconds is not None
        minutes = sum(epoch.training_time_minutes or 0 for epoch in found.epochs)
        assert 0 < found.training_seconds == pytest.approx(60 * minutes)
        assert (found.error, found.out_of_memory, found.slurm_end) == (None, None, None)
        # 17 steps of 4 packs: 68 to 71 of them.
        assert found.packing.total_examples == 80
        assert found.packing.total_sequences == 69
        assert found.packing.source is Source.ESTIMATE

    def test_stdout_logger_between_progress_bars(self, trainings: dict[str, Training]) -> None:
        log = trainings["stdout"].log

        found = read_logs(find_logs(trainings["stdout"].run))

        assert find_logs(trainings["stdout"].run) == [log]
        assert found.steps == 2 * 69
        # One step and one pack is one: counted.
        assert found.packing == PackingMetrics(80, 69, 80 / 69, None, Source.COUNTED)
        assert found.tokens_per_second is not None
        assert [epoch.steps for epoch in found.epochs] == [69, 69]

    def test_an_error_in_the_middle(self, trainings: dict[str, Training]) -> None:
        found = read_logs(find_logs(trainings["error"].run))

        assert trainings["error"].status == 1
        assert found.error == "ValueError: the schedule ends at step 5"
        assert found.out_of_memory is None
        assert found.steps == 4

    def test_out_of_memory_in_the_middle(self, trainings: dict[str, Training]) -> None:
        found = read_logs(find_logs(trainings["memory"].run))

        assert trainings["memory"].status == 1
        assert found.out_of_memory is not None
        assert "DefaultCPUAllocator: can't allocate memory" in found.out_of_memory
        assert found.error == found.out_of_memory
        assert found.steps == 4

    @pytest.mark.parametrize("name", ["disk", "stdout", "memory"])
    def test_cut_off_anywhere(self, trainings: dict[str, Training], name: str, read: ReadText) -> None:
        text = trainings[name].log.read_bytes()
        whole = read(text)

        before = 0
        for end in range(0, len(text), 997):
            found = read(text[:end])
            assert before <= found.steps <= whole.steps
            before = found.steps

    def test_one_by_one_is_what_a_block_at_once_is(
        self, trainings: dict[str, Training], read: ReadText
    ) -> None:
        log = trainings["stdout"].log.read_bytes()
        start = log.index(b"\r  0%|")
        regular = log[start : log.rindex(b"Starting checkpoint")].replace(b"Starting checkpoint save", b"")

        # "oom" means nothing here, but the block is then read line by line.
        assert read(regular).epochs == read(b"oom\n" + regular).epochs
        assert read(regular).tokens_per_second == read(b"oom\n" + regular).tokens_per_second


class TestSteps:
    def test_gpu_memory(self, read: ReadText) -> None:
        steps = "".join(GPU_STEP.format(n, 1000 + n, 7.9 if n == 2 else 7.5) for n in range(1, 5))

        found = read(header() + steps)

        assert found.peak_memory_gib == {"reserved": 7.9, "alloc": 7.2, "active": 7.25}
        assert found.tokens_per_second == 1003
        assert (found.steps, found.loss) == (4, 2.31)

    def test_memory_of_the_init_counts_beside_the_steps_only(self, read: ReadText) -> None:
        init = (
            "Memory stats after model init:\n\tGPU peak memory allocation: 7.30 GiB\n"
            "\tGPU peak memory reserved: 7.70 GiB\n\tGPU peak memory active: 7.25 GiB\n"
        )

        assert read(init).peak_memory_gib == {}
        assert read(init + GPU_STEP.format(1, 9, 7.5)).peak_memory_gib == {
            "reserved": 7.7,
            "alloc": 7.3,
            "active": 7.25,
        }

    def test_epochs_have_their_own_peaks(self, read: ReadText) -> None:
        bars = "".join(bar(1 + n // 3, n + 1, n % 3 + 1, 3, elapsed=f"01:0{n}") for n in range(6))
        steps = "".join(GPU_STEP.format(n, 1000 + n, n) for n in range(1, 7))

        found = read(header() + bars + "\n" + steps)

        assert [(e.steps, e.peak_gpu_memory_gb, e.tokens_per_second) for e in found.epochs] == [
            (3, 3.0, 1002.5),
            (3, 6.0, 1005.0),
        ]
        assert [e.training_time_minutes for e in found.epochs] == [62 / 60, 65 / 60]
        assert found.training_seconds == 62 + 65

    def test_a_bar_drawn_again_after_the_checkpoint_counts_once(self, read: ReadText) -> None:
        first = bar(1, 6, 6, 6, elapsed="00:10") + "Starting checkpoint save...\n"
        again = "\n\r  0%|          | 0/6 [00:00<?, ?it/s]\x1b[A" + bar(1, 6, 6, 6, elapsed="03:10")

        found = read(first + again + "\n\n" + bar(2, 7, 1, 6, elapsed="00:02"))

        assert [(e.epoch, e.steps) for e in found.epochs] == [(0, 6), (1, 1)]
        assert found.training_seconds == 12

    def test_hours_and_losses_that_are_no_numbers(self, read: ReadText) -> None:
        found = read(bar(1, 40, 40, 250, loss="nan", elapsed="2:00:01"))

        assert found.training_seconds == 7201
        assert found.loss is not None
        assert math.isnan(found.loss)

    def test_a_step_in_two_files_counts_once(self, read: ReadText) -> None:
        steps = [GPU_STEP.format(n, 1000 + n, 7.5) for n in range(1, 8)]

        found = read("".join(steps[:5]), "".join(steps))

        assert found.steps == 7
        assert found.tokens_per_second == read("".join(steps)).tokens_per_second == 1004.5

    def test_values_that_are_cut_off_do_not_count(self, read: ReadText) -> None:
        found = read("Step 1 | loss:2.5 tokens_per_second_per_gpu:12\r  50%|#####     | 1/2 [00:01<00:01]\n")

        assert (found.loss, found.tokens_per_second) == (2.5, None)

    def test_one_value_a_line(self, read: ReadText) -> None:
        assert read("Step 3 | loss:2.5\nStep 3 | tokens_per_second_per_gpu:12\n").tokens_per_second == 12

    def test_nothing_trained(self, read: ReadText) -> None:
        found = read(header() + packing_bar(20) + "\r0it [00:00, ?it/s]Starting checkpoint save...\n")

        assert (found.steps, found.epochs, found.error) == (0, (), None)

    def test_wandb_summary(self, read: ReadText) -> None:
        summary = (
            "wandb: Run history:\nwandb:               global_step ▁▂▃█\n"
            "\x1b[34m\x1b[1mwandb\x1b[0m:        peak_memory_active 18.77768\n"
            "wandb:      peak_memory_reserved 19.25\nwandb:                      loss 1.125\n"
            "wandb:               global_step 250\nwandb: tokens_per_second_per_gpu 186.75362\n"
        )

        found = read(header() + summary)

        assert found.peak_memory_gib == {"reserved": 19.25, "active": 18.77768}
        assert (found.steps, found.loss, found.tokens_per_second) == (250, 1.125, 186.75362)

    def test_the_planning_documents_lines(self, read: ReadText) -> None:
        found = read(
            "Training started at 2025-10-20 14:30:00\nPeak GPU memory: 45.2 GB\n"
            "Training completed at 2025-10-20 16:37:00\n"
        )

        assert found.training_seconds == 127 * 60
        assert found.peak_memory_gib == {"reserved": 45.2}


class TestSeveralTrainings:
    def test_a_requeued_job_starts_again(self, read: ReadText) -> None:
        first = (
            header()
            + bar(1, 3, 3, 10, elapsed="09:00")
            + "\n"
            + "".join(GPU_STEP.format(n, 100, 60) for n in range(1, 4))
        )
        cut = "slurmstepd: error: *** JOB 608 ON n1 CANCELLED AT 2022-08-12T02:06:12 DUE TO JOB REQUEUE ***\n"

        found = read(first + cut + header() + bar(1, 1, 1, 10, elapsed="00:01") + GPU_STEP.format(1, 200, 7))

        assert (found.steps, found.training_seconds, found.slurm_end) == (1, 1, None)
        assert found.peak_memory_gib["reserved"] == 7

    def test_one_that_resumes_goes_on(self, read: ReadText) -> None:
        first = header() + "".join(bar(1, n, n, 3) for n in (1, 2, 3)) + bar(2, 4, 1, 3, elapsed="00:50")

        found = read(first + "\n" + header(resume=True) + bar(2, 4, 1, 3, elapsed="00:05") + bar(2, 5, 2, 3))

        assert [(e.epoch, e.steps) for e in found.epochs] == [(0, 3), (1, 2)]
        assert found.steps == 5

    def test_one_that_died_at_once_has_no_steps_of_the_one_before(self, read: ReadText) -> None:
        found = read(
            header()
            + bar(1, 3, 3, 10)
            + "\n"
            + header()
            + "Traceback (most recent call last):\n  File x\nKeyError: 'train'\n"
        )

        assert (found.steps, found.error) == (0, "KeyError: 'train'")

    def test_disk_loggers_file_that_two_trainings_wrote(self, read: ReadText) -> None:
        steps = [GPU_STEP.format(n, 100, 60) for n in range(1, 6)] + [
            GPU_STEP.format(n, 200, 7) for n in range(1, 4)
        ]

        found = read("".join(steps))

        assert (found.steps, found.tokens_per_second, found.peak_memory_gib["reserved"]) == (3, 200, 7)

    def test_an_evaluation_afterwards_is_no_training(self, read: ReadText) -> None:
        found = read(
            header()
            + packing_bar(8)
            + bar(1, 8, 8, 8)
            + "\n"
            + EVALUATION
            + "Loaded 500 examples\nTraceback (most recent call last):\n  File x\nKeyError: 'task'\n"
        )

        assert (found.recipe, found.steps, found.error) == ("LoRAFinetuneRecipeSingleDevice", 8, None)
        assert found.packing.total_examples == 8

    def test_a_config_with_empty_lines_in_a_text(self, read: ReadText) -> None:
        text = header().replace("epochs: 2\n", "epochs: 2\nprompt: 'one\n\n  two'\n")

        found = read(text + bar(1, 1, 1, 2))

        assert found.config["prompt"] == "one\ntwo"
        assert found.config["tokenizer"]["max_seq_len"] == 2048


class TestPacking:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            pytest.param(
                packing_bar(8000) + "INFO: Packed 8000 examples into 2857 sequences\n"
                "INFO: Average packing density: 2.80 examples/sequence\n"
                "INFO: Packing efficiency: 87% non-padding tokens\n",
                PackingMetrics(8000, 2857, 8000 / 2857, 87.0, Source.STATED),
                id="form A",
            ),
            pytest.param(
                "Average packing density: 2.80\n",
                PackingMetrics(None, None, 2.8, None, Source.STATED),
                id="form A, the density alone",
            ),
            pytest.param(
                "Loading dataset from /data/train.parquet...\nLoaded 8,000 examples\n"
                "Packing dataset with max_seq_len=2048...\nDataset packed: 2857 total sequences\n",
                PackingMetrics(8000, 2857, 8000 / 2857, None, Source.COUNTED),
                id="form B",
            ),
            pytest.param(
                "Dataset loaded: 8000 examples\nTraining started...\n",
                PackingMetrics(total_examples=8000),
                id="form C",
            ),
            pytest.param(packing_bar(2000), PackingMetrics(total_examples=2000), id="torchtune's bar alone"),
            pytest.param(
                "\rPacking dataset:  45%|####      | 900/2000 [00:01<00:01, 890.21it/s]",
                PackingMetrics(total_examples=2000),
                id="died while packing",
            ),
            pytest.param(
                "packing density 5.21 examples per pack: 2000 examples in 384 packs of 512 tokens, 89.0 % of "
                "them not padding\n" + header() + packing_bar(2000),
                PackingMetrics(2000, 384, 2000 / 384, 89.0, Source.STATED),
                id="a probe in the same job",
            ),
            pytest.param(
                header() + packing_bar(300) + bar(1, 1, 1, 239),
                PackingMetrics(300, 239, 300 / 239, None, Source.COUNTED),
                id="an epoch's steps, a pack each",
            ),
            pytest.param(
                header(batch_size=4, accumulation=2) + packing_bar(2000) + bar(1, 1, 1, 48),
                PackingMetrics(2000, 387, 2000 / 387, None, Source.ESTIMATE),
                id="an epoch's steps, 8 packs each",
            ),
            pytest.param(
                header(batch_size=16) + packing_bar(2000) + bar(1, 1, 1, 6),
                PackingMetrics(total_examples=2000),
                id="too few steps to tell",
            ),
            pytest.param(
                header(limit="6") + packing_bar(2000) + bar(1, 1, 1, 6),
                PackingMetrics(total_examples=2000),
                id="max_steps_per_epoch ends the epoch",
            ),
            pytest.param(
                header(packed=False) + bar(1, 1, 1, 300),
                PackingMetrics(packing_density=1.0, source=Source.STATED),
                id="not packed",
            ),
            pytest.param(
                header() + packing_bar(300) + packing_bar(40) + bar(1, 1, 1, 100),
                PackingMetrics(300, 100, 3.0, None, Source.COUNTED),
                id="a validation set, packed too",
            ),
            pytest.param(
                "Packed 10 examples into 0 sequences\nPacking efficiency: 870%\npacking density: many\n",
                PackingMetrics(total_examples=10),
                id="nonsense",
            ),
        ],
    )
    def test_forms(self, read: ReadText, text: str, expected: PackingMetrics) -> None:
        assert read(text).packing == expected

    def test_processes_of_a_distributed_recipe_share_the_packs(self, read: ReadText) -> None:
        text = header().replace("SingleDevice", "Distributed") + packing_bar(300) + bar(1, 1, 1, 60)

        assert read(text).packing == PackingMetrics(total_examples=300)

    def test_two_datasets(self, read: ReadText) -> None:
        two = header().replace(
            "dataset:\n  _component_: torchtune.datasets.instruct_dataset\n  packed: True\n",
            "dataset:\n- _component_: a\n  packed: true\n- _component_: b\n  packed: true\n",
        )

        packing = read(two + packing_bar(300) + packing_bar(40) + bar(1, 1, 1, 100)).packing

        assert (packing.total_examples, packing.total_sequences) == (340, 100)

    @given(st.integers(1, 3000), st.integers(1, 8), st.integers(1, 4))
    def test_an_epochs_steps_give_the_packs(self, packs: int, batch_size: int, accumulation: int) -> None:
        config = {
            "batch_size": batch_size,
            "gradient_accumulation_steps": accumulation,
            "dataset": {"packed": True},
        }

        told = packs_of_an_epoch(config, "XSingleDevice", packs // batch_size // accumulation)

        if told is not None:
            assert abs(told[0] - packs) <= 0.06 * packs
            assert (told[0] == packs) or not told[1]

    @pytest.mark.parametrize("max_seq_len", [256, 1024])
    def test_the_estimate_is_near_what_packing_gives(self, max_seq_len: int) -> None:
        from torchtune.datasets import PackedDataset

        lengths = [20 + 37 * n % 61 for n in range(2000)]
        examples = [{"tokens": [7] * length, "labels": [7] * length} for length in lengths]
        packs = len(PackedDataset(examples, max_seq_len=max_seq_len))

        guess = estimated(
            PackingMetrics(total_examples=2000), mean_tokens=sum(lengths) / 2000, max_seq_len=max_seq_len
        )

        assert guess.source is Source.ESTIMATE
        assert guess.packing_density == pytest.approx(2000 / packs, rel=0.03)
        assert guess.total_sequences == pytest.approx(packs, rel=0.03)

    @pytest.mark.parametrize("mean", [0.0, -1.0, math.inf, math.nan])
    def test_no_estimate_from_nothing(self, mean: float) -> None:
        with pytest.raises(UsageError, match="must be above 0"):
            estimated(PackingMetrics(), mean_tokens=mean, max_seq_len=2048)


CUDA_OOM = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of"
)
TRACEBACK = 'Traceback (most recent call last):\n  File "x.py", line 7, in f\n    y = g(x)\n        ^^^^\n'


class TestEnding:
    @pytest.mark.parametrize(
        "line",
        [
            CUDA_OOM,
            "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB",
            "RuntimeError: CUDA out of memory. Tried to allocate 20.00 MiB (GPU 0; 79.15 GiB total capacity",
            "RuntimeError: CUDA error: out of memory",
            "torch.AcceleratorError: CUDA error: out of memory",
            "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "RuntimeError: cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in",
            "RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 8 bytes. Error code 12 (Cannot allocate memory)",
            "MemoryError",
        ],
    )
    @pytest.mark.parametrize("prefix", ["", "[rank0]: ", "[rank12]:", "0: "])
    def test_out_of_memory_in_a_traceback(self, read: ReadText, line: str, prefix: str) -> None:
        text = "".join(f"{prefix}{row}\n" for row in (TRACEBACK + line).splitlines())

        found = read(header() + bar(1, 2, 2, 9) + text)

        assert found.out_of_memory == found.error == line
        assert found.steps == 2

    @pytest.mark.parametrize(
        "line",
        [
            "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=14604003.batch cgroup. Some of your "
            "processes may have been killed by the cgroup out-of-memory handler.",
            "slurmstepd: error: Detected 1 oom_kill event in StepId=77.0. Some of the step tasks have been OOM "
            "Killed.",
            "slurmstepd: error: Job 77 exceeded memory limit (2097152 > 1048576), being killed",
            "srun: error: o0616: task 0: Out Of Memory",
            "terminate called after throwing an instance of 'std::bad_alloc'",
            "Error out of memory at line 380 in file /src/csrc/ops.cu",
        ],
    )
    def test_out_of_memory_without_a_traceback(self, read: ReadText, line: str) -> None:
        assert read(header() + bar(1, 2, 2, 9) + "\n" + line + "\n").out_of_memory == line

    @pytest.mark.parametrize(
        "text",
        [
            "x.py:1: UserWarning: Plan failed with an OutOfMemoryError: CUDA out of memory. Tried\n",
            "Plan failed with a cudnnException: cudnn_status: CUDNN_STATUS_NOT_SUPPORTED\n",
            TRACEBACK.replace("y = g(x)", "raise torch.OutOfMemoryError()") + "KeyError: 'x'\n",
            TRACEBACK
            + "triton.runtime.errors.OutOfResources: out of resource: shared memory, OUT_OF_MEMORY\n",
            "        10        -          -          -      9.4 s  out of memory\n",
            "batch_size 9 (peak 1.01 GiB, 67.5 % of 1.50 GiB); batch_size 10 ran out of memory\n",
            "slurmstepd: error: Exceeded step memory limit at some point.\n",
        ],
        ids=["warning", "plan", "source line", "triton", "a probe's trial", "a probe's answer", "no kill"],
    )
    def test_not_out_of_memory(self, read: ReadText, text: str) -> None:
        assert read(header() + bar(1, 2, 2, 9) + "\n" + text).out_of_memory is None

    def test_training_that_went_on_after_it(self, read: ReadText) -> None:
        text = header() + bar(1, 1, 1, 9) + "\n" + TRACEBACK + CUDA_OOM + "\nskipping the batch\n"

        assert read(text).out_of_memory == CUDA_OOM
        assert read(text + bar(1, 2, 2, 9)).out_of_memory is None
        # What a buffer held back comes after the error: steps that were before it.
        assert read(text + GPU_STEP.format(1, 2, 3)).out_of_memory == CUDA_OOM

    def test_the_last_of_a_chain(self, read: ReadText) -> None:
        chain = (
            TRACEBACK
            + "KeyError: 'x'\n\nDuring handling of the above exception, another exception occurred:\n\n"
            + TRACEBACK
            + "torchtune.config._errors.InstantiationError: no such component\nmore of it\n"
        )

        assert read(chain).error == "torchtune.config._errors.InstantiationError: no such component"

    def test_torchruns_summary_says_less_than_the_error(self, read: ReadText) -> None:
        summary = "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n=====\n"

        assert read(TRACEBACK + "KeyError: 'x'\n" + TRACEBACK + summary).error == "KeyError: 'x'"
        assert "ChildFailedError" in str(read(TRACEBACK + summary).error)

    def test_a_dataloaders_worker(self, read: ReadText) -> None:
        text = (
            TRACEBACK
            + "RuntimeError: Caught ValueError in DataLoader worker process 0.\nOriginal "
            + TRACEBACK
            + "ValueError: bad row\n"
        )

        assert read(text).error == "ValueError: bad row"

    @pytest.mark.parametrize(
        ("line", "expected"),
        [
            ("JOB 123 ON n1 CANCELLED AT 2025-10-20T14:30:00 DUE TO TIME LIMIT", "DUE TO TIME LIMIT"),
            ("STEP 123.0 ON n1 CANCELLED AT 2025-10-20T14:30:00 DUE TO TIME LIMIT", "DUE TO TIME LIMIT"),
            ("JOB 123 ON n1 CANCELLED AT 2025-10-20T14:30:00 DUE TO PREEMPTION", "DUE TO PREEMPTION"),
            ("JOB 123 ON n1 CANCELLED AT 2025-10-20T14:30:00 DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS",
             "DUE TO NODE FAILURE, SEE SLURMCTLD LOG FOR DETAILS"),
            ("JOB 123 ON n1 CANCELLED AT 2025-10-20T14:30:00", "CANCELLED"),
        ],
    )  # fmt: skip
    def test_slurm(self, read: ReadText, line: str, expected: str) -> None:
        found = read(header() + bar(1, 2, 2, 9) + f"slurmstepd: error: *** {line} ***\n")

        assert (found.slurm_end, found.error) == (expected, None)

    def test_the_shells_word_of_a_signal(self, read: ReadText) -> None:
        line = "/var/spool/slurmd/job4711/slurm_script: line 31:  4712 Killed                  tune run x"

        assert read(line + "\n").error == line
        assert read(TRACEBACK + "KeyError: 'x'\n" + line).error == "KeyError: 'x'"


class TestFindingFiles:
    @pytest.fixture
    def run(self, tmp_path: Path) -> Path:
        run = tmp_path / "experiment" / "run1"
        run.mkdir(parents=True)
        return run

    def write(self, path: Path, text: str) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def test_nothing(self, run: Path) -> None:
        assert find_logs(run) == []

    def test_the_highest_job_id_not_the_youngest_file(self, run: Path) -> None:
        newest = self.write(run / "slurm-1000.out", header())
        self.write(run / "slurm-999.out", header())

        assert find_logs(run) == [newest]

    def test_a_job_that_only_evaluates_is_passed_over(self, run: Path) -> None:
        training = self.write(run / "slurm-5.out", header() + bar(1, 1, 1, 9))
        self.write(run / "slurm-6.out", EVALUATION)

        assert find_logs(run) == [training]

    def test_jobs_that_never_trained(self, run: Path) -> None:
        self.write(run / "slurm-5.out", "bash: tune: command not found\n")
        newest = self.write(run / "slurm-6.out", "bash: tune: command not found\n")

        assert find_logs(run) == [newest]

    def test_output_and_error_of_the_script(self, run: Path) -> None:
        self.write(
            run / "finetune.slurm",
            "#!/bin/bash\n#SBATCH --job-name=mine\n#SBATCH --output=logs/%x-%j.txt\n#SBATCH -e logs/%x-%j.err\n",
        )
        out = self.write(run / "logs" / "mine-12.txt", "")
        error = self.write(run / "logs" / "mine-12.err", header())
        self.write(run / "logs" / "other-13.err", header())
        self.write(run / "slurm-7.out", header())

        assert find_logs(run) == [out, error]

    def test_a_directory_of_all_runs(self, run: Path) -> None:
        shared = run.parent / "logs"
        self.write(run / "finetune.slurm", f"#!/bin/bash\n#SBATCH -J run1\n#SBATCH -o {shared}/%x.%j.out\n")
        mine = self.write(shared / "run1.5.out", header())
        self.write(shared / "run2.6.out", header())

        assert find_logs(run) == [mine]

    def test_an_array(self, run: Path) -> None:
        self.write(run / "slurm-12_0.out", header())
        newest = self.write(run / "slurm-12_1.out", header())

        assert find_logs(run) == [newest]

    def config(self, run: Path) -> None:
        logger = "torchtune.training.metric_logging.DiskLogger"
        self.write(run / "finetune.yaml", f"metric_logger:\n  _component_: {logger}\n  log_dir: ./logs\n")

    def test_the_file_that_disk_logger_names(self, run: Path) -> None:
        self.config(run)
        slurm = self.write(run / "slurm-5.out", header() + "Writing logs to logs/log_100.txt\n")
        named = self.write(run / "logs" / "log_100.txt", GPU_STEP.format(1, 2, 3))
        self.write(run / "logs" / "log_200.txt", GPU_STEP.format(1, 2, 3))

        assert find_logs(run) == [slurm, named]

    def test_the_file_with_the_same_losses_when_the_name_was_lost(self, run: Path) -> None:
        self.config(run)
        slurm = self.write(run / "slurm-5.out", header() + bar(1, 1, 1, 9, loss="2.3125") + bar(1, 2, 2, 9))
        mine = self.write(run / "logs" / "log_100.txt", "Step 1 | loss:2.3125 lr:3e-06 \n")
        self.write(run / "logs" / "log_200.txt", "Step 1 | loss:2.5 lr:3e-06 \n")

        assert find_logs(run) == [slurm, mine]

    def test_no_file_of_another_training(self, run: Path) -> None:
        self.config(run)
        slurm = self.write(run / "slurm-5.out", header() + "KeyError: 'x'\n")
        self.write(run / "logs" / "log_200.txt", "Step 1 | loss:2.5 lr:3e-06 \n")

        assert find_logs(run) == [slurm]

    def test_the_newest_without_slurm(self, run: Path) -> None:
        self.config(run)
        newest = self.write(run / "logs" / "log_200.txt", "Step 1 | loss:2.5 lr:3e-06 \n")
        self.write(run / "logs" / "log_100.txt", "Step 1 | loss:2.5 lr:3e-06 \n")

        assert find_logs(run) == [newest]


FRAGMENTS = st.sampled_from(
    [
        header().encode(),
        EVALUATION.encode(),
        bar(1, 3, 3, 9).encode(),
        bar(2, 1, 1, 9).encode(),
        packing_bar(30).encode(),
        GPU_STEP.format(3, 1, 2).encode(),
        TRACEBACK.encode(),
        CUDA_OOM.encode(),
        b"Step 99999999999999999999 | loss:1e999 \n",
        b"Step 1 | ",
        b"\r",
        b"\n",
        b"[rank0]: ",
        b"\x1b[A",
        b"\x00" * 70_000,
        b" " * 70_000,
        b"wandb: loss 1\n",
        b"with resolved config:",
        b"Running X with resolved config:\n\n&a [*a, *a]\n\n",
        b"Running X with resolved config:\n\n!!python/object:os.system x\n\n",
        b"Running X with resolved config:\n\noptimizer: " + b"[" * 300 + b"\n\n",
        b"1|" * 500,
        b"1|1|Loss: x: 1%|",
        b"Packed " + b"9" * 40 + b" examples into 3 sequences\n",
        b"Training started 9999-99-99 99:99:99\n",
        b"CANCELLED AT ***",
    ]
)


class TestJunk:
    @given(st.lists(FRAGMENTS | st.binary(max_size=200), max_size=30))
    @settings(deadline=None, max_examples=150)
    def test_never_fails(self, tmp_path_factory: pytest.TempPathFactory, parts: list[bytes]) -> None:
        path = tmp_path_factory.getbasetemp() / "junk.log"
        path.write_bytes(b"".join(parts))

        found = read_logs([path])

        assert found.steps >= 0
        assert found.packing.packing_density is None or found.packing.packing_density > 0

    def test_an_empty_file(self, read: ReadText) -> None:
        assert read("") == LogMetrics(files=read("").files)

    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"gone\.log: can't be read: No such file"):
            read_logs([tmp_path / "gone.log"])

    def test_a_line_of_many_megabytes(self, read: ReadText) -> None:
        text = header().encode() + b"x" * 5_000_000 + b"\n" + GPU_STEP.format(1, 2, 3).encode()

        assert read(text).steps == 1


# VmHWM: Linux counts in ru_maxrss what the process was forked from.
MEASURE = r"""
import json, re, sys, time
from pathlib import Path
from autobatch.metrics.logs import read_logs
began = time.process_time()
found = read_logs([Path(sys.argv[1])])
peak = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
print(json.dumps({"seconds": time.process_time() - began, "mib": int(peak.group(1)) / 1024,
                  "steps": found.steps, "reserved": found.peak_memory_gib["reserved"],
                  "out_of_memory": found.out_of_memory}))
"""


def test_200_mb_in_under_10_s_and_200_mb(tmp_path: Path) -> None:
    log = tmp_path / "slurm-1.out"
    total = 800_000
    with log.open("w", encoding="utf-8") as file:
        file.write(header() + packing_bar(8000))
        for begin in range(1, total, 1000):
            steps = range(begin, begin + 1000)
            file.write("".join(bar(1, step, step, total, loss=f"{2 + 1 / step:.12f}") for step in steps))
            file.write("".join(GPU_STEP.format(step, 1000 + step % 77, 7 + step % 5) for step in steps))
        file.write("\n" + TRACEBACK + CUDA_OOM)
    size = log.stat().st_size

    said = subprocess.run(
        [sys.executable, "-c", MEASURE, str(log)], capture_output=True, text=True, check=True
    ).stdout

    measured = json.loads(said)
    assert size > 165e6
    assert (measured["steps"], measured["reserved"], measured["out_of_memory"]) == (total, 11, CUDA_OOM)
    # Processor time: whatever else the machine does meanwhile isn't ours.
    assert measured["seconds"] * 200e6 / size < 10
    assert measured["mib"] < 190, measured
