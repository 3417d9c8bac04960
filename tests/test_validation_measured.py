"""What was measured replaces the rule of thumb."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from autobatch.probing.job import run_probe
from autobatch.records import Limit, Metric, ProbeRequest, ProbeResult, Status, Trial, Verdict
from autobatch.validation.findings import Collector
from autobatch.validation.limits import LIMITS
from autobatch.validation.measured import Measured
from autobatch.validation.memory_checks import check_batch_size
from autobatch.validation.subject import read_subject
from tests.validated import changed, found, report_of, severities, write_run

GIB = 2**30


def result(limit: Limit) -> ProbeResult:
    """40 fits 70 % of 80 GiB."""
    return ProbeResult(
        Status.DONE,
        "40 fits",
        ProbeRequest("run1"),
        metric=Metric.RESERVED,
        capacity_bytes=80 * GIB,
        target_bytes=56 * GIB,
        batch_size=40,
        limit=limit,
        peak_bytes=55 * GIB,
        trials=(
            Trial(1, Verdict.FITS, 5 * GIB),
            Trial(40, Verdict.FITS, 55 * GIB),
            Trial(41, Verdict.OVER_TARGET, 57 * GIB),
            Trial(64, Verdict.OUT_OF_MEMORY),
        ),
    )


@pytest.mark.parametrize(
    ("size", "limit", "severity", "what"),
    [
        pytest.param(
            40,
            Limit.MEMORY,
            "info",
            "batch_size 40 is measured, peak 55.0 GiB, 68.8 % of 80.0 GiB",
            id="the answer",
        ),
        pytest.param(
            1,
            Limit.MEMORY,
            "info",
            "batch_size 1 is measured, peak 5.00 GiB, 6.2 % of 80.0 GiB; 40 fits too",
            id="a trial",
        ),
        pytest.param(
            16, Limit.MEMORY, "info", "batch_size 16 is below 40, which was measured to fit", id="below"
        ),
        pytest.param(
            41,
            Limit.MEMORY,
            "error",
            "batch_size 41 is above 40, the largest that was measured to fit; 41 was measured: over target, "
            "peak 57.0 GiB, 71.2 % of 80.0 GiB",
            id="measured over target",
        ),
        pytest.param(
            64,
            Limit.MAX_BATCH_SIZE,
            "error",
            "batch_size 64 is above 40, the largest that was measured to fit; 64 was measured: out of memory",
            id="measured out of memory",
        ),
        pytest.param(
            100,
            Limit.MEMORY,
            "error",
            "batch_size 100 is above 40, the largest that was measured to fit",
            id="above",
        ),
        pytest.param(
            100,
            Limit.MAX_BATCH_SIZE,
            "warning",
            "batch_size 100 is above 40; larger sizes weren't measured, because of --max-batch-size",
            id="above what was asked",
        ),
        pytest.param(
            100,
            Limit.DATASET,
            "warning",
            "batch_size 100 is above 40; larger sizes weren't measured, because of dataset",
            id="above what the dataset held",
        ),
    ],
)
def test_the_measurement_counts(size: int, limit: Limit, severity: str, what: str, tmp_path: Path) -> None:
    run = write_run(tmp_path, config=changed(batch_size=size))
    subject = read_subject(run / "finetune.yaml", Collector())
    assert subject is not None
    c = Collector()

    check_batch_size(subject, LIMITS[0], Measured(result(limit)), c)

    (finding,) = c.sorted()
    assert (finding.severity.value, finding.check, finding.what) == (severity, "batch-size-measured", what)


@pytest.mark.parametrize(
    ("size", "severity", "what", "remedy"),
    [
        pytest.param(
            32,
            "info",
            "batch_size 32 is measured, peak 44.0 GiB, 55.0 % of 80.0 GiB; 40 fits too",
            "",
            id="as held",
        ),
        pytest.param(
            42,
            "error",
            "batch_size 42 is above 40, the largest that was measured to fit",
            "set batch_size: 32, or probe again with another --target or --capacity",
            id="above what fits",
        ),
    ],
)
def test_a_held_answer_is_not_the_largest_that_fits(
    size: int, severity: str, what: str, remedy: str, tmp_path: Path
) -> None:
    run = write_run(tmp_path, config=changed(batch_size=size))
    subject = read_subject(run / "finetune.yaml", Collector())
    assert subject is not None
    c = Collector()
    found = result(Limit.HOLD)
    trials = (*found.trials, Trial(32, Verdict.FITS, 44 * GIB))
    held = replace(found, batch_size=32, largest_batch_size=40, trials=trials)

    check_batch_size(subject, LIMITS[0], Measured(held), c)

    (finding,) = c.sorted()
    assert (finding.severity.value, finding.what, finding.remedy) == (severity, what, remedy)


@pytest.fixture(scope="module")
def probed(laid_out: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An experiment of which run1 was probed, up to 2."""
    experiment = tmp_path_factory.mktemp("probed") / "experiment"
    shutil.copytree(laid_out, experiment)
    answer = run_probe(ProbeRequest(str(experiment / "run1"), max_batch_size=2))
    assert answer.status is Status.DONE
    return experiment


