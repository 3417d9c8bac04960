"""Trials that several runs share: whose they are, what each run still measures, and what it says of it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest

from autobatch.errors import JobError
from autobatch.launch.group_job import group_job
from autobatch.probing.events import EVENTS, Ended, Event, EventReader, TrialEnded
from autobatch.probing.journal import JOURNAL, Journal, Origin
from autobatch.probing.pool import KnownTrials, TrialPool, describe
from autobatch.records import (
    Limit,
    Metric,
    ProbeRequest,
    ProbeResult,
    SharedFrom,
    Status,
    Trial,
    Verdict,
    to_json,
)
from autobatch.report.table import result_lines
from autobatch.runs.results import load_result
from tests.conftest import MakeRun
from tests.many_runs import copy_run

KEY = {"fingerprint": "f", "device": {"kind": "cpu", "name": "x", "total_bytes": 1}, "min_steps": 3}
TARGET = 1000


def trial(batch_size: int) -> Trial:
    peak = 100 * batch_size
    verdict = Verdict.FITS if peak <= TARGET else Verdict.OVER_TARGET
    return Trial(
        batch_size,
        verdict,
        peak,
        {"resident": peak},
        seconds=5.0,
        log=f"probe/trials/batch_size_{batch_size}.log",
    )


def measured(run: Path, *batch_sizes: int, key: dict[str, Any] = KEY) -> Path:
    """A run with these trials in its journal."""
    journal = Journal(run / "probe" / JOURNAL, key)
    for batch_size in batch_sizes:
        journal.add_trial(trial(batch_size))
    return run


def known(run: Path, pool: TrialPool, target: int = TARGET) -> KnownTrials:
    return KnownTrials(Journal(run / "probe" / JOURNAL, KEY), pool, run, Metric.RESIDENT, target)


class TestKnownTrials:
    @pytest.mark.parametrize(
        ("cap", "guess", "begins_with"),
        [
            pytest.param(60, None, [4, 11, 10], id="all of them"),
            pytest.param(10, None, [4, 10], id="as far as the cap"),
            pytest.param(7, 7, [], id="the cap is known to fit but wasn't measured"),
            pytest.param(4, 4, [], id="the cap was measured"),
            pytest.param(3, 3, [], id="all are above"),
        ],
    )
    def test_what_a_search_begins_with(
        self, cap: int, guess: int | None, begins_with: list[int], tmp_path: Path
    ) -> None:
        pool = TrialPool([measured(tmp_path / "run1", 4, 11, 10)])

        trials = known(tmp_path / "run2", pool)

        assert trials.guess(cap) == guess
        assert [one.batch_size for one in trials.begin(cap)] == begins_with

    def test_another_target_judges_anew(self, tmp_path: Path) -> None:
        pool = TrialPool([measured(tmp_path / "run1", 4, 11, 10)])

        trials = known(tmp_path / "run2", pool, target=500).begin(60)

        assert [one.verdict.value for one in trials] == ["fits", "over target", "over target"]

    def test_one_cut_short_counts_only_where_it_is_over_the_target_too(self, tmp_path: Path) -> None:
        cut = replace(trial(11), cut_short=True)
        pool = TrialPool()
        known(tmp_path / "run1", pool).add(cut)

        smaller = known(tmp_path / "run2", pool, target=500).take(11)
        larger = known(tmp_path / "run3", pool, target=1100)

        assert smaller is not None
        assert (smaller.verdict, smaller.cut_short) == (Verdict.OVER_TARGET, True)
        assert larger.take(11) is None

    def test_one_that_ran_to_its_end_goes_before_one_cut_short(self, tmp_path: Path) -> None:
        cut, whole = replace(trial(11), peak_bytes=1001, cut_short=True), trial(11)
        for name, order in (("run1", [cut, whole]), ("run2", [whole, cut])):
            pool = TrialPool()
            for one in order:
                pool.add(KEY, one, tmp_path / name, "2026-01-02T03:04:05+00:00")

            assert known(tmp_path / f"{name}-after", pool, target=2000).take(11) is not None

    def test_a_journal_with_another_key_gives_nothing(self, tmp_path: Path) -> None:
        other = KEY | {"device": {"kind": "cpu", "name": "another card", "total_bytes": 1}}
        pool = TrialPool([measured(tmp_path / "run1", 4, key=other)])

        assert not known(tmp_path / "run2", pool)

    def test_without_others_an_interrupted_search_goes_its_own_way(self, tmp_path: Path) -> None:
        run = measured(tmp_path / "run1", 4, 11)

        trials = known(run, TrialPool([run]))

        assert trials.guess(60) == 4
        assert trials.begin(60) == []
        assert trials.take(11) == trial(11)
        assert trials.take(10) is None
        assert trials.resumed_seconds == 5.0
        assert trials.shared_from([trial(4), trial(11)]) == ()

    def test_what_is_taken_is_in_the_journal_with_its_origin(self, tmp_path: Path) -> None:
        first, second, third = (tmp_path / name for name in ("run1", "run2", "run3"))
        pool = TrialPool([measured(first, 4, 11, 10)])
        taken = known(second, pool).begin(60)

        again = known(second, TrialPool())
        # Through run2's journal alone: whose they were isn't lost, and nobody else's are made of them.
        onward = known(third, TrialPool([second]))

        shared = again.shared_from(again.begin(60))
        assert [one.log for one in taken][:1] == ["../run1/probe/trials/batch_size_4.log"]
        assert [(one.run, one.batch_sizes) for one in shared] == [(str(first), (4, 11, 10))]
        assert again.resumed_seconds == 0.0
        assert not onward

    def test_what_is_measured_now_counts_for_the_next(self, tmp_path: Path) -> None:
        pool = TrialPool()
        known(tmp_path / "run1", pool).add(trial(4))
        known(tmp_path / "run1", pool).add(replace(trial(5), verdict=Verdict.CRASHED))

        assert [one.batch_size for one in known(tmp_path / "run2", pool).begin(60)] == [4]


def test_how_old_it_is() -> None:
    shared = SharedFrom("/e/run1", "2026-01-31T12:00:00+00:00", (8, 9))

    said = describe(shared, datetime(2026, 1, 31, 14, 3, tzinfo=timezone.utc))

    assert said == "batch_size 8, 9: measured for run1, 2 h 03 min ago"


def test_a_journal_of_an_earlier_version_has_no_times(tmp_path: Path) -> None:
    path = tmp_path / "probe" / JOURNAL
    Journal(path, KEY)
    with path.open("a") as file:
        file.write(json.dumps({"trial": to_json(trial(4))}) + "\n")

    trials = known(tmp_path / "two", TrialPool([tmp_path]))

    assert Journal(path, KEY).origins == {4: Origin("", "")}
    (shared,) = trials.shared_from(trials.begin(9))
    assert describe(shared) == f"batch_size 4: measured for {tmp_path.name}, before"


Probe = Callable[..., dict[str, tuple[list[int], ProbeResult]]]


@pytest.fixture
def probe_group(capacity: int) -> Probe:
    """A group's job in this process: of each run, the sizes that were measured now, and its result."""

    def call(
        runs: Sequence[Path], *, others: Sequence[Path] = (), fails: str = "", **asked: Any
    ) -> dict[str, tuple[list[int], ProbeResult]]:
        asked |= {"capacity_bytes": capacity, "estimate": False}
        requests = [to_json(ProbeRequest(str(run), **asked)) for run in runs]
        before = os.environ.copy()
        with pytest.raises(JobError, match=fails) if fails else nullcontext():
            group_job(requests, [str(run) for run in (*runs, *others)], "a", {})
        os.environ.clear()
        os.environ.update(before)
        found = {}
        for run in runs:
            events: list[Event] = list(EventReader(run / "probe" / EVENTS, "a").new())
            ended = [event.result for event in events if isinstance(event, Ended)]
            now = [e.trial.batch_size for e in events if isinstance(e, TrialEnded) and not e.resumed]
            found[run.name] = (now, ended[0])
        return found

    return call


