"""A run's metrics from all sources: which one counts, and what is left out rather than guessed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from autobatch.metrics.accounting import JobAccount
from autobatch.metrics.collect import collect
from autobatch.metrics.entry import run_file, run_file_text, status_entry
from autobatch.metrics.gpu_samples import GpuSample, GpuSamples
from autobatch.metrics.memory import PeakMemory, peak_memory
from autobatch.metrics.outcome import Outcome, judge
from autobatch.metrics.records import LogMetrics
from autobatch.metrics.run_metrics import RunMetrics
from autobatch.metrics.trained_config import read_trained_config
from autobatch.records import (
    Density,
    Device,
    Fit,
    Metric,
    ProbeRequest,
    ProbeResult,
    Status,
    Trial,
    Verdict,
    to_json,
)

GIB = 2**30

CONFIG = """\
model:
  _component_: torchtune.models.llama3_2.lora_llama3_2_1b
  lora_rank: 8
  lora_alpha: 16
tokenizer:
  _component_: torchtune.models.llama3.llama3_tokenizer
  max_seq_len: 2048
dataset:
  _component_: torchtune.datasets.instruct_dataset
  source: parquet
  data_dir: /data/capitalization_5letter
  packed: true
optimizer:
  _component_: torch.optim.AdamW
  lr: 0.0003
batch_size: 4
gradient_accumulation_steps: 2
epochs: 2
device: cuda
dtype: bf16
"""

SCRIPT = """\
#!/bin/bash
#SBATCH --output=slurm-%j.out
tune run lora_finetune_single_device --config finetune.yaml
"""

HEADER = "Running LoRAFinetuneRecipeSingleDevice with resolved config:\n\n"

#: torchtune 0.6.1's lines. 10 steps an epoch of 10 and 12 minutes.
STEPS = "".join(
    f"Step {n} | loss:{3 - n / 20} lr:3e-4 tokens_per_second_per_gpu:{1800 + n} peak_memory_active:39.9 "
    f"peak_memory_alloc:{40 + n / 100} peak_memory_reserved:{45 + n / 100} \n"
    for n in range(1, 21)
)
BARS = (
    "1|10|Loss: 2.5: 100%|██████████| 10/10 [10:00<00:00, 60.0s/it]\r\n"
    "2|20|Loss: 2.0: 100%|██████████| 10/10 [12:00<00:00, 72.0s/it]\r\n"
)
LOG = HEADER + CONFIG + "\n" + STEPS + BARS

ACCOUNT = "77|COMPLETED|2025-10-20T14:00:00|2025-10-20T14:30:00|1800|cpu=8,gres/gpu=1,mem=64G|n1\n"


def slurm(answer: str | None = None) -> Any:
    """A cluster whose accounting answers so, and whose controller is down."""
    return lambda client, *words: answer if client == "sacct" else None


def result(**changes: Any) -> ProbeResult:
    """A probe of the config above: 4 fits."""
    given: dict[str, Any] = {
        "status": Status.DONE,
        "message": "",
        "request": ProbeRequest("run1"),
        "device": Device("cuda", "NVIDIA H100 80GB HBM3", 80 * GIB),
        "metric": Metric.RESERVED,
        "batch_size": 4,
        "trials": (
            Trial(
                4,
                Verdict.FITS,
                45 * GIB,
                {"reserved": 45 * GIB, "allocated": 40 * GIB, "device": 46 * GIB},
            ),
            Trial(8, Verdict.OUT_OF_MEMORY),
        ),
        "fit": Fit(5 * GIB, 10 * GIB, 0.01),
        "density": Density(True, 224, 80, 150_000, 2048, 500),
    }
    return ProbeResult(**given | changes)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that was probed and trained, with everything that there can be."""
    directory = tmp_path / "experiment" / "run1"
    (directory / "probe").mkdir(parents=True)
    (directory / "finetune.yaml").write_text(CONFIG)
    (directory / "finetune.slurm").write_text(SCRIPT)
    (directory / "slurm-77.out").write_text(LOG)
    (directory / "probe" / "result.json").write_text(json.dumps(to_json(result())))
    samples = [
        f"2025/10/20 14:{minute:02d}:00.000, {0 if minute < 5 else 100} %, 40 %, {mib} MiB, 81559 MiB, 400 W, 60\n"
        for minute, mib in [
            (2, 1024),
            *((m, 40960) for m in range(5, 16)),
            *((m, 43008) for m in range(16, 28)),
        ]
    ]
    header = (
        "timestamp, utilization.gpu [%], utilization.memory [%], memory.used [MiB], memory.total [MiB], "
        "power.draw [W], temperature.gpu\n"
    )
    (directory / "gpu_metrics.csv").write_text(header + "".join(samples))
    return directory


