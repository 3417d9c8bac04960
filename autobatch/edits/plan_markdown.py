"""Writes what was measured into `runs_plan.md`: a row of a table, and bullets of the configuration.

    ## Configuration
    - **Dataset packing**: True - 61.3 examples fill a sequence of 2048 tokens
      - Packing density: 61.3
    - **Batch sizes**: run1: 24, run2: 16

    ## Packing Analysis

    | Run  | Model | Batch Size | ...
    | ---- | ----- | ---------- | ...
    | run1 | 1B    | 24         | ...

Everything else in the file, other rows and columns that the user added included, stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

from autobatch.edits.markdown_blocks import Blocks, Bullet, Row, Section, Table, is_blank, pad_cell, plain
from autobatch.edits.plan_values import BulletText, BulletValue, one_line
from autobatch.errors import EditError

#: Columns of a table that we begin; a table that is there needs none of them but gets `Run`.
COLUMNS = ("Run", "Model", "Batch Size", "Packed", "Packing Density", "Memory Usage", "GPU Type")

_RUN = "Run"
_BULLET = re.compile(
    r"(?P<marker>[ \t]*[-*+][ \t]+)(?P<label>[^:]*?)(?P<colon>[ \t]*:(?:\*\*|__)?)[ \t]*(?P<value>.*)",
    re.DOTALL,
)


def set_plan_row(
    text: str,
    run: str,
    row: Mapping[str, str],
    *,
    defaults: Mapping[str, str] | None = None,
    name: str = "runs_plan.md",
) -> str:
    """Sets the row of `run` in the table of the section ``## Packing Analysis``.

    The section is the first whose heading begins with these words. Its table is the first that has a
    column `Run` or `Batch Size`; the columns are found by name, in any case and spacing, and those that
    are missing are added: `Run` first, others last. No section: added at the end of the file; no table:
    added below the section's text. A row belongs to a run when its cell under `Run` is exactly that name,
    the first one if there are several.

    Args:
        text: of the file.
        run: the run's name.
        row: text by column name; a column that it doesn't name keeps its cell.
        defaults: text for cells that are empty.
        name: of the file, for messages.

    Raises:
        EditError: the run has no name, or the section would end up inside of a block that isn't closed.
    """
    if not one_line(run):
        raise EditError(f"{name}: a run without a name has no row: name the run directory")
    cells = {_RUN: run} | {column: value for column, value in row.items() if _column(column) != _column(_RUN)}
    cells = {column: one_line(value) for column, value in cells.items()}
    fallback = {column: one_line(value) for column, value in (defaults or {}).items()}
    return _twice(lambda before: _set_row(before, cells, fallback), text, name)


def set_plan_configuration(
    text: str, bullets: Mapping[str, BulletValue], *, name: str = "runs_plan.md"
) -> str:
    """Sets bullets in the section ``## Configuration``; without that section the text is unchanged.

        set_plan_configuration(text, {
            "Dataset packing": ("True", ("Packing density: 61.3", "Impact on memory: 2.2x")),
            "Batch sizes": PerRun("run1", "24"),
        })

    A bullet is found by the label before its colon and gets a new value; a missing one is added to the
    section's first list. Sub-bullets likewise. Other bullets stay.

    Args:
        text: of the file.
        bullets: by label, the value, or the value and sub-bullets ``label: value`` or ``(label, value)``.
        name: of the file, for messages.

    Raises:
        EditError: the section ends in a block that isn't closed, or before an indented heading.
    """

    def change(before: str) -> str:
        for label, bullet in bullets.items():
            value, below = bullet if isinstance(bullet, tuple) else (bullet, ())
            before = _set_bullet(before, label, value)
            for sub_bullet in below:
                if isinstance(sub_bullet, str):
                    sub_label, _, text_below = one_line(sub_bullet).partition(":")
                    sub_bullet = (sub_label, text_below.strip())
                before = _set_sub_bullet(before, label, *sub_bullet)
        return before

    after = _twice(change, text, name)
    if Blocks(after).titles() != Blocks(text).titles():
        raise EditError(
            f"{name}: an indented heading would become a part of the list that is added above it: begin it at the "
            "margin, then run again"
        )
    return after


def _twice(change: Callable[[str], str], text: str, name: str) -> str:
    """`change(text)`, refused unless changing it again finds all in place."""
    after = change(text)
    if change(after) != after:
        raise EditError(
            f"{name}: what was added isn't read back, because a code fence or a comment above it "
            "isn't closed: close it, then run again"
        )
    return after


def _set_row(text: str, cells: Mapping[str, str], defaults: Mapping[str, str]) -> str:
    blocks = Blocks(text)
    sections = blocks.sections(lambda title: re.match(r"packing analysis(?!\w)", title) is not None)
    for section in sections:
        for table in blocks.tables(section):
            header = {_column(cell) for cell in Row.parse(blocks.lines[table.start]).cells}
            if header & {_column(_RUN), _column("Batch Size")}:
                return _set_row_of(blocks, table, cells, defaults)
    if sections:
        return _add_below(blocks, sections[0], _new_table({**cells, **defaults}))
    end = blocks.last_line(0, len(blocks.lines))
    blank = [""] if end and end == len(blocks.lines) else []
    return blocks.insert(
        len(blocks.lines), [*blank, "## Packing Analysis", "", *_new_table({**cells, **defaults})]
    )


def _set_row_of(blocks: Blocks, table: Table, cells: Mapping[str, str], defaults: Mapping[str, str]) -> str:
    rows = [Row.parse(line) for line in blocks.lines[table.start : table.end]]
    header, delimiter = rows[:2]
    columns = [_column(cell) for cell in header.cells]
    for column, value in ({**cells, **defaults}).items():
        if _column(column) not in columns:
            at = 0 if column == _RUN else len(columns)
            columns.insert(at, _column(column))
            width = max(len(column), len(pad_cell(value, 0)) - 2)
            line = "-" * width
            spaced = delimiter.cells[0].startswith(" ")
            header.insert(at, pad_cell(column, width))
            delimiter.insert(at, f" {line} " if spaced else f"-{line}-")
            for row in rows[2:]:
                row.insert(at, " " * (width + 2))
    run_column = columns.index(_column(_RUN))
    ours = next((row for row in rows[2:] if row.get(run_column) == cells[_RUN]), None)
    if ours is None:
        ours = Row(header.indent, cells=[" " * len(cell) for cell in header.cells], ending=rows[-1].ending)
        if not rows[-1].ending.endswith(("\r", "\n")):
            rows[-1].ending += blocks.newline
        rows.append(ours)
    for column, value in cells.items():
        ours.set(columns.index(_column(column)), value)
    for column, value in defaults.items():
        if not ours.get(columns.index(_column(column))):
            ours.set(columns.index(_column(column)), value)
    rendered = [row.render() for row in rows]
    return "".join([*blocks.lines[: table.start], *rendered, *blocks.lines[table.end :]])


def _new_table(cells: Mapping[str, str]) -> list[str]:
    known = {_column(column) for column in COLUMNS}
    columns = [*COLUMNS, *(column for column in cells if _column(column) not in known)]
    values = {_column(column): value for column, value in cells.items()}
    written = [values.get(_column(column), "") for column in columns]
    widths = [max(len(c), len(pad_cell(v, 0)) - 2) for c, v in zip(columns, written, strict=True)]
    return [
        Row(cells=[pad_cell(text, width) for text, width in zip(texts, widths, strict=True)]).render()
        for texts in (columns, ["-" * width for width in widths], written)
    ]


def _add_below(blocks: Blocks, section: Section, lines: list[str]) -> str:
    """Adds a block of lines below the section's text, before the next heading."""
    at = blocks.last_line(section.start, section.prose_end)
    heading_follows = at == section.prose_end < len(blocks.lines)
    return blocks.insert(at, ["", *lines, ""] if heading_follows else ["", *lines])


