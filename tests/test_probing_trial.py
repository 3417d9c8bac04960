"""A trial from outside: the config it is given, and what is made of how it ended."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from autobatch.probing.components import EventFile, StepCounter, StoredRows, TrialFinished
from autobatch.probing.forkserver import Exit
from autobatch.probing.meter import Reading, refuse_nothing
from autobatch.probing.trial import can_be_judged, judge, read_trial, was_killed
from autobatch.probing.trial_config import TrialSetup, trial_config
from autobatch.probing.worker import with_causes
from autobatch.records import Metric, Trial, Verdict
from autobatch.runs.out_of_memory import is_out_of_memory

MIB = 2**20
EVENTS = Path("run1/probe/trials/batch_size_3.events")

KILLED = Exit(-signal.SIGKILL, timed_out=False, seconds=7.0)
TIMED_OUT = Exit(-signal.SIGKILL, timed_out=True, seconds=60.0)
SUCCESS = Exit(0, timed_out=False, seconds=7.0)
RAISED = Exit(1, timed_out=False, seconds=7.0)

Event = dict[str, Any]


def first_batch(mib: int = 50) -> Event:
    return {"event": "first_batch", "time": 100.0, "current": {"resident": mib * MIB}}


def step(mib: int, number: int = 1, retries: int = 0, seconds: float = 0.5) -> Event:
    """Ends a quarter of a second before it is written down; the first began with the first batch."""
    return {
        "event": "step",
        "time": 100.0 + number,
        "peaks": {"resident": mib * MIB},
        "retries": retries,
        "began": None if number == 1 else 99.75 + number - seconds,
        "ended": 99.75 + number,
    }


def steps(*peaks_mib: int) -> list[Event]:
    return [step(mib, number) for number, mib in enumerate(peaks_mib, start=1)]


def error(kind: str, message: str) -> Event:
    return {"event": "error", "time": 101.0, "kind": kind, "message": message}


FINISHED: Event = {"event": "finished", "time": 103.0}
OVER: Event = {"event": "over", "time": 102.0}
UNSTABLE: Event = {"event": "unstable", "time": 108.0}


def read(events: list[Event], ended: Exit, *, oom_killed: bool = False, output: str = "") -> Trial:
    return read_trial(
        3, events, ended, metric=Metric.RESIDENT, step_tokens=450, oom_killed=oom_killed, output=output
    )


class TestHowItEnded:
    def test_all_figures_of_a_trial_that_finished(self) -> None:
        trial = read([first_batch(50), *steps(80, 90, 90), FINISHED], SUCCESS)

        assert trial == Trial(
            batch_size=3,
            verdict=Verdict.FITS,
            peak_bytes=90 * MIB,
            peaks_bytes={"resident": 90 * MIB},
            before_bytes=50 * MIB,
            step_peaks_bytes=(80 * MIB, 90 * MIB, 90 * MIB),
            alloc_retries=0,
            tokens_per_second=900.0,
            step_seconds=(0.75, 0.5, 0.5),
            seconds=7.0,
            training_seconds=3.0,
        )

    def test_one_that_was_over_the_target_after_its_first_step(self) -> None:
        trial = read([first_batch(50), *steps(80), OVER], SUCCESS)

        assert (trial.verdict, trial.cut_short, trial.peak_bytes) == (Verdict.OVER_TARGET, True, 80 * MIB)
        # Of a step that also warms up.
        assert trial.tokens_per_second is None
        assert judge(trial, Metric.RESIDENT, 79 * MIB) == trial
        assert can_be_judged(trial, Metric.RESIDENT, 79 * MIB)
        assert not can_be_judged(trial, Metric.RESIDENT, 80 * MIB)

    @pytest.mark.parametrize(
        ("events", "ended", "oom_killed", "output", "verdict", "detail"),
        [
            pytest.param(
                [first_batch(), error("OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB")],
                RAISED,
                False,
                "",
                Verdict.OUT_OF_MEMORY,
                "OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
                id="the recipe raised out of memory",
            ),
            pytest.param(
                [error("ValueError", "no such dataset")],
                RAISED,
                False,
                "a long log that mentions CUDA out of memory",
                Verdict.CRASHED,
                "ValueError: no such dataset",
                id="the recipe's error counts, not its log",
            ),
            pytest.param(
                [first_batch(), step(80)],
                Exit(-signal.SIGABRT, timed_out=False, seconds=1.0),
                False,
                "terminate called after throwing an instance of 'std::bad_alloc'",
                Verdict.OUT_OF_MEMORY,
                "terminate called after throwing an instance of 'std::bad_alloc'",
                id="aborted by an allocation",
            ),
            pytest.param(
                [first_batch()],
                KILLED,
                True,
                "epoch 1",
                Verdict.OUT_OF_MEMORY,
                "epoch 1",
                id="SIGKILL while the OOM killer struck",
            ),
            pytest.param(
                [first_batch()],
                KILLED,
                False,
                "epoch 1",
                Verdict.CRASHED,
                "killed by signal 9 (SIGKILL) before its last step\nepoch 1",
                id="SIGKILL by somebody",
            ),
            pytest.param(
                [first_batch()],
                Exit(-signal.SIGSEGV, timed_out=False, seconds=1.0),
                True,
                "",
                Verdict.CRASHED,
                "killed by signal 11 (SIGSEGV) before its last step",
                id="a segmentation fault is no OOM kill",
            ),
            pytest.param(
                [first_batch(), step(80)],
                TIMED_OUT,
                True,
                "waiting for a lock",
                Verdict.TIMED_OUT,
                "waiting for a lock",
                id="timed out, whatever was killed elsewhere",
            ),
            pytest.param(
                [first_batch(), *steps(80, 90)],
                SUCCESS,
                False,
                "saved the checkpoint",
                Verdict.CRASHED,
                "ended with status 0 before its last step\nsaved the checkpoint",
                id="status 0 without finishing",
            ),
            pytest.param(
                [],
                Exit(1, timed_out=False, seconds=1.0),
                False,
                "",
                Verdict.CRASHED,
                "ended with status 1 before its last step",
                id="died before a word",
            ),
            pytest.param(
                [first_batch(), *steps(80, 90, 90), FINISHED],
                TIMED_OUT,
                False,
                "",
                Verdict.FITS,
                "",
                id="finished, but its process hung afterwards",
            ),
            pytest.param(
                [first_batch(), *steps(100, 120, 130, 140, 150), UNSTABLE],
                SUCCESS,
                False,
                "",
                Verdict.UNSTABLE,
                "the peak still grows after 5 optimizer steps, by 10.0 MiB a step: the recipe leaks memory, "
                "or its steps differ in size",
                id="unstable, growth counted from the second step",
            ),
        ],
    )
    def test_verdict_and_detail(
        self, events: list[Event], ended: Exit, oom_killed: bool, output: str, verdict: Verdict, detail: str
    ) -> None:
        trial = read(events, ended, oom_killed=oom_killed, output=output)

        assert (trial.verdict, trial.detail) == (verdict, detail)

    def test_out_of_memory_has_no_peak(self) -> None:
        trial = read([first_batch(50), step(80), error("OutOfMemoryError", "")], RAISED)

        assert trial.verdict is Verdict.OUT_OF_MEMORY
        assert trial.peak_bytes is None
        assert trial.before_bytes == 50 * MIB

    def test_allocation_retries_are_the_most_that_a_step_reported(self) -> None:
        trial = read([first_batch(), step(80, 1, retries=0), step(90, 2, retries=4), FINISHED], SUCCESS)

        assert trial.alloc_retries == 4

    @pytest.mark.parametrize(
        ("events", "seconds", "rate"),
        [
            pytest.param([first_batch(), step(80)], (0.75,), 600.0, id="the first alone"),
            pytest.param([step(80)], (), None, id="the first alone, without its beginning"),
            pytest.param([first_batch()], (), None, id="no step"),
            pytest.param(
                [first_batch(), step(80), step(80, 2, seconds=0.9)],
                (0.75, 0.9),
                500.0,
                id="the first warms up",
            ),
            pytest.param([step(80), step(80, 2, seconds=0.9)], (0.9,), 500.0, id="the second alone is known"),
            pytest.param(
                [
                    first_batch(),
                    *steps(80, 80, 80),
                    step(80, 4, seconds=0.9),
                ],
                (0.75, 0.5, 0.5, 0.9),
                900.0,
                id="one slow step of three is no matter",
            ),
        ],
    )
    def test_tokens_per_second(
        self, events: list[Event], seconds: tuple[float, ...], rate: float | None
    ) -> None:
        trial = read([*events, FINISHED], SUCCESS)

        assert trial.step_seconds == pytest.approx(seconds)
        assert trial.tokens_per_second == (None if rate is None else pytest.approx(rate))

    @pytest.mark.parametrize(
        ("trial", "killed"),
        [
            pytest.param(read([], KILLED), True, id="SIGKILL"),
            pytest.param(read([], Exit(-signal.SIGTERM, False, 1.0)), True, id="SIGTERM"),
            pytest.param(read([], KILLED, oom_killed=True), False, id="by the OOM killer"),
            pytest.param(read([error("ValueError", "killed by signal 9")], RAISED), False, id="said so only"),
            pytest.param(read([], TIMED_OUT), False, id="by us, at the deadline"),
        ],
    )
    def test_was_killed_from_outside(self, trial: Trial, killed: bool) -> None:
        assert was_killed(trial) is killed


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        pytest.param("torch.OutOfMemoryError: Allocation on device 0 would exceed", True, id="torch"),
        pytest.param("OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB.", True, id="cuda"),
        pytest.param("RuntimeError: CUDA error: out of memory", True, id="cuda error"),
        pytest.param(
            "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            True,
            id="cublas",
        ),
        pytest.param("RuntimeError: cuDNN error: CUDNN_STATUS_NOT_SUPPORTED.", True, id="cudnn workspace"),
        pytest.param("RuntimeError: cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True, id="cudnn"),
        pytest.param("RuntimeError: Triton Error [CUDA]: out of memory", True, id="triton's launcher"),
        pytest.param(
            "RuntimeError: [enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate "
            "memory: you tried to allocate 1024 bytes. Error code 12 (Cannot allocate memory)",
            True,
            id="cpu allocator",
        ),
        pytest.param("OSError: [Errno 12] Cannot allocate memory", True, id="mmap"),
        pytest.param("MemoryError: ", True, id="python"),
        pytest.param("terminate called after throwing an instance of 'std::bad_alloc'", True, id="c++"),
        pytest.param("slurmstepd: error: StepId=7.0 ended: OUT_OF_MEMORY", True, id="slurm"),
        pytest.param(
            "OutOfResources: out of resource: shared memory, Required: 147456, Hardware limit: 101376. "
            "Reducing block sizes or `num_stages` may help.",
            False,
            id="triton's shared memory",
        ),
        pytest.param("RuntimeError: CUDA error: device-side assert triggered", False, id="assert"),
        pytest.param("ValueError: the memory module has no such layer", False, id="the word alone"),
        pytest.param("NotAMemoryErrorAtAll: x", False, id="part of a name"),
        pytest.param("", False, id="nothing"),
    ],
)
def test_spellings_of_out_of_memory(message: str, expected: bool) -> None:
    assert is_out_of_memory(message) is expected


class TestJudge:
    MEASURED = Trial(
        4,
        Verdict.FITS,
        peak_bytes=80,
        peaks_bytes={"reserved": 80, "allocated": 60, "device": 95},
    )

    @pytest.mark.parametrize(
        ("metric", "target", "peak", "verdict"),
        [
            pytest.param(Metric.RESERVED, 80, 80, Verdict.FITS, id="exactly the target"),
            pytest.param(Metric.RESERVED, 79, 80, Verdict.OVER_TARGET, id="a byte over"),
            pytest.param(Metric.ALLOCATED, 79, 60, Verdict.FITS, id="another metric"),
            pytest.param(Metric.DEVICE, 90, 95, Verdict.OVER_TARGET, id="device"),
        ],
    )
    def test_target_and_metric(self, metric: Metric, target: int, peak: int, verdict: Verdict) -> None:
        judged = judge(self.MEASURED, metric, target)

        assert (judged.peak_bytes, judged.verdict) == (peak, verdict)

    def test_a_trial_over_one_target_may_fit_another(self) -> None:
        over = judge(self.MEASURED, Metric.RESERVED, 10)

        assert judge(over, Metric.RESERVED, 100) == self.MEASURED

    def test_an_allocator_that_was_flushing_does_not_fit(self) -> None:
        flushing = Trial(4, Verdict.FITS, peaks_bytes={"reserved": 80}, alloc_retries=1)

        assert judge(flushing, Metric.RESERVED, 1000).verdict is Verdict.OVER_TARGET

    @pytest.mark.parametrize(
        "verdict", [Verdict.OUT_OF_MEMORY, Verdict.TIMED_OUT, Verdict.CRASHED, Verdict.UNSTABLE]
    )
    def test_nothing_else_has_a_choice(self, verdict: Verdict) -> None:
        trial = Trial(4, verdict, peaks_bytes={"reserved": 1})

        assert judge(trial, Metric.RESERVED, 1000) == trial


CONFIG = """\
batch_size: 64
epochs: 5
gradient_accumulation_steps: 8
max_steps_per_epoch: null
log_every_n_steps: 10
log_peak_memory_stats: True
resume_from_checkpoint: True
dtype: bf16
model:
  _component_: torchtune.models.llama3_2.lora_llama3_2_1b
  lora_rank: 8
  max_seq_len: ${tokenizer.max_seq_len}
