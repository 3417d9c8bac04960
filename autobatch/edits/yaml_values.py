"""Sets values in a YAML text and leaves every other byte as it is.

Covered: comments, quotes, anchors, tags, any newline style, a missing final newline, a byte order mark,
flow mappings, aliases as values, empty values, block scalars, keys that are missing or merged in. A list or
mapping is written on one line, in the place of whatever was there.

Not covered, and refused with an `EditError`: changing a value that something else in the file shares,
duplicate keys on the way to the value, a single value where a list or mapping is, several documents.
"""

from __future__ import annotations

from collections.abc import Mapping

from autobatch.edits.yaml_format import Value, format_value
from autobatch.edits.yaml_nodes import LOADER, Loader, Node, Use, compose, equal_but_for, loaded, lookup
from autobatch.edits.yaml_splices import BOM, Path, Splice, apply, insertion, replacement
from autobatch.errors import EditError

__all__ = ["Path", "Value", "get_line", "refuse_duplicates", "set_values", "shared_error", "value_splices"]

#: Where a missing key is added: below the key that it belongs with, else as the mapping's last entry.
_BELOW = {"gradient_accumulation_steps": "batch_size"}


def set_values(
    text: str, values: Mapping[Path, Value], *, name: str = "YAML", loader: Loader = LOADER
) -> str:
    """`text` with the scalars at those key paths replaced, or added where the key is missing.

        >>> print(set_values("batch_size: 4  # fits\\n", {("batch_size",): 24}), end="")
        batch_size: 24  # fits

    A value that the document holds already (same type, same value, merge keys and aliases followed) is
    left as it is written, so that setting it again changes nothing. The result is read again before it is
    returned, and compared with the document as it was.

    Args:
        text: one YAML document whose root is a mapping.
        values: by key path, e.g. ``("dataset", "packed")``; all keys but the last must be there.
        name: of the file, for messages.
        loader: whose parser reads the text.

    Raises:
        EditError: the values can't be set without changing something else; with file and line.
    """
    bom = BOM if text.startswith(BOM) else ""
    body = text[len(bom) :]
    root = _root_mapping(body, name, loader)
    changed: dict[Path, Value] = {}
    for path, value in values.items():
        refuse_duplicates(root, path, name)
        found = lookup(root.node, path)
        if found is None or not _holds(found[1].node, value):
            changed[path] = value
    if not changed:
        return text
    edited = apply(body, value_splices(body, root, changed, name))
    _verify(root, edited, changed, name, loader)
    return bom + edited


def get_line(text: str, path: Path) -> int | None:
    """1-based line of the key at `path`; None when it isn't there or `text` can't be read.

    A key that comes through an alias or a merge key has its line where it is written.
    """
    try:
        root = compose(text.removeprefix(BOM), "YAML")
    except EditError:
        return None
    found = lookup(root.node, path) if root else None
    return found[0].line if found else None


def _root_mapping(text: str, name: str, loader: Loader) -> Use:
    root = compose(text, name, loader)
    if root is None or root.node.kind != "mapping":
        line = root.line if root else 1
        raise EditError(f"{name}:{line}: the file holds no mapping: write it as key: value lines")
    return root


def refuse_duplicates(root: Use, path: Path, name: str) -> None:
    """Raises an `EditError` when a key on the way from `root` to the value is there twice."""
    node = root.node
    for key in path:
        entries = node.entries(key) if node.kind == "mapping" else []
        if len(entries) > 1:
            lines = " and ".join(str(k.line) for k, _ in entries)
            raise EditError(f"{name}:{entries[1][0].line}: {key} is there twice, on lines {lines}: keep one")
        if not entries:
            return
        node = entries[0][1].node


