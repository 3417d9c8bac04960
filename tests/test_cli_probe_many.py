"""`autobatch probe` of many runs, as a user meets it, on this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import autobatch
from autobatch.errors import UsageError
from autobatch.launch.note import read_note
from tests.conftest import MakeRun, files_of
from tests.many_runs import copy_run


def call(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "autobatch.cli.main", *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def tree(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.mark.recipe
def test_from_the_command_line_and_from_python(make_run: MakeRun, capacity: int) -> None:
    run = make_run("misbehaving.py", misbehaviour="none", at=1)
    second = copy_run(run, "run2", lr="1e-5")
    crashing = copy_run(run, "run3", misbehaviour="crash")
    untouched = files_of(crashing)
    newer = copy_run(run, "run4", seed=9)
    (newer / "probe").mkdir()
    (newer / "probe" / "result.json").write_text('{"schema_version": 99}')
    words = ("--cluster", "inline", "--capacity", capacity, "--max-batch-size", 2, "--no-estimate")

    first = call("probe", run.parent, *words, "--json")
    note = read_note(second / "probe")
    again = call("probe", second, *words, run)

    answer = json.loads(first.stdout)
    entries = {Path(entry["run"]).name: entry for entry in answer["runs"]}
    assert first.returncode == answer["exit_code"] == 3
    assert {name: entry["group"] for name, entry in entries.items()} == {
        "run1": 1,
        "run2": 1,
        "run3": 2,
        "run4": 1,
    }
    assert [entry["exit_code"] for entry in entries.values()] == [0, 0, 3, 2]
    assert entries["run1"]["result"]["batch_size"] == entries["run2"]["result"]["batch_size"] == 2
    assert [one["run"] for one in entries["run2"]["result"]["shared_from"]] == [str(run)]
    assert entries["run3"]["result"]["status"] == "crashed"
    assert "the loss is not a number" in entries["run3"]["result"]["message"]
    assert files_of(crashing)["run3/finetune.yaml"] == untouched["run3/finetune.yaml"]
    assert entries["run1"]["job_id"] == entries["run2"]["job_id"] != entries["run3"]["job_id"]
    assert entries["run4"]["result"] is None
    assert "newer autobatch" in entries["run4"]["error"]
    assert note is not None
    assert note.members == (str(run), str(second), str(newer))
    assert [path.name for path in (run.parent / "probe").iterdir()] == ["job"]
    plan = (run.parent / "runs_plan.md").read_text()
    assert [name for name in ("run1", "run2", "run3", "run4") if f"| {name} |" in plan] == ["run1", "run2"]

    header, *rows = again.stdout.splitlines()
    assert again.returncode == 0
    assert header.split()[:3] == ["run", "group", "batch_size"]
    assert [row.split()[:3] for row in rows] == [["run2", "1", "2"], ["run1", "1", "2"]]
    assert all("on file since" in row for row in rows)

    heard: list[str] = []
    results = autobatch.probe_all(
        [run, second],
        cluster="inline",
        capacity=capacity,
        max_batch_size=1,
        estimate=False,
        on_event=lambda path, event: heard.append(f"{Path(path).name} {type(event).__name__}"),
    )
    assert [(Path(one.request.run_dir).name, one.batch_size) for one in results] == [("run1", 1), ("run2", 1)]
    assert "run2 Ended" in heard
    assert "run1 TrialBegan" not in heard


def test_nothing_is_done_unless_all_runs_can_be_probed(make_run: MakeRun) -> None:
    run = make_run()
    bad = copy_run(run, "run2", batch_size="many")
    other = copy_run(run, "run3", dtype="fp17")
    before = tree(run.parent)

    ended = call("probe", run.parent, "--cluster", "inline", "--json")

    said = json.loads(ended.stdout)
    assert ended.returncode == said["exit_code"] == 2
    for config in (bad / "finetune.yaml", other / "finetune.yaml"):
        assert f"{config}:" in said["error"]
    assert tree(run.parent) == before
    with pytest.raises(UsageError):
        autobatch.probe_all(run.parent, cluster="inline")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        pytest.param(["--max-parallel", "2"], "--max-parallel is for Slurm", id="max-parallel"),
        pytest.param(["--max-parallel", "0"], "--max-parallel 0 is less than 1", id="none at a time"),
        pytest.param(["--train"], "--train is for Slurm", id="train"),
        pytest.param(["no/such/run"], "no/such/run: no such file or directory", id="missing"),
        pytest.param(["--no-wait"], "--no-wait: --cluster local probes 2 groups", id="no-wait"),
        pytest.param(["--capacity", "much"], "'much' is not a size", id="capacity"),
    ],
)
def test_what_can_not_be_used(make_run: MakeRun, words: list[str], message: str) -> None:
    run = make_run()
    copy_run(run, "run2", lora_rank=4)
    before = tree(run.parent)

    ended = call("probe", run.parent, "--cluster", "local", *words)

    assert ended.returncode == 2
    assert message in ended.stderr
    assert ended.stdout == ""
    assert tree(run.parent) == before


def test_dry_run(make_run: MakeRun) -> None:
    run = make_run()
    copy_run(run, "run2", lora_rank=4)
    copy_run(run, "run3", lr="1e-6")
    before = tree(run.parent)

    text = call("probe", run.parent, "--cluster", "local", "--dry-run", "--hold-effective-batch", "8")
    plan = json.loads(call("probe", run.parent, "--cluster", "local", "--dry-run", "--json").stdout)

    assert "effective batch: held at 8 sequences\n" in text.stdout
    assert "group 1: 2 runs, run1, run3\n" in text.stdout
    assert "group 2: 1 run, run2\n" in text.stdout
    groups = [[Path(entry["run"]).name for entry in group] for group in plan["groups"]]
    assert groups == [["run1", "run3"], ["run2"]]
    assert tree(run.parent) == before
