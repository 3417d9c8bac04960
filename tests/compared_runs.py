"""An experiment to compare: copies of a laid-out run, each with a result of a probe and an entry of metrics."""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from autobatch.probing.identity import run_fingerprint
from autobatch.records import (
    Density,
    Device,
    Fit,
    Limit,
    Metric,
    ProbeRequest,
    ProbeResult,
    Status,
    Trial,
    Verdict,
    to_json,
)
from autobatch.runs.directory import read_run

GIB = 2**30
CARD = Device("cuda", "NVIDIA H100 80GB HBM3", 80 * GIB)
DENSITY = Density(packed=True, examples=8000, packs=108, tokens=13_713, max_seq_len=128, longest_example=66)


def set_config(run: Path, **values: object) -> None:
    """Set top-level keys of a run's finetune.yaml."""
    path = run / "finetune.yaml"
    text = path.read_text()
    for key, value in values.items():
        text, count = re.subn(rf"(?m)^{key}: [^\s#]*", f"{key}: {value}", text)
        assert count == 1
    path.write_text(text)


def write_result(run: Path, **changes: Any) -> ProbeResult:
    """A result of a probe of the run as it is now: 24 fits, 25 doesn't."""
    request = ProbeRequest(str(run))
    fit = Fit(1.82 * GIB, 2.22 * GIB, 0.0012)
    result = ProbeResult(
        status=Status.DONE,
        message="batch_size 24 (peak 55.1 GiB, 68.9 % of 80.0 GiB); batch_size 25 would take 71.7 %",
        request=request,
        device=CARD,
        metric=Metric.RESERVED,
        capacity_bytes=80 * GIB,
        target_bytes=56 * GIB,
        batch_size=24,
        limit=Limit.MEMORY,
        peak_bytes=round(55.1 * GIB),
        trials=(
            Trial(24, Verdict.FITS, peak_bytes=round(55.1 * GIB)),
            Trial(25, Verdict.OVER_TARGET, peak_bytes=round(57.36 * GIB)),
        ),
        fit=fit,
        density=DENSITY,
        fingerprint=run_fingerprint(read_run(run, request), request, CARD, os.environ),
    )
    result = replace(result, **changes)
    (run / "probe").mkdir(exist_ok=True)
    (run / "probe" / "result.json").write_text(json.dumps(to_json(result)))
    return result


def write_status(experiment: Path, entries: list[dict[str, Any]]) -> None:
    (experiment / "runs_status.yaml").write_text(yaml.safe_dump({"runs": entries}, sort_keys=False))


def entry(name: str, status: str, *, failure: str | None = None, **metrics: Any) -> dict[str, Any]:
    """An entry of runs_status.yaml; keys of the config are told from metrics by name."""
    in_config = ("batch_size", "packed", "max_seq_len", "gradient_accumulation_steps", "model")
    config = {key: metrics.pop(key) for key in in_config if key in metrics}
    return {
        "name": name,
        "status": status,
        **({"failure": failure} if failure else {}),
        "config": config,
        "metrics": metrics,
    }


def experiment_of(laid_out: Path, directory: Path, *names: str) -> Path:
    """A copy of the laid-out experiment in which run1 is there under each of the names."""
    experiment = directory / "experiment"
    shutil.copytree(laid_out, experiment)
    for name in names:
        if name != "run1":
            shutil.copytree(experiment / "run1", experiment / name)
    if "run1" not in names:
        shutil.rmtree(experiment / "run1")
    return experiment


def full_experiment(laid_out: Path, directory: Path) -> Path:
    """Every kind of run: trained well, idle, out of memory, only probed, untouched, gone."""
    experiment = experiment_of(laid_out, directory, "run1", "run2", "run3", "run4", "run5")
    counted: dict[str, Any] = {
        "total_examples": 8000,
        "total_sequences": 108,
        "packing_density": 74.07,
        "packing_efficiency": 99.2,
        "packing_source": "probe",
    }
    set_config(experiment / "run1", batch_size=24)
    set_config(experiment / "run2", gradient_accumulation_steps=8)
    set_config(experiment / "run3", batch_size=32)
    for name in ("run1", "run2", "run3", "run4"):
        write_result(experiment / name)
    write_status(
        experiment,
        [
            entry(
                "run1",
                "completed",
                **counted,
                model="llama3_2",
                batch_size=24,
                gradient_accumulation_steps=1,
                packed=True,
                max_seq_len=128,
                peak_gpu_memory_gb=55.9,
                predicted_peak_memory_gb=55.1,
                training_time_minutes=127,
                gpu_hours=2.117,
                tokens_per_second=48211.7,
                steps=20,
                final_loss=1.2345,
            ),
            entry(
                "run2",
                "completed",
                **counted,
                model="llama3_2",
                batch_size=4,
                gradient_accumulation_steps=8,
                packed=True,
                max_seq_len=128,
                peak_gpu_memory_gb=11.4,
                training_time_minutes=141.5,
                gpu_hours=2.358,
                tokens_per_second=43120,
                steps=15,
                final_loss=1.31,
            ),
            entry(
                "run3",
                "failed",
                failure="out of memory",
                model="llama3_2",
                batch_size=32,
                gradient_accumulation_steps=1,
                packed=True,
                max_seq_len=128,
                packing_density=3.5,
                packing_source="estimate",
                training_time_minutes=0.5,
            ),
            entry(
                "old", "cancelled", model="llama3_2", batch_size=16, tokens_per_second=40000.0, final_loss=2.5
            ),
        ],
    )
    return experiment
