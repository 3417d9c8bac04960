"""A YAML file as text: on which line a key stands, and whether it is safe to load.

Works on the node graph that `yaml.compose` gives, so that nothing is constructed: a tag such as
`!!python/object` is only ever a string here, and aliases aren't expanded before they have been counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import yaml

from autobatch.runs.findings import Findings

#: Values of a config with every alias expanded. torchtune's own have about 100.
MAX_NODES = 200_000
#: Levels of mappings and lists. Python's recursion limit would be met at some hundreds.
MAX_DEPTH = 50
#: Characters of a config. PyYAML composes about 0.1 MB a second.
MAX_CHARACTERS = 500_000

_MERGE = "tag:yaml.org,2002:merge"
_PYTHON = "tag:yaml.org,2002:python/"


def key_line(text: str, path: str) -> int | None:
    """Line (from 1) of the key at a dotted path such as ``dataset.0.packed``.

    Where the key itself isn't written, the line of the nearest key above it that is; None when there is
    none, or when `text` isn't YAML.
    """
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        return None
    if root is None or not 0 < _measure(root, {})[0] <= MAX_NODES:
        return None
    return nearest_line(key_lines(root), path)


def nearest_line(lines: dict[str, int], path: str) -> int | None:
    """Line of `path` among `lines`, or of the nearest key above it."""
    while path and path not in lines:
        path = path.rpartition(".")[0]
    return lines.get(path)


def key_lines(root: yaml.Node) -> dict[str, int]:
    """Line (from 1) of every key and list item below `root`, by dotted path."""
    lines: dict[str, int] = {}
    _collect_lines(root, "", lines)
    return lines


def check_text(text: str, path: Path, findings: Findings) -> yaml.MappingNode | None:
    """The node graph of a config, or None and the problems for which it can't be loaded."""
    if len(text) > MAX_CHARACTERS:
        findings.problem(
            f"{len(text):,} characters are not a config (limit {MAX_CHARACTERS:,})",
            str(path),
            "check that this is the file you mean",
        )
        return None
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        findings.problem(f"not YAML: {what}", where, "correct the line, or the one above it")
        return None
    except RecursionError:
        _report_depth(path, findings)
        return None
    return _checked_root(root, path, findings)


def _report_depth(path: Path, findings: Findings) -> None:
    findings.problem(f"nested more than {MAX_DEPTH} levels deep", str(path), "flatten it")


def _checked_root(root: yaml.Node | None, path: Path, findings: Findings) -> yaml.MappingNode | None:
    if not isinstance(root, yaml.MappingNode):
        found = "a list" if isinstance(root, yaml.SequenceNode) else "a single value"
        found = "nothing" if root is None else found
        findings.problem(
            f"a config is a mapping of keys to values, and this file holds {found}",
            f"{path}:1",
            "start from one of torchtune's: tune ls, tune cp NAME finetune.yaml",
        )
        return None
    size, depth = _measure(root, {})
    if depth > MAX_DEPTH:
        _report_depth(path, findings)
        return None
    if not size or size > MAX_NODES:
        findings.problem(
            f"with its aliases expanded this file has more than {MAX_NODES:,} values"
            if size
            else "an alias contains itself",
            str(path),
            "write the values out without YAML anchors",
        )
        return None
    before = len(findings.problems)
    for node in _unique(root):
        _check_node(node, path, findings)
    return root if len(findings.problems) == before else None


def _check_node(node: yaml.Node, path: Path, findings: Findings) -> None:
    if node.tag.startswith(_PYTHON):
        findings.problem(
            f"the tag !!{node.tag.removeprefix('tag:yaml.org,2002:')} makes Python objects; it is not loaded",
            f"{path}:{_line(node)}",
            "write a plain value",
        )
    if not isinstance(node, yaml.MappingNode):
        return
    seen: dict[tuple[str, str], int] = {}
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
            first = seen.setdefault((key.tag, key.value), _line(key))
            if first != _line(key):
                findings.problem(
                    f"the key {key.value} stands here a second time; the first is on line {first}",
                    f"{path}:{_line(key)}",
                    "remove one of them",
                )


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _unique(root: yaml.Node) -> Iterator[yaml.Node]:
    """Every node once, however many aliases lead to it."""
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if id(node) not in seen:
            seen.add(id(node))
            yield node
            waiting.extend(_children(node))


def _measure(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """(nodes with every alias expanded, levels) from `node` down; (0, 0) when it contains itself.

    Each node is visited once, so that this is cheap however much the aliases expand to.
    """
    if id(node) in known:
        return known[id(node)] or (0, 0)
    known[id(node)] = None
    size, depth = 1, 0
    for child in _children(node):
        below = _measure(child, known)
        if not below[0]:
            return 0, 0
        size += below[0]
        depth = max(depth, below[1])
    known[id(node)] = (size, depth + 1)
    return size, depth + 1


def _collect_lines(node: yaml.Node, path: str, lines: dict[str, int]) -> None:
    """Lines below `node`; keys that a `<<` merges in don't replace those written beside it."""
    prefix = f"{path}." if path else ""
    if isinstance(node, yaml.MappingNode):
        merged: list[yaml.Node] = []
        for key, value in node.value:
            if key.tag == _MERGE:
                merged += value.value if isinstance(value, yaml.SequenceNode) else [value]
            elif isinstance(key, yaml.ScalarNode):
                lines.setdefault(f"{prefix}{key.value}", _line(key))
                _collect_lines(value, f"{prefix}{key.value}", lines)
        for source in merged:
            _collect_lines(source, path, lines)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines.setdefault(f"{prefix}{index}", _line(item))
            _collect_lines(item, f"{prefix}{index}", lines)
