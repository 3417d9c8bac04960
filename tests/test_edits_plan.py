"""`set_plan_row` and `set_plan_configuration` write their row and their bullets, and nothing else."""

from __future__ import annotations

import re
from itertools import zip_longest

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from autobatch.edits.markdown_blocks import Row
from autobatch.edits.plan_markdown import set_plan_configuration, set_plan_row
from autobatch.edits.plan_values import BulletValue, PerRun, Stated
from autobatch.errors import EditError

ROW = {
    "Model": "1B",
    "Batch Size": "24",
    "Packed": "True",
    "Packing Density": "61.3 ex/seq",
    "Memory Usage": "55.1 GiB (68.9 %)",
    "GPU Type": "H100",
}
TABLE = """\
| Run  | Model | Batch Size | Packed | Packing Density | Memory Usage      | GPU Type |
| ---- | ----- | ---------- | ------ | --------------- | ----------------- | -------- |
| run1 | 1B    | 24         | True   | 61.3 ex/seq     | 55.1 GiB (68.9 %) | H100     |
"""
SMALL = {"Batch Size": "24"}
PLANNED = """\
# Plan

## Packing Analysis (from prior runs)

| Model | Batch Size | Packed | Packing Density | Memory Usage | GPU Type |
|-------|-----------|--------|-----------------|--------------|----------|
| 1B    | 4         | True   | 2.8 ex/seq      | 5.8 GB       | A100 80GB |
| 3B    | 4         | True   | 2.8 ex/seq      | 14.1 GB      | A100 80GB |

**Recommendation**: Use packed=True with batch_size=4 (1B) for this dataset.
"""
PLANNED_AFTER = """\
# Plan

## Packing Analysis (from prior runs)

| Run  | Model | Batch Size | Packed | Packing Density | Memory Usage | GPU Type |
|------|-------|-----------|--------|-----------------|--------------|----------|
|      | 1B    | 4         | True   | 2.8 ex/seq      | 5.8 GB       | A100 80GB |
|      | 3B    | 4         | True   | 2.8 ex/seq      | 14.1 GB      | A100 80GB |
| run1 | 1B    | 24         | True   | 61.3 ex/seq     | 55.1 GiB (68.9 %) | H100     |

**Recommendation**: Use packed=True with batch_size=4 (1B) for this dataset.
"""
HEAD = "## Packing Analysis\n\n| Run | Batch Size |\n|---|---|\n"
NEW = "| Run  | Batch Size |"

