"""The report as text, compared whole."""

from __future__ import annotations

from dataclasses import replace

import pytest

from autobatch.records import (
    Density,
    Device,
    EffectiveBatch,
    Fit,
    Limit,
    Metric,
    ProbeRequest,
    ProbeResult,
    Status,
    Trial,
    Verdict,
)
from autobatch.report.table import density_line, fit_line, report_lines, result_lines, text_table, trial_row
from autobatch.world import World

GIB = 2**30
DENSITY = Density(packed=True, examples=8000, packs=108, tokens=219_414, max_seq_len=2048, longest_example=66)
DONE = ProbeResult(
    status=Status.DONE,
    message="batch_size 24 (peak 55.1 GiB, 68.9 % of 80.0 GiB); batch_size 25 would take 71.7 %",
    request=ProbeRequest("/runs/run1"),
    recipe="lora_finetune_single_device, from finetune.slurm:14",
    device=Device("cuda", "NVIDIA H100 80GB HBM3", 80 * GIB),
    metric=Metric.RESERVED,
    capacity_bytes=80 * GIB,
    target_bytes=56 * GIB,
    batch_size=24,
    batch_size_before=4,
    limit=Limit.MEMORY,
    peak_bytes=int(55.1 * GIB),
    before=EffectiveBatch(4, 2, 8, 592.6),
    after=EffectiveBatch(24, 2, 48, 3555.6),
    remarks=("a remark",),
    trials=(
        Trial(
            1,
            Verdict.FITS,
            peak_bytes=int(4.04 * GIB),
            tokens_per_second=9120.4,
            seconds=6.04,
        ),
        Trial(24, Verdict.FITS, peak_bytes=int(55.1 * GIB), tokens_per_second=48211.7, seconds=9.9),
        Trial(25, Verdict.OVER_TARGET, peak_bytes=int(57.36 * GIB), alloc_retries=3, seconds=75),
        Trial(40, Verdict.OUT_OF_MEMORY, seconds=4.5, detail="CUDA out of memory"),
    ),
    fit=Fit(1.8 * GIB, 2.22 * GIB, 0.0012),
    density=DENSITY,
    versions={"python": "3.11.7", "torch": "2.13.0"},
    written=("finetune.yaml", "../runs_plan.md"),
    ended="2026-01-02T03:04:05+00:00",
    seconds=95.4,
)

REPORT = """\
/runs/run1: done, 2026-01-02T03:04:05+00:00
recipe: lora_finetune_single_device, from finetune.slurm:14
device: NVIDIA H100 80GB HBM3; capacity 80.0 GiB, target 56.0 GiB (70 %) of reserved memory

batch_size      peak  of capacity  tokens/s        time  verdict
         1  4.04 GiB        5.0 %      9120       6.0 s  fits
        24  55.1 GiB       68.9 %     48212       9.9 s  fits
        25  57.4 GiB       71.7 %         -  1 min 15 s  over target (3 allocation retries)
        40         -            -         -       4.5 s  out of memory

batch_size 24 (peak 55.1 GiB, 68.9 % of 80.0 GiB); batch_size 25 would take 71.7 %
a remark
        batch_size  gradient_accumulation_steps  sequences an update  about examples
before           4                            2                    8  593
after           24                            2                   48  3556
packing density 74.07 examples per pack: 8000 examples in 108 packs of 2048 tokens, 99.2 % of them not padding
fit: 1.80 GiB + 2.22 GiB for each sequence (largest residual 0.12 %)
written: finetune.yaml, ../runs_plan.md
4 trials, 1 min 35 s in all; python 3.11.7, torch 2.13.0"""

REFUSAL = """\
/runs/run1: crashed, 2026-01-02T03:04:05+00:00
recipe: lora_finetune_single_device, from finetune.slurm:14
the dataset can't be packed
0 trials, 2.0 s in all; torch 2.13.0"""