tokenizer:
  _component_: torchtune.models.llama3.llama3_tokenizer
  path: ${checkpointer.checkpoint_dir}/tokenizer.model
  max_seq_len: 128
checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: /models/llama
  model_type: LLAMA3_2
dataset:
  _component_: torchtune.datasets.alpaca_dataset
  packed: True
metric_logger:
  _component_: torchtune.training.metric_logging.WandBLogger
  log_dir: /logs
profiler:
  _component_: torchtune.training.setup_torch_profiler
  enabled: True
seen:
  sequences: ${batch_size}
  text: batches of ${batch_size}
  logs: ${metric_logger.log_dir}
"""


def trial_sections(
    text: str = CONFIG,
    *,
    without: tuple[str, ...] = (),
    load_weights: bool = False,
    min_steps: int = 3,
    packed: bool = True,
    device: str = "cpu",
) -> dict[str, Any]:
    """The trial's config for batch_size 3, as plain containers."""
    config = OmegaConf.create(text)
    assert isinstance(config, DictConfig)
    for key in without:
        del config[key]
    setup = TrialSetup(
        config=config,
        recipe=Path("recipe.py"),
        working_dir=Path("run1"),
        device=device,
        metric=Metric.RESIDENT,
        target_bytes=1000,
        rows=Path("run1/probe/rows.pt"),
        held_bytes=4096,
        packed=packed,
        row_tokens=512,
        min_steps=min_steps,
        timeout_s=600,
        load_weights=load_weights,
        directory=Path("run1/probe"),
    )
    sections: dict[str, Any] = yaml.safe_load(trial_config(setup, 3, EVENTS))
    assert config == _without(OmegaConf.create(text), without)
    return sections