WHOLE_ROW = [
    pytest.param("", "## Packing Analysis\n\n" + TABLE, id="empty file"),
    pytest.param("# Plan\n", "# Plan\n\n## Packing Analysis\n\n" + TABLE, id="no section"),
    pytest.param(
        "# Plan\n\n", "# Plan\n\n## Packing Analysis\n\n" + TABLE, id="no section, blank line at the end"
    ),
    pytest.param(
        "# Plan", "# Plan\n\n## Packing Analysis\n\n" + TABLE[:-1], id="no section, no final newline"
    ),
    pytest.param(
        "# Plan\r\n",
        ("# Plan\n\n## Packing Analysis\n\n" + TABLE).replace("\n", "\r\n"),
        id="no section, CRLF",
    ),
    pytest.param(
        "## packing  ANALYSIS\nProse.\n\n## Next\n",
        f"## packing  ANALYSIS\nProse.\n\n{TABLE}\n## Next\n",
        id="section without a table",
    ),
    pytest.param(
        "## Packing Analysis\n## Next\n",
        f"## Packing Analysis\n\n{TABLE}\n## Next\n",
        id="empty section, heading follows",
    ),
    pytest.param(
        "## Packing Analysis\n\nProse.\n\n### Notes\nx\n",
        f"## Packing Analysis\n\nProse.\n\n{TABLE}\n### Notes\nx\n",
        id="before a heading inside the section",
    ),
    pytest.param(
        "Packing Analysis\n----------------\n\nProse.\n",
        f"Packing Analysis\n----------------\n\nProse.\n\n{TABLE}",
        id="underlined heading",
    ),
    pytest.param(
        "## Packing Analysis\n\n| Epoch | Loss |\n|---|---|\n| 1 | 2 |\n",
        f"## Packing Analysis\n\n| Epoch | Loss |\n|---|---|\n| 1 | 2 |\n\n{TABLE}",
        id="only another table in the section",
    ),
    pytest.param("\n", "\n## Packing Analysis\n\n" + TABLE, id="only a blank line"),
    pytest.param(
        "# Plan\r", ("# Plan\n\n## Packing Analysis\n\n" + TABLE).replace("\n", "\r"), id="no section, CR"
    ),
    pytest.param(
        f"## Packing Analysis\n\n## Next\n\n{HEAD[21:]}",
        f"## Packing Analysis\n\n{TABLE}\n## Next\n\n{HEAD[21:]}",
        id="table in the next section",
    ),
    pytest.param(
        f"## Packing Analysis\n\n# Next\n\n{HEAD[21:]}",
        f"## Packing Analysis\n\n{TABLE}\n# Next\n\n{HEAD[21:]}",
        id="table below the next title",
    ),
    pytest.param(
        f"## Packing Analysis\n\n### Runs\n\n{TABLE.replace('24', '4 ')}",
        f"## Packing Analysis\n\n### Runs\n\n{TABLE}",
        id="table below a heading inside the section",
    ),
    pytest.param(PLANNED, PLANNED_AFTER, id="the planning document's table"),
    pytest.param(
        f"```markdown\n{PLANNED}```\n",
        f"```markdown\n{PLANNED}```\n\n## Packing Analysis\n\n{TABLE}",
        id="in a fence",
    ),
    pytest.param(
        f"~~~~\n```\n{PLANNED}```\n~~~~\n",
        f"~~~~\n```\n{PLANNED}```\n~~~~\n\n## Packing Analysis\n\n{TABLE}",
        id="fence in a fence",
    ),
    pytest.param(
        f"    {HEAD}".replace("\n", "\n    ").rstrip() + "\n",
        f"    {HEAD}".replace("\n", "\n    ").rstrip() + f"\n\n## Packing Analysis\n\n{TABLE}",
        id="indented code",
    ),
    pytest.param(
        "```\nPacking Analysis\n---\n```\n",
        f"```\nPacking Analysis\n---\n```\n\n## Packing Analysis\n\n{TABLE}",
        id="underlined heading in a fence",
    ),
    pytest.param(
        f"<!--\n{HEAD}-->\n", f"<!--\n{HEAD}-->\n\n## Packing Analysis\n\n{TABLE}", id="in a comment"
    ),
    pytest.param(
        "> ## Packing Analysis\n",
        f"> ## Packing Analysis\n\n## Packing Analysis\n\n{TABLE}",
        id="in a quotation",
    ),
    pytest.param(
        f"### Packing Analysis\n\n{TABLE}",
        f"### Packing Analysis\n\n{TABLE}\n## Packing Analysis\n\n{TABLE}",
        id="heading of another level",
    ),
    pytest.param(
        f"## Packing Analysis2\n\n{TABLE}",
        f"## Packing Analysis2\n\n{TABLE}\n## Packing Analysis\n\n{TABLE}",
        id="heading with another word",
    ),
    pytest.param(
        f"## Results\n\n{TABLE}",
        f"## Results\n\n{TABLE}\n## Packing Analysis\n\n{TABLE}",
        id="table in another section",
    ),
    pytest.param(
        f"## Packing Analysis\n\n```\n{TABLE}```\n",
        f"## Packing Analysis\n\n```\n{TABLE}```\n\n{TABLE}",
        id="table in a fence of the section",
    ),
]


@pytest.mark.parametrize(("before", "after"), WHOLE_ROW)
def test_whole_row(before: str, after: str) -> None:
    assert set_plan_row(before, "run1", ROW) == after
    assert set_plan_row(after, "run1", ROW) == after


