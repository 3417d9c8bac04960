"""Sets what we own in the entry of one run in `runs_status.yaml`; every other byte stays.

    runs:
      - name: run1
        status: completed
        owner: me                    # not ours
        metrics:
          packing_density: 61.3
          verdict: keep it           # not ours either

Other entries, keys that we don't set, their order, comments, quotes and newlines stay as they are, and
indentation follows the file. What is missing is added: a key, a section, the entry, `runs:`, the file.

Refused with an `EditError`: entries in a flow list, two entries of one name, values that an alias or an
anchor shares with others, a list or mapping where a single value belongs, several documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from autobatch.edits.status_nodes import NAME, RUNS, Entry, check_edit, find_entry, is_null, items_of
from autobatch.edits.yaml_format import format_value
from autobatch.edits.yaml_nodes import Node, Use, compose, loaded, lookup
from autobatch.edits.yaml_splices import (
    BOM,
    Path,
    Splice,
    Value,
    apply,
    below,
    column_of,
    indented,
    insertion,
    replacement,
    same,
    skip_properties,
)
from autobatch.edits.yaml_values import refuse_duplicates, shared_error, value_splices
from autobatch.errors import EditError

_STEP = 2


def set_run(text: str, run: str, entry: Entry, *, nulls: bool = False, name: str = "runs_status.yaml") -> str:
    """`text` with the keys of `entry` set in the entry of `run`.

        >>> print(set_run("", "run1", {"status": "planned", "metrics": {"steps": 7, "final_loss": None}}), end="")
        runs:
          - name: run1
            status: planned
            metrics:
              steps: 7

    Args:
        text: of the file; empty for one that is yet to be.
        run: its name.
        entry: single values, and sections of single values. None says that the value isn't known: a value
            that is there becomes null, lest an old one be taken for this training's.
        nulls: write a key whose value isn't known also where it is missing.
        name: of the file, for messages.

    Raises:
        EditError: that can't be done without changing something else; with file and line.
    """
    if any("\ud800" <= character <= "\udfff" for character in run):
        raise EditError(f"{name}: {run!a}, a run's name, isn't UTF-8, as YAML must be: rename its directory")
    bom = BOM if text.startswith(BOM) else ""
    edit = _Edit(text[len(bom) :], run, entry, nulls, name)
    root = compose(edit.text, name)
    if root is not None and root.node.kind == "scalar" and loaded(root.node) is None:
        root = None
    if root is not None and root.node.kind != "mapping":
        raise EditError(
            f"{name}:{root.line}: the file holds no mapping: write it as `runs:` and a list below"
        )
    if root is not None:
        refuse_duplicates(root, (RUNS,), name)
    ours = find_entry(root, run, name)
    splices = edit.new_entry(root) if ours is None else edit.changed_entry(root, ours)
    if not splices:
        return text
    edited = apply(edit.text, splices)
    check_edit(root, edited, run, entry, name)
    return bom + edited


@dataclass(frozen=True)
class _Edit:
    """What one call sets, and in which text."""

    text: str
    run: str
    entry: Entry
    nulls: bool
    name: str

    def new_entry(self, root: Use | None) -> list[Splice]:
        """Adds the entry, and what is missing around it."""
        step = self._step(root)
        if root is None:
            lines = [f"{RUNS}:", *indented(self._item(step, _STEP), _STEP)]
            return [below(self.text, len(self.text), lines)]
        found = root.node.entries(RUNS)
        if root.node.flow:
            raise self._error(
                root.line, "the file is written with brackets: write it as `runs:` and a list below"
            )
        if not found:
            lines = [f"{RUNS}:", *indented(self._item(step, _STEP), _STEP)]
            return [insertion(self.text, root, None, lines)]
        key, value = found[0]
        node = value.node
        if node.aliases:
            raise self._error(value.line, "runs is shared through an alias: write the list out")
        if is_null(node) or (node.kind == "sequence" and node.flow and not node.children):
            return self._fill(key, value, self._item(step, _STEP), _STEP)
        if node.kind != "sequence":
            raise self._error(value.line, "runs isn't a list: write an entry a run, `- name: ...`")
        if node.flow:
            raise self._error(value.line, "runs is a list in brackets: write each entry on lines of its own")
        dash = column_of(self.text, skip_properties(self.text, value))
        lines = indented(self._item(step, self._offset(node, dash)), dash)
        return [below(self.text, value.end, lines, dash)]

    def changed_entry(self, root: Use | None, item: Use) -> list[Splice]:
        """Sets what differs in the entry `item`."""
        splices: list[Splice] = []
        present: dict[Path, Value] = {}
        for key, value in self.entry.items():
            refuse_duplicates(item, (key,), self.name)
            if isinstance(value, Mapping):
                splices += self._section(item, key, value, present, self._step(root))
            else:
                splices += self._value(item, (key,), value, list(self.entry), present)
        return [*splices, *value_splices(self.text, item, present, self.name)]

    def _value(
        self, owner: Use, path: Path, value: Value, order: list[str], present: dict[Path, Value]
    ) -> list[Splice]:
        """Adds a value that is missing in `owner`; one to be replaced goes to `present`."""
        found = lookup(owner.node, path[-1:])
        if found and same(loaded(found[1].node), value):
            return []
        if owner.node.entries(path[-1]):
            present[path] = value
            return []
        if value is None and not (self.nulls or found):
            return []
        line = f"{format_value(path[-1])}: {format_value(value)}"
        return [self._insert(owner, path[-1], [line], order)]

    def _section(
        self, item: Use, key: str, values: Mapping[str, Value], present: dict[Path, Value], step: int
    ) -> list[Splice]:
        found = item.node.entries(key)
        written = {k: v for k, v in values.items() if v is not None or self.nulls}
        lines = [f"{format_value(k)}: {format_value(v)}" for k, v in written.items()]
        if not found or is_null(found[0][1].node):
            if not lines:
                return []
            if item.node.flow:
                flow = "{" + ", ".join(lines) + "}"
                if found:
                    return [replacement(self.text, found[0][1], flow)]
                return [self._insert(item, key, [f"{key}: {flow}"], list(self.entry))]
            if found:
                return self._fill(*found[0], lines, step)
            return [self._insert(item, key, [f"{key}:", *indented(lines, step)], list(self.entry))]
        use = found[0][1]
        if use.node.kind != "mapping":
            raise self._error(use.line, f"{key} of {self.run} isn't a mapping: write it as key: value lines")
        splices: list[Splice] = []
        for child, value in values.items():
            refuse_duplicates(use, (child,), self.name)
            splices += self._value(use, (key, child), value, list(values), present)
        if splices and use.node.aliases:
            raise shared_error(self.name, (self.run, key), use.line, use.node.aliases[0].line)
        if splices and not use.node.children:
            # An empty section in brackets gets all of its values in one go.
            at, end, _ = splices[0]
            return [(at, end, ", ".join(piece for _, _, piece in splices))]
        return splices

    def _insert(self, owner: Use, key: str, lines: list[str], order: list[str]) -> Splice:
        """Adds an entry to a mapping, below the last of those that come before it in `order`."""
        before = [NAME, *order[: order.index(key)]]
        neighbours = [pair for other in before for pair in owner.node.entries(other)]
        return insertion(self.text, owner, neighbours[-1] if neighbours else None, lines)

    def _fill(self, key: Use, value: Use, lines: list[str], step: int) -> list[Splice]:
        """Puts lines below `key` in the place of a null or an empty list."""
        start = len(self.text[: value.start].rstrip(" "))
        column = column_of(self.text, key.start)
        return [(start, value.end, ""), below(self.text, value.end, indented(lines, column + step))]

    def _item(self, step: int, offset: int) -> list[str]:
        """The lines of a new entry, from its dash; values stand `offset` columns to the right of it."""
        lines = [f"{NAME}: {format_value(self.run)}"]
        for key, value in self.entry.items():
            if isinstance(value, Mapping):
                written = {k: v for k, v in value.items() if v is not None or self.nulls}
                if written:
                    below_it = [f"{format_value(k)}: {format_value(v)}" for k, v in written.items()]
                    lines += [f"{key}:", *indented(below_it, step)]
            elif value is not None or self.nulls:
                lines.append(f"{key}: {format_value(value)}")
        return ["-" + " " * (offset - 1) + lines[0], *indented(lines[1:], offset)]

    def _step(self, root: Use | None) -> int:
        """Spaces by which the file indents a section, from the first that there is."""
        for item in items_of(root):
            for key, value in item.node.pairs() if item.node.kind == "mapping" else ():
                node = value.node
                if node.kind == "mapping" and not node.flow and not value.is_alias:
                    return column_of(self.text, node.children[0].start) - column_of(self.text, key.start)
        return _STEP

    def _offset(self, runs: Node, dash: int) -> int:
        """Columns from an entry's dash to its keys, as in the last entry that has some."""
        for item in reversed(runs.children):
            if item.node.kind == "mapping" and not item.node.flow and not item.is_alias:
                return column_of(self.text, item.node.children[0].start) - dash
        return _STEP

    def _error(self, line: int, what: str) -> EditError:
        return EditError(f"{self.name}:{line}: {what}, then run again")
