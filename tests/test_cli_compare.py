"""`autobatch compare` as a user meets it: output, files and exit codes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from autobatch.cli.main import main
from tests.compared_runs import full_experiment

GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Ended:
    """How a command line ended."""

    returncode: int
    stdout: str
    stderr: str


def call(*words: object) -> Ended:
    """Run `autobatch compare` in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["compare", *map(str, words)])
    return Ended(code, out.getvalue(), err.getvalue())


@pytest.fixture
def experiment(laid_out: Path, tmp_path: Path) -> Path:
    return full_experiment(laid_out, tmp_path)


def test_the_answer_alone_is_on_stdout(experiment: Path) -> None:
    """In a process of its own, as a user calls it."""
    ended = subprocess.run(
        [sys.executable, "-m", "autobatch.cli.main", "compare", experiment],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout == (GOLDEN / "compare.txt").read_text()


def test_of_the_directory_where_one_is(experiment: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(experiment)
    every = call(".")
    monkeypatch.chdir(experiment / "run2")
    one = call(".", "--json")

    assert every.stdout == call(experiment).stdout
    assert [run["run"] for run in json.loads(one.stdout)["runs"]] == ["run2"]


def test_chosen_and_sorted(experiment: Path) -> None:
    chosen = ("--run", "run[123]", "--run", "old", "--sort", "tokens_per_second", "--descending")

    ended = call(experiment, *chosen, "--format", "csv")

    assert ended.returncode == 0
    assert [line.split(",")[0] for line in ended.stdout.splitlines()[1:]] == ["run1", "run2", "old", "run3"]


def test_a_file_is_written_and_never_replaced_unasked(experiment: Path, tmp_path: Path) -> None:
    report = tmp_path / "comparison.md"

    first = call(experiment, "--format", "markdown", "--output", report)
    report_then = report.read_text()
    report.write_text("my own words")
    second = call(experiment, "--format", "markdown", "--output", report)
    kept = report.read_text()
    third = call(experiment, "--format", "markdown", "--output", report, "--force")

    assert (first.returncode, first.stdout, first.stderr) == (0, "", f"written: {report}\n")
    assert report_then == (GOLDEN / "compare.md").read_text()
    assert second.returncode == 2
    assert second.stderr == (
        f"autobatch: {report} is there already: name another file, or replace it with --force\n"
    )
    assert kept == "my own words"
    assert third.returncode == 0
    assert report.read_text() == report_then


def test_reading_changes_nothing(experiment: Path) -> None:
    def files() -> dict[Path, tuple[bytes, int]]:
        return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in experiment.rglob("*") if p.is_file()}

    before = files()

    call(experiment)

    assert files() == before


def test_nothing_to_compare(laid_out: Path) -> None:
    ended = call(laid_out)

    assert (ended.returncode, ended.stdout) == (1, "")
    assert "nothing to compare" in ended.stderr
    assert "autobatch probe RUN" in ended.stderr

    as_json = call(laid_out, "--json")

    assert as_json.returncode == 1
    assert {run["packing_density"] for run in json.loads(as_json.stdout)["runs"]} == {None}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(["--run", "nobody"], "--run nobody:", id="no such run"),
        pytest.param(["--sort", "speed"], "--sort speed: no such column; the columns are run, ", id="column"),
        pytest.param(["--json", "--format", "csv"], "--json and --format csv: give one of them", id="two formats"),
        pytest.param(["--force"], "--force is for --output FILE", id="force of nothing"),
        pytest.param(["--descending"], "--descending is for --sort COLUMN", id="descending by nothing"),
        pytest.param(["--output", "no/such/place.md"], "no/such/place.md: can't be written", id="no directory"),
        pytest.param(["--output", "."], ". is there already", id="a directory"),
        pytest.param(["--output", ".", "--force"], ".: isn't a regular file", id="a directory by force"),
    ],
)  # fmt: skip
def test_wrong_usage_is_one_message(
    experiment: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(experiment)

    ended = call(experiment, *words)

    assert ended.returncode == 2
    if "--json" in words:
        assert said in json.loads(ended.stdout)["error"]
    else:
        assert ended.stdout == ""
    assert ended.stderr.startswith("autobatch: ")
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(lambda path: None, "no such directory", id="missing"),
        pytest.param(lambda path: path.write_text(""), "is not a directory", id="a file"),
        pytest.param(lambda path: path.mkdir(), "no finetune.yaml here or one level below", id="empty"),
    ],
)
def test_a_path_without_runs(tmp_path: Path, make: object, said: str) -> None:
    path = tmp_path / "experiment"
    assert callable(make)
    make(path)

    ended = call(path)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert f"autobatch: {path}: {said}" in ended.stderr


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("runs: [", id="not YAML"),
        pytest.param("runs: 7\n", id="no list"),
        pytest.param("- a\n- b\n", id="no mapping"),
        pytest.param("runs:\n  - status: completed\n", id="no name"),
        pytest.param("runs:\n  - name: run1\n  - name: run1\n", id="a name twice"),
    ],
)
def test_a_status_file_of_another_shape(experiment: Path, text: str) -> None:
    (experiment / "runs_status.yaml").write_text(text)

    ended = call(experiment)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert f"{experiment / 'runs_status.yaml'}:" in ended.stderr
    assert "Traceback" not in ended.stderr
