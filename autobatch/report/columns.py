"""The columns of a comparison: a key for programs, a heading and a cell for people. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from autobatch.errors import UsageError
from autobatch.report.run_figures import RunFigures
from autobatch.units import format_bytes, format_seconds

MISSING = "-"


@dataclass(frozen=True)
class Column:
    """One figure of every run.

    Attributes:
        key: in CSV and JSON, and for sorting.
        heading: for people.
        meaning: for the help.
        value: of a run; None when it isn't known.
        cell: `value` for people; only called when there is one.
        is_text: words, not a number.
    """

    key: str
    heading: str
    meaning: str
    value: Callable[[RunFigures], Any]
    cell: Callable[[RunFigures, Any], str] = lambda run, value: str(value)
    is_text: bool = False


def _gib(run: RunFigures, value: float) -> str:
    return format_bytes(value * 2**30)


def _percent(run: RunFigures, value: float) -> str:
    return f"{value:.1f} %"


def _status(run: RunFigures) -> str | None:
    """Of the training, else of the probe."""
    if run.status is not None:
        return f"{run.status}: {run.failure}" if run.failure else run.status
    if run.probe is None:
        return "not probed" if run.is_there else None
    return "probed" if run.probe == "done" else f"probe: {run.probe}"


def _predicted(run: RunFigures, value: float) -> str:
    return f"about {_gib(run, value)}" if run.predicted_from == "fit" else _gib(run, value)


COLUMNS: tuple[Column, ...] = (
    Column("run", "run", "name of the run directory", lambda run: run.run, is_text=True),
    Column("model", "model", "component of the model, without lora_", lambda run: run.model, is_text=True),
    Column(
        "packed",
        "packed",
        "whether the dataset is packed",
        lambda run: run.packed,
        lambda run, value: "yes" if value else "no",
        is_text=True,
    ),
    Column("max_seq_len", "seq len", "tokens of a sequence, at most", lambda run: run.max_seq_len),
    Column("batch_size", "batch", "sequences of a micro-batch", lambda run: run.batch_size),
    Column(
        "measured_batch_size",
        "fits",
        "the largest batch_size that the probe measured to fit",
        lambda run: run.measured_batch_size,
        lambda run, value: f"{value} (stale)" if run.probe_is_stale else str(value),
    ),
    Column(
        "gradient_accumulation_steps",
        "accum",
        "gradient accumulation steps",
        lambda run: run.gradient_accumulation_steps,
    ),
    Column(
        "effective_batch_size",
        "effective",
        "sequences of an optimizer step",
        lambda run: run.effective_batch_size,
    ),
    Column(
        "effective_examples",
        "examples",
        "examples of an optimizer step, about: effective batch times density",
        lambda run: run.effective_examples,
        lambda run, value: f"{value:.0f}",
    ),
    Column(
        "packing_density",
        "density",
        "examples per packed sequence",
        lambda run: run.packing_density,
        lambda run, value: f"{value:.2f}",
    ),
    Column(
        "packing_source",
        "density from",
        "where the density comes from",
        lambda run: run.packing_source,
        is_text=True,
    ),
    Column(
        "packing_efficiency",
        "efficiency",
        "percent of all tokens that aren't padding",
        lambda run: run.packing_efficiency,
        _percent,
    ),
    Column(
        "peak_gpu_memory_gb",
        "peak",
        "peak memory of the training, GiB",
        lambda run: run.peak_gpu_memory_gb,
        _gib,
    ),
    Column(
        "peak_of_capacity_pct",
        "of card",
        "that peak in percent of the memory that the probe planned for",
        lambda run: run.peak_of_capacity_pct,
        _percent,
    ),
    Column(
        "predicted_peak_memory_gb",
        "predicted",
        "the probe's peak at this batch_size, GiB; `about` where it comes from the fitted line",
        lambda run: run.predicted_peak_memory_gb,
        _predicted,
    ),
    Column(
        "peak_vs_predicted_pct",
        "off by",
        "how far the training's peak is above the predicted one, percent",
        lambda run: run.peak_vs_predicted_pct,
        lambda run, value: f"{value:+.1f} %",
    ),
    Column(
        "tokens_per_second",
        "tokens/s",
        "of a GPU, without padding, as torchtune logs it",
        lambda run: run.tokens_per_second,
        lambda run, value: f"{value:.0f}",
    ),
    Column(
        "training_time_minutes",
        "time",
        "wall time of the training, minutes",
        lambda run: run.training_time_minutes,
        lambda run, value: format_seconds(60 * value),
    ),
    Column(
        "gpu_hours",
        "GPU-hours",
        "GPUs times wall time: the cost",
        lambda run: run.gpu_hours,
        lambda run, value: f"{value:.2f}",
    ),
    Column("steps", "steps", "optimizer steps", lambda run: run.steps),
    Column(
        "final_loss",
        "loss",
        "of the last step",
        lambda run: run.final_loss,
        lambda run, value: f"{value:.4g}",
    ),
    Column(
        "status",
        "status",
        "of the training, and why it failed; without one, of the probe",
        _status,
        is_text=True,
    ),
)


def column(key: str) -> Column:
    """The column of that key or heading.

    Raises:
        UsageError: there is none; it names those there are.
    """
    for known in COLUMNS:
        if key in (known.key, known.heading):
            return known
    raise UsageError(f"--sort {key}: no such column; the columns are {', '.join(c.key for c in COLUMNS)}")


def sort_runs(runs: Iterable[RunFigures], key: str, *, descending: bool = False) -> tuple[RunFigures, ...]:
    """The runs by a column, those without a figure last.

    Raises:
        UsageError: there is no such column.
    """
    by = column(key)
    every = list(runs)
    known = [run for run in every if by.value(run) is not None]
    known.sort(key=by.value, reverse=descending)
    return (*known, *(run for run in every if by.value(run) is None))


def cells(run: RunFigures, columns: Sequence[Column]) -> list[str]:
    """The run's row for people."""
    row = []
    for shown in columns:
        value = shown.value(run)
        row.append(MISSING if value is None else shown.cell(run, value))
    return row


def split_by_figures(runs: Sequence[RunFigures]) -> tuple[list[Column], list[Column]]:
    """The columns that any of the runs has a figure for, and the others."""
    filled = [c for c in COLUMNS if any(c.value(run) is not None for run in runs)]
    return filled, [c for c in COLUMNS if c not in filled]