def metrics_of(run: Path, answer: str | None = ACCOUNT, **options: Any) -> RunMetrics:
    (metrics,) = collect([run], ask=slurm(answer), **options)
    return metrics


def values_of(run: Path, answer: str | None = ACCOUNT) -> Mapping[str, Any]:
    entry = status_entry(metrics_of(run, answer), {})["metrics"]
    assert isinstance(entry, Mapping)
    return entry


def test_everything_in_one_file(run: Path) -> None:
    metrics = metrics_of(run)

    assert metrics.notes == ()
    assert yaml.safe_load(run_file_text(metrics)) == run_file(metrics) == {
        "run_name": "run1",
        "timestamp": "2025-10-20T14:00:00",
        "status": "completed",
        "slurm_job_id": 77,
        "completed": "2025-10-20T14:30:00",
        "static_config": {
            "model": "llama3_2_1b",
            "recipe": "lora_finetune_single_device",
            "batch_size": 4,
            "packed": True,
            "max_seq_len": 2048,
            "gradient_accumulation_steps": 2,
            "effective_batch_size": 8,
            "lora_rank": 8,
            "lora_alpha": 16,
            "epochs": 2,
            "learning_rate": 0.0003,
            "dtype": "bf16",
        },
        "packing_metrics": {
            "total_examples": 224,
            "total_sequences": 80,
            "packing_density": 2.8,
            "packing_efficiency": 91.6,
            "packing_source": "probe",
            "dataset_path": "/data/capitalization_5letter",
        },
        "resource_metrics": {
            "peak_gpu_memory_gb": 45.2,
            "peak_gpu_memory_source": "reserved",
            "avg_gpu_memory_gb": 39.38,
            "gpu_utilization_pct": 95.8,
            "predicted_peak_memory_gb": 45.0,
            "peak_vs_predicted_pct": 0.4,
            "training_time_minutes": 22.0,
            "gpu_hours": 0.5,
        },
        "performance_metrics": {
            "tokens_per_second": 1811.0,
            # 20 steps of 8 sequences of 2.8 examples in 22 minutes.
            "examples_per_second": 0.34,
            "steps": 20,
            "final_loss": 2.0,
        },
        "per_epoch_metrics": [
            {
                "epoch": 0,
                "training_time_minutes": 10.0,
                "avg_gpu_memory_gb": 40.0,
                "peak_gpu_memory_gb": 45.1,
                "tokens_per_second": 1806.0,
                "steps": 10,
                "loss": 2.5,
            },
            {
                "epoch": 1,
                "training_time_minutes": 12.0,
                "avg_gpu_memory_gb": 41.85,
                "peak_gpu_memory_gb": 45.2,
                "tokens_per_second": 1815.5,
                "steps": 10,
                "loss": 2.0,
            },
        ],
    }  # fmt: skip


def test_what_is_trained_counts_not_what_the_config_says_since(run: Path) -> None:
    (run / "finetune.yaml").write_text(CONFIG.replace("batch_size: 4", "batch_size: 8"))

    assert metrics_of(run).config.integer("batch_size") == 4