def test_the_report_of_an_answer() -> None:
    assert "\n".join(report_lines(DONE)) == REPORT


def test_a_cell_stays_on_its_line() -> None:
    assert text_table(("run", "n"), [("a\nb\x1b[31m", "1")], numbers=False) == ["run       n", "a b [31m  1"]


def test_the_report_of_a_probe_that_never_measured() -> None:
    refused = ProbeResult(
        Status.CRASHED,
        "the dataset can't be packed",
        DONE.request,
        recipe=DONE.recipe,
        versions={"torch": "2.13.0"},
        ended=DONE.ended,
        seconds=2,
    )

    assert "\n".join(report_lines(refused)) == REFUSAL


@pytest.mark.parametrize(
    ("density", "line"),
    [
        pytest.param(
            DENSITY,
            "packing density 74.07 examples per pack: 8000 examples in 108 packs of 2048 tokens, 99.2 % of them "
            "not padding",
            id="counted",
        ),
        pytest.param(
            replace(DENSITY, sampled_examples=500, standard_error=0.456),
            "packing density about 74.07 examples per pack: 8000 examples in about 108 packs of 2048 tokens, "
            "99.2 % of them not padding (extrapolated from 500 examples; standard error ± 0.46)",
            id="sampled",
        ),
        pytest.param(
            replace(DENSITY, sampled_examples=500),
            "packing density about 74.07 examples per pack: 8000 examples in about 108 packs of 2048 tokens, "
            "99.2 % of them not padding (extrapolated from 500 examples; standard error unknown)",
            id="sampled, error unknown",
        ),
        pytest.param(
            replace(DENSITY, packed=False),
            "unpacked: 8000 examples; the longest has 66 tokens (max_seq_len 2048)",
            id="unpacked",
        ),
        pytest.param(
            replace(DENSITY, packed=False, max_seq_len=None),
            "unpacked: 8000 examples; the longest has 66 tokens",
            id="unpacked, no max_seq_len",
        ),
    ],
)
def test_density_line(density: Density, line: str) -> None:
    assert density_line(density) == line


def test_fit_line_of_a_negative_intercept() -> None:
    line = fit_line(Fit(-0.5 * GIB, 2 * GIB, 0))

    assert line == "fit: -512.0 MiB + 2.00 GiB for each sequence (largest residual 0.00 %)"


def test_a_row_without_a_capacity() -> None:
    row = trial_row(Trial(1, Verdict.CRASHED, peak_bytes=GIB, seconds=1), None)

    assert row == ("1", "1.00 GiB", "-", "-", "1.0 s", "crashed")


def test_a_peak_that_is_only_a_lower_bound() -> None:
    row = trial_row(Trial(9, Verdict.OVER_TARGET, peak_bytes=3 * GIB, cut_short=True, seconds=1), 4 * GIB)

    assert row == ("9", ">= 3.00 GiB", ">= 75.0 %", "-", "1.0 s", "over target")


def test_nothing_is_said_to_be_written_when_nothing_was() -> None:
    lines = result_lines(replace(DONE, written=(), fit=None, density=None, remarks=(), before=None))

    assert lines == [DONE.message]


def test_a_table_is_as_wide_as_its_widest_cells() -> None:
    assert text_table(("a", "long name", "last"), [("100", "1", "x"), ("2", "3", "")]) == [
        "  a  long name  last",
        "100          1  x",
        "  2          3",
    ]


def test_the_peaks_of_every_rank() -> None:
    peaks = tuple({"reserved": int(gib * GIB), "allocated": GIB} for gib in (55.1, 54.9))
    trials = (replace(DONE.trials[1], peaks_by_rank=peaks),)

    lines = result_lines(replace(DONE, world=World(1, 2, 2), trials=trials))

    assert "peaks by rank (2 processes on one node): 55.1 GiB, 54.9 GiB" in lines
    assert not any("by rank" in line for line in result_lines(DONE))