def _without(config: Any, keys: tuple[str, ...]) -> Any:
    for key in keys:
        del config[key]
    return config


class TestConfig:
    def test_the_values_that_a_trial_sets(self) -> None:
        sections = trial_sections()

        values = {key: value for key, value in sections.items() if not isinstance(value, dict)}
        assert values == {
            "batch_size": 3,
            "epochs": 1,
            "gradient_accumulation_steps": 2,
            "max_steps_per_epoch": 9,
            "log_every_n_steps": 1,
            "log_peak_memory_stats": False,
            "resume_from_checkpoint": False,
            "dtype": "bf16",
        }

    def test_the_sections_that_it_replaces(self) -> None:
        sections = trial_sections()

        assert sections["metric_logger"] == {
            "_component_": "autobatch.probing.components.StepCounter",
            "events": str(EVENTS),
            "device": "cpu",
            "metric": "resident",
            "min_steps": 3,
            "max_steps": 8,
            "tolerance": 0.002,
            "limit_bytes": None,
        }
        assert sections["dataset"] == {
            "_component_": "autobatch.probing.components.StoredRows",
            "events": str(EVENTS),
            "device": "cpu",
            "path": "run1/probe/rows.pt",
            "rows": 3 * 2 * 9,
            "held_bytes": 4096,
            "packed": True,
        }
        assert sections["profiler"] == {
            "_component_": "torchtune.training.setup_torch_profiler",
            "enabled": False,
        }
        model = sections["checkpointer"].pop("model")
        assert sections["checkpointer"] == {
            "_component_": "autobatch.probing.components.ConstantCheckpointer",
            "dtype": "bf16",
            "device": "cpu",
            "model_type": "LLAMA3_2",
        }
        assert isinstance(model, str)
        assert json.loads(model) == {
            "_component_": "torchtune.models.llama3_2.lora_llama3_2_1b",
            "lora_rank": 8,
            "max_seq_len": 128,
        }

    def test_other_sections_stay(self) -> None:
        sections = trial_sections()

        assert sections["model"] == {
            "_component_": "torchtune.models.llama3_2.lora_llama3_2_1b",
            "lora_rank": 8,
            "max_seq_len": 128,
        }

    def test_interpolations_see_the_trials_batch_size_and_the_sections_that_go(self) -> None:
        sections = trial_sections()

        assert sections["seen"] == {"sequences": 3, "text": "batches of 3", "logs": "/logs"}
        assert sections["tokenizer"]["path"] == "/models/llama/tokenizer.model"

    @pytest.mark.parametrize(
        ("written", "expected"),
        [
            pytest.param("gradient_accumulation_steps: 1", 1, id="1"),
            pytest.param("gradient_accumulation_steps: 2", 2, id="2"),
            pytest.param("gradient_accumulation_steps: 64", 2, id="cut to 2"),
            pytest.param("gradient_accumulation_steps: ${epochs}", 2, id="interpolated"),
            pytest.param("gradient_accumulation_steps: null", 1, id="null"),
            pytest.param("", 1, id="no such key"),
        ],
    )
    def test_accumulation(self, written: str, expected: int) -> None:
        sections = trial_sections(CONFIG.replace("gradient_accumulation_steps: 8", written))

        assert sections["gradient_accumulation_steps"] == expected
        assert sections["dataset"]["rows"] == 3 * expected * 9

    def test_more_steps_than_usual(self) -> None:
        sections = trial_sections(min_steps=20)

        assert sections["max_steps_per_epoch"] == 21
        assert sections["metric_logger"]["max_steps"] == 20
        assert sections["dataset"]["rows"] == 3 * 2 * 21

    def test_load_weights_keeps_the_checkpointers(self) -> None:
        sections = trial_sections(load_weights=True)

        assert sections["checkpointer"] == {
            "_component_": "torchtune.training.FullModelHFCheckpointer",
            "checkpoint_dir": "/models/llama",
            "model_type": "LLAMA3_2",
        }

    @pytest.mark.parametrize(
        ("checkpoint_dir", "output_dir"),
        [
            pytest.param("/models/llama", "REDIRECTED", id="elsewhere"),
            pytest.param("../model", "REDIRECTED", id="relative to the run"),
            pytest.param("..", "./output", id="above the run, where torchtune refuses outputs"),
        ],
    )
    def test_load_weights_keeps_output_directories_out_of_the_run(
        self, checkpoint_dir: str, output_dir: str
    ) -> None:
        text = CONFIG.replace(
            "checkpoint_dir: /models/llama", f"checkpoint_dir: {checkpoint_dir}\n  output_dir: ./output"
        )

        sections = trial_sections(text, load_weights=True)

        redirected = str(Path("run1/probe/trials/output").resolve())
        assert sections["checkpointer"]["output_dir"] == output_dir.replace("REDIRECTED", redirected)

    def test_each_checkpointer_goes_with_its_model(self) -> None:
        text = CONFIG + (
            "teacher_model: {_component_: teacher.builder, dim: 512}\n"
            "teacher_checkpointer: {_component_: x.Checkpointer, model_type: QWEN2}\n"
            "ref_checkpointer: {_component_: x.Checkpointer, model_type: LLAMA3_2}\n"
        )

        sections = trial_sections(text)

        models = {
            name: json.loads(sections[name]["model"])["_component_"]
            for name in ("checkpointer", "teacher_checkpointer", "ref_checkpointer")
        }
        assert models == {
            "checkpointer": "torchtune.models.llama3_2.lora_llama3_2_1b",
            "teacher_checkpointer": "teacher.builder",
            "ref_checkpointer": "torchtune.models.llama3_2.lora_llama3_2_1b",
        }
        assert sections["teacher_checkpointer"]["model_type"] == "QWEN2"

    @pytest.mark.parametrize(
        ("line", "key", "value"),
        [
            pytest.param("ref_checkpointer: null", "ref_checkpointer", None, id="null"),
            pytest.param("use_my_checkpointer: True", "use_my_checkpointer", True, id="a switch"),
        ],
    )
    def test_what_is_no_checkpointer_section_stays(self, line: str, key: str, value: object) -> None:
        sections = trial_sections(f"{CONFIG}{line}\n")

        assert sections[key] is value

    def test_a_null_checkpointer_stays_null(self) -> None:
        text = CONFIG.replace("${checkpointer.checkpoint_dir}", "/models")
        start, end = text.index("checkpointer:"), text.index("dataset:")

        sections = trial_sections(text[:start] + "checkpointer: null\n" + text[end:])

        assert sections["checkpointer"] is None

    def test_a_config_without_the_optional_sections(self) -> None:
        sections = trial_sections(
            CONFIG.partition("seen:")[0], without=("profiler", "metric_logger", "dtype")
        )

        assert sections["metric_logger"]["_component_"] == "autobatch.probing.components.StepCounter"
        assert sections["profiler"]["enabled"] is False
        assert sections["checkpointer"]["dtype"] is None

    def test_a_list_of_datasets_becomes_one(self) -> None:
        text = CONFIG.replace(
            "dataset:\n  _component_: torchtune.datasets.alpaca_dataset\n  packed: True\n",
            "dataset:\n  - {_component_: a.b, packed: False}\n  - {_component_: c.d, packed: False}\n",
        )

        sections = trial_sections(text, packed=False, device="cuda")

        assert sections["dataset"]["_component_"] == "autobatch.probing.components.StoredRows"
        assert sections["dataset"]["packed"] is False
        assert sections["dataset"]["device"] == "cuda"


