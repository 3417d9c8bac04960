"""Many jobs end at once: each records its run in one runs_status.yaml and one runs_plan.md."""

from __future__ import annotations

import functools
import multiprocessing
import re
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

from autobatch.edits.files import edit_file
from autobatch.edits.plan_markdown import set_plan_row
from autobatch.metrics.collect import collect
from autobatch.metrics.record import record_status
from autobatch.metrics.status_file import read_status

WRITERS = 16
ROUNDS = 20
PATIENCE_S = 60

STATUS = """\
# Of the whole experiment: keep me
owner: "me"   # and me
runs:
  # the oldest
  - name: run03          # the good one
    verdict: 'keep it'   # mine
    metrics:
      # nothing yet
      steps: 0           # so far
      mine: 1.50
# the end
"""

PLAN = """\
# Plan

## Packing Analysis

| Run   | Batch Size | Notes  |
|-------|------------|--------|
| run03 | 4          | a note |

Below the table.
"""


def step_of(round_: int, writer: int) -> int:
    return 100 * round_ + writer + 1


def write_metrics(experiment: Path, writer: int, barrier: Barrier) -> None:
    """A training job's last line, at the same moment as everybody else's, again and again."""
    run = experiment / f"run{writer:02d}"
    for round_ in range(ROUNDS):
        step = step_of(round_, writer)
        (run / f"slurm-{writer}.out").write_text(
            f"Step {step} | loss:1.5 lr:3e-06 tokens_per_second_per_gpu:{step}.0 peak_memory_reserved:7.9 \n"
        )
        barrier.wait(PATIENCE_S)
        (metrics,) = collect([run], ask=lambda *command: None)
        record_status(metrics)
        set_row = functools.partial(set_plan_row, run=run.name, row={"Batch Size": str(step)})
        edit_file(experiment / "runs_plan.md", set_row)
        barrier.wait(PATIENCE_S)


def test_no_row_is_lost_and_no_comment(tmp_path: Path) -> None:
    for writer in range(WRITERS):
        (tmp_path / f"run{writer:02d}").mkdir()
    status, plan = tmp_path / "runs_status.yaml", tmp_path / "runs_plan.md"
    status.write_text(STATUS)
    plan.write_text(PLAN)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(WRITERS + 1)
    writers = [context.Process(target=write_metrics, args=(tmp_path, n, barrier)) for n in range(WRITERS)]
    for process in writers:
        process.start()

    for round_ in range(ROUNDS):
        barrier.wait(PATIENCE_S)
        deadline = time.monotonic() + 0.05
        while time.monotonic() < deadline:
            # Whoever reads meanwhile finds a whole file.
            assert "run03" in read_status(status)
        barrier.wait(PATIENCE_S)
        expected = {f"run{writer:02d}": step_of(round_, writer) for writer in range(WRITERS)}
        assert {run: entry["metrics"]["steps"] for run, entry in read_status(status).items()} == expected
        rows = re.findall(r"(?m)^\| (run\d\d) +\| (\d+) +\|", plan.read_text())
        assert {run: int(batch_size) for run, batch_size in rows} == expected
        assert len(rows) == WRITERS

    for process in writers:
        process.join(PATIENCE_S)
    assert [process.exitcode for process in writers] == [0] * WRITERS
    text = status.read_text()
    assert [re.sub(r".*?#", "#", line) for line in text.splitlines() if "#" in line] == [
        "# Of the whole experiment: keep me", "# and me", "# the oldest", "# the good one", "# mine",
        "# nothing yet", "# so far", "# the end",
    ]  # fmt: skip
    assert "    verdict: 'keep it'   # mine\n" in text
    assert "      mine: 1.50\n" in text
    assert "| a note |" in plan.read_text()
    assert plan.read_text().endswith("\nBelow the table.\n")
    left = {path.name for path in tmp_path.iterdir() if not re.fullmatch(r"run\d\d", path.name)}
    assert left == {"runs_status.yaml", "runs_plan.md"}