def test_without_a_config_in_the_log_finetune_yaml_counts(run: Path) -> None:
    (run / "slurm-77.out").write_text(STEPS + BARS)
    (run / "finetune.slurm").write_text(SCRIPT.rstrip() + " epochs=3 optimizer.lr=1e-5\n")

    static = metrics_of(run).config.static()

    assert (static["epochs"], static["learning_rate"], static["lora_rank"]) == (3, 1e-5, 8)


def test_a_config_that_can_not_be_read_costs_the_config_alone(run: Path) -> None:
    (run / "slurm-77.out").write_text(STEPS + BARS)
    (run / "finetune.yaml").write_text("batch_size: [\n")

    metrics = metrics_of(run)

    assert metrics.notes[0].startswith(f"{run / 'finetune.yaml'}:2: can't be read: ")
    assert metrics.steps == 20
    assert status_entry(metrics, {})["config"] == {}


def test_a_config_that_would_not_train_is_read_all_the_same(run: Path) -> None:
    (run / "finetune.yaml").write_text(
        "batch_size: 4\nepochs: ${nowhere}\ndataset: {packed: true}\noptimizer: 3\n"
    )

    static = read_trained_config(run, {}, None).static()

    assert {key: value for key, value in static.items() if value is not None} == {
        "recipe": "lora_finetune_single_device",
        "batch_size": 4,
        "packed": True,
        "gradient_accumulation_steps": 1,
        "effective_batch_size": 4,
    }


def test_without_slurm_the_cards_samples_tell_the_time(run: Path) -> None:
    metrics = metrics_of(run, None)

    assert metrics.outcome == Outcome("completed")
    assert (metrics.started, metrics.completed) == (
        datetime(2025, 10, 20, 14, 2),
        datetime(2025, 10, 20, 14, 27),
    )
    assert metrics.gpu_hours == pytest.approx(25 / 60)


def test_samples_of_an_earlier_job_are_left_out(run: Path) -> None:
    metrics = metrics_of(run, ACCOUNT.replace("2025-10-20", "2025-10-21"))

    assert metrics.notes == ("gpu_metrics.csv ends before job 77 began: left out",)
    assert metrics.avg_memory_gib is None


def test_samples_of_more_cards_than_the_job_had_are_left_out(run: Path) -> None:
    path = run / "gpu_metrics.csv"
    path.write_text(path.read_text() + path.read_text().splitlines(keepends=True)[-1])

    metrics = metrics_of(run)

    assert "has 2 cards, and the job had 1" in metrics.notes[0]
    assert metrics.utilization_pct is None


def test_a_probe_of_other_rows_predicts_nothing(run: Path) -> None:
    (run / "slurm-77.out").write_text(LOG.replace("max_seq_len: 2048", "max_seq_len: 1024"))

    metrics = metrics_of(run)

    assert metrics.notes == ("the probe measured max_seq_len 2048, and training had 1024: left out",)
    assert metrics.memory == PeakMemory(45.2, "reserved")
    assert metrics.packing.packing_density is None


def test_the_logs_own_counts_when_the_dataset_has_changed(run: Path) -> None:
    (run / "slurm-77.out").write_text("Packed 8000 examples into 2857 sequences\n" + LOG)

    metrics = metrics_of(run)

    assert "the probe packed 224 examples, and training 8000" in metrics.notes[0]
    values = values_of(run)
    assert (values["packing_density"], values["total_sequences"]) == (2.8, 2857)
    assert values["packing_source"] == "stated in the log"


def test_a_damaged_probe_result_costs_the_prediction_alone(run: Path) -> None:
    (run / "probe" / "result.json").write_text("{")
    assert values_of(run)["predicted_peak_memory_gb"] is None

    (run / "probe" / "result.json").write_text('{"schema_version": 99}')
    assert "newer autobatch" in metrics_of(run).notes[0]


