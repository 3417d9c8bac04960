"""What keeps the figures of runs from being compared like for like. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from autobatch.records import Limit
from autobatch.report.remark import Remark, grouped, listed, names
from autobatch.report.run_figures import RunFigures
from autobatch.units import format_bytes

#: A training's peak further from the probe's than this is worth a look.
_OFF_PREDICTION_PCT = 5.0

#: A peak below this part of the target leaves room for a larger batch.
_IDLE_FRACTION = 0.75

#: Densities of one dataset at one max_seq_len that differ by more come from different data or counting.
_SAME_DENSITY = 0.05

#: Why a measured batch_size leaves memory, by the probe's limit.
_LIMITS = {
    Limit.DATASET.value: "its dataset has too few packs for a larger batch",
    Limit.MAX_BATCH_SIZE.value: "its probe was capped by --max-batch-size",
    Limit.HOLD.value: "its probe held the effective batch",
    Limit.THROUGHPUT.value: "its probe took the smallest batch_size that is as fast",
    Limit.TIME.value: "its probe was ended by the job's time limit",
}


def caveats(runs: Sequence[RunFigures]) -> tuple[Remark, ...]:
    """What to mind, run by run and then between runs."""
    found: list[Remark] = []
    for run in runs:
        found += _of_one(run)
    found += _between(runs)
    return tuple(found)


def _of_one(run: RunFigures) -> Iterator[Remark]:
    def about(code: str, text: str) -> Remark:
        return Remark(code, f"{run.run}: {text}", (run.run,))

    for remark in run.remarks:
        yield about("source", remark)
    if run.ran_out_of_memory:
        size = f" with batch_size {run.batch_size}" if run.batch_size else ""
        yield about("out-of-memory", f"ran out of memory{size}; its figures are those up to then")
    elif run.status == "failed":
        reason = f" ({run.failure})" if run.failure else ""
        yield about("failed", f"failed{reason}; its time, GPU-hours and loss are those up to then")
    elif run.status in ("running", "cancelled"):
        word = "is still running" if run.status == "running" else "was cancelled"
        yield about(run.status, f"{word}; its time, GPU-hours and loss aren't those of a whole training")
    if run.probe_is_stale:
        yield about(
            "stale-probe",
            "its probe was of another config, recipe, environment or other versions than these: "
            "what it measured may no longer hold",
        )
    if run.probe is not None and run.probe != "done":
        yield about("probe-failed", f"its probe found no batch_size ({run.probe}); autobatch report says why")
    if run.is_over_target:
        yield about(
            "over-target",
            f"its peak of {_gib(run.peak_gpu_memory_gb)} is over the target of {_gib(run.target_gb)}",
        )
    difference = run.peak_vs_predicted_pct
    if difference is not None and abs(difference) > _OFF_PREDICTION_PCT:
        side = "above" if difference > 0 else "below"
        line = ", which comes from the fitted line, not from a trial" if run.predicted_from == "fit" else ""
        yield about(
            "off-prediction", f"its peak is {abs(difference):.1f} % {side} the probe's prediction{line}"
        )
    idle = _idle_text(run)
    if idle:
        yield about("idle-memory", idle)


def _idle_text(run: RunFigures) -> str | None:
    """That most of the card idles, with the figures; None when it doesn't, or isn't known to."""
    peak = run.peak_gpu_memory_gb or run.predicted_peak_memory_gb
    if not peak or not run.target_gb or run.ran_out_of_memory or run.probe_is_stale:
        return None
    if peak >= _IDLE_FRACTION * run.target_gb:
        return None
    kind = "peak" if run.peak_gpu_memory_gb else "predicted peak"
    text = f"its {kind} of {_gib(peak)} is {100 * peak / run.target_gb:.0f} % of what the target allows"
    reason = _LIMITS.get(run.limit or "")
    return f"{text}; {reason}" if reason and run.batch_size == run.measured_batch_size else text


def _gib(size: float | None) -> str:
    return format_bytes((size or 0) * 2**30)


def _between(runs: Sequence[RunFigures]) -> Iterator[Remark]:
    trained = [run for run in runs if run.tokens_per_second is not None or run.final_loss is not None]
    with_loss = [run for run in runs if run.final_loss is not None]
    yield from _differing(
        "effective-batch",
        with_loss,
        lambda run: run.effective_batch_size,
        "effective batch sizes differ",
        "final losses aren't like for like, and a learning rate that suits one may not suit another",
        lambda size: f"{size} sequences",
    )
    yield from _differing(
        "steps",
        with_loss,
        lambda run: run.steps,
        "lengths of training differ",
        "final losses aren't like for like",
        lambda steps: f"{steps} steps",
    )
    yield from _differing(
        "model",
        trained,
        lambda run: run.model,
        "models differ",
        "compare tokens/s and losses within a model",
        str,
    )
    yield from _differing(
        "max-seq-len",
        trained,
        lambda run: run.max_seq_len,
        "max_seq_len differs",
        "a sequence isn't the same amount of work, and density grows with it",
        str,
    )
    yield from _differing(
        "gpu",
        runs,
        lambda run: run.gpu,
        "cards differ",
        "peaks, targets and tokens/s aren't like for like",
        str,
    )
    yield from _data(runs)
    counted = [r for r in runs if r.packing_density is not None and not r.density_is_estimated]
    estimated = [r for r in runs if r.packing_density is not None and r.density_is_estimated]
    if estimated:
        beside = f", beside counted ones ({listed(counted)})" if counted else ""
        yield Remark(
            "density-estimated",
            f"densities that are estimates, not counts: {listed(estimated)}{beside}",
            names(estimated),
        )


def _data(runs: Sequence[RunFigures]) -> Iterator[Remark]:
    datasets = grouped(runs, lambda run: run.dataset)
    examples = grouped(runs, lambda run: run.total_examples)
    if len(datasets) > 1 or len(examples) > 1:
        groups = datasets if len(datasets) > 1 else examples
        shown = "; ".join(listed(group) for group in groups.values())
        yield Remark(
            "data",
            f"datasets differ ({shown}): losses, density and examples aren't like for like",
            tuple(name for group in groups.values() for name in names(group)),
        )
        return
    for length, group in grouped(runs, lambda run: run.max_seq_len).items():
        known = [run for run in group if run.packing_density is not None and not run.density_is_estimated]
        densities = [run.packing_density or 0.0 for run in known]
        if densities and max(densities) > (1 + _SAME_DENSITY) * min(densities):
            shown = ", ".join(f"{run.run} {run.packing_density:.2f}" for run in known)
            yield Remark(
                "density",
                f"densities at max_seq_len {length} differ ({shown}): was it the same data?",
                names(known),
            )


def _differing(
    code: str,
    runs: Sequence[RunFigures],
    key: Callable[[RunFigures], Any],
    what: str,
    consequence: str,
    show: Callable[[Any], str],
) -> Iterator[Remark]:
    groups = grouped(runs, key)
    if len(groups) < 2:
        return
    shown = "; ".join(f"{show(value)}: {listed(group)}" for value, group in groups.items())
    yield Remark(
        code,
        f"{what} ({shown}): {consequence}",
        tuple(name for group in groups.values() for name in names(group)),
    )
