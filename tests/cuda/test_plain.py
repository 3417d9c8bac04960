"""Plain trainings on a simulated card take what the trials of a probe took, to the byte."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autobatch.records import Verdict
from tests.benchmarks.plain import run_plain
from tests.cuda.conftest import MIB, MakeRun, probe, tried

pytestmark = pytest.mark.recipe


def test_peaks_at_the_answer_and_at_the_next_size(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    # For the kernels: compiled anew, they are benchmarked, with a buffer as large as the card's level 2 cache. The
    # first training would take it as the first trials did.
    cold = probe(run, max_batch_size=2)

    measured = probe(run, max_batch_size=2, force=True)
    searched = probe(run, capacity_bytes=75 * MIB, target_fraction=1.0, force=True)

    plain = {
        size: run_plain(
            run,
            "lora_finetune_single_device",
            size,
            steps=3,
            output_dir=tmp_path / f"plain-{size}",
            device="cuda",
            environment={},
        ).peaks_bytes
        for size in (1, 2)
    }
    for trial in measured.trials:
        peaks = {name: trial.peaks_bytes[name] for name in ("reserved", "allocated")}
        assert plain[trial.batch_size] == peaks
    assert tried(searched) == [(1, "fits"), (2, "over target")]
    assert plain[1]["reserved"] <= 75 * MIB < plain[2]["reserved"]
    for before, after in zip(cold.trials, measured.trials, strict=True):
        assert before.verdict is after.verdict is Verdict.FITS
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"]