@pytest.fixture
def run1(probed: Path) -> Iterator[Path]:
    """The probed run, where it was probed; the test may change its config and its result."""
    run = probed / "run1"
    before = {path: path.read_bytes() for path in (run / "finetune.yaml", run / "probe" / "result.json")}
    yield run
    for path, content in before.items():
        path.write_bytes(content)


def set_value(run: Path, before: str, after: str) -> None:
    config = run / "finetune.yaml"
    text = config.read_text()
    assert before in text
    config.write_text(text.replace(before, after))


def test_a_real_probe_holds(run1: Path) -> None:
    report = report_of(run1)

    (finding,) = found(report, "batch-size-measured")
    assert finding.severity.value == "info"
    assert finding.what.startswith("batch_size 2 is measured, peak ")
    density = json.loads((run1 / "probe" / "density.json").read_text())["density"]
    assert report.facts["examples_per_pack"] == density["examples"] / density["packs"]


def test_a_larger_batch_size_was_not_measured(run1: Path) -> None:
    set_value(run1, "\nbatch_size: 2", "\nbatch_size: 3")

    assert severities(report_of(run1), "batch-size-measured") == ["warning"]


def test_packs_of_a_real_probe_make_zero_steps(run1: Path) -> None:
    packs = json.loads((run1 / "probe" / "density.json").read_text())["density"]["packs"]
    set_value(run1, "\nbatch_size: 2", f"\nbatch_size: {packs + 1}")

    (finding,) = found(report_of(run1), "steps")

    assert f"more than the {packs} packs of the dataset" in finding.what


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        pytest.param("lora_rank: 8", "lora_rank: 16", "is for another config", id="another model"),
        pytest.param("packed: True", "packed: False", "is for packed rows", id="unpacked"),
        pytest.param("\ndevice: cpu", "\ndevice: tpu", "has problems", id="a run that can't be read"),
    ],
)
def test_a_result_for_another_config_is_stale(before: str, after: str, what: str, run1: Path) -> None:
    set_value(run1, before, after)

    (finding,) = found(report_of(run1), "batch-size-measured")

    assert finding.severity.value == "info"
    assert what in finding.what


def test_a_probe_of_unpacked_rows_says_nothing_of_packed_ones(run1: Path) -> None:
    path = run1 / "probe" / "result.json"
    data = json.loads(path.read_text())
    data["request"]["packing"] = "unpacked"
    path.write_text(json.dumps(data))

    (finding,) = found(report_of(run1), "batch-size-measured")

    assert "is for unpacked rows" in finding.what


@pytest.mark.parametrize("text", ["", "{", "[]", '{"status": "no"}', "null"], ids=repr)
def test_a_damaged_result_is_none(text: str, run1: Path) -> None:
    (run1 / "probe" / "result.json").write_text(text)

    assert found(report_of(run1), "batch-size-measured") == []


def test_a_result_of_a_newer_autobatch_is_told(run1: Path) -> None:
    (run1 / "probe" / "result.json").write_text('{"schema_version": 99}')

    (finding,) = found(report_of(run1), "batch-size-measured")

    assert "newer autobatch" in finding.what


def test_a_probe_without_an_answer_is_told(tmp_path: Path) -> None:
    run = write_run(tmp_path, config=changed(batch_size=9))
    subject = read_subject(run / "finetune.yaml", Collector())
    assert subject is not None
    c = Collector()

    check_batch_size(
        subject, LIMITS[0], Measured(stale="the last probe found no batch_size: nothing fits"), c
    )

    assert [f.severity.value for f in c.sorted()] == ["error", "info"]


def test_a_fitting_trial_above_the_answer_is_no_error(tmp_path: Path) -> None:
    run = write_run(tmp_path, config=changed(batch_size=40))
    subject = read_subject(run / "finetune.yaml", Collector())
    assert subject is not None
    c = Collector()

    check_batch_size(subject, LIMITS[0], Measured(replace(result(Limit.MEMORY), batch_size=1)), c)

    assert [f.severity.value for f in c.sorted()] == ["info"]