ROWS = [
    pytest.param("| run1 | 4 |\n| run2 | 8 |\n", "| run1 | 24 |\n| run2 | 8 |\n", id="replaced"),
    pytest.param("| run1 | 24 |\n", "| run1 | 24 |\n", id="the same"),
    pytest.param("|run1|24|\n", "|run1|24|\n", id="the same in another spacing"),
    pytest.param("| run1 |    4    |   \n", "| run1 | 24      |   \n", id="padding kept"),
    pytest.param("| run2 | 8 |\n", "| run2 | 8 |\n| run1 | 24         |\n", id="added"),
    pytest.param("", "| run1 | 24         |\n", id="added to a table without rows"),
    pytest.param("| run2 | 8 |", "| run2 | 8 |\n| run1 | 24         |", id="added, no final newline"),
    pytest.param("| RUN1 | 8 |\n", "| RUN1 | 8 |\n| run1 | 24         |\n", id="another case is another run"),
    pytest.param("| run10 | 8 |\n", "| run10 | 8 |\n| run1 | 24         |\n", id="prefix is another run"),
    pytest.param("run1 | 4\nrun2 | 8\n", "run1 | 24\nrun2 | 8\n", id="no outer pipes"),
    pytest.param("| run2 | 8 |  ", "| run2 | 8 |  \n| run1 | 24         |  ", id="added, spaces at the end"),
    pytest.param("| run1 |\n", "| run1 | 24 |\n", id="short row"),
    pytest.param("| run1\n", "| run1 | 24 |\n", id="short row without its last pipe"),
    pytest.param("| run1 | 4 | more |\n", "| run1 | 24 | more |\n", id="long row"),
    pytest.param(
        "| a `|` | b |\n| run1 | 4 |\n", "| a `|` | b |\n| run1 | 24 |\n", id="pipe in a code span splits"
    ),
    pytest.param(
        "| x\\|y | 8 |\n| run1 | 4 |\n", "| x\\|y | 8 |\n| run1 | 24 |\n", id="escaped pipe doesn't"
    ),
    pytest.param("| run1 | 4 |\n\nrun1 | x\n", "| run1 | 24 |\n\nrun1 | x\n", id="text below"),
    pytest.param("| run1 | 4 |\n| run1 | 5 |\n", "| run1 | 24 |\n| run1 | 5 |\n", id="the first of two"),
]


@pytest.mark.parametrize(("before", "after"), ROWS)
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_row_of_a_table_that_is_there(before: str, after: str, newline: str) -> None:
    before, after = ((HEAD + rows).replace("\n", newline) for rows in (before, after))
    assert set_plan_row(before, "run1", SMALL) == after
    assert set_plan_row(after, "run1", SMALL) == after


COLUMNS = [
    pytest.param(
        "| batch  size | Note | RUN |\n|:--|:-:|--:|\n| 4 | keep | run1 |\n",
        "| batch  size | Note | RUN |\n|:--|:-:|--:|\n| 24 | keep | run1 |\n",
        id="found by name in any order, case and spacing",
    ),
    pytest.param(
        "| Run | Note | Batch Size |\n|---|---|---|\n| run1 | x\n",
        "| Run | Note | Batch Size |\n|---|---|---|\n| run1 | x | 24 |\n",
        id="short row of two cells without its last pipe",
    ),
    pytest.param(
        "| BatchSize | Run |\n|---|---|\n| 4 |\n| 8 | run1 |\n",
        "| BatchSize | Run |\n|---|---|\n| 4 |\n| 24 | run1 |\n",
        id="Run last, and a row without it",
    ),
    pytest.param(
        "Batch Size | Run\n--|--\n4 | run1\n",
        "Batch Size | Run\n--|--\n24 | run1\n",
        id="first cell, no outer pipes",
    ),
    pytest.param(
        "  | Run | Batch Size |\n  |---|---|\n",
        "  | Run | Batch Size |\n  |---|---|\n  | run1 | 24         |\n",
        id="indented",
    ),
    pytest.param(
        "| Run |\n|-----|\n| run1 |\n",
        "| Run | Batch Size |\n|-----|------------|\n| run1 | 24         |\n",
        id="one column",
    ),
    pytest.param(
        "| **Run** | `Batch_Size` |\n|---|---|\n| run1 | 4 |\n",
        "| **Run** | `Batch_Size` |\n|---|---|\n| run1 | 24 |\n",
        id="emphasis in the header",
    ),
    pytest.param(
        "| Run | Note |\n| --- | --- |\n| run1 | a \\| b |\n| run2 |\n",
        "| Run | Note | Batch Size |\n| --- | --- | ---------- |\n"
        "| run1 | a \\| b | 24         |\n| run2 |  |            |\n",
        id="missing column added last",
    ),
    pytest.param(
        "Batch Size | Note\n--|--\n4 | x\n",
        "| Run  | Batch Size | Note\n|------| --|--\n|      | 4 | x\n| run1 | 24         |     |\n",
        id="Run added first to a table without outer pipes",
    ),
    pytest.param(
        "| Run | Note |\n|---|---|\n| run2 | x | beyond |\n",
        "| Run | Note | Batch Size |\n|---|---|------------|\n"
        "| run2 | x |            | beyond |\n| run1 |      | 24         |\n",
        id="cells beyond the header stay beyond it",
    ),
    pytest.param(
        "| Epoch |\n|---|\n| 1 |\n\n| Run | Batch Size |\n|---|---|\n",
        "| Epoch |\n|---|\n| 1 |\n\n| Run | Batch Size |\n|---|---|\n| run1 | 24         |\n",
        id="second table of the section",
    ),
    pytest.param(
        "## Packing Analysis (old)\n\n| Run | Batch Size |\n|---|---|\n",
        "## Packing Analysis (old)\n\n| Run | Batch Size |\n|---|---|\n| run1 | 24         |\n",
        id="second section of that name",
    ),
]


