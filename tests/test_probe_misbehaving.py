"""Probes of recipes whose memory or manners are wrong: the right answer or the right refusal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autobatch.errors import UsageError
from autobatch.probing.job import run_probe
from autobatch.records import Limit, ProbeRequest, ProbeResult, Status, Verdict
from tests.conftest import MIB_EACH, MakeRun, files_of

pytestmark = pytest.mark.recipe


Probe = Callable[..., ProbeResult]


@pytest.fixture
def probe(capacity: int) -> Probe:
    """The job's story in this process, so that the tests share one fork server."""

    def call(run: Path, **options: Any) -> ProbeResult:
        return run_probe(ProbeRequest(str(run), **({"capacity_bytes": capacity} | options)))

    return call


def sizes(result: ProbeResult) -> list[int]:
    return [trial.batch_size for trial in result.trials]


def test_a_line_is_answered_exactly(make_run: MakeRun, probe: Probe) -> None:
    run = make_run("misbehaving.py", misbehaviour="none")

    result = probe(run)

    assert result.status is Status.DONE
    answer = result.batch_size
    assert answer == 14
    assert sizes(result) == [1, 14, 15]
    assert [t.verdict for t in result.trials] == [Verdict.FITS, Verdict.FITS, Verdict.OVER_TARGET]
    assert result.fit is not None
    assert result.fit.per_sequence_bytes == pytest.approx(40 * 2**20, rel=0.01)
    assert f"batch_size: {answer}  #" in (run / "finetune.yaml").read_text()


def test_a_size_that_is_over_ends_with_its_first_step_and_is_measured_whole_for_a_larger_card(
    make_run: MakeRun, probe: Probe, capacity: int
) -> None:
    run = make_run("misbehaving.py", misbehaviour="none")

    first = probe(run)
    larger = probe(run, capacity_bytes=capacity + MIB_EACH * 2**20)

    steps = {trial.batch_size: len(trial.step_peaks_bytes) for trial in first.trials}
    assert steps == {1: 3, 14: 3, 15: 1}
    assert first.trials[-1].cut_short
    assert "batch_size 15 would take at least 7" in first.message
    assert larger.batch_size == 15
    assert {t.batch_size: len(t.step_peaks_bytes) for t in larger.trials} | {14: 3} == {
        1: 3,
        14: 3,
        15: 3,
        16: 1,
    }


def test_a_step_in_the_curve(make_run: MakeRun, probe: Probe) -> None:
    result = probe(make_run("misbehaving.py", misbehaviour="step"))

    assert result.batch_size == 12
    assert sizes(result) == [1, 2, 8, 32, 21, 14, 11, 12, 13]


def test_noise_of_a_third_of_a_percent(make_run: MakeRun, probe: Probe) -> None:
    quiet = probe(make_run("misbehaving.py", misbehaviour="none"))
    config = Path(quiet.request.run_dir) / "finetune.yaml"
    config.write_text(config.read_text().replace("misbehaviour: none", "misbehaviour: noise"))

    noisy = probe(Path(quiet.request.run_dir))

    assert quiet.batch_size is not None
    assert noisy.batch_size is not None
    assert abs(noisy.batch_size - quiet.batch_size) <= 1
    assert sizes(noisy)[0] == 1
    assert {noisy.batch_size, noisy.batch_size + 1} <= set(sizes(noisy))
    assert len(noisy.trials) <= 5


def test_a_leak_is_refused_with_its_growth(make_run: MakeRun, probe: Probe) -> None:
    run = make_run("misbehaving.py", misbehaviour="leak")
    before = files_of(run)

    result = probe(run)

    assert result.status is Status.UNSTABLE
    assert result.status.exit_code == 1
    assert sizes(result) == [1]
    assert "still grows after 8 optimizer steps, by 20.0 MiB a step" in result.message
    assert files_of(run) == before


def test_nothing_fits(make_run: MakeRun, probe: Probe) -> None:
    run = make_run("misbehaving.py", misbehaviour="none")
    before = files_of(run)

    result = probe(run, capacity_bytes=600 * 2**20)

    assert result.status is Status.NOTHING_FITS
    assert result.status.exit_code == 1
    assert sizes(result) == [1]
    assert "batch_size 1 peaks at" in result.message
    assert files_of(run) == before
    stored = json.loads((run / "probe" / "result.json").read_text())
    assert stored["status"] == "nothing fits"