def value_splices(text: str, root: Use, values: Mapping[Path, Value], name: str) -> list[Splice]:
    """What to put between which two indexes of the text to set values below the mapping `root`.

    Raises:
        EditError: a value is shared, or isn't a single one; with file and line.
    """
    owners = {path: _owner(root, path, name) for path in values}
    entries = {path: next(iter(owners[path].node.entries(path[-1])), None) for path in values}
    owned = {id(entry[1]) for entry in entries.values() if entry}
    splices = []
    begun: set[int] = set()
    for path, value in values.items():
        owner = owners[path]
        entry = entries[path]
        if entry is None:
            neighbour = next(iter(owner.node.entries(_BELOW.get(path[-1], path[-1]))), None)
            line = f"{format_value(path[-1])}: {format_value(value)}"
            splices.append(insertion(text, owner, neighbour, [line], first=id(owner) not in begun))
            begun.add(id(owner))
            continue
        use = entry[1]
        if use.node.kind != "scalar" and not isinstance(value, (list, dict)):
            raise EditError(
                f"{name}:{use.line}: {'.'.join(path)} holds a {use.node.kind}, not a single value: "
                f"set it to {format_value(value)} by hand"
            )
        if use.is_alias:
            splices.append((use.start, use.end, format_value(value)))
            continue
        others = [alias for alias in use.node.aliases if id(alias) not in owned]
        if others:
            raise shared_error(name, path, use.line, others[0].line)
        splices.append(replacement(text, use, format_value(value)))
    return splices


def _owner(root: Use, path: Path, name: str) -> Use:
    """The mapping that holds, or will hold, the last key of `path`; it must be written in one place."""
    use = root
    for depth, key in enumerate(path[:-1], start=1):
        entries = use.node.entries(key)
        where = ".".join(path[:depth])
        if not entries:
            raise EditError(
                f"{name}:{use.line}: there is no mapping {where} to hold {path[-1]}: add {where} by hand"
            )
        use = entries[0][1]
        if use.node.kind != "mapping":
            raise EditError(
                f"{name}:{use.line}: {where} isn't a mapping, so it can't hold {path[-1]}: "
                f"set {'.'.join(path)} by hand"
            )
        if use.node.aliases:
            raise shared_error(name, path, use.line, use.node.aliases[0].line)
    return use


def shared_error(name: str, path: Path, line: int, alias_line: int) -> EditError:
    """For a value that an alias uses too."""
    return EditError(
        f"{name}:{line}: {'.'.join(path)} is shared through the alias on line {alias_line}, so setting it "
        "would change both: write the value out in one of the two places"
    )


def _verify(old: Use, edited: str, values: Mapping[Path, Value], name: str, loader: Loader) -> None:
    """Refuses an edit that did anything but set the values."""
    try:
        new = compose(edited, name, loader)
    except EditError as error:
        raise EditError(
            f"{name}:{old.line}: {_names(values)} can't be set here without breaking the file: set it by hand"
        ) from error
    for path, value in values.items():
        found = lookup(new.node, path) if new else None
        if not found or not _holds(found[1].node, value):
            line = found[1].line if found else old.line
            raise EditError(
                f"{name}:{line}: {'.'.join(path)} can't be set to {format_value(value)} as it is written here "
                "(does it carry a tag?): set it by hand"
            )
    if new is None or not equal_but_for(old.node, new.node, set(values)):
        raise EditError(
            f"{name}:{old.line}: setting {_names(values)} would change other values: set it by hand"
        )


def _holds(node: Node, value: Value) -> bool:
    """Whether `value` is what is written there: same type, same value."""
    if isinstance(value, list):
        return node.kind == "sequence" and _all_hold([item.node for item in node.children], value)
    if isinstance(value, dict):
        if node.kind != "mapping" or [key.node.text for key, _ in node.pairs()] != list(value):
            return False
        return _all_hold([item.node for _, item in node.pairs()], list(value.values()))
    current = loaded(node)
    return type(current) is type(value) and current == value


def _all_hold(nodes: list[Node], values: list[Value]) -> bool:
    return len(nodes) == len(values) and all(map(_holds, nodes, values))


def _names(values: Mapping[Path, Value]) -> str:
    return ", ".join(".".join(path) for path in values)