def wrapped(*, explicitly: bool) -> Exception:
    """An error as torch.compile or a recipe of the user's raises it where CUDA ran out of memory."""
    try:
        try:
            raise MemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        except MemoryError as error:
            if explicitly:
                raise RuntimeError("the backend failed") from error
            raise RuntimeError("the backend failed")  # noqa: B904 - the other way to wrap
    except RuntimeError as error:
        return error


@pytest.mark.parametrize("explicitly", [True, False], ids=["from", "while handling"])
def test_out_of_memory_behind_another_error(explicitly: bool) -> None:
    message = with_causes(wrapped(explicitly=explicitly))

    assert message.startswith("the backend failed\ncaused by MemoryError: CUDA out of memory")
    assert is_out_of_memory(message)


def test_an_error_raised_from_none_hides_what_was_before() -> None:
    error = wrapped(explicitly=False)
    error.__suppress_context__ = True

    assert with_causes(error) == "the backend failed"


def test_a_step_that_took_no_memory_was_not_measured() -> None:
    refuse_nothing(Reading({"reserved": 1, "allocated": 0}, {}), "reserved")

    with pytest.raises(RuntimeError) as caught:
        refuse_nothing(Reading({"reserved": 0, "allocated": 1}, {}), "reserved")

    assert "no reserved memory on the current device" in str(caught.value)


