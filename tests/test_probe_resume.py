"""Probes that are killed, and what the next one makes of it."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from autobatch.errors import UsageError
from autobatch.probing.events import Event, TrialEnded, Wrote
from autobatch.probing.job import run_probe
from autobatch.records import ProbeRequest, ProbeResult, Status
from tests.conftest import MakeRun, files_of, with_recipe

pytestmark = pytest.mark.recipe

Probe = Callable[[Path], tuple[list[Event], ProbeResult]]


@pytest.fixture(scope="module")
def probe(capacity: int) -> Probe:
    """The job's story in this process; returns what it told, too."""

    def call(run: Path) -> tuple[list[Event], ProbeResult]:
        events: list[Event] = []
        return events, run_probe(ProbeRequest(str(run), capacity_bytes=capacity), events.append)

    return call


def probe_until_killed(run: Path, capacity: int, what: str, count: int, *forced: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.killed_probe", str(run), str(capacity), what, str(count), *forced],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        check=False,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()


def without_figures(files: dict[str, bytes]) -> dict[str, bytes]:
    """The files with measured memory as `#`: repeats of a trial agree to 0.05 %, not to the last byte."""
    return {name: re.sub(rb"[0-9.]+ (MiB|GiB|%)", rb"# \1", content) for name, content in files.items()}


def measured_sizes(run: Path) -> list[int]:
    lines = (run / "probe" / "trials.jsonl").read_text().splitlines()
    return [json.loads(line)["trial"]["batch_size"] for line in lines if "trial" in json.loads(line)]


def processes_in(directory: Path) -> list[str]:
    """Command lines of the processes whose working directory it is."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if (process / "cwd").resolve() == directory:
                    found.append((process / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
    return found


@pytest.fixture(scope="module")
def answered(laid_out: Path, probe: Probe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files after a probe that nobody disturbed."""
    experiment = tmp_path_factory.mktemp("undisturbed") / "experiment"
    shutil.copytree(laid_out, experiment)
    run = experiment / "run1"
    with_recipe(run, "misbehaving.py", misbehaviour="none")
    probe(run)
    return without_figures(files_of(run))


def test_killed_after_the_second_trial_goes_on_from_the_journal(
    make_run: MakeRun, probe: Probe, capacity: int, answered: dict[str, bytes]
) -> None:
    run = make_run("misbehaving.py", misbehaviour="none")
    untouched = files_of(run)

    probe_until_killed(run, capacity, "trials", 2)

    assert files_of(run) == untouched
    assert len(measured_sizes(run)) == 2
    events, result = probe(run)
    resumed = [event.resumed for event in events if isinstance(event, TrialEnded)]
    assert resumed == [True, True, False]
    sizes = measured_sizes(run)
    assert len(sizes) == len(set(sizes)) == 3
    assert result.status is Status.DONE
    assert without_figures(files_of(run)) == answered


@pytest.mark.parametrize(
    ("rename", "written"),
    [
        pytest.param(1, [], id="before finetune.yaml"),
        pytest.param(2, ["run1/finetune.yaml"], id="between finetune.yaml and runs_plan.md"),
        pytest.param(3, ["run1/finetune.yaml", "runs_plan.md"], id="between runs_plan.md and result.json"),
    ],
)
def test_killed_between_two_writes(
    make_run: MakeRun,
    probe: Probe,
    capacity: int,
    answered: dict[str, bytes],
    rename: int,
    written: list[str],
) -> None:
    run = make_run("misbehaving.py", misbehaviour="none")
    untouched = files_of(run)

    probe_until_killed(run, capacity, "rename", rename)

    for name, content in without_figures(files_of(run)).items():
        assert content == (answered[name] if name in written else without_figures(untouched)[name])
    assert not (run / "probe" / "result.json").exists()
    events, result = probe(run)
    assert all(event.resumed for event in events if isinstance(event, TrialEnded))
    assert without_figures(files_of(run)) == answered
    assert result.batch_size_before == 4
    assert json.loads((run / "probe" / "result.json").read_text())["status"] == "done"


def test_force_discards_only_what_another_attempt_has_measured(
    make_run: MakeRun, probe: Probe, capacity: int
) -> None:
    run = make_run("misbehaving.py", misbehaviour="none")
    rows = run / "probe" / "rows.pt"
    request = ProbeRequest(str(run), capacity_bytes=capacity, force=True)

    def resumed(attempt: str) -> list[bool]:
        events: list[Event] = []
        assert run_probe(request, events.append, attempt=attempt).status is Status.DONE
        return [event.resumed for event in events if isinstance(event, TrialEnded)]

    probe(run)
    before = rows.stat().st_mtime_ns
    probe_until_killed(run, capacity, "trials", 2, "a")
    packed = rows.stat().st_mtime_ns
    measured = len(measured_sizes(run))

    requeued = resumed("a")

    assert packed != before
    assert measured == 2
    assert requeued == [True, True, False]
    assert rows.stat().st_mtime_ns == packed
    assert not any(resumed("b"))
    assert rows.stat().st_mtime_ns != packed
    assert not any(resumed(""))


def test_run_again_measures_and_writes_nothing(make_run: MakeRun, probe: Probe, capacity: int) -> None:
    run = make_run("misbehaving.py", misbehaviour="none")
    probe(run)
    after = files_of(run)
    stored = (run / "probe" / "result.json").read_bytes()

    events, result = probe(run)

    assert result.reused
    assert all(event.resumed for event in events if isinstance(event, TrialEnded))
    assert not [event for event in events if isinstance(event, Wrote)]
    assert files_of(run) == after
    assert (run / "probe" / "result.json").read_bytes() == stored


def test_another_target_reuses_the_measurements(make_run: MakeRun, probe: Probe, capacity: int) -> None:
    run = make_run("misbehaving.py", misbehaviour="none")
    _, first = probe(run)
    events: list[Event] = []

    second = run_probe(ProbeRequest(str(run), capacity_bytes=capacity, target_fraction=0.5), events.append)

    assert first.batch_size is not None
    assert second.batch_size is not None
    assert second.batch_size < first.batch_size
    resumed = [event.trial.batch_size for event in events if isinstance(event, TrialEnded) and event.resumed]
    assert resumed[0] == 1


def test_a_changed_model_is_measured_anew(make_run: MakeRun, probe: Probe, capacity: int) -> None:
    run = make_run("misbehaving.py", misbehaviour="none")
    probe(run)
    config = run / "finetune.yaml"
    config.write_text(config.read_text().replace("lora_rank: 8", "lora_rank: 16"))

    events, _ = probe(run)

    assert not any(event.resumed for event in events if isinstance(event, TrialEnded))


def test_a_damaged_journal_line_is_measured_again(make_run: MakeRun, probe: Probe, capacity: int) -> None:
    run = make_run("misbehaving.py", misbehaviour="none")
    _, first = probe(run)
    journal = run / "probe" / "trials.jsonl"
    lines = journal.read_text().splitlines()
    lines[2] = lines[2][: len(lines[2]) // 2]
    journal.write_text("\n".join(lines))

    events, second = probe(run)

    assert [event.resumed for event in events if isinstance(event, TrialEnded)] == [True, False, True]
    assert second.batch_size == first.batch_size


def test_stored_rows_and_readings_that_were_damaged_are_made_again(
    make_run: MakeRun, probe: Probe, capacity: int
) -> None:
    run = make_run("misbehaving.py", misbehaviour="none")
    _, first = probe(run)
    rows, journal = run / "probe" / "rows.pt", run / "probe" / "trials.jsonl"
    rows.write_bytes(rows.read_bytes()[:1000])
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    for line in lines:
        if "trial" in line:
            line["trial"]["peaks_bytes"] = {}
    journal.write_text("".join(f"{json.dumps(line)}\n" for line in lines))

    events, second = probe(run)

    assert not any(event.resumed for event in events if isinstance(event, TrialEnded))
    assert (second.status, second.batch_size) == (Status.DONE, first.batch_size)


def test_a_result_of_a_newer_version_is_left_alone(make_run: MakeRun, probe: Probe, capacity: int) -> None:
    run = make_run("misbehaving.py", misbehaviour="none")
    (run / "probe").mkdir()
    newer = '{"schema_version": 99}\n'
    (run / "probe" / "result.json").write_text(newer)

    with pytest.raises(UsageError) as caught:
        probe(run)

    assert "newer autobatch" in str(caught.value)
    assert (run / "probe" / "result.json").read_text() == newer


def test_a_config_changed_meanwhile_is_not_overwritten(
    make_run: MakeRun, probe: Probe, capacity: int
) -> None:
    run = make_run("misbehaving.py", misbehaviour="none")
    config = run / "finetune.yaml"
    request = ProbeRequest(str(run), capacity_bytes=capacity)
    edited = config.read_text().replace("lora_rank: 8", "lora_rank: 16")

    def edit(event: Event) -> None:
        if isinstance(event, TrialEnded):
            config.write_text(edited)

    with pytest.raises(UsageError) as caught:
        run_probe(request, edit)

    assert "changed while it was being measured" in str(caught.value)
    assert config.read_text() == edited


def test_a_second_probe_of_the_same_run_is_refused_and_a_killed_one_leaves_nothing(
    make_run: MakeRun, probe: Probe, capacity: int
) -> None:
    run = make_run("misbehaving.py", misbehaviour="hang", at=1)
    command = [sys.executable, "-m", "autobatch.cli.main", "probe", str(run), "--cluster", "inline"]
    first = subprocess.Popen([*command, "--capacity", str(capacity)], stderr=subprocess.DEVNULL)
    try:
        _wait_until(lambda: bool(processes_in(run)), "the trial runs")

        second = subprocess.run(command, capture_output=True, text=True, check=False)

        assert second.returncode == 2
        assert "another probe of this run is under way" in second.stderr
    finally:
        first.kill()
        first.wait()
    _wait_until(lambda: not processes_in(run), "nothing of the killed probe is left")


def _wait_until(true: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)
