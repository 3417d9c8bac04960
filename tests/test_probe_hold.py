"""Probes that hold the effective batch or prefer the fastest: real memory, real recipes, a real training."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autobatch.demo import SmallRun, lay_out
from autobatch.probing.events import Event, TrialEnded, Wrote
from autobatch.probing.job import run_probe
from autobatch.probing.verification import failed_checks
from autobatch.records import (
    EffectiveBatch,
    Limit,
    Preference,
    ProbeRequest,
    ProbeResult,
    Status,
    Unit,
    Verdict,
)
from tests.conftest import MakeRun, files_of
from tests.trainings import ROOT, STDOUT_LOGGER, TUNE

pytestmark = pytest.mark.recipe

Probe = Callable[..., ProbeResult]


@pytest.fixture
def probe(capacity: int) -> Probe:
    """The job's story in this process; 14 sequences of the misbehaving recipe fit."""

    def call(run: Path, tell: Callable[[Event], None] = lambda event: None, **options: Any) -> ProbeResult:
        return run_probe(ProbeRequest(str(run), **({"capacity_bytes": capacity} | options)), tell)

    return call


def sizes(result: ProbeResult) -> list[int]:
    return [trial.batch_size for trial in result.trials]


def settings_of(run: Path) -> list[str]:
    """The lines of finetune.yaml that a probe may write."""
    text = (run / "finetune.yaml").read_text()
    return re.findall(r"(?m)^(?:batch_size|gradient_accumulation_steps): \d+", text)


def test_the_largest_division_is_measured_and_written_once(make_run: MakeRun, probe: Probe) -> None:
    run = make_run("misbehaving.py", misbehaviour="none")

    first = probe(run, hold_effective_batch=True, effective_batch=60)

    assert first.status is Status.DONE, first.message
    assert sizes(first) == [1, 14, 15, 12]
    assert (first.batch_size, first.gradient_accumulation_steps, first.largest_batch_size) == (12, 5, 14)
    assert first.limit is Limit.HOLD
    assert settings_of(run) == ["batch_size: 12", "gradient_accumulation_steps: 5"]
    assert first.density is not None
    density = first.density.examples_per_pack
    assert first.before == EffectiveBatch(4, 1, 4, 4 * density)
    assert first.after == EffectiveBatch(12, 5, 60, 60 * density)
    assert first.message.startswith("batch_size 12 x gradient_accumulation_steps 5 = 60 sequences, about ")
    assert first.message.endswith("; 14 fits too, and no size from 13 to 14 divides 60")
    assert "run1: 5 (effective batch size: 60 sequences" in (run.parent / "runs_plan.md").read_text()
    assert failed_checks(run) == []

    after = files_of(run)
    again = probe(run, hold_effective_batch=True, effective_batch=60)
    default = probe(run, hold_effective_batch=True)

    assert again.reused
    assert (default.batch_size, default.gradient_accumulation_steps, default.before) == (12, 5, first.before)
    assert files_of(run) == after

    text = (run / "finetune.yaml").read_text()
    (run / "finetune.yaml").write_text(text.replace("_steps: 5", "_steps: 4"))
    assert [check for check in failed_checks(run) if "gradient_accumulation_steps is 4, and 5 holds" in check]


def test_the_present_product_is_the_limit_and_max_batch_size_cuts_it(make_run: MakeRun, probe: Probe) -> None:
    run = make_run("misbehaving.py", misbehaviour="none")

    whole = probe(run, hold_effective_batch=True)
    # Measured with two micro-batches, trained with one: what verify compares is what is trained with.
    trained = failed_checks(run)
    cut = probe(run, hold_effective_batch=True, max_batch_size=3)

    assert (whole.batch_size, whole.gradient_accumulation_steps, whole.limit) == (4, 1, Limit.HOLD)
    assert sizes(whole) == [1, 4]
    assert whole.message.endswith("; --hold-effective-batch is the limit, not the memory")
    assert trained == []
    assert (cut.batch_size, cut.gradient_accumulation_steps, cut.limit) == (2, 2, Limit.MAX_BATCH_SIZE)
    assert sizes(cut) == [1, 2]
    assert failed_checks(run) == []


def test_more_than_the_dataset_has_is_cut_and_said(make_run: MakeRun, probe: Probe) -> None:
    run = make_run("misbehaving.py", misbehaviour="flat")

    result = probe(run, hold_effective_batch=True, effective_batch=5000)

    assert result.density is not None
    packs = result.density.packs
    assert (result.batch_size, result.gradient_accumulation_steps) == (packs, 1)
    assert result.limit is Limit.DATASET
    assert result.message.endswith(f"the dataset is the limit, not the memory: {packs} packs")
    assert result.remarks[0].startswith(f"{packs} sequences an update, not 5000: the dataset has {packs}")


