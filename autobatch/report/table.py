"""A probe's result as rows and lines of text. Pure; printing is `autobatch.cli`'s."""

from __future__ import annotations

from collections.abc import Sequence

from autobatch.records import Density, EffectiveBatch, Fit, ProbeResult, Trial
from autobatch.units import format_bytes, format_percent, format_seconds

HEADER = ("batch_size", "peak", "of capacity", "tokens/s", "time", "verdict")


def trial_row(trial: Trial, capacity_bytes: int | None) -> tuple[str, ...]:
    """The cells of one trial, under `HEADER`."""
    peak, share = "-", "-"
    if trial.peak_bytes is not None:
        least = ">= " if trial.cut_short else ""
        peak = least + format_bytes(trial.peak_bytes)
        share = least + format_percent(trial.peak_bytes, capacity_bytes) if capacity_bytes else "-"
    verdict = trial.verdict.value
    if trial.alloc_retries:
        verdict += f" ({trial.alloc_retries} allocation retries)"
    return (
        str(trial.batch_size),
        peak,
        share,
        f"{trial.tokens_per_second:.0f}" if trial.tokens_per_second is not None else "-",
        format_seconds(trial.seconds),
        verdict,
    )


def printable(text: str) -> str:
    """On one line, without what a terminal would obey: names and errors come from files."""
    return "".join(c if c.isprintable() else " " for c in text)


def text_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], *, numbers: bool | Sequence[bool] = True
) -> list[str]:
    """Aligned columns: numbers to the right, words and always the last column to the left.

    Args:
        header: names of the columns.
        rows: a cell for each of them; it is made `printable`.
        numbers: which columns hold numbers; one answer for all, or one a column.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    is_number = [numbers] * len(header) if isinstance(numbers, bool) else numbers
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    return [
        "  ".join(
            [
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(row[:-1], widths[:-1], is_number[:-1], strict=True)
            ]
            + [row[-1]]
        ).rstrip()
        for row in (header, *rows)
    ]


def density_line(density: Density) -> str:
    """How the dataset packs, in a sentence."""
    if not density.packed:
        limit = f" (max_seq_len {density.max_seq_len})" if density.max_seq_len else ""
        return (
            f"unpacked: {density.examples} examples; the longest has {density.longest_example} tokens{limit}"
        )
    about = "about " if density.sampled_examples is not None else ""
    line = (
        f"packing density {about}{density.examples_per_pack:.2f} examples per pack: "
        f"{density.examples} examples in {about}{density.packs} packs of {density.max_seq_len} tokens"
    )
    if density.efficiency is not None:
        line += f", {100 * density.efficiency:.1f} % of them not padding"
    if density.sampled_examples is not None:
        error = f" ± {density.standard_error:.2f}" if density.standard_error is not None else ""
        line += (
            f" (extrapolated from {density.sampled_examples} examples; standard error{error or ' unknown'})"
        )
    return line


def fit_line(fit: Fit) -> str:
    """The fitted line, in a sentence."""
    return (
        f"fit: {format_bytes(fit.fixed_bytes)} + {format_bytes(fit.per_sequence_bytes)} for each sequence "
        f"(largest residual {100 * fit.max_residual_fraction:.2f} %)"
    )


def prediction_line(result: ProbeResult) -> str:
    """What the estimate had said, and how far it was off; empty when there was none."""
    prediction = result.prediction
    if prediction is None:
        return ""
    if prediction.peak_bytes is None or prediction.peak_batch_size is None:
        return ""
    line = (
        f"estimate: batch_size {prediction.batch_size}; {format_bytes(prediction.peak_bytes)} "
        f"at {prediction.peak_batch_size} (simulated)"
    )
    if result.peak_bytes is None or prediction.peak_batch_size != result.batch_size:
        return line
    off = 100 * (prediction.peak_bytes - result.peak_bytes) / result.peak_bytes
    return f"{line}, {off:+.1f} % off the measured {format_bytes(result.peak_bytes)}"


def effective_batch_lines(before: EffectiveBatch, after: EffectiveBatch) -> list[str]:
    """What an update trains on, before and after, one under the other."""
    header = ("", "batch_size", "gradient_accumulation_steps", "sequences an update", "about examples")
    rows = [
        (
            name,
            str(batch.batch_size),
            str(batch.gradient_accumulation_steps),
            str(batch.sequences),
            f"{batch.examples:.0f}",
        )
        for name, batch in (("before", before), ("after", after))
    ]
    return text_table(header, rows, numbers=(False, True, True, True, True))


def ranks_line(result: ProbeResult) -> str:
    """The peaks of all ranks at the answer, in a sentence; empty without ranks."""
    trial = next((trial for trial in result.trials if trial.batch_size == result.batch_size), None)
    if result.world is None or result.metric is None or trial is None or not trial.peaks_by_rank:
        return ""
    peaks = [peaks[result.metric.value] for peaks in trial.peaks_by_rank]
    return f"peaks by rank ({result.world}): {', '.join(format_bytes(peak) for peak in peaks)}"


def result_lines(result: ProbeResult) -> list[str]:
    """The answer, and what stands behind it."""
    lines = [result.message, *result.remarks]
    if result.before is not None and result.after is not None:
        lines += effective_batch_lines(result.before, result.after)
    if result.density is not None:
        lines.append(density_line(result.density))
    for shared in result.shared_from:
        sizes = ", ".join(map(str, shared.batch_sizes))
        when = f", {shared.measured}" if shared.measured else ""
        lines.append(f"batch_size {sizes}: measured for {shared.run}{when}")
    if result.fit is not None:
        lines.append(fit_line(result.fit))
    if ranks_line(result):
        lines.append(ranks_line(result))
    if prediction_line(result):
        lines.append(prediction_line(result))
    if result.written:
        lines.append(f"written: {', '.join(result.written)}")
    return lines


def report_lines(result: ProbeResult) -> list[str]:
    """The whole report of a result on file."""
    request = result.request
    lines = [f"{request.run_dir}: {result.status.value}, {result.ended}"]
    lines.append(f"recipe: {result.recipe}")
    if result.device is not None and result.capacity_bytes and result.target_bytes and result.metric:
        lines.append(
            f"device: {result.device.label}; capacity {format_bytes(result.capacity_bytes)}, "
            f"target {format_bytes(result.target_bytes)} "
            f"({100 * request.target_fraction:g} %) of {result.metric.value} memory"
        )
    if result.trials:
        rows = [trial_row(trial, result.capacity_bytes) for trial in result.trials]
        lines += ["", *text_table(HEADER, rows), ""]
    lines += result_lines(result)
    lines.append(
        f"{len(result.trials)} trials, {format_seconds(result.seconds)} in all; "
        + ", ".join(f"{name} {version}" for name, version in result.versions.items())
    )
    return lines
