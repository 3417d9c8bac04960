"""Removes an entry of a YAML text, or puts comment lines above one; every other byte stays as it is."""

from __future__ import annotations

from collections.abc import Sequence

from autobatch.edits.yaml_nodes import BREAK, Use, compose, equal_but_for
from autobatch.edits.yaml_splices import BOM, Path, last_break
from autobatch.errors import EditError


def remove_key(text: str, path: Path, *, name: str = "YAML") -> str:
    """`text` without the entry at `path`, and without the mappings that this leaves empty.

    In block style the entry's lines go, with the comments on them; comments above it stay. A text that has no
    such entry is returned as it is.

    Args:
        text: one YAML document whose root is a mapping.
        path: keys from the root to the entry.
        name: of the file, for messages.

    Raises:
        EditError: the entry can't be removed without changing something else; with file and line.
    """
    body = text.removeprefix(BOM)
    root = compose(body, name)
    found = _entry(root, path)
    if root is None or found is None:
        return text
    owner, key, value = found
    if len(list(owner.node.pairs())) == 1:
        if len(path) == 1:
            raise EditError(f"{name}:{key.line}: {path[0]} is the only entry: remove the file instead")
        return remove_key(text, path[:-1], name=name)
    start, end = _flow_span(owner, key) if owner.node.flow else _lines_of(body, key, value)
    edited = body[:start] + body[end:]
    try:
        new = compose(edited, name)
    except EditError:
        new = None
    if new is None or not equal_but_for(root.node, new.node, {path}):
        raise EditError(
            f"{name}:{key.line}: {'.'.join(path)} can't be removed here without changing something else: "
            "remove it by hand"
        )
    return text[: len(text) - len(body)] + edited


def comment_above(text: str, path: Path, lines: Sequence[str], *, name: str = "YAML") -> str:
    """`text` with comment lines above the key at `path`, indented as it is.

    Where the key is missing, or doesn't begin its line, there is no place for them: `text` as it is.

    Args:
        text: one YAML document.
        path: keys from the root to the entry.
        lines: without ``#``.
        name: of the file, for messages.

    Raises:
        EditError: `text` isn't YAML.
    """
    body = text.removeprefix(BOM)
    found = _entry(compose(body, name), path)
    if found is None:
        return text
    start = _line_start(body, found[1].start)
    indent = body[start : found[1].start]
    if found[0].node.flow or indent.strip():
        return text
    newline = BREAK.search(body)
    ending = newline.group() if newline else "\n"
    comment = "".join(f"{indent}# {line}{ending}" for line in lines)
    return text[: len(text) - len(body)] + body[:start] + comment + body[start:]


def _entry(root: Use | None, path: Path) -> tuple[Use, Use, Use] | None:
    """The mapping, the key and the value at `path`, where they are written out: aliases aren't followed."""
    owner = root
    for depth, wanted in enumerate(path, start=1):
        if owner is None or owner.is_alias or owner.node.kind != "mapping":
            return None
        entries = owner.node.entries(wanted)
        if not entries:
            return None
        key, value = entries[0]
        if depth == len(path):
            return owner, key, value
        owner = value
    return None


def _flow_span(owner: Use, key: Use) -> tuple[int, int]:
    pairs = list(owner.node.pairs())
    index = next(i for i, (k, _) in enumerate(pairs) if k is key)
    if index + 1 < len(pairs):
        return key.start, pairs[index + 1][0].start
    return pairs[index - 1][1].end, pairs[index][1].end


def _lines_of(text: str, key: Use, value: Use) -> tuple[int, int]:
    start = _line_start(text, key.start)
    if _line_start(text, value.end) == value.end:
        return start, value.end  # a block scalar ends behind its last newline
    newline = BREAK.search(text, value.end)
    return start, newline.end() if newline else len(text)


def _line_start(text: str, position: int) -> int:
    return last_break(text, position) + 1