def test_workers_of_a_data_loader_leave_the_card_alone(tmp_path: Path) -> None:
    """CUDA can't be used in a process forked from one that uses it; here there is none at all."""
    torch = pytest.importorskip("torch")
    from torch.utils.data import DataLoader

    torch.save([{"tokens": torch.arange(4)}], tmp_path / "rows.pt")
    rows = StoredRows(
        path=str(tmp_path / "rows.pt"),
        rows=4,
        held_bytes=0,
        events=str(tmp_path / "events"),
        device="cuda",
        packed=True,
    )

    dataset: Any = rows
    batches = list(DataLoader(dataset, batch_size=2, num_workers=1))

    assert [batch["tokens"].shape for batch in batches] == [(2, 4), (2, 4)]
    assert EventFile(tmp_path / "events").read() == []


@pytest.mark.parametrize(
    ("limit_bytes", "steps", "end"),
    [
        pytest.param(None, 3, "finished", id="no limit"),
        pytest.param(1, 1, "over", id="over in the first step"),
        pytest.param(2**50, 3, "finished", id="below"),
    ],
)
def test_a_peak_over_the_limit_ends_the_trial(
    limit_bytes: int | None, steps: int, end: str, tmp_path: Path
) -> None:
    events = tmp_path / "events"
    counter = StepCounter(
        str(events), "cpu", "resident", min_steps=3, max_steps=8, tolerance=1.0, limit_bytes=limit_bytes
    )

    def train() -> None:
        for number in range(8):
            counter.log_dict({}, number)

    with pytest.raises(TrialFinished):
        train()

    assert [event["event"] for event in EventFile(events).read()] == ["step"] * steps + [end]
