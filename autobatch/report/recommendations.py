"""What follows from the figures of runs, each with its reason; nothing where the figures are missing. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from autobatch.probing.effective_batch import largest_divisor
from autobatch.report.remark import Remark, grouped, listed, names
from autobatch.report.run_figures import RunFigures

#: Throughputs that differ by less are called equal: a repeat of one run differs as much.
_SAME_SPEED = 0.02


def recommendations(runs: Sequence[RunFigures]) -> tuple[Remark, ...]:
    """Which run is the fastest, whose batch_size to change, and what to measure."""
    there = [run for run in runs if run.is_there]
    return (*_fastest(runs), *_batch_sizes(there), *_to_probe(there), *_to_collect(there))


def _fastest(runs: Sequence[RunFigures]) -> Iterator[Remark]:
    """Per model and card: tokens/s per GPU also orders the GPU-hours that the same tokens take."""
    completed = [run for run in runs if run.status == "completed" and _speed(run) > 0]
    if len(runs) > 1 and len(completed) < 2:
        text = "which run is the fastest isn't known: fewer than two completed with a figure for tokens/s"
        yield Remark("fastest-unknown", text, names(completed))
    for (model, gpu), group in grouped(completed, lambda run: (run.model, run.gpu)).items():
        within = [run for run in group if not run.is_over_target]
        over = [run for run in group if run.is_over_target]
        left_out = f"; over the target, left out: {listed(over)}" if over else ""
        which = " ".join(["completed", *([model] if model else []), "runs", *([f"on {gpu}"] if gpu else [])])
        if len(within) < 2:
            if len(group) > 1:
                yield Remark(
                    "fastest-unknown",
                    f"fewer than two {which} within the target have a figure for tokens/s{left_out}",
                    names(group),
                )
            continue
        ranked = sorted(within, key=_speed, reverse=True)
        first, equal = ranked[0], [r for r in ranked if _speed(r) >= (1 - _SAME_SPEED) * _speed(ranked[0])]
        unknown = [run for run in ranked if run.is_over_target is None]
        checked = f"; no peak to hold against its target: {listed(unknown)}" if unknown else ""
        which = which if unknown else f"{which} within the target"
        if len(equal) > 1:
            shown = ", ".join(f"{run.run} {_speed(run):.0f}" for run in equal)
            text = f"{listed(equal)}: equally fast of the {len(ranked)} {which} ({shown} tokens/s per GPU)"
        else:
            second = ranked[1]
            ahead = f"{100 * (_speed(first) / _speed(second) - 1):.0f} % more than {second.run}"
            text = (
                f"{first.run} ({_setup(first)}): the fastest of the {len(ranked)} {which}, "
                f"{_speed(first):.0f} tokens/s per GPU, {ahead}; so the fewest GPU-hours for the same tokens"
            )
        yield Remark("fastest", f"{text}{checked}{left_out}", names(equal))


def _speed(run: RunFigures) -> float:
    return run.tokens_per_second or 0.0


def _setup(run: RunFigures) -> str:
    parts = [] if run.batch_size is None else [f"batch_size {run.batch_size}"]
    if run.packed is not None:
        parts.append("packed" if run.packed else "unpacked")
    return ", ".join(parts) or "config unknown"


def _batch_sizes(runs: Sequence[RunFigures]) -> Iterator[Remark]:
    for run in runs:
        measured, size = run.measured_batch_size, run.batch_size
        if measured is None or size is None or run.probe_is_stale or measured == size:
            continue
        if size > measured:
            text = f"lower batch_size from {size} to {measured}, the largest measured to fit"
            yield Remark("lower-batch-size", f"{run.run}: {text}", (run.run,))
            continue
        accumulation = run.gradient_accumulation_steps or 1
        each = accumulation * (run.ranks or 1)
        text = f"batch_size {size} is below the {measured} measured to fit"
        kept = _same_effective(size * accumulation, measured)
        if kept is not None and kept[0] > size:
            text += (
                f"; batch_size {kept[0]} with gradient_accumulation_steps {kept[1]} keeps the effective batch of "
                f"{size * each} sequences"
            )
        else:
            text += (
                f"; raising it changes the effective batch from {size * each} to "
                f"{measured * each} sequences, for which the learning rate wasn't chosen"
            )
        yield Remark("raise-batch-size", f"{run.run}: {text}", (run.run,))


def _same_effective(effective: int, most: int) -> tuple[int, int] | None:
    """The largest batch_size up to `most` that divides `effective`, and the accumulation that goes with it."""
    if effective < 1 or most < 1:
        return None
    size = largest_divisor(effective, most)
    return size, effective // size


def _to_probe(runs: Sequence[RunFigures]) -> Iterator[Remark]:
    unmeasured = [run for run in runs if run.measured_batch_size is None]
    stale = [run for run in runs if run.measured_batch_size is not None and run.probe_is_stale]
    for code, group, text in (
        ("probe", unmeasured, "no batch_size was measured"),
        ("probe-again", stale, "the measurement is of another config or environment"),
    ):
        if group:
            yield Remark(code, f"{listed(group)}: {text}: autobatch probe", names(group))


def _to_collect(runs: Sequence[RunFigures]) -> Iterator[Remark]:
    ended = [
        run
        for run in runs
        if run.status in ("completed", "failed", "cancelled")
        and run.tokens_per_second is None
        and run.training_time_minutes is None
        and not run.ran_out_of_memory
    ]
    if ended:
        yield Remark(
            "collect-metrics",
            f"{listed(ended)}: trained, and no figure of it is on file: autobatch metrics",
            names(ended),
        )
