"""The entries of `runs_status.yaml` as nodes: finding one, and whether an edit changed nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from autobatch.edits.yaml_nodes import Node, Use, compose, equal_but_for, loaded, lookup
from autobatch.edits.yaml_splices import Path, Value, same
from autobatch.edits.yaml_values import shared_error
from autobatch.errors import EditError

Entry: TypeAlias = "Mapping[str, Value | Mapping[str, Value]]"

RUNS = "runs"
NAME = "name"


def items_of(root: Use | None) -> list[Use]:
    """The entries below `runs:`, whatever they are."""
    found = root.node.entries(RUNS) if root else []
    runs = found[0][1].node if found else None
    return runs.children if runs is not None and runs.kind == "sequence" else []


def find_entry(root: Use | None, run: str, name: str) -> Use | None:
    """The entry called `run`; None when there is none.

    Raises:
        EditError: there are several, or an alias shares it.
    """
    named = []
    for item in items_of(root):
        found = lookup(item.node, (NAME,))
        if found and found[1].node.kind == "scalar" and found[1].node.text == run:
            named.append(item)
    if len(named) > 1:
        lines = " and ".join(str(item.line) for item in named)
        raise EditError(f"{name}:{named[1].line}: two entries are called {run}, on lines {lines}: keep one")
    for item in named:
        if item.node.aliases:
            raise shared_error(name, (run,), item.line, item.node.aliases[0].line)
        return item
    return None


def is_null(node: Node) -> bool:
    """Whether a node is an empty or a null value that nothing shares."""
    return node.kind == "scalar" and not node.aliases and loaded(node) is None


def check_edit(old: Use | None, edited: str, run: str, entry: Entry, name: str) -> None:
    """Raises an `EditError` when an edit did anything but set the values of `entry` in the entry of `run`."""
    line = old.line if old else 1
    failed = EditError(
        f"{name}:{line}: the entry of {run} can't be set without changing other values: set it by hand"
    )
    try:
        new = compose(edited, name)
        item = find_entry(new, run, name)
    except EditError as error:
        raise failed from error
    if new is None or item is None or not all(_is_set(item.node, *pair) for pair in entry.items()):
        raise failed
    before, after = items_of(old), items_of(new)
    ours = find_entry(old, run, name)
    if len(after) != len(before) + (ours is None) or (old is None and len(new.node.children) != 2):
        raise failed
    if old is not None and not equal_but_for(old.node, new.node, {(RUNS,)}):
        raise failed
    for a, b in zip(before, after, strict=False):
        if not equal_but_for(a.node, b.node, _owned(a.node, entry) if a is ours else set()):
            raise failed


def _owned(item: Node, entry: Entry) -> set[Path]:
    """What an edit may change in an entry: a section as a whole only where there was none."""
    owned: set[Path] = set()
    for key, value in entry.items():
        found = item.entries(key)
        if isinstance(value, Mapping) and found and not is_null(found[0][1].node):
            owned |= {(key, child) for child in value}
        else:
            owned.add((key,))
    return owned


def _is_set(item: Node, key: str, value: Value | Mapping[str, Value]) -> bool:
    found = lookup(item, (key,))
    if isinstance(value, Mapping):
        return all(_is_set(found[1].node, *pair) if found else pair[1] is None for pair in value.items())
    return same(loaded(found[1].node), value) if found else value is None
