"""The estimate against the exactness benchmark's measured peaks, on CPU, with the CPU's own kernels followed.

    python -m tests.benchmarks.estimates_cpu --markdown tests/benchmarks/results/estimates-cpu.md

The measured peaks are those of `results/exactness-cpu.json`: plain `tune run`s of ten configs at every batch_size.
They are resident memory; what a process has besides tensors, its baseline, is taken off.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autobatch.demo import SmallRun, lay_out
from autobatch.estimate.forecaster import KERNELS_BYTES
from autobatch.estimate.recording import recorded
from autobatch.estimate.subject import read_subject
from autobatch.estimate.trace import Curve
from autobatch.probing.forkserver import ForkServer
from tests.benchmarks.cases import CASES

MEASURED = Path(__file__).parent / "results" / "exactness-cpu.json"

_MIB = 2**20

HEADER = (
    "config",
    "batch_size",
    "over the baseline",
    "estimate",
    "error",
    "kernels",
    "error without a trial",
)

#: Bars on the error of a peak over the process's baseline.
MEDIAN, WORST = 0.02, 0.05


def main(arguments: Sequence[str] | None = None) -> int:
    """Estimate the cases, print the table; 1 when a bar fails."""
    options = _parser().parse_args(arguments)
    measured = {case["name"]: case for case in json.loads(MEASURED.read_text(encoding="utf-8"))["cases"]}
    server = ForkServer({"PYTHONWARNINGS": "ignore"}, "cpu")
    peaks: list[Compared] = []
    for case in CASES:
        with tempfile.TemporaryDirectory() as scratch:
            run = lay_out(Path(scratch) / "experiment", case.run)
            curve = recorded(read_subject(run), server, timeout_s=600, keep=None).curve
        peaks += compare(case.run, measured[case.name], curve)
    with_trial = [peak.error for peak in peaks if not peak.calibrates]
    summed = [
        summary("With each config's own figure for its kernels", with_trial, bars=True),
        summary("With one figure for each dtype", [peak.error_without_trial for peak in peaks]),
        summary("The same at the answers alone", [p.error_without_trial for p in peaks if p.is_answer]),
    ]
    table = ["| " + " | ".join(HEADER) + " |", "|" + " --- |" * len(HEADER), *(p.line() for p in peaks)]
    lines = ["# Estimates against measured peaks, on CPU", "", *_EXPLANATION, "", *summed, "", *table]
    print("\n".join(lines))
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    holds = statistics.median(map(abs, with_trial)) <= MEDIAN and max(map(abs, with_trial)) <= WORST
    return 0 if holds else 1


@dataclass(frozen=True)
class Compared:
    """One measured peak and its estimate.

    Attributes:
        case: its name.
        batch_size: sequences per micro-batch.
        over_bytes: measured, over the process's baseline.
        estimate_bytes: of tensors.
        kernels_bytes: what computing added to the baseline, at this batch_size.
        error: of the estimate, the config's own figure for its kernels taken off.
        error_without_trial: the same with the figure for its dtype.
        calibrates: the config's own figure comes from here.
        is_answer: of the probe.
    """

    case: str
    batch_size: int
    over_bytes: int
    estimate_bytes: int
    kernels_bytes: int
    error: float
    error_without_trial: float
    calibrates: bool
    is_answer: bool

    def line(self) -> str:
        cells = (
            self.case,
            f"{self.batch_size}{'*' if self.is_answer else ''}",
            f"{self.over_bytes / _MIB:.1f} MiB",
            f"{self.estimate_bytes / _MIB:.1f} MiB",
            "" if self.calibrates else f"{100 * self.error:+.2f} %",
            f"{self.kernels_bytes / _MIB:.1f} MiB",
            f"{100 * self.error_without_trial:+.2f} %",
        )
        return "| " + " | ".join(cells) + " |"


def compare(run: SmallRun, measured: dict[str, Any], curve: Curve) -> list[Compared]:
    """The plain runs of a case; the baseline comes from the probe's first trial, at batch_size 1.

    Of several ranks, which nobody asked at their last step, the largest whole peak is taken.
    """
    trial = measured["trials"][0]
    first = curve.at(trial["batch_size"])
    setup = trial["before_bytes"] - first.before_bytes
    own = trial["peak_bytes"] - setup - first.training_bytes
    found = []
    for plain in measured["plain"]:
        peak = curve.at(plain["batch_size"])
        resident = (plain["trained_bytes"] or plain["peaks_bytes"]["resident"]) - setup
        # Loading runs no kernels: the higher of two peaks over two baselines.
        loading = peak.setup_bytes > peak.training_bytes + own
        estimate = peak.setup_bytes if loading else peak.training_bytes
        over, over_without = (resident - (0 if loading else k) for k in (own, KERNELS_BYTES[run.dtype]))
        found.append(
            Compared(
                case=run.name,
                batch_size=plain["batch_size"],
                over_bytes=over,
                estimate_bytes=estimate,
                kernels_bytes=0 if loading else resident - estimate,
                error=(estimate - over) / over,
                error_without_trial=(estimate - over_without) / over_without,
                calibrates=plain["batch_size"] == trial["batch_size"],
                is_answer=plain["batch_size"] == measured["batch_size"],
            )
        )
    return found


def summary(what: str, errors: Sequence[float], *, bars: bool = False) -> str:
    sizes = [abs(error) for error in errors]
    median, worst = (
        f"{100 * value:.2f} %" + (f" (bar {100 * bar:g} %)" if bars else "")
        for value, bar in ((statistics.median(sizes), MEDIAN), (max(sizes), WORST))
    )
    return f"- {what}: {len(sizes)} peaks, median error {median}, worst {worst}."


_EXPLANATION = (
    "The measured peaks are those of exactness-cpu.json: plain `tune run`s, resident memory when the last step",
    "was logged. Taken off is what the process has besides tensors: at the first batch, and what computing adds",
    "to that (`kernels`: code, threads, buffers of oneDNN and MKL), both from the probe's trial at batch_size 1,",
    "where the estimate is therefore not judged. The last column takes one figure for each dtype instead, as a",
    "probe must that has measured nothing yet: "
    + ", ".join(f"{size // _MIB} MiB for {dtype}" for dtype, size in KERNELS_BYTES.items())
    + ". A star marks the probe's answer.",
)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--markdown", type=Path, help="write the table here")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
