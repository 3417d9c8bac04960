"""Reads what is known of a run, leniently: a source that can't be read costs its figures and is named.

The config is that of the training where there was one (its entry in `runs_status.yaml`), else that of
`finetune.yaml` as it is now; both are the same unless somebody changed the file since.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autobatch.errors import UsageError
from autobatch.metrics.records import Source
from autobatch.metrics.trained_config import read_trained_config
from autobatch.probing.verification import holds_for_config
from autobatch.records import Metric, ProbeResult, Status, Verdict
from autobatch.report.entry_section import Section
from autobatch.report.run_figures import SAMPLED, RunFigures
from autobatch.runs.config import read_config
from autobatch.runs.directory import CONFIG_NAME, SCRIPT_NAME, read_run
from autobatch.runs.findings import Findings
from autobatch.runs.model_name import model_component
from autobatch.runs.results import load_result
from autobatch.runs.slurm_script import read_script

_GIB = 2**30

#: Statuses of a training that has begun: its entry says with which config.
_BEGUN = ("running", "completed", "failed", "cancelled")

#: Keys of the config that make figures before and after a change another run's.
_DECISIVE = ("batch_size", "packed", "max_seq_len", "gradient_accumulation_steps")


@dataclass
class _Sources:
    """One run's sources, and what was wrong with them."""

    entry: Mapping[str, Any]
    config: dict[str, Any] = field(default_factory=dict)
    result: ProbeResult | None = None
    is_stale: bool = False
    ranks: int | None = 1
    remarks: list[str] = field(default_factory=list)


def read_figures(name: str, run_dir: Path | None, entry: Mapping[str, Any]) -> RunFigures:
    """What is known of a run.

    Args:
        name: of the run.
        run_dir: its directory; None when it is gone, and only `entry` is left.
        entry: the run's entry in `runs_status.yaml`; empty when there is none.
    """
    sources = _Sources(entry)
    if run_dir is not None:
        _read_probe(run_dir, sources)
        _read_config(run_dir, sources)
    else:
        sources.remarks.append("its directory is gone; what is left is its entry in runs_status.yaml")
    return _figures(name, run_dir is not None, sources)


def _read_probe(run_dir: Path, sources: _Sources) -> None:
    path = run_dir / "probe" / "result.json"
    if not path.exists():
        return
    try:
        sources.result = load_result(path)
    except UsageError as error:
        sources.remarks.append(str(error))


def _read_config(run_dir: Path, sources: _Sources) -> None:
    """The parts of the config that a comparison shows; of a run that can't be probed too."""
    values = _probed_config(run_dir, sources)
    if values is None:
        values = _any_config(run_dir, sources)
    world = sources.result.world if sources.result is not None else None
    sources.ranks = world.data_parallel if world is not None else read_trained_config(run_dir, {}, None).ranks
    dataset = values.get("dataset")
    model, tokenizer = (
        section if isinstance(section, Mapping) else {}
        for section in (values.get("model"), values.get("tokenizer"))
    )
    if values:
        sources.config = {
            "model": model_component(model.get("_component_")),
            "batch_size": values.get("batch_size"),
            "packed": _is_packed(dataset),
            "max_seq_len": tokenizer.get("max_seq_len"),
            "gradient_accumulation_steps": values.get("gradient_accumulation_steps") or 1,
            "dataset": _dataset_identity(dataset),
        }


def _probed_config(run_dir: Path, sources: _Sources) -> dict[str, Any] | None:
    """The config of a run that was probed, and whether the probe was of it; None when it can't be said."""
    result = sources.result
    if result is None or result.status is not Status.DONE:
        return None
    try:
        run = read_run(run_dir, result.request)
    except UsageError as error:
        sources.remarks.append(f"can't be probed as it is now: {str(error).splitlines()[0]}")
        return None
    sources.is_stale = not holds_for_config(run, result)
    return run.resolved()


def _any_config(run_dir: Path, sources: _Sources) -> dict[str, Any]:
    """The config as far as it can be read; empty when it can't."""
    findings = Findings()
    script = None
    with contextlib.suppress(OSError):
        script = read_script(run_dir / SCRIPT_NAME, os.environ)
    config = read_config(run_dir / CONFIG_NAME, script, findings)
    if config is None:
        sources.remarks += [str(problem) for problem in findings.problems]
        return {}
    return config.values


def _is_packed(dataset: Any) -> bool:
    """As recipes read it: off unless every dataset says otherwise."""
    sections = dataset if isinstance(dataset, list) else [dataset]
    return all(isinstance(section, Mapping) and section.get("packed") is True for section in sections)


def _dataset_identity(section: Any) -> str | None:
    """The dataset section as text, without what packs it."""
    if section is None:
        return None
    sections = section if isinstance(section, list) else [section]
    kept = [{k: v for k, v in s.items() if k != "packed"} if isinstance(s, Mapping) else s for s in sections]
    return json.dumps(kept, sort_keys=True, default=str)