def _set_bullet(text: str, label: str, value: BulletText) -> str:
    blocks = Blocks(text)
    section = _configuration(blocks)
    if section is None:
        return text
    lists = blocks.lists(section)
    found = _find(blocks, [bullet for bullets in lists for bullet in bullets], label)
    if found:
        return _set_value(blocks, *found, value)
    new = f"**{label}**: {_merged(value, '')}"
    if not lists or not lists[0]:
        return _add_below(blocks, section, [f"- {new}".rstrip()])
    return _append(blocks, lists[0], new)


def _merged(value: BulletText, current: str) -> str:
    return one_line(value) if isinstance(value, str) else value.merge_into(current)


def _set_sub_bullet(text: str, label: str, sub_label: str, value: BulletText) -> str:
    blocks = Blocks(text)
    section = _configuration(blocks)
    if section is None:
        return text
    parent = _find(blocks, [bullet for bullets in blocks.lists(section) for bullet in bullets], label)
    if parent is None:
        return text
    bullet = parent[0]
    found = _find(blocks, bullet.bullets, sub_label)
    if found:
        return _set_value(blocks, *found, value)
    sub_bullet = f"{sub_label}: {_merged(value, '')}"
    if bullet.bullets:
        return _append(blocks, bullet.bullets, sub_bullet)
    indent = " " * len(bullet.marker.expandtabs(4))
    return _add_bullet(blocks, bullet.value_end, f"{indent}- {sub_bullet}")


def _configuration(blocks: Blocks) -> Section | None:
    return next(iter(blocks.sections(lambda title: bool(re.fullmatch("configuration[ :]*", title)))), None)


def _find(blocks: Blocks, bullets: Iterable[Bullet], label: str) -> tuple[Bullet, re.Match[str]] | None:
    """The first bullet with that label, and the match of its first line."""
    for bullet in bullets:
        match = _BULLET.match(blocks.lines[bullet.start])
        if match and plain(match["label"]) == plain(label):
            return bullet, match
    return None


def _set_value(blocks: Blocks, bullet: Bullet, match: re.Match[str], value: BulletText) -> str:
    lines = blocks.lines[bullet.start : bullet.value_end]
    current = " ".join(
        part for part in (match["value"].strip(), *(line.strip() for line in lines[1:])) if part
    )
    wanted = _merged(value, current)
    if current == wanted:
        return "".join(blocks.lines)
    line_end = lines[-1][len(lines[-1].rstrip("\r\n")) :]
    new = lines[0][: match.end("colon")] + (f" {wanted}" if wanted else "") + line_end
    return "".join([*blocks.lines[: bullet.start], new, *blocks.lines[bullet.value_end :]])


def _append(blocks: Blocks, bullets: tuple[Bullet, ...], text: str) -> str:
    return _add_bullet(blocks, bullets[-1].end, (bullets[-1].marker + text).rstrip())


def _add_bullet(blocks: Blocks, at: int, bullet: str) -> str:
    """Adds a line to a list, and a blank one when what follows would become a part of the bullet."""
    below = blocks.lines[at] if at < len(blocks.lines) else ""
    is_apart = is_blank(below) or re.match(r"[ \t]|[-*+][ \t]|#", below)
    return blocks.insert(at, [bullet] if is_apart else [bullet, ""])


def _column(title: str) -> str:
    return plain(title.replace(r"\|", "|")).replace(" ", "")