@pytest.mark.parametrize(("before", "after"), COLUMNS)
def test_columns(before: str, after: str) -> None:
    heading = "## Packing Analysis\n\n"
    assert set_plan_row(heading + before, "run1", SMALL) == heading + after
    assert set_plan_row(heading + after, "run1", SMALL) == heading + after


NAMES = [
    "a|b",
    "a\\|b",
    "|",
    "\\",
    "`x`",
    "``a",
    "$(rm -rf /)",
    "'\"",
    "ünï 漢字 🙂",
    "-",
    "---",
    "a  b",
    "<!--",
    "#",
    "\udce9",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_only_text(name: str) -> None:
    once = set_plan_row(HEAD, name, SMALL)
    other = set_plan_row(once, "other", {"Batch Size": "8"})
    again = set_plan_row(other, name, {"Batch Size": "7|8\n9"})
    assert again.startswith(HEAD)
    assert again.count("\n") == HEAD.count("\n") + 2
    rows = [Row.parse(line) for line in again.splitlines()[-2:]]
    assert [(row.get(0), row.get(1)) for row in rows] == [(name, "7|8 9"), ("other", "8")]


def test_a_run_must_have_a_name() -> None:
    with pytest.raises(EditError) as refusal:
        set_plan_row(HEAD, " \n", SMALL, name="exp/runs_plan.md")
    assert str(refusal.value) == ("exp/runs_plan.md: a run without a name has no row: name the run directory")


@pytest.mark.parametrize("opening", ["```\n", "<!--\n", "<script>\n"])
def test_refuses_to_write_into_a_block_that_is_not_closed(opening: str) -> None:
    text = f"# Plan\n\n## Configuration\n\n{opening}x\n"
    with pytest.raises(EditError) as row:
        set_plan_row(text, "run1", ROW, name="exp/runs_plan.md")
    with pytest.raises(EditError) as bullets:
        set_plan_configuration(text, EPOCHS, name="exp/runs_plan.md")
    with pytest.raises(EditError) as unnamed_row:
        set_plan_row(text, "run1", ROW)
    with pytest.raises(EditError) as unnamed_bullets:
        set_plan_configuration(text, EPOCHS)
    why = (
        "what was added isn't read back, because a code fence or a comment above it isn't closed: "
        "close it, then run again"
    )
    assert str(row.value) == str(bullets.value) == f"exp/runs_plan.md: {why}"
    assert str(unnamed_row.value) == str(unnamed_bullets.value) == f"runs_plan.md: {why}"


CONFIGURATION = """\
# Plan

## Configuration
- **Recipe**: `lora_finetune_single_device`
- **Dataset packing**: False - unsure
  and on a second line
  - Packing density: 2.8 (from prior runs)
  - Note: stays
- **Batch sizes**: run2: 8 (adjusted for packing)
- **LoRA alpha**: 16

## Batch sizes
- **Batch sizes**: not ours
"""
CONFIGURATION_AFTER = """\
# Plan

## Configuration
- **Recipe**: `lora_finetune_single_device`
- **Dataset packing**: True - measured
  - Packing density: 61.3
  - Note: stays
  - Impact on memory: 2.2x
- **Batch sizes**: run2: 8 (adjusted for packing), run1: 24
- **LoRA alpha**: 16
- **Gradient accumulation**: 2 (effective batch size: 48)

## Batch sizes
- **Batch sizes**: not ours
"""
BULLETS: dict[str, BulletValue] = {
    "Dataset packing": ("True - measured", ("Packing density: 61.3", "Impact on memory: 2.2x")),
    "Batch sizes": PerRun("run1", "24"),
    "Gradient accumulation": "2 (effective batch size: 48)",
}
EPOCHS: dict[str, BulletValue] = {"Epochs": ("3", ("Why: enough",))}


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_configuration_of_the_planning_document(newline: str) -> None:
    before, after = (text.replace("\n", newline) for text in (CONFIGURATION, CONFIGURATION_AFTER))
    assert set_plan_configuration(before, BULLETS) == after
    assert set_plan_configuration(after, BULLETS) == after


CONFIGURED = [
    pytest.param("# Plan\n- **Epochs**: 1\n", "# Plan\n- **Epochs**: 1\n", id="no section"),
    pytest.param(
        "```\n## Configuration\n- **Epochs**: 1\n```\n",
        "```\n## Configuration\n- **Epochs**: 1\n```\n",
        id="fence",
    ),
    pytest.param("## Configuration", "## Configuration\n\n- **Epochs**: 3\n  - Why: enough", id="no list"),
    pytest.param(
        "## configuration\n- a: b",
        "## configuration\n- a: b\n- **Epochs**: 3\n  - Why: enough",
        id="no newline",
    ),
    pytest.param(
        "## Configuration\n\n* **epochs:** 1\n",
        "## Configuration\n\n* **epochs:** 3\n  - Why: enough\n",
        id="stars",
    ),
    pytest.param(
        "## Configuration\n- Epochs : 1\n", "## Configuration\n- Epochs : 3\n  - Why: enough\n", id="not bold"
    ),
    pytest.param(
        "## Configuration\n- **Epochs**:\n",
        "## Configuration\n- **Epochs**: 3\n  - Why: enough\n",
        id="no value",
    ),
    pytest.param(
        "## Configuration\n-   **Epochs**: 1\n\n    More.\n",
        "## Configuration\n-   **Epochs**: 3\n    - Why: enough\n\n    More.\n",
        id="wide marker, more paragraphs",
    ),
    pytest.param(
        "## Configuration\n- **Epochs**: 3\n  * **Why**: x\n  * other\n- z\n",
        "## Configuration\n- **Epochs**: 3\n  * **Why**: enough\n  * other\n- z\n",
        id="sub-bullet with stars",
    ),
    pytest.param(
        "## Configuration\n- **Epochs**: 1\n  still 1\nProse.\n",
        "## Configuration\n- **Epochs**: 3\n  - Why: enough\n\nProse.\n",
        id="text without a blank line above it",
    ),
    pytest.param(
        "## Configuration\n- a\n\n      code\n| T |\n|---|\n",
        "## Configuration\n- a\n\n      code\n- **Epochs**: 3\n  - Why: enough\n\n| T |\n|---|\n",
        id="table without a blank line above it",
    ),
    pytest.param(
        "## Configuration\n- a\n\n  ```\n  - **Epochs**: 1\n  ```\n\nB\n",
        "## Configuration\n- a\n\n  ```\n  - **Epochs**: 1\n  ```\n- **Epochs**: 3\n  - Why: enough\n\nB\n",
        id="behind all of the last item",
    ),
]


@pytest.mark.parametrize(("before", "after"), CONFIGURED)
def test_configuration(before: str, after: str) -> None:
    assert set_plan_configuration(before, EPOCHS) == after
    assert set_plan_configuration(after, EPOCHS) == after


MERGED = [
    pytest.param("", "run1", "run1: 24", id="nothing there"),
    pytest.param("run1: 4", "run1", "run1: 24", id="only ours"),
    pytest.param("run2: 4, run1: 4, run3: 1", "run1", "run2: 4, run1: 24, run3: 1", id="ours between others"),
    pytest.param("run10: 4", "run1", "run10: 4, run1: 24", id="prefix of another name"),
    pytest.param("4 for all", "run1", "4 for all, run1: 24", id="prose"),
    pytest.param("4, run1 : 4 (old)", "run1", "4, run1 : 24", id="prose before ours"),
    pytest.param(
        "{sizes} (adjusted: yes)", "run1", "{sizes} (adjusted: yes), run1: 24", id="prose with a colon"
    ),
    pytest.param("run1: 4", "a, b: c", "run1: 4, `a, b: c`: 24", id="name with comma and colon"),
    pytest.param("`a, b: c`: 4, run1: 4", "a, b: c", "`a, b: c`: 24, run1: 4", id="that name again"),
    pytest.param("`run1`: 4", "run1", "`run1`: 24", id="name in a code span"),
    pytest.param("run1: 4", "`x``", "run1: 4, ``` `x`` ```: 24", id="name with backticks"),
    pytest.param("run2: 4,run1: 4", "run1", "run2: 4,run1: 24", id="no space behind the comma"),
    pytest.param(",run1: 4", "run1", ",run1: 24", id="comma first"),
    pytest.param(
        "`a, run1: x`: 4", "run1", "`a, run1: x`: 4, run1: 24", id="name inside of another in a code span"
    ),
    pytest.param("", "`x", "`` `x ``: 24", id="name that begins with a backtick"),
    pytest.param("", "x`", "`` x` ``: 24", id="name that ends with a backtick"),
]


@pytest.mark.parametrize(("current", "run", "merged"), MERGED)
def test_per_run(current: str, run: str, merged: str) -> None:
    entry = PerRun(run, "24")
    assert entry.merge_into(current) == merged
    assert entry.merge_into(merged) == merged


def test_a_comma_in_a_value_would_end_its_entry() -> None:
    assert PerRun("run1", "24, held").merge_into("run1: 4, run2: 8") == "run1: 24; held, run2: 8"
    assert PerRun("run1", "").merge_into("run1: 4, run2: 8") == "run1:, run2: 8"


TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)
NAME = st.one_of(TEXT, st.text("ab|\\`,: *_\n", max_size=8)).filter(lambda name: name.strip() != "")