@pytest.mark.recipe
def test_a_group_measures_once_and_each_run_what_its_own_cap_needs(
    make_run: MakeRun, probe_group: Probe
) -> None:
    run = make_run("misbehaving.py", misbehaviour="none", at=0)
    # The dataset has 239 packs.
    second = copy_run(run, "run2", gradient_accumulation_steps=2, lr="1e-5")
    third = copy_run(run, "run3", gradient_accumulation_steps=60)
    fourth = copy_run(run, "run4", gradient_accumulation_steps=4, seed=9)
    # Of another fingerprint, as it would be if the node knew better than the login node.
    fifth = copy_run(run, "run5", gradient_accumulation_steps=1)

    done = probe_group([second, third, fourth, fifth])

    results = {name: result for name, (_, result) in done.items()}
    sizes = [one.batch_size for one in results["run2"].trials]
    answer = results["run2"].batch_size
    assert answer is not None
    assert answer > 3
    assert done["run2"][0] == sizes
    assert done["run3"][0] == [3]
    assert (results["run3"].batch_size, results["run3"].limit) == (3, Limit.DATASET)
    assert done["run4"][0] == []
    assert results["run4"].batch_size == answer
    shared = {one.run: sorted(one.batch_sizes) for one in results["run4"].shared_from}
    assert shared == {str(second): sorted(sizes), str(third): [3]}
    assert done["run5"][0] == [one.batch_size for one in results["run5"].trials]
    assert results["run5"].fingerprint != results["run4"].fingerprint == results["run2"].fingerprint
    assert not any(results[name].shared_from for name in ("run2", "run3", "run5"))
    for name in ("run2", "run3", "run4"):
        text = (run.parent / name / "finetune.yaml").read_text()
        assert f"\nbatch_size: {results[name].batch_size} " in text
        assert load_result(run.parent / name / "probe" / "result.json") == results[name]
    # One packed the dataset, the others have it from there.
    assert [one.parent.parent.name for one in sorted(run.parent.glob("*/probe/packing.log"))] == ["run2"]
    assert len({one.stat().st_ino for one in run.parent.glob("*/probe/rows.pt")}) == 1
    said = "\n".join(result_lines(results["run4"]))
    assert f"measured for {second}" in said


