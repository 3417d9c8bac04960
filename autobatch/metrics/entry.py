"""A training's metrics as `runs_status.yaml` and `run_metrics.yaml` hold them: which key, how many decimals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from autobatch.edits.status_nodes import Entry
from autobatch.edits.yaml_splices import Value
from autobatch.metrics.run_metrics import RunMetrics
from autobatch.metrics.trained_config import TrainedConfig

RUN_METRICS = "run_metrics.yaml"

#: The first line of a file that is ours to replace.
HEADING = "# Written by `autobatch metrics --per-run`, which replaces it."

_PACKING = ("total_examples", "total_sequences", "packing_density", "packing_efficiency", "packing_source")
_RESOURCES = (
    "peak_gpu_memory_gb", "peak_gpu_memory_source", "avg_gpu_memory_gb", "gpu_utilization_pct",
    "predicted_peak_memory_gb", "peak_vs_predicted_pct", "training_time_minutes", "gpu_hours",
)  # fmt: skip
_PERFORMANCE = ("tokens_per_second", "examples_per_second", "steps", "final_loss")

#: Of an entry's `metrics`, in this order.
METRIC_KEYS = (*_PACKING, *_RESOURCES, *_PERFORMANCE)


def metric_values(metrics: RunMetrics) -> dict[str, Value]:
    """What an entry's `metrics` holds, under `METRIC_KEYS`; None for what isn't known."""
    packing, memory = metrics.packing, metrics.memory
    values: tuple[Value, ...] = (
        packing.total_examples,
        packing.total_sequences,
        _rounded(packing.packing_density, 2),
        _rounded(packing.packing_efficiency, 1),
        packing.source.value if packing.source is not None else None,
        _rounded(memory.gib, 2),
        memory.kind,
        _rounded(metrics.avg_memory_gib, 2),
        _rounded(metrics.utilization_pct, 1),
        _rounded(memory.predicted_gib, 2),
        _rounded(memory.percent_of_prediction, 1),
        _rounded(metrics.training_seconds, 2, per=60),
        _rounded(metrics.gpu_hours, 3),
        _rounded(metrics.tokens_per_second, 1),
        _rounded(metrics.examples_per_second, 2),
        metrics.steps,
        None if metrics.final_loss is None else round(metrics.final_loss, 4),
    )
    return dict(zip(METRIC_KEYS, values, strict=True))


def status_entry(metrics: RunMetrics, known: Mapping[str, Any]) -> Entry:
    """What to set in the entry of a run.

    Of the training that the entry is about already, by its job id, what no source tells any more stays; of a
    new one, it becomes null.

    Args:
        metrics: of the training.
        known: the entry as it is; empty when there is none.
    """
    entry: dict[str, Value | Mapping[str, Value]] = {
        "status": metrics.outcome.status,
        "failure": metrics.outcome.failure,
        "slurm_job_id": _job(metrics.job_id),
        "started": _time(metrics.started),
        "completed": _time(metrics.completed),
        "config": metrics.config.static() if metrics.config.values else {},
        "metrics": metric_values(metrics),
    }
    if metrics.job_id is not None and str(known.get("slurm_job_id")) == metrics.job_id:
        entry = {key: _told(value) for key, value in entry.items() if value is not None or key == "failure"}
    if metrics.outcome.status is None:
        # Nobody says how it ended: what the user has written stays.
        entry = {key: value for key, value in entry.items() if key not in ("status", "failure")}
    return entry


def planned_entry(config: TrainedConfig) -> Entry:
    """The entry of a run that is to be trained: its config, and every metric as null."""
    static = {key: value for key, value in config.static().items() if value is not None}
    return {"status": "planned", "config": static, "metrics": dict.fromkeys(METRIC_KEYS)}


def run_file(metrics: RunMetrics) -> dict[str, Any]:
    """`run_metrics.yaml`: everything that is known, per epoch too."""
    values = metric_values(metrics)
    return {
        "run_name": metrics.run.name,
        **_known(
            {
                "timestamp": _time(metrics.started or metrics.last_written),
                "status": metrics.outcome.status,
                "failure": metrics.outcome.failure,
                "slurm_job_id": _job(metrics.job_id),
                "completed": _time(metrics.completed),
            }
        ),
        "static_config": _known(metrics.config.static()),
        "packing_metrics": _known(
            {key: values[key] for key in _PACKING} | {"dataset_path": metrics.config.dataset_path}
        ),
        "resource_metrics": _known({key: values[key] for key in _RESOURCES}),
        "performance_metrics": _known({key: values[key] for key in _PERFORMANCE}),
        "per_epoch_metrics": [
            _known(
                {
                    "epoch": epoch.epoch,
                    "training_time_minutes": _rounded(epoch.training_time_minutes, 2),
                    "avg_gpu_memory_gb": _rounded(epoch.avg_gpu_memory_gb, 2),
                    "peak_gpu_memory_gb": _rounded(epoch.peak_gpu_memory_gb, 2),
                    "tokens_per_second": _rounded(epoch.tokens_per_second, 1),
                    "steps": epoch.steps,
                    "loss": _rounded(epoch.loss, 4),
                }
            )
            for epoch in metrics.epochs
        ],
    }


def run_file_text(metrics: RunMetrics) -> str:
    """The text of `run_metrics.yaml`."""
    import yaml

    dumped = yaml.safe_dump(run_file(metrics), sort_keys=False, allow_unicode=True, width=110)
    return f"{HEADING}\n{dumped}"


def _known(values: Mapping[str, Value]) -> dict[str, Value]:
    return {key: value for key, value in values.items() if value is not None}


def _told(value: Value | Mapping[str, Value]) -> Value | Mapping[str, Value]:
    return _known(value) if isinstance(value, Mapping) else value


def _rounded(value: float | None, digits: int, per: float = 1) -> float | None:
    return round(value / per, digits) if value is not None and math.isfinite(value) else None


def _job(job_id: str | None) -> Value:
    return int(job_id) if job_id is not None and job_id.isdigit() else job_id


def _time(time: datetime | None) -> str | None:
    return time.isoformat(timespec="seconds") if time is not None else None