@given(
    entries=st.dictionaries(
        NAME.map(lambda n: re.sub(r"[\r\n]+", " ", n).strip()).filter(bool), st.integers(1, 99)
    )
)
def test_runs_that_share_a_bullet_keep_their_entries(entries: dict[str, int]) -> None:
    """Whatever the names: each run sets its own entry twice, and nobody loses one."""
    current = ""
    for offset in (0, 100):
        for run, size in entries.items():
            current = PerRun(run, str(size + offset)).merge_into(current)
    shown = current
    for run, size in entries.items():
        assert PerRun(run, str(size + 100)).merge_into(current) == shown
    assert len(re.findall(r": 1\d\d", current)) >= len(entries)


BLOCKS = st.lists(
    st.sampled_from(
        [
            "# Plan\n",
            "## Packing Analysis\n",
            "## Packing Analysis (from prior runs)\n",
            "## Configuration\n",
            "### Notes\n",
            "Packing Analysis\n---\n",
            "Prose with a | pipe.\n",
            "\n",
            "\n\n",
            "| Run | Batch Size | Note |\n|---|:-:|---|\n| run2 | 8 | a \\| b |\n",
            "| Model | batch size |\n|-------|--|\n| 1B | 4 | 5 |\n| 3B |\n",
            "| Epoch | Loss |\n|--|--|\n| 1 | 2 |\n",
            "Run | x\n-|-\nrun1 | y\n",
            "```\n## Packing Analysis\n| Run | Batch Size |\n|---|---|\n```\n",
            "    ## Packing Analysis\n    | Run |\n    |---|\n",
            "<!--\n## Configuration\n-->\n",
            "> | Run |\n> |---|\n",
            "- **Batch sizes**: run2: 8\n",
            "- **Dataset packing:** False\n  lazy\n  - Packing density: 1\n",
            "* other: x\n\n  more\n",
            "1. - a: b\n",
        ]
    ),
    max_size=12,
).map("".join)