def test_a_training_without_a_step_is_said(run: Path) -> None:
    (run / "slurm-77.out").write_text(HEADER + CONFIG + "\n0it [00:00, ?it/s]\n")

    metrics = metrics_of(run)

    assert metrics.outcome.status == "completed"
    assert metrics.steps == 0
    assert "no optimizer step" in metrics.notes[0]


def test_a_loss_that_is_no_number_is_said_and_written(run: Path) -> None:
    (run / "slurm-77.out").write_text(LOG.replace("Loss: 2.0:", "Loss: nan:"))

    metrics = metrics_of(run)

    assert metrics.notes == ("the loss of the last step is nan",)
    loss = values_of(run)["final_loss"]
    assert isinstance(loss, float)
    assert math.isnan(loss)
    assert "final_loss: .nan\n" in run_file_text(metrics)


def test_a_log_without_a_training_is_no_source(run: Path) -> None:
    (run / "slurm-77.out").write_text("bash: tune: command not found\n")
    (run / "gpu_metrics.csv").unlink()

    untold, told = metrics_of(run, None), metrics_of(run, None, exit_code=127)

    assert untold.notes == (f"{run / 'slurm-77.out'}: says nothing of a training",)
    assert (untold.sources, untold.job_id) == ((), "77")
    assert told.sources == ("exit code 127 of tune run",)
    assert told.outcome == Outcome("failed", "tune run ended with exit code 127")


def test_nothing_is_known_of_an_untouched_run(tmp_path: Path) -> None:
    (tmp_path / "finetune.yaml").write_text(CONFIG)

    (metrics,) = collect([tmp_path], ask=slurm())

    assert metrics.sources == ()


def test_old_values_stay_for_the_same_job_and_become_null_for_another(run: Path) -> None:
    (run / "gpu_metrics.csv").unlink()
    metrics = metrics_of(run)

    same = status_entry(metrics, {"slurm_job_id": 77})
    other = status_entry(metrics, {"slurm_job_id": 76})

    assert isinstance(same["metrics"], Mapping)
    assert isinstance(other["metrics"], Mapping)
    assert "avg_gpu_memory_gb" not in same["metrics"]
    assert other["metrics"]["avg_gpu_memory_gb"] is None
    assert same["failure"] is None


SAMPLES = GpuSamples((GpuSample(datetime(2025, 10, 20), 46.5, None),))


@pytest.mark.parametrize(
    ("logged", "samples", "batch_size", "changes", "expected"),
    [
        pytest.param(
            {"reserved": 46.0, "alloc": 41.0}, SAMPLES, 4, {}, (46.0, "reserved", 45.0, "trial"), id="reserved"
        ),
        pytest.param({"alloc": 41.0}, SAMPLES, 4, {}, (46.5, "nvidia-smi", 46.0, "trial"), id="then nvidia-smi"),
        pytest.param({"alloc": 41.0}, GpuSamples(), 4, {}, (41.0, "alloc", 40.0, "trial"), id="then alloc"),
        pytest.param({"active": 41.0}, GpuSamples(), 4, {}, (41.0, "active", None, None), id="active"),
        pytest.param({"reserved": 66.0}, SAMPLES, 6, {}, (66.0, "reserved", 65.0, "fit"), id="by the fit"),
        pytest.param({"reserved": 90.0}, SAMPLES, 8, {}, (90.0, "reserved", 85.0, "fit"), id="that trial ran out"),
        pytest.param({}, SAMPLES, 6, {}, (46.5, "nvidia-smi", None, None), id="the fit is of another kind"),
        pytest.param({}, GpuSamples(), 4, {}, (None, None, 45.0, "trial"), id="prediction alone"),
        pytest.param({"reserved": 46.0}, SAMPLES, None, {}, (46.0, "reserved", None, None), id="no batch_size"),
        pytest.param(
            {"reserved": 46.0}, SAMPLES, 6, {"fit": None}, (46.0, "reserved", None, None), id="neither"
        ),
        pytest.param(
            {}, GpuSamples(), 4, {"metric": Metric.RESIDENT}, (None, None, None, None), id="of a CPU"
        ),
    ],
)  # fmt: skip
def test_the_prediction_is_of_the_same_kind(
    logged: dict[str, float],
    samples: GpuSamples,
    batch_size: int | None,
    changes: dict[str, Any],
    expected: tuple[Any, ...],
) -> None:
    assert peak_memory(logged, samples, result(**changes), batch_size) == PeakMemory(*expected)