def test_everything_fits_up_to_the_packs(make_run: MakeRun, probe: Probe) -> None:
    run = make_run("misbehaving.py", misbehaviour="flat")

    result = probe(run)

    assert result.density is not None
    assert result.batch_size == result.density.packs
    assert result.limit is Limit.DATASET
    assert "the dataset is the limit, not the memory" in result.message


def test_max_batch_size(make_run: MakeRun, probe: Probe) -> None:
    result = probe(make_run("misbehaving.py", misbehaviour="flat"), max_batch_size=5)

    assert result.batch_size == 5
    assert result.limit is Limit.MAX_BATCH_SIZE
    assert sizes(result) == [1, 5]


def test_out_of_memory_at_the_first_size(make_run: MakeRun, probe: Probe) -> None:
    run = make_run("misbehaving.py", misbehaviour="oom", at=1)
    before = files_of(run)

    result = probe(run)

    assert result.status is Status.NOTHING_FITS
    assert [t.verdict for t in result.trials] == [Verdict.OUT_OF_MEMORY]
    assert "DefaultCPUAllocator: can't allocate memory" in result.trials[0].detail
    assert files_of(run) == before


def test_out_of_memory_above_shrinks_the_bracket(make_run: MakeRun, probe: Probe) -> None:
    result = probe(make_run("misbehaving.py", misbehaviour="oom", at=4))

    assert result.batch_size == 3
    assert sizes(result) == [1, 14, 7, 4, 2, 3]
    assert "batch_size 4 ran out of memory" in result.message


def test_a_crash_at_one_size_ends_the_probe_with_its_error(make_run: MakeRun, probe: Probe) -> None:
    run = make_run("misbehaving.py", misbehaviour="crash", at=1)
    before = files_of(run)

    result = probe(run)

    assert result.status is Status.CRASHED
    assert result.status.exit_code == 3
    assert sizes(result) == [1]
    assert "ValueError: the loss is not a number at batch_size 1" in result.message
    assert files_of(run) == before


def test_a_hang_is_ended_by_the_trial_timeout(make_run: MakeRun, probe: Probe) -> None:
    run = make_run("misbehaving.py", misbehaviour="hang", at=1)
    before = files_of(run)

    result = probe(run, trial_timeout_s=8)

    assert result.status is Status.TIMED_OUT
    assert result.status.exit_code == 3
    assert sizes(result) == [1]
    assert "--trial-timeout" in result.message
    assert files_of(run) == before


def test_a_worker_killed_once_is_measured_again(make_run: MakeRun, probe: Probe) -> None:
    run = make_run("misbehaving.py", misbehaviour="killed once", at=1)

    result = probe(run, max_batch_size=2)

    assert result.status is Status.DONE
    assert result.batch_size == 2
    assert sizes(result) == [1, 2]
    assert (run / "killed").exists()


def test_a_worker_killed_again_is_no_measurement(make_run: MakeRun, probe: Probe) -> None:
    run = make_run("misbehaving.py", misbehaviour="killed always")
    before = files_of(run)

    result = probe(run)

    assert result.status is Status.CRASHED
    assert "SIGKILL" in result.message
    assert files_of(run) == before


def test_a_recipe_that_exits_with_0_early_is_no_measurement(make_run: MakeRun, probe: Probe) -> None:
    run = make_run("misbehaving.py", misbehaviour="leaves early")
    before = files_of(run)

    result = probe(run)

    assert result.status is Status.CRASHED
    assert "the recipe ended by itself with 0" in result.message
    assert files_of(run) == before


def test_fewer_packs_than_accumulation_steps_is_refused(make_run: MakeRun, probe: Probe) -> None:
    run = make_run("misbehaving.py", misbehaviour="flat")
    config = run / "finetune.yaml"
    config.write_text(
        config.read_text().replace("gradient_accumulation_steps: 1", "gradient_accumulation_steps: 5000")
    )
    before = files_of(run)

    result = probe(run)

    assert result.status is Status.NOTHING_FITS
    assert "gradient_accumulation_steps of 5000" in result.message
    assert result.trials == ()
    assert files_of(run) == before


def test_a_missing_card_is_refused(make_run: MakeRun, probe: Probe) -> None:
    run = make_run()
    config = run / "finetune.yaml"
    config.write_text(config.read_text().replace("device: cpu", "device: cuda"))

    with pytest.raises(UsageError) as caught:
        probe(run)

    assert "no such card" in str(caught.value)