Cells = list[list[str]]


def read_plan(text: str) -> tuple[list[Cells], list[str]]:
    """Cells of every table as a Markdown renderer sees them, and the lines of no table but blank ones."""
    lines: list[str | None] = list(re.split("\r\n|\r|\n", text))
    tables: list[Cells] = []
    before = None
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type == "table_open" and token.map and token.level == 0:
            lines[token.map[0] : token.map[1]] = [None] * (token.map[1] - token.map[0])
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif before in ("th_open", "td_open"):
            tables[-1][-1].append(token.content.strip())
        before = token.type
    return tables, [line for line in lines if line]


@settings(max_examples=500, deadline=None)
@given(text=BLOCKS, name=NAME, newline=st.sampled_from(["\n", "\r\n"]), final=st.booleans())
def test_any_plan_gets_its_row_and_keeps_the_rest(text: str, name: str, newline: str, final: bool) -> None:
    before = ("# Plan\n" + text if final else "# Plan\n" + text.rstrip("\n")).replace("\n", newline)
    after = set_plan_row(before, name, SMALL)
    assert set_plan_row(after, name, SMALL) == after
    assert after.count("\n") == after.count(newline)
    assert after.endswith(newline) == before.endswith(newline)

    tables_before, lines_before = read_plan(before)
    tables_after, lines_after = read_plan(after)
    assert lines_after in (lines_before, [*lines_before, "## Packing Analysis"])
    pairs = zip_longest(tables_before, tables_after)
    at = next(i for i, (old, new) in enumerate(pairs) if old != new)
    ours = tables_after.pop(at)
    header = [re.sub("[\\s*]", "", title).casefold() for title in ours[0]]
    cells = dict(zip(header, ours[-1], strict=True))
    shown = re.sub(r"[\r\n]+", " ", name).strip().replace("\0", "\ufffd")
    assert (cells["run"], cells["batchsize"]) == (shown, "24")
    if len(tables_after) < len(tables_before):
        was = tables_before.pop(at)
        kept = [ours[0].index(title) for title in was[0]]
        assert [[row[column] for column in kept] for row in ours[:-1]] == was
    assert tables_after == tables_before