def test_killed_after_the_files_were_written_then_cut_short(
    make_run: MakeRun, probe: Probe, capacity: int
) -> None:
    run = make_run("misbehaving.py", misbehaviour="none")
    wrote: list[Event] = []

    def interrupt(event: Event) -> None:
        if isinstance(event, Wrote):
            wrote.append(event)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        probe(run, interrupt, hold_effective_batch=True, effective_batch=24)
    events: list[Event] = []
    result = probe(run, events.append, hold_effective_batch=True, effective_batch=24)

    assert len(wrote) == 1
    assert settings_of(run) == ["batch_size: 12", "gradient_accumulation_steps: 2"]
    assert all(event.resumed for event in events if isinstance(event, TrialEnded))
    assert result.before is not None
    assert (result.before.batch_size, result.before.gradient_accumulation_steps) == (4, 1)

    journal = run / "probe" / "trials.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join(line for line in lines if '"batch_size": 12, "verdict"' not in line))
    request = ProbeRequest(str(run), capacity_bytes=capacity, hold_effective_batch=True, effective_batch=24)
    after = files_of(run)
    refused = run_probe(request, deadline=1.0)
    assert (refused.status, sizes(refused)) == (Status.OUT_OF_TIME, [1, 14, 15])
    assert files_of(run) == after

    partial = run_probe(replace(request, accept_partial=True), deadline=1.0)
    assert (partial.batch_size, partial.gradient_accumulation_steps) == (1, 24)
    assert partial.limit is Limit.TIME
    assert settings_of(run) == ["batch_size: 1", "gradient_accumulation_steps: 24"]


def test_the_smallest_that_is_as_fast(make_run: MakeRun, probe: Probe) -> None:
    run = make_run("misbehaving.py", misbehaviour="saturates")

    largest = probe(run)
    fastest = probe(run, prefer=Preference.THROUGHPUT)

    assert (largest.batch_size, largest.limit, fastest.largest_batch_size) == (14, Limit.MEMORY, 14)
    assert (fastest.batch_size, fastest.limit) == (4, Limit.THROUGHPUT)
    assert sizes(fastest) == [1, 14, 15, 4, 2]
    rates = {trial.batch_size: trial.tokens_per_second or 0.0 for trial in fastest.trials}
    assert rates[4] > 1.5 * rates[2] > 2 * rates[1]
    assert settings_of(run)[0] == "batch_size: 4"
    # That 15 is over the target is all that it was tried for.
    assert {t.batch_size: len(t.step_seconds) for t in fastest.trials} == {1: 3, 14: 3, 15: 1, 4: 3, 2: 3}


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a full fine-tune whose model tells what it is given."""
    directory = tmp_path_factory.mktemp("full") / "experiment"
    small = SmallRun(
        method="full",
        examples=120,
        max_seq_len=128,
        num_layers=1,
        embed_dim=64,
        num_heads=2,
        num_kv_heads=2,
        intermediate_dim=128,
    )
    lay_out(directory, small)
    run = directory / "run1"
    config = run / "finetune.yaml"
    text = config.read_text()
    text = text.replace("torchtune.models.llama3_2.llama3_2\n", "tests.recipes.models.telling_llama3_2\n")
    assert "telling" in text
    config.write_text(re.sub(r"(?m)^gradient_accumulation_steps:.*\n", "", text))
    return run


def test_a_full_fine_tune_updates_on_as_many_sequences_as_are_held(full: Path, tmp_path: Path) -> None:
    run = tmp_path / "experiment" / "run1"
    shutil.copytree(full.parent, run.parent)

    result = run_probe(
        ProbeRequest(str(run), hold_effective_batch=True, effective_batch=24, max_batch_size=3)
    )

    assert result.status is Status.DONE, result.message
    assert [(t.batch_size, t.verdict) for t in result.trials] == [(1, Verdict.FITS), (3, Verdict.FITS)]
    assert (result.batch_size, result.gradient_accumulation_steps) == (3, 8)
    for trial in result.trials:
        told = re.findall(r"rows (\d+)", (run / trial.log).read_text())
        assert told == [str(trial.batch_size)] * 2 * len(trial.step_peaks_bytes)

    log = _train(run)

    updates, rows = [], 0
    for line in re.findall(r"(?m)(?:^|\r)(rows \d+|Step \d+ \|)", log):
        if line.startswith("rows"):
            rows += int(line.removeprefix("rows "))
        else:
            updates.append(rows)
            rows = 0
    assert result.density is not None
    assert updates == [24] * (result.density.packs // 24)
    assert len(updates) >= 2


def test_the_optimizer_in_the_backward_pass_takes_the_whole_or_nothing(full: Path, tmp_path: Path) -> None:
    run = tmp_path / "experiment" / "run1"
    shutil.copytree(full.parent, run.parent)
    config = run / "finetune.yaml"
    text = re.sub(r"(?m)^optimizer_in_bwd: .*$", "optimizer_in_bwd: True", config.read_text())
    config.write_text(re.sub(r"(?m)^clip_grad_norm: .*$", "clip_grad_norm: null", text))
    assert "optimizer_in_bwd: True" in config.read_text()
    before = files_of(run)

    refused = run_probe(
        ProbeRequest(str(run), hold_effective_batch=True, effective_batch=4, max_batch_size=2)
    )

    assert (refused.status, refused.status.exit_code) == (Status.NOTHING_FITS, 1)
    assert "optimizer_in_bwd: True forbids gradient accumulation" in refused.message
    assert files_of(run) == before

    whole = run_probe(
        ProbeRequest(
            str(run), hold_effective_batch=True, effective_batch=10, effective_batch_in=Unit.EXAMPLES
        )
    )

    assert whole.density is not None
    assert whole.batch_size == round(10 / whole.density.examples_per_pack)
    assert sizes(whole) == [whole.batch_size]
    assert whole.gradient_accumulation_steps == 1
    assert failed_checks(run) == []


def _train(run: Path) -> str:
    """The log of the run's training, as its script would start it; on stdout, in the order of what happened."""
    ended = subprocess.run(
        [
            *(str(TUNE), "run", "full_finetune_single_device", "--config", "finetune.yaml"),
            *(*STDOUT_LOGGER, "epochs=1", "log_every_n_steps=1"),
        ],
        cwd=run,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    return ended.stdout
