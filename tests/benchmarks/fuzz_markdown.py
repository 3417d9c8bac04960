"""What must hold of any Markdown text into which autobatch writes a run's row or bullets.

An edit refuses with an `EditError`,
  or: every line that isn't of ours is there afterwards, byte for byte and in its
place; a Markdown parser finds the new values in a table or bullets of the right section,
  and every other heading,
cell and paragraph as before; and the same edit once more changes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from hypothesis import strategies as st
from markdown_it import MarkdownIt

from autobatch.edits.markdown_blocks import Row, plain
from autobatch.edits.plan_markdown import set_plan_configuration, set_plan_row
from autobatch.edits.plan_values import BulletValue, PerRun, Stated, one_line
from autobatch.errors import EditError
from tests.benchmarks.fuzz_markdown_texts import NAMES, ROWS, TEXTS
from tests.benchmarks.fuzz_rounds import Check
from tests.benchmarks.fuzz_texts import whole_lines

BULLETS: Mapping[str, BulletValue] = {
    "Dataset packing": (
        Stated("True", "examples are concatenated"),
        (("Packing density", PerRun("run1", "61.3 ex/seq")), ("Impact on memory", PerRun("run1", "2.1 GiB"))),
    ),
    "Batch sizes": PerRun("run1", "24 (measured)"),
}
LABELS = {"dataset packing", "packing density", "impact on memory", "batch sizes"}


def check_row(case: tuple[str, str, Mapping[str, str]]) -> str:
    """`set_plan_row`."""
    text, run, row = case
    defaults = {"Model": "1B"}
    try:
        after = set_plan_row(text, run, row, defaults=defaults)
    except EditError:
        return "refused"
    assert set_plan_row(after, run, row, defaults=defaults) == after, "a second edit changes something"
    if after == text:
        return "right already"
    old, new = Seen(text), Seen(after)
    (at,) = [
        i for i, (one, other) in enumerate(zip([*old.tables, None], new.tables, strict=False)) if one != other
    ][:1]
    ours, wanted = new.tables[at], one_line(run).replace("\0", "\ufffd")
    header = [plain(cell).replace(" ", "") for cell in ours[0]]
    named = [cells for cells in ours[1:] if cells[header.index("run")] == wanted.strip()]
    assert named, "no row of that name"
    for column, value in row.items():
        assert named[0][header.index(plain(column).replace(" ", ""))] == value, column
    grown = len(new.tables) > len(old.tables)
    if not grown:
        _only_our_row(old.tables[at], ours, named[0])
    rest = [table for i, table in enumerate(new.tables) if i != at]
    assert rest == [table for i, table in enumerate(old.tables) if grown or i != at], (
        "another table has changed"
    )
    assert [one for one in new.prose if one != "Packing Analysis"] == [
        one for one in old.prose if one != "Packing Analysis"
    ]
    ranges = old.ranges[at] if not grown else range(0)
    lines = whole_lines(text)
    if old.tables[at : at + 1] and not grown and len(ours[0]) == len(old.tables[at][0]):
        kept = set(whole_lines(after))
        changed = [i for i in ranges if lines[i] not in kept]
        assert len([i for i in changed if i + 1 < len(lines)]) <= 1, "lines of other rows have changed"
    _keeps_lines(text, after, ranges)
    return "edited"


def check_bullets(text: str) -> str:
    """`set_plan_configuration`."""
    try:
        after = set_plan_configuration(text, BULLETS)
    except EditError:
        return "refused"
    assert set_plan_configuration(after, BULLETS) == after, "a second edit changes something"
    if after == text:
        return "right already, or no section"
    old, new = Seen(text), Seen(after)
    assert old.tables == new.tables, "a table has changed"
    assert any("24 (measured)" in one for one in new.prose)
    assert _other_lines(old.prose, old.prose) == _other_lines(new.prose, old.prose), "other text has changed"
    lines = whole_lines(text)
    _keeps_lines(text, after, [i for i in range(len(lines)) if _bullet_line(lines, i)])
    return "edited"


def check_entry(case: tuple[str, str, str]) -> str:
    """`PerRun`: its own entry is set, once; what another run has set stays."""
    current, run, value = case
    if not one_line(run) or not one_line(value):
        return "no name or value"
    after = PerRun(run, value).merge_into(current)
    if PerRun(run, value).merge_into(after) != after:
        # Beside a code span that isn't closed, no name can be told from it: then nothing is written.
        assert "`" in current
        plan = f"## Configuration\n\n- **Batch sizes**: {one_line(current)}\n"
        try:
            set_plan_configuration(plan, {"Batch sizes": PerRun(run, value)})
        except EditError:
            return "refused"
        return "merged in the plan"
    other = PerRun(f"{one_line(run)}x", "7").merge_into(after)
    assert PerRun(run, value).merge_into(other) == other
    return "merged"


def check_line(line: str) -> str:
    """`Row`: taken apart and put together it is the same."""
    assert Row.parse(line).render() == line
    return "same"


class Seen:
    """A text as a Markdown parser sees it.

    Attributes:
        tables: cells of those that stand by themselves, row by row; ranges: their lines.
        prose: all other text, paragraph by paragraph, with headings, code and HTML.
    """

    def __init__(self, text: str) -> None:
        self.tables: list[list[list[str]]] = []
        self.ranges: list[range] = []
        self.prose: list[str] = []
        inside = ""
        for token in MarkdownIt("commonmark").enable("table").parse(text):
            if token.type == "table_open" and token.level == 0:
                inside = "table"
                self.tables.append([])
                self.ranges.append(range(*token.map or (0, 0)))
            elif token.type == "table_close" and token.level == 0:
                inside = ""
            elif inside and token.type == "tr_open":
                self.tables[-1].append([])
            elif inside and token.type == "inline":
                self.tables[-1][-1].append(token.content.strip())
            elif token.type in ("inline", "fence", "code_block", "html_block"):
                self.prose.append(token.content.strip())


def _only_our_row(old: list[list[str]], new: list[list[str]], ours: list[str]) -> None:
    """All cells of before are where they were, but for our row's."""
    columns = _positions(old[0], new[0])
    others = [row for row in new[1:] if row is not ours]
    before = [[row[column] for column in columns] for row in others]
    was = old[1:]
    if len(new) == len(old):
        at = next(i for i, row in enumerate(new) if row is ours)
        was = [row for i, row in enumerate(old) if i not in (0, at)]
    assert before == was, "another row has changed"