@settings(max_examples=300, deadline=None)
@given(text=BLOCKS, newline=st.sampled_from(["\n", "\r\n"]))
def test_a_second_run_touches_one_line(text: str, newline: str) -> None:
    first = set_plan_row(
        f"# Plan\n{text}".replace("\n", newline), "first", {"Batch Size": "8", "Packed": "True"}
    )
    second = set_plan_row(first, "second", {"Batch Size": "16", "Packed": "True"})
    lines = first.split(newline)
    added = [i for i, line in enumerate(second.split(newline)) if "second" in line]
    assert len(added) == 1
    assert [line for i, line in enumerate(second.split(newline)) if i not in added] == lines
    changed = set_plan_row(second, "first", {"Batch Size": "9", "Packed": "True"})
    pairs = zip(second.split(newline), changed.split(newline), strict=True)
    assert ["first" in old and "9" in new for old, new in pairs if old != new] == [True]


@settings(max_examples=300, deadline=None)
@given(text=BLOCKS, newline=st.sampled_from(["\n", "\r\n"]))
def test_any_plan_gets_its_bullets_and_keeps_the_rest(text: str, newline: str) -> None:
    before = text.replace("\n", newline)
    after = set_plan_configuration(before, BULLETS)
    assert set_plan_configuration(after, BULLETS) == after
    if "\n## Configuration" not in "\n" + text.replace("<!--\n## Configuration", ""):
        assert after == before
    owned = re.compile(
        r"([-*] \*\*(Dataset packing|Batch sizes|Gradient)|  - (Packing density|Impact)|  lazy$)"
    )
    kept = [line for line in before.split(newline) if line and not owned.match(line)]
    assert [line for line in after.split(newline) if line and not owned.match(line)] == kept
    assert read_plan(after)[0] == read_plan(before)[0]


def test_a_column_may_have_a_pipe_in_its_name() -> None:
    before = "## Packing Analysis\n\n| Run | h \\| USD |\n|---|---|\n| run1 | 4 |\n"
    assert set_plan_row(before, "run1", {"h | USD": "5"}) == before.replace("4", "5")


def test_what_belongs_to_a_cell_and_what_stands_around_the_row() -> None:
    assert Row.parse(" \t|X | Y| \r\n") == Row(" \t", True, ["X ", " Y"], True, " \r\n")
    assert Row.parse("X|X\n") == Row("", False, ["X", "X"], False, "\n")
    assert Row.parse("| a |\u00a0\n") == Row("", True, [" a ", "\u00a0"], False, "\n")
    assert Row.parse("\u00a0| a\n") == Row("", False, ["\u00a0", " a"], False, "\n")