@pytest.mark.recipe
def test_results_on_file_count_unless_forced(make_run: MakeRun, probe_group: Probe) -> None:
    run = make_run("misbehaving.py", misbehaviour="none")
    second = copy_run(run, "run2", lr="1e-5")
    third = copy_run(run, "run3", lr="1e-6")
    first = probe_group([run])["run1"]

    from_file = probe_group([second], others=[run])["run2"]
    again = probe_group([second])["run2"]
    forced = probe_group([third, second], others=[run], force=True)

    assert from_file[0] == []
    assert [one.run for one in from_file[1].shared_from] == [str(run)]
    assert (from_file[1].batch_size, from_file[1].trials[0].peak_bytes) == (
        first[1].batch_size,
        min(first[1].trials, key=lambda one: one.batch_size).peak_bytes,
    )
    assert again[0] == []
    assert again[1].reused
    assert again[1].shared_from == from_file[1].shared_from
    assert forced["run3"][0]
    assert forced["run2"][0] == []
    assert [one.run for one in forced["run2"][1].shared_from] == [str(third)]


@pytest.mark.recipe
def test_a_forced_group_that_is_requeued_goes_on(make_run: MakeRun, probe_group: Probe) -> None:
    run = make_run("misbehaving.py", misbehaviour="none")
    second = copy_run(run, "run2", lr="1e-5")
    probe_group([run, second])

    # The job is preempted when it is done with its first run, and requeued.
    begun = probe_group([run], force=True)
    requeued = probe_group([run, second], force=True)

    assert begun["run1"][0]
    assert requeued["run1"][0] == []
    assert requeued["run1"][1].trials == begun["run1"][1].trials
    assert requeued["run2"][0] == []
    assert [one.run for one in requeued["run2"][1].shared_from] == [str(run)]
    # Packed by the first of them, for both.
    rows = {one.stat().st_ino for one in run.parent.glob("*/probe/rows.pt")}
    assert len(rows) == 1


@pytest.mark.recipe
def test_a_run_that_fails_keeps_no_other_from_its_answer(make_run: MakeRun, probe_group: Probe) -> None:
    run = make_run("misbehaving.py", misbehaviour="crash", at=2)
    second = copy_run(run, "run2", gradient_accumulation_steps=200)
    before = (run / "finetune.yaml").read_bytes()

    done = probe_group([run, second], fails="1 of 2 runs of the group have no batch_size", max_batch_size=2)

    assert done["run1"][1].status is Status.CRASHED
    assert (run / "finetune.yaml").read_bytes() == before
    assert (done["run2"][1].status, done["run2"][1].batch_size) == (Status.DONE, 1)