def _positions(old: list[str], new: list[str]) -> list[int]:
    """Where in `new` the titles of `old` stand, in their order."""
    found, at = [], 0
    for title in old:
        at = new.index(title, at)
        found.append(at)
        at += 1
    return found


def _other_lines(prose: Sequence[str], before: Sequence[str]) -> list[str]:
    """Lines that aren't of our bullets, nor were: one below a bullet, not indented, becomes a paragraph."""
    of_ours = {line.strip() for text in before if _is_ours(text) for line in re.split(r"[\r\n]+", text)}
    lines = [line.strip() for text in prose for line in re.split(r"[\r\n]+", text)]
    # One of vertical tabs alone is text to Markdown and nothing to Python: `_keeps_lines` looks at its bytes.
    return [line for line in lines if line and line not in of_ours and not _is_ours(line)]


def _is_ours(text: str) -> bool:
    first = re.split(r"[\r\n]", text)[0]
    return plain(re.sub(r"\[.\] ", "", first).partition(":")[0]) in LABELS


def _keeps_lines(before: str, after: str, may_change: Sequence[int]) -> None:
    """Every line but those is in `after`, byte for byte, in the order of before."""
    old, new = whole_lines(before), whole_lines(after)
    if re.search(r"\r(?!\n)|[^\r\n]\Z", before):
        # A break is put behind a last line that has none, and a `\r` with a `\n` put behind it is one break.
        old, new = ([line.rstrip("\r\n") for line in lines] for lines in (old, new))
    rest = iter(new)
    for index, line in enumerate(old):
        assert index in may_change or not line or line in rest, f"lost: {line!r}"


def _bullet_line(lines: list[str], at: int) -> bool:
    """Whether the line, or one above it in the same bullet, has a label of ours."""
    for line in reversed(lines[: at + 1]):
        if re.match(r"[ \t>]*[-*+][ \t]", line):
            return _is_ours(re.sub(r"^[ \t>]*[-*+][ \t]+", "", line))
    return False


CHECKS = {
    "set_plan_row": Check(st.tuples(TEXTS, NAMES, ROWS), check_row),
    "set_plan_configuration": Check(
        st.one_of(st.builds("## Configuration\n{}".format, TEXTS), TEXTS), check_bullets
    ),
    "PerRun": Check(
        st.tuples(
            st.one_of(st.text(max_size=20), st.text("ab,:` \n|", max_size=20)), NAMES, st.text(max_size=6)
        ),
        check_entry,
    ),
    "Row": Check(
        st.one_of(
            st.text("ab |\\`-:\t", max_size=20),
            st.text(max_size=20).filter(lambda t: not re.search("[\r\n].", t, re.DOTALL)),
        ),
        check_line,
    ),
}
