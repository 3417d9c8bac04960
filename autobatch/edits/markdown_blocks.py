"""Where the sections, tables and bullets of a Markdown text are, in lines.

A CommonMark parser says what is a heading, a table or a list, so that a code fence or a comment that
looks like one is never taken for it. Lines keep their ends; `"".join(lines)` is the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from markdown_it import MarkdownIt
from markdown_it.token import Token

_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+\Z")
_LINE_END = re.compile(r"\r\n|\r|\n")
_CELL_BREAK = re.compile(r"(?<!\\)\|")
_LIST_MARKER = re.compile(r"[ \t]*[-*+][ \t]+")


@dataclass(frozen=True)
class Section:
    """The lines below a level 2 heading, up to the next heading of level 1 or 2.

    Attributes:
        start: first line below the heading.
        prose_end: where the first heading below begins, of whatever level.
        end: line behind the last.
    """

    start: int
    prose_end: int
    end: int


@dataclass(frozen=True)
class Table:
    """Lines of a pipe table: `start` is the header, the delimiter follows, `end` is behind the last row."""

    start: int
    end: int


@dataclass(frozen=True)
class Bullet:
    """A list item that begins with a paragraph.

    Attributes:
        start: line of the marker.
        marker: with the white space on its sides.
        value_end: line behind those that the author meant as the bullet's text: an unindented line below
            belongs to the paragraph all the same, and has often only lost the blank line above it.
        end: line behind all that it holds.
        bullets: of the lists inside.
    """

    start: int
    marker: str
    value_end: int
    end: int
    bullets: tuple[Bullet, ...] = ()


@dataclass
class Row:
    """A line of a table, taken apart so that `render` gives the same line back.

    Attributes:
        indent: white space before it.
        leading: whether it begins with a pipe.
        cells: as written between the pipes, padding included.
        trailing: whether it ends with a pipe.
        ending: white space and line break behind it.
    """

    indent: str = ""
    leading: bool = True
    cells: list[str] = field(default_factory=list)
    trailing: bool = True
    ending: str = ""

    @classmethod
    def parse(cls, line: str) -> Row:
        body = line.strip("\r\n").strip(" \t")
        at = line.index(body)
        cells = _CELL_BREAK.split(body)
        leading = len(cells) > 1 and not cells[0]
        trailing = len(cells) > 1 + leading and not cells[-1]
        cells = cells[leading : len(cells) - trailing]
        return cls(line[:at], leading, cells, trailing, line[at + len(body) :])

    def render(self) -> str:
        pipes = ("|" if self.leading else ""), ("|" if self.trailing else "")
        return self.indent + pipes[0] + "|".join(self.cells) + pipes[1] + self.ending

    def get(self, column: int) -> str:
        """Text of a cell; empty when the row is too short."""
        return self.cells[column].strip().replace(r"\|", "|") if column < len(self.cells) else ""

    def set(self, column: int, value: str) -> None:
        """Replaces the cell at `column` unless it reads `value` already; keeps its width if it can."""
        self._reach(column + 1)
        if self.get(column) != value:
            cell = pad_cell(value, len(self.cells[column]) - 2)
            if column == len(self.cells) - 1 and not self.trailing:
                cell = cell.rstrip()
            self.cells[column] = cell if column or self.leading else cell.lstrip()

    def insert(self, column: int, cell: str) -> None:
        """Inserts a cell before `column`; a row too short for that gets empty cells."""
        self._reach(column)
        if column == 0 and not self.leading:
            self.leading = True
            self.cells[:1] = [f" {first}" for first in self.cells[:1]]
        if column == len(self.cells):
            self._close()
        self.cells.insert(column, cell)

    def _reach(self, length: int) -> None:
        if len(self.cells) < length:
            self._close()
            self.cells += ["  "] * (length - len(self.cells))

    def _close(self) -> None:
        """Ends the row with a pipe, for an empty cell at its end would be none without it."""
        if not self.trailing:
            self.trailing = True
            self.cells[-1:] = [f"{last} " for last in self.cells[-1:]]


def pad_cell(value: str, width: int) -> str:
    """`value` as a cell is written: pipes escaped, a space on each side, `width` characters at least."""
    return " " + value.replace("|", r"\|").ljust(width) + " "


class Blocks:
    """The blocks of a Markdown text.

    Attributes:
        lines: of the text, with their ends.
        newline: the text's first line break; a plain newline when it has none.
    """

    def __init__(self, text: str) -> None:
        self.lines: list[str] = _LINE.findall(text)
        first = _LINE_END.search(text)
        self.newline = first.group() if first else "\n"
        parser = MarkdownIt("commonmark").enable("table")
        parser.core.ruler.enableOnly(["normalize", "block"])
        self._tokens = parser.parse(text)

    def sections(self, is_wanted: Callable[[str], bool]) -> list[Section]:
        """Sections whose heading, in small letters and without emphasis, `is_wanted`."""
        headings = self._headings()
        found = []
        for i, (token, title) in enumerate(headings):
            if token.tag == "h2" and is_wanted(plain(title)):
                below = headings[i + 1 :]
                starts = [_range(other)[0] for other, _ in below] or [len(self.lines)]
                ends = [_range(other)[0] for other, _ in below if other.tag in ("h1", "h2")]
                found.append(Section(_range(token)[1], starts[0], (*ends, len(self.lines))[0]))
        return found

    def titles(self) -> list[str]:
        """Text of every heading that isn't inside of something else."""
        return [title for _, title in self._headings()]

    def _headings(self) -> list[tuple[Token, str]]:
        return [
            (token, self._tokens[i + 1].content)
            for i, token in enumerate(self._tokens)
            if token.type == "heading_open" and token.level == 0
        ]

    def tables(self, section: Section) -> list[Table]:
        """Tables of the section that aren't inside of something else."""
        return [
            Table(*_range(token))
            for token in self._tokens
            if token.type == "table_open" and token.level == 0 and _is_inside(token, section)
        ]

    def lists(self, section: Section) -> list[tuple[Bullet, ...]]:
        """Bullet lists of the section that aren't inside of something else."""
        return [
            tuple(self._bullets(i))
            for i, token in enumerate(self._tokens)
            if token.type == "bullet_list_open" and token.level == 0 and _is_inside(token, section)
        ]

    def insert(self, at: int, lines: Sequence[str]) -> str:
        """The text with `lines` (without line breaks) before line `at`; a missing final newline stays so."""
        before = self.lines[:at]
        added = [line + self.newline for line in lines]
        if before and not before[-1].endswith(("\r", "\n")):
            before[-1] += self.newline
            added[-1] = added[-1].removesuffix(self.newline)
        return "".join([*before, *added, *self.lines[at:]])

    def last_line(self, start: int, end: int) -> int:
        """Line behind the last line of that range that isn't blank; `start` when all are."""
        while end > start and is_blank(self.lines[end - 1]):
            end -= 1
        return end

    def _bullets(self, opening: int) -> Iterator[Bullet]:
        """The items of the list that opens at that token."""
        level = self._tokens[opening].level
        for i in range(opening + 1, len(self._tokens)):
            token = self._tokens[i]
            if token.level == level:
                return
            if token.type != "list_item_open" or token.level != level + 1:
                continue
            paragraph = self._tokens[i + 1]
            start, end = _range(token)
            marker = _LIST_MARKER.match(self.lines[start])
            if paragraph.type == "paragraph_open" and marker:
                end = self.last_line(start, end)
                value_end = start + 1
                while value_end < _range(paragraph)[1] and self.lines[value_end].startswith((" ", "\t")):
                    value_end += 1
                yield Bullet(start, marker.group(), value_end, end, tuple(self._nested(i)))

    def _nested(self, item: int) -> Iterator[Bullet]:
        level = self._tokens[item].level
        for i in range(item + 1, len(self._tokens)):
            if self._tokens[i].level == level:
                return
            if self._tokens[i].type == "bullet_list_open" and self._tokens[i].level == level + 1:
                yield from self._bullets(i)


def is_blank(line: str) -> bool:
    """Whether Markdown takes a line for blank; Python strips more, a non-breaking space among it."""
    return not line.strip(" \t\r\n")


def plain(text: str) -> str:
    """`text` for comparing: in small letters, without emphasis and surplus white space."""
    return " ".join(re.sub(r"[*_`]+", " ", text).casefold().split())


def _range(token: Token) -> tuple[int, int]:
    if token.map is None:
        raise ValueError(f"{token.type} has no lines")
    return token.map[0], token.map[1]


def _is_inside(token: Token, section: Section) -> bool:
    return section.start <= _range(token)[0] < section.end
