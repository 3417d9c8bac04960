"""Where in a YAML text a value is replaced or added: splices, each a text to put between two indexes.

    batch_size: 4  # fits        (start of "4", end of "4", "24")
    packed:                      (behind the colon, same place, " True")

Nothing here knows which value belongs where; `yaml_values` and `status_yaml` do, and read the result again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeAlias

from autobatch.edits.yaml_nodes import BREAK, Use

Value: TypeAlias = "int | bool | float | str | None"
Path: TypeAlias = "tuple[str, ...]"
Splice: TypeAlias = "tuple[int, int, str]"

BOM = "\ufeff"
_BREAKS = "\r\n\x85\u2028\u2029"
_BLANK = re.compile("[ \t\r\n\x85\u2028\u2029]+|#[^\r\n\x85\u2028\u2029]*")
_PROPERTY = re.compile(r"&[^\s,\[\]{}]+|!<[^>]*>|!\S*")
_COMMENT = re.compile(r"([ \t]*)#")
_BLOCK_HEADER = re.compile(r"[|>][-+0-9]*([ \t]+#[^\r\n\x85\u2028\u2029]*)?")


def replacement(text: str, use: Use, value: str) -> Splice:
    """Puts `value` in the place of a scalar, or where an empty one would stand."""
    start = skip_properties(text, use)
    written = text[start : use.end]
    if not written:
        before = text[:start].rstrip(" \t")[-1:]
        # In a flow mapping a key may stand without its colon: {packed, seed: 1}
        colon = ":" if start == use.start and before not in (":", "\n") else ""
        space = "" if not colon and text[start - 1] in " \t" else " "
        return start, start, colon + space + value
    block = _BLOCK_HEADER.match(written)
    if block is None:
        return start, use.end, value
    # The newline that ends a block scalar is part of it; so is a comment beside its header.
    end = max(len(written.rstrip()), block.end())
    return start, start + end, value + (block.group(1) or "")


def skip_properties(text: str, use: Use) -> int:
    """Where the value begins, behind its anchor and its tag."""
    position = use.start
    while position < use.end and text[position] in "&!":
        match = _PROPERTY.match(text, position, use.end)
        position = match.end() if match else use.end
        while blank := _BLANK.match(text, position, use.end):
            position = blank.end()
    return position


def insertion(
    text: str, owner: Use, neighbour: tuple[Use, Use] | None, lines: Sequence[str], *, first: bool = True
) -> Splice:
    """Adds an entry to a mapping.

    Args:
        text: of the file.
        owner: the mapping.
        neighbour: key and value below which the entry is added; None for the mapping's last.
        lines: of the entry, indented as for a mapping at the margin; one line for a flow mapping.
        first: whether none was added to this mapping before.
    """
    if not owner.node.children:
        inside = skip_properties(text, owner) + 1
        return inside, inside, lines[0] if first else f", {lines[0]}"
    key_use, value_use = neighbour or list(owner.node.pairs())[-1]
    if owner.node.flow:
        # Behind an empty value: libyaml takes "key:," for a word, PyYAML's own parser for a key.
        space = " " if text[value_use.end - 1] == ":" else ""
        return value_use.end, value_use.end, f"{space}, {lines[0]}"
    column = column_of(text, key_use.start)
    return below(text, value_use.end, indented(lines, column), column)


def below(text: str, end: int, lines: Sequence[str], column: int | None = None) -> Splice:
    """Adds lines below the one on which the node ending at `end` has its last character.

    With a `column` also below the comments that follow it and stand further to the right than that: they
    belong to what is above.
    """
    if last_break(text, end) == end - 1:
        # Only a block scalar ends behind its newline.
        return end, end, "".join(line + newline_at(text, end) for line in lines)
    line_end = BREAK.search(text, end)
    while column is not None and line_end:
        comment = _COMMENT.match(text, line_end.end())
        if not comment or len(comment.group(1)) <= column:
            break
        line_end = BREAK.search(text, comment.end())
    at = line_end.start() if line_end else len(text)
    return at, at, "".join(newline_at(text, at) + line for line in lines)


def indented(lines: Sequence[str], spaces: int) -> list[str]:
    """`lines`, further to the right."""
    return [" " * spaces + line for line in lines]


def column_of(text: str, position: int) -> int:
    """Characters before `position` on its line."""
    return position - last_break(text, position) - 1


def last_break(text: str, end: int) -> int:
    """Index of the last character before `end` that ends a line; -1 when there is none."""
    return max(text.rfind(character, 0, end) for character in _BREAKS)


def newline_at(text: str, position: int) -> str:
    """The line break at `position`, else the one before it, else a plain newline."""
    here = BREAK.match(text, position)
    if here:
        return here.group()
    last = last_break(text, position)
    if last < 0:
        return "\n"
    return "\r\n" if text[last - 1 : last + 1] == "\r\n" else text[last]


def apply(text: str, splices: Sequence[Splice]) -> str:
    """`text` with every splice made; of those at one place, in their order."""
    pieces = []
    position = 0
    for start, end, piece in sorted(splices, key=lambda splice: splice[0]):
        pieces += [text[position:start], piece]
        position = end
    return "".join([*pieces, text[position:]])


def same(current: object, value: Value) -> bool:
    """Whether a loaded scalar is `value`, in type too."""
    # As text also NaN is equal to itself, and 0.0 differs from -0.0.
    return type(current) is type(value) and repr(current) == repr(value)