OOM = LogMetrics(
    out_of_memory="CUDA out of memory. Tried to allocate 2 GiB", error="torch.OutOfMemoryError: ..."
)
ERROR = LogMetrics(error="ValueError: no")


@pytest.mark.parametrize(
    ("log", "state", "exit_code", "all_steps", "status", "failure"),
    [
        pytest.param(LogMetrics(), "COMPLETED", None, None, "completed", None, id="Slurm says so"),
        pytest.param(LogMetrics(), "RUNNING", 0, None, "completed", None, id="exit code 0"),
        pytest.param(ERROR, "RUNNING", 0, None, "completed", None, id="exit code 0 over the log"),
        pytest.param(OOM, "RUNNING", 1, None, "failed", "out of memory", id="exit code 1, out of memory"),
        pytest.param(ERROR, "RUNNING", 1, None, "failed", "ValueError: no", id="exit code 1, an error"),
        pytest.param(LogMetrics(), "RUNNING", 137, 9, "failed", "tune run ended with exit code 137", id="137"),
        pytest.param(LogMetrics(steps=5), "RUNNING", None, 9, "running", None, id="running"),
        pytest.param(LogMetrics(steps=9), "RUNNING", None, 9, "completed", None, id="running, all steps done"),
        pytest.param(LogMetrics(), "PENDING", None, None, "planned", None, id="pending"),
        pytest.param(LogMetrics(), "CANCELLED", None, None, "cancelled", None, id="cancelled"),
        pytest.param(LogMetrics(), "TIMEOUT", None, None, "failed", "time limit", id="time limit"),
        pytest.param(LogMetrics(), "OUT_OF_MEMORY", None, None, "failed", "out of memory", id="OOM killer"),
        pytest.param(OOM, "FAILED", None, None, "failed", "out of memory", id="failed, out of memory"),
        pytest.param(LogMetrics(), "NODE_FAIL", None, None, "failed", "Slurm: NODE_FAIL", id="node failure"),
        pytest.param(OOM, "COMPLETED", None, None, "failed", "out of memory", id="the script went on"),
        pytest.param(None, "COMPLETED", None, None, "completed", None, id="no log"),
        pytest.param(OOM, None, None, None, "failed", "out of memory", id="log alone: out of memory"),
        pytest.param(LogMetrics(slurm_end="CANCELLED"), None, None, None, "cancelled", None, id="log: cancelled"),
        pytest.param(
            LogMetrics(slurm_end="DUE TO TIME LIMIT"), None, None, None, "failed", "time limit", id="log: limit"
        ),
        pytest.param(
            LogMetrics(slurm_end="DUE TO X"), None, None, None, "failed", "due to x", id="log: other"
        ),
        pytest.param(LogMetrics(steps=9), None, None, 9, "completed", None, id="log: all steps"),
        pytest.param(LogMetrics(steps=8), None, None, 9, None, None, id="log: not all steps"),
        pytest.param(None, None, None, None, None, None, id="nothing"),
    ],
)  # fmt: skip
def test_how_it_ended(
    log: LogMetrics | None,
    state: str | None,
    exit_code: int | None,
    all_steps: int | None,
    status: str | None,
    failure: str | None,
) -> None:
    account = JobAccount("1", state) if state is not None else None

    assert judge(log, account, exit_code, all_steps) == Outcome(status, failure)
