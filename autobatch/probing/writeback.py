"""The answer into the user's files: `finetune.yaml` and `runs_plan.md`, both or neither."""

from __future__ import annotations

import os
from collections.abc import Callable

from autobatch.edits.plan_markdown import set_plan_configuration, set_plan_row
from autobatch.edits.plan_values import BulletValue, PerRun, Stated
from autobatch.edits.together import Edit, edit_together
from autobatch.edits.yaml_values import set_values
from autobatch.errors import EditError
from autobatch.probing.events import Event, Wrote
from autobatch.records import Density, PackingMode, ProbeResult
from autobatch.runs.directory import RunDirectory
from autobatch.runs.model_name import model_label
from autobatch.units import format_bytes, format_percent


def write_back(run: RunDirectory, result: ProbeResult, tell: Callable[[Event], None]) -> tuple[str, ...]:
    """Write a result that is done; what stands there already is left as it is.

    Args:
        run: as it was read when the probe began.
        result: with batch_size and density.
        tell: hears of each file that changed.

    Returns:
        The changed files, relative to the run directory.

    Raises:
        EditError: a file can't be written, or somebody changed finetune.yaml while it was being measured. Both
            are as they were.
    """
    edits = (
        Edit(run.config_path, lambda text: _edit_config(text, run, result)),
        Edit(run.plan_path, lambda text: _edit_plan(text, run, result), f"# {run.experiment_dir.name}\n"),
    )
    changed = [change for change in edit_together(edits) if change.changed]
    for change in changed:
        tell(Wrote(str(change.path), change.diff()))
    return tuple(os.path.relpath(change.path, run.path) for change in changed)


def _edit_config(text: str, run: RunDirectory, result: ProbeResult) -> str:
    if text != run.config_text:
        raise EditError(
            f"{run.config_path}: changed while it was being measured, so the answer of batch_size "
            f"{result.batch_size} may not hold for it; nothing was written. Probe again: measurements that "
            "still hold are reused"
        )
    assert result.batch_size is not None
    values: dict[tuple[str, ...], int | bool] = {("batch_size",): result.batch_size}
    if result.request.hold_effective_batch:
        values[("gradient_accumulation_steps",)] = result.gradient_accumulation_steps
    if result.request.packing is PackingMode.PACK:
        values[("dataset", "packed")] = True
    return set_values(text, values, name=str(run.config_path))


def _edit_plan(text: str, run: RunDirectory, result: ProbeResult) -> str:
    name = str(run.plan_path)
    defaults = {"Model": model_label(run.resolved().get("model"))}
    text = set_plan_row(text, run.name, plan_row(result), defaults=defaults, name=name)
    return set_plan_configuration(text, plan_bullets(run.name, result), name=name)


def plan_row(result: ProbeResult) -> dict[str, str]:
    """The run's cells in the section `## Packing Analysis`, by column."""
    density, device = result.density, result.device
    assert density is not None
    assert device is not None
    assert result.peak_bytes is not None
    assert result.capacity_bytes is not None
    planned = "" if result.request.capacity_bytes is None else f" of {format_bytes(result.capacity_bytes)}"
    share = format_percent(result.peak_bytes, result.capacity_bytes)
    return {
        "Batch Size": str(result.batch_size),
        "Packed": str(density.packed),
        "Packing Density": _density_text(density),
        "Memory Usage": f"{format_bytes(result.peak_bytes)} ({share}{planned})",
        "GPU Type": device.name if device.kind == "cuda" else f"none (CPU: {device.name})",
    }


def plan_bullets(run: str, result: ProbeResult) -> dict[str, BulletValue]:
    """The bullets of the section `## Configuration`, by label."""
    density, fit = result.density, result.fit
    assert density is not None
    assert result.batch_size is not None
    reason = "measured with batches of the longest example"
    if density.packed:
        reason = "examples are concatenated up to max_seq_len"
    impact = "one batch_size was measured"
    if fit is not None:
        impact = (
            f"{format_bytes(fit.fixed_bytes)} and {format_bytes(fit.per_sequence_bytes)} for each sequence "
            f"of {density.max_seq_len if density.packed else density.longest_example} tokens"
        )
    accumulation = result.gradient_accumulation_steps
    ranks = result.world.data_parallel if result.world is not None else 1
    effective = result.batch_size * accumulation * ranks
    examples = f", about {effective * density.examples_per_pack:.0f} examples" if density.packed else ""
    return {
        "Dataset packing": (
            Stated(str(density.packed), reason),
            (
                ("Packing density", PerRun(run, _density_text(density))),
                ("Impact on memory", PerRun(run, impact)),
            ),
        ),
        "Batch sizes": PerRun(run, f"{result.batch_size} (measured)"),
        "Gradient accumulation": PerRun(
            run,
            f"{accumulation} (effective batch size: {effective} sequences{examples}"
            f"{f', over {ranks} ranks' if ranks > 1 else ''})",
        ),
    }


def _density_text(density: Density) -> str:
    text = f"{density.examples_per_pack:.1f} ex/seq"
    if density.sampled_examples is None:
        return text
    error = f" ± {density.standard_error:.1f}" if density.standard_error is not None else ""
    return f"about {density.examples_per_pack:.1f}{error} ex/seq (sampled)"