@given(line=st.text("ab |\\`-:\t", max_size=20), end=st.sampled_from(["", "\n", "\r\n"]))
def test_a_row_is_rendered_as_it_was(line: str, end: str) -> None:
    assert Row.parse(line + end).render() == line + end


def test_a_new_table_has_empty_cells_where_nothing_is_known() -> None:
    assert set_plan_row("", "run1", SMALL).splitlines()[-1] == (
        "| run1 |       | 24         |        |                 |              |          |"
    )


def test_defaults_fill_empty_cells_only() -> None:
    before = "## Packing Analysis\n\n| Run | Model |\n|---|---|\n| a | my 1B |\n| b | |\n| c |\n"

    text = before
    for run in "abc":
        text = set_plan_row(text, run, {}, defaults={"Model": "1B"})

    assert "| a | my 1B |" in text
    assert "| b | 1B |" in text.replace("  ", " ")
    assert text.endswith("| c | 1B |\n")


def test_a_stated_value_keeps_the_users_reason() -> None:
    before = "## Configuration\n\n- **Dataset packing**: True - short examples\n"

    kept = set_plan_configuration(before, {"Dataset packing": Stated("True", "ours")})
    changed = set_plan_configuration(before, {"Dataset packing": Stated("False", "ours")})

    assert kept == before
    assert changed == "## Configuration\n\n- **Dataset packing**: False - ours\n"


WRITTEN_BULLETS: list[tuple[str, dict[str, BulletValue], str]] = [
    ("- **A**: 1\n", {"Sizes": PerRun("run1", "24")}, "- **A**: 1\n- **Sizes**: run1: 24\n"),
    ("", {"Sizes": PerRun("run1", "24")}, "\n- **Sizes**: run1: 24\n"),
    ("", {"Notes": ""}, "\n- **Notes**:\n"),
    ("- **Notes**: old\n", {"Notes": ""}, "- **Notes**:\n"),
    ("- **A**: 1\n", {"A": ("1", ("Why: see: there",))}, "- **A**: 1\n  - Why: see: there\n"),
    (
        "- **A**: 1\n",
        {"A": ("1", (("Sizes", PerRun("run1", "24")),))},
        "- **A**: 1\n  - Sizes: run1: 24\n",
    ),
    (
        "- **Sizes**: run2: 8,\n  run3: 4\n",
        {"Sizes": PerRun("run1", "24")},
        "- **Sizes**: run2: 8, run3: 4, run1: 24\n",
    ),
    ("- **A**: 1\n\tstill 1\n", {"A": "2"}, "- **A**: 2\n"),
    ("- **A**: 1\n## Next\n", {"B": "2"}, "- **A**: 1\n- **B**: 2\n## Next\n"),
    (
        "- **A**: 1\n  ```\n  x\n  ```\n",
        {"A": ("1", ("Why: so",))},
        "- **A**: 1\n  - Why: so\n  ```\n  x\n  ```\n",
    ),
    (
        "- **A**: 1\n  - B: 2\n    - Why: deeper\n",
        {"A": ("1", ("Why: so",))},
        "- **A**: 1\n  - B: 2\n    - Why: deeper\n  - Why: so\n",
    ),
    ("- **A**: 1\n- ```\n  x\n  ```\n", {"B": "2"}, "- **A**: 1\n- **B**: 2\n- ```\n  x\n  ```\n"),
    ("- **A**: 1\n-\n  x\n", {"B": "2"}, "- **A**: 1\n- **B**: 2\n\n-\n  x\n"),
]


@pytest.mark.parametrize("heading", ["## Configuration", "## Configuration:"])
@pytest.mark.parametrize(("before", "bullets", "after"), WRITTEN_BULLETS)
def test_what_is_written_where(
    heading: str, before: str, bullets: dict[str, BulletValue], after: str
) -> None:
    edited = set_plan_configuration(f"{heading}\n{before}", bullets)

    assert edited == f"{heading}\n{after}"
    assert set_plan_configuration(edited, bullets) == edited


def test_sub_bullets_can_be_shared_by_runs() -> None:
    before = "## Configuration\n\n- **Dataset packing**: True\n  - Packing density: run1: 5.2\n"

    after = set_plan_configuration(
        before, {"Dataset packing": ("True", (("Packing density", PerRun("run2", "2.8")),))}
    )

    assert after == before.replace("run1: 5.2", "run1: 5.2, run2: 2.8")