def _figures(name: str, is_there: bool, sources: _Sources) -> RunFigures:
    entry = Section(sources.entry, "", sources.remarks)
    metrics, trained = entry.section("metrics"), entry.section("config")
    status = entry.text("status")
    has_begun = status in _BEGUN
    if has_begun:
        _remark_changes(sources, trained)
    config = Section(
        {**sources.config, **trained.known()} if has_begun else {**trained.known(), **sources.config},
        "config.",
        sources.remarks,
    )
    batch_size = config.integer("batch_size")
    accumulation = config.integer("gradient_accumulation_steps") or (1 if batch_size else None)
    result = sources.result
    computed = (
        batch_size * accumulation * sources.ranks if batch_size and accumulation and sources.ranks else None
    )
    done = result if result is not None and result.status is Status.DONE else None
    peak = metrics.number("peak_gpu_memory_gb")
    predicted, predicted_from = _prediction(metrics, result, batch_size, peak)
    loss = metrics.number("final_loss", finite=False)
    if loss is not None and not math.isfinite(loss):
        sources.remarks.append(f"its final loss is {loss}: the training diverged")
        loss = None
    return RunFigures(
        run=name,
        is_there=is_there,
        status=status,
        failure=entry.text("failure"),
        probe=None if result is None else result.status.value,
        probe_is_stale=sources.is_stale,
        model=config.text("model"),
        packed=config.boolean("packed"),
        max_seq_len=config.integer("max_seq_len"),
        batch_size=batch_size,
        measured_batch_size=None if done is None else done.batch_size,
        limit=None if done is None or done.limit is None else done.limit.value,
        gradient_accumulation_steps=accumulation,
        ranks=sources.ranks,
        effective_batch_size=(trained.integer("effective_batch_size") if has_begun else None) or computed,
        **_packing(metrics, result),
        dataset=config.text("dataset"),
        gpu=result.device.label if result is not None and result.device is not None else None,
        capacity_gb=_gib(None if result is None else result.capacity_bytes),
        target_gb=_gib(None if result is None else result.target_bytes),
        peak_gpu_memory_gb=peak,
        predicted_peak_memory_gb=predicted,
        predicted_from=predicted_from,
        stored_difference_pct=metrics.number("peak_vs_predicted_pct"),
        tokens_per_second=metrics.number("tokens_per_second"),
        training_time_minutes=metrics.number("training_time_minutes"),
        gpu_hours=metrics.number("gpu_hours"),
        steps=metrics.integer("steps"),
        final_loss=loss,
        remarks=tuple(dict.fromkeys(sources.remarks)),
    )


def _remark_changes(sources: _Sources, trained: Section) -> None:
    """Says where `finetune.yaml` is no longer what the training read."""
    before, now = trained.known(), sources.config
    changed = [
        f"{key} {before[key]} -> {now[key]}"
        for key in _DECISIVE
        if before.get(key) is not None and now.get(key) is not None and before[key] != now[key]
    ]
    if changed:
        sources.remarks.append(
            f"finetune.yaml was changed since it trained ({', '.join(changed)}); shown is what it trained with"
        )


def _packing(metrics: Section, result: ProbeResult | None) -> dict[str, Any]:
    """Density and what goes with it: the training's, else the probe's."""
    density = metrics.number("packing_density")
    if density is not None or result is None or result.density is None:
        return {
            "packing_density": density,
            "packing_source": metrics.text("packing_source"),
            "packing_efficiency": metrics.number("packing_efficiency"),
            "total_examples": metrics.integer("total_examples"),
        }
    probed = result.density
    counted = Source.PROBE.value if probed.sampled_examples is None else SAMPLED
    return {
        "packing_density": probed.examples_per_pack if probed.packed else None,
        "packing_source": counted if probed.packed else None,
        "packing_efficiency": None if probed.efficiency is None else 100 * probed.efficiency,
        "total_examples": probed.examples,
    }


def _prediction(
    metrics: Section, result: ProbeResult | None, batch_size: int | None, peak: float | None
) -> tuple[float | None, str | None]:
    """The probe's peak at `batch_size` in GiB, and where it comes from."""
    stored = metrics.number("predicted_peak_memory_gb")
    if stored is not None:
        return stored, "runs_status.yaml"
    if result is None or batch_size is None:
        return None, None
    kind = metrics.text("peak_gpu_memory_source") or "reserved"
    if peak is not None and (result.metric is not Metric.RESERVED or kind != "reserved"):
        # A peak of another kind is no prediction.
        return None, None
    for trial in result.trials:
        measured = trial.verdict in (Verdict.FITS, Verdict.OVER_TARGET) and not trial.cut_short
        if trial.batch_size == batch_size and measured and trial.peak_bytes is not None:
            return _gib(trial.peak_bytes), "trial"
    if result.fit is None:
        return None, None
    return _gib(result.fit.fixed_bytes + batch_size * result.fit.per_sequence_bytes), "fit"


def _gib(size: float | None) -> float | None:
    return None if size is None else size / _GIB
