"""`runs_plan.md` against the configs of its runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from autobatch.validation.findings import Report
from autobatch.validation.plan import read_rows
from autobatch.validation.validator import validate
from tests.validated import changed, report_of, write_run

TABLE = """# Plan

## Packing Analysis

| Run  | Model | Batch Size | Packed |
|------|-------|------------|--------|
| run1 | 1B    | 4          | True   |
| run2 | 1B    | 8 (probed) | False  |
"""


def plan_report(experiment: Path, text: str) -> Report:
    (experiment / "runs_plan.md").write_text(text)
    return report_of(experiment / "runs_plan.md")


@pytest.mark.parametrize(
    ("text", "packed", "expected"),
    [
        pytest.param("# Plan\n\nbatch sizes: 16\n", True, ["error plan-packing"], id="no word of packing"),
        pytest.param("# Plan\n\nbatch sizes: 16\n", False, [], id="no word, and nothing packs"),
        pytest.param(
            "# Plan\n\n- **Dataset packing**: True\n", True, ["info plan-packing"], id="a word, no table"
        ),
        pytest.param("# Plan\n\nWe use PACKED: True.\n", True, ["info plan-packing"], id="in any case"),
        pytest.param(TABLE, True, [], id="the table"),
        pytest.param(
            TABLE.replace("| 4 ", "| 16"), True, ["warning plan-batch-size"], id="another batch_size"
        ),
        pytest.param(TABLE, False, ["warning plan-packed"], id="another packed"),
        pytest.param(TABLE.replace("run1", "run7"), True, [], id="a row of a run that isn't there"),
        pytest.param(TABLE.replace("| 4 ", "| - "), True, [], id="no batch_size yet"),
        pytest.param("", True, ["error plan-packing"], id="empty"),
    ],
)
def test_each_plan(text: str, packed: bool, expected: list[str], tmp_path: Path) -> None:
    write_run(tmp_path, config=changed(dataset__packed=packed))

    report = plan_report(tmp_path, text)

    assert [f"{f.severity.value} {f.check}" for f in report.findings] == expected


def test_a_disagreement_names_the_plan_s_line(tmp_path: Path) -> None:
    write_run(tmp_path, config=changed(batch_size=2))

    (finding,) = plan_report(tmp_path, TABLE).findings

    assert finding.what == "the plan gives run1 batch_size 4, and its finetune.yaml 2"
    assert finding.where == f"{tmp_path}/runs_plan.md:7"


def test_rows_are_those_of_the_section_s_table() -> None:
    text = f"| Run | Batch Size |\n|---|---|\n| no | 1 |\n\n```\n## Packing Analysis\n```\n\n{TABLE}"

    rows = read_rows(text)

    assert rows is not None
    assert [(row.cells["run"], row.cells["batchsize"]) for row in rows] == [
        ("run1", "4"),
        ("run2", "8 (probed)"),
    ]


def test_a_plan_without_runs(tmp_path: Path) -> None:
    (finding,) = plan_report(tmp_path, TABLE).findings

    assert "no run with a finetune.yaml lies beside the plan" in finding.what


def test_a_plan_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "runs_plan.md").write_bytes(b"\xff\xfe\x00")

    report = report_of(tmp_path / "runs_plan.md")

    assert not report.readable
    assert not report.passes()


def test_an_experiment_is_all_of_its_runs_and_the_plan(tmp_path: Path) -> None:
    write_run(tmp_path, "run1")
    write_run(tmp_path, "run2")
    (tmp_path / "runs_plan.md").write_text("nothing")

    reports = validate([tmp_path], build=False)

    assert [(report.name, report.passes()) for report in reports] == [
        ("run1", True),
        ("run2", True),
        ("runs_plan.md", False),
    ]
    assert reports[-1].findings[0].what.startswith("the plan doesn't mention packing, and run1, run2 pack")
