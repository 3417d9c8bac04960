"""What must hold of any YAML text that autobatch edits.

An edit refuses with an `EditError`, or: the text differs in nothing but the value (or the line that was put in),
the parser's events are the same but for that value's, PyYAML reads the new value there and everything else as
before, and the same edit once more changes nothing. The events are PyYAML's own, not autobatch's nodes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml
from hypothesis import strategies as st

from autobatch.edits.status_yaml import set_run
from autobatch.edits.yaml_format import Value, format_value
from autobatch.edits.yaml_lines import comment_above, remove_key
from autobatch.edits.yaml_nodes import Loader
from autobatch.edits.yaml_values import get_line, set_values
from autobatch.errors import EditError
from tests.benchmarks.fuzz_rounds import Check
from tests.benchmarks.fuzz_texts import is_insertion, mutated
from tests.benchmarks.fuzz_yaml_texts import (
    ANY_VALUES,
    BOM,
    EDITS,
    ENTRIES,
    GRAMMAR,
    LOADERS,
    PATHS,
    PIECES,
    STATUS,
    TEXTS,
    Path,
    Values,
)


def check_set(case: tuple[str, Values, str]) -> str:
    """`set_values`."""
    text, values, name = case
    loader = LOADERS[name]
    try:
        after = set_values(text, values, loader=loader)
    except EditError:
        return "refused"
    assert set_values(after, values, loader=loader) == after, "a second edit changes something"
    if after == text:
        return "right already"
    bom = BOM if text.startswith(BOM) else ""
    assert after.startswith(bom)
    old, new = text[len(bom) :], after[len(bom) :]
    _same_but_for(old, new, values, loader)
    _same_events(old, new, values, loader)
    _reads_back(old, new, values)
    for path in values:
        assert get_line(after, path) is not None or name == "C"
    return "edited"


def check_remove(case: tuple[str, Path]) -> str:
    """`remove_key`: the text without some of its characters; what is left is read as before."""
    text, path = case
    try:
        after = remove_key(text, path)
    except EditError:
        return "refused"
    if after == text:
        return "not there"
    assert is_insertion(after, text), "more than one place was changed"
    gone = events_of(after.removeprefix(BOM), yaml.CSafeLoader)
    kept = events_of(text.removeprefix(BOM), yaml.CSafeLoader)
    parents = [path[:depth] for depth in range(len(path), 0, -1)]
    assert any(_signatures(kept, entry_at(kept, parent)) == _signatures(gone, None) for parent in parents)
    return "removed"


def check_comment(case: tuple[str, Path]) -> str:
    """`comment_above`: nothing but a comment is put in."""
    text, path = case
    try:
        after = comment_above(text, path, ["why: it is so"])
    except EditError:
        return "refused"
    if after == text:
        return "no place"
    assert is_insertion(text, after)
    old, new = (events_of(one.removeprefix(BOM), yaml.CSafeLoader) for one in (text, after))
    assert _signatures(old, None) == _signatures(new, None), "the comment changes what is read"
    return "commented"


def check_format(value: Value) -> str:
    """`format_value`: both parsers read the value again, in a block mapping and in a flow one."""
    for loader in LOADERS.values():
        for template in ("k: {}\n", "{{k: {}, z: 1}}", "[{{k: {}}}]", "k: {} # c\n"):
            loaded = yaml.load(template.format(format_value(value)), Loader=loader)
            found = loaded[0]["k"] if isinstance(loaded, list) else loaded["k"]
            assert repr(found) == repr(value), (template, found)
    return "read back"


def check_status(case: tuple[str, str, Mapping[str, Any], bool]) -> str:
    """`set_run`: the entry has what was set, all other things are read as before."""
    text, run, entry, nulls = case
    try:
        after = set_run(text, run, entry, nulls=nulls)
    except EditError:
        return "refused"
    assert set_run(after, run, entry, nulls=nulls) == after, "a second edit changes something"
    old, new = _load(text), _load(after)
    if new is None:
        return "edited, too odd for PyYAML"
    (ours,) = [item for item in new["runs"] if isinstance(item, dict) and item.get("name") == run]
    for key, value in entry.items():
        below = value.items() if isinstance(value, Mapping) else [(None, value)]
        for name, single in below:
            held = ours.get(key) if name is None else (ours.get(key) or {}).get(name)
            assert repr(held) == repr(single), (key, name, held)
    if isinstance(old, dict):
        others = [repr(item) for item in old.get("runs") or [] if not _is_called(item, run)]
        assert [repr(item) for item in new["runs"] if not _is_called(item, run)] == others
        rest = [{k: v for k, v in one.items() if k != "runs"} for one in (old, new)]
        assert repr(rest[0]) == repr(rest[1])
    return "edited"


def events_of(text: str, loader: Loader) -> list[Any]:
    """What the parser says of a text."""
    return list(yaml.parse(text, Loader=loader))


def entry_at(events: list[Any], path: Path) -> tuple[int, int, int] | None:
    """Indexes of the events where the key at `path` begins, its value begins, and its value has ended."""
    at = next((i for i, event in enumerate(events) if isinstance(event, yaml.MappingStartEvent)), -1)
    found = None
    for key in path:
        if at < 0 or not isinstance(events[at], yaml.MappingStartEvent):
            return None
        at, found = at + 1, None
        while not isinstance(events[at], yaml.MappingEndEvent):
            value = _node_end(events, at)
            end = _node_end(events, value)
            if isinstance(events[at], yaml.ScalarEvent) and events[at].value == key:
                found = (at, value, end)
                break
            at = end
        if found is None:
            return None
        at = found[1]
    return found


def _node_end(events: list[Any], at: int) -> int:
    depth = 0
    while True:
        depth += isinstance(events[at], yaml.CollectionStartEvent) - isinstance(
            events[at], yaml.CollectionEndEvent
        )
        at += 1
        if depth == 0:
            return at


def _signatures(events: list[Any], without: tuple[int, int, int] | None) -> list[tuple[Any, ...]]:
    start, _, end = without or (0, 0, 0)
    kept = [*events[:start], *events[end:]]
    return [
        (
            type(event).__name__,
            *(getattr(event, name, None) for name in ("anchor", "tag", "implicit", "value")),
        )
        for event in kept
    ]


def _same_events(old: str, new: str, values: Values, loader: Loader) -> None:
    before, after = events_of(old, loader), events_of(new, loader)
    for path in values:
        # In each other's order, so that no range moves another: the last one first.
        for events in (before, after):
            found = entry_at(events, path)
            if found is not None:
                del events[found[0] : found[2]]
            else:
                assert events is before, f"{path} isn't there"
    assert _signatures(before, None) == _signatures(after, None), "other events"


def _same_but_for(old: str, new: str, values: Values, loader: Loader) -> None:
    events = events_of(old, loader)
    entries = [entry_at(events, path) for path in values]
    spans = sorted(
        (events[found[1]].start_mark.index, events[found[2] - 1].end_mark.index)
        for found in entries
        if found is not None
    )
    if len(spans) == len(values):
        pieces, position = [], 0
        for start, end in spans:
            pieces.append(re.escape(old[position:start]))
            position = end
        pattern = "(?:.*?)".join([*pieces, re.escape(old[position:])])
        assert re.fullmatch(pattern, new, re.DOTALL), "bytes outside of the value have changed"
    elif len(values) == 1:
        assert is_insertion(old, new), "bytes outside of what was put in have changed"


def _reads_back(old: str, new: str, values: Values) -> None:
    before, after = _load(old), _load(new)
    if not isinstance(before, dict) or not isinstance(after, dict):
        return
    for path, value in values.items():
        found: Any = after
        for key in path:
            found = found[key]
        assert repr(found) == repr(value), f"reads {found!r}"


def _load(text: str) -> Any:
    """What PyYAML makes of a text; None when it makes nothing of it, or too much."""
    if text.count("*") > 8 or text.count("<<") > 3:
        return None
    try:
        return yaml.safe_load(text)
    except Exception:  # PyYAML's constructors raise whatever Python does
        return None


def _is_called(item: Any, run: str) -> bool:
    return isinstance(item, dict) and item.get("name") == run


CHECKS = {
    "set_values": Check(EDITS, check_set),
    "remove_key": Check(st.tuples(TEXTS, PATHS), check_remove),
    "comment_above": Check(st.tuples(TEXTS, PATHS), check_comment),
    "format_value": Check(ANY_VALUES, check_format),
    "set_run": Check(
        st.tuples(
            st.one_of(st.just(""), STATUS, mutated(STATUS, PIECES), GRAMMAR),
            st.one_of(st.sampled_from(["run1", "a: b", "new"]), st.text(min_size=1, max_size=8)),
            ENTRIES,
            st.booleans(),
        ),
        check_status,
    ),
}
