"""A YAML text as nodes that know their place in it.

PyYAML's own composer loses where an alias stands (it hands out the anchor's node in its place) and where
a block mapping's last line ends. Composing from the parser's events keeps both:

    batch_size: &bs 4     Use(start of "&bs", end of "4") -> Node("4")
    eval_batch: *bs       Use("*bs", is_alias)            -> the same Node

Nothing is constructed, so no tag is ever executed; an alias is a reference, so a text whose expansion
would fill the memory costs no more than its length. All walks are loops: depth is no limit either.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import yaml

from autobatch.errors import EditError

Loader: TypeAlias = "type[yaml.SafeLoader] | type[yaml.CSafeLoader]"
Kind: TypeAlias = Literal["scalar", "mapping", "sequence"]

#: libyaml is five times as fast, and it is what OmegaConf reads a config with where it is available.
LOADER: Loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader

#: What ends a line.
BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")

#: A byte order mark where a line begins, in a text without its own.
_MARK_BEFORE_A_LINE = re.compile("(?:^|[\r\n\x85\u2028\u2029])\ufeff")

_MERGE = "tag:yaml.org,2002:merge"
_YAML_KINDS = {"scalar": yaml.ScalarNode, "mapping": yaml.MappingNode, "sequence": yaml.SequenceNode}
_KNOWN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "float", "int", "null", "str")}


@dataclass(eq=False, slots=True)
class Node:
    """A scalar, or a collection with the uses of its children.

    Attributes:
        kind: which of the three.
        tag: as written, or as resolved from the text of a plain scalar.
        text: of a scalar, unquoted.
        children: of a sequence, its items; of a mapping, key, value, key, value, and so on.
        flow: whether a collection is written with brackets.
        aliases: every alias that stands for this node.
    """

    kind: Kind
    tag: str
    text: str = ""
    children: list[Use] = field(default_factory=list)
    flow: bool = False
    aliases: list[Use] = field(default_factory=list)

    def pairs(self) -> Iterator[tuple[Use, Use]]:
        """Keys and values of a mapping, in the order of the text."""
        return zip(self.children[::2], self.children[1::2], strict=True)

    def entries(self, key: str) -> list[tuple[Use, Use]]:
        """The pairs of a mapping whose key is `key`: more than one when the key is duplicated."""
        return [(k, v) for k, v in self.pairs() if k.node.kind == "scalar" and k.node.text == key]


@dataclass(eq=False, slots=True)
class Use:
    """A place in the text where a node stands.

    Attributes:
        node: what stands there.
        start, end: character indexes, anchor and tag included. A block collection ends with its last
            child, before the comments that follow it.
        line: 1-based, of `start`.
        is_alias: it is written ``*anchor`` here.
    """

    node: Node
    start: int
    end: int
    line: int
    is_alias: bool = False


def compose(text: str, name: str, loader: Loader = LOADER) -> Use | None:
    """The root of the only document in `text`; None when there is no document.

    Args:
        text: without a byte order mark.
        name: of the file, for messages.
        loader: whose parser reads the text.

    Raises:
        EditError: not YAML, or several documents; with the line.
    """
    misplaced = _MARK_BEFORE_A_LINE.search(text)
    if misplaced:
        # To libyaml it is nothing, to PyYAML's own parser a part of the key that follows.
        line = len(BREAK.findall(text, 0, misplaced.start() + 1)) + 1
        raise EditError(
            f"{name}:{line}: the line begins with a byte order mark, which belongs to the beginning of a file, "
            "once: remove it"
        )
    unprintable = yaml.reader.Reader.NON_PRINTABLE.search(text)
    if unprintable:
        line = text.count("\n", 0, unprintable.start()) + 1
        raise EditError(
            f"{name}:{line}: the character {unprintable.group()!a} isn't allowed in YAML: "
            "remove it, or save the file as UTF-8"
        )
    try:
        return _Composer(name).compose(yaml.parse(text, Loader=loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        what = error.problem or error.context
        raise EditError(
            f"{name}:{line}: not valid YAML ({what}): correct the file, then run again"
        ) from error


class _Composer:
    """Builds nodes from events; one for each text."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._resolve: Any = yaml.resolver.Resolver().resolve
        self._anchors: dict[str, Node] = {}
        self._open: list[Use] = []
        self._root: Use | None = None

    def compose(self, events: Iterable[Any]) -> Use | None:
        documents = 0
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise EditError(
                        f"{self._name}:{_line(event)}: a second document begins here: "
                        "keep one document in the file"
                    )
            elif isinstance(event, yaml.AliasEvent):
                self._add_alias(event)
            elif isinstance(event, yaml.ScalarEvent):
                self._add(event, "scalar", event.value, event.implicit)
            elif isinstance(event, yaml.MappingStartEvent):
                self._open.append(self._add(event, "mapping", None, event.implicit))
            elif isinstance(event, yaml.SequenceStartEvent):
                self._open.append(self._add(event, "sequence", None, event.implicit))
            elif isinstance(event, yaml.CollectionEndEvent):
                self._close(event)
        return self._root

    def _close(self, event: Any) -> None:
        use = self._open.pop()
        if use.node.flow or not use.node.children:
            use.end = event.end_mark.index
        else:
            # The parser ends a block collection where the next token begins, beyond any comments.
            use.end = use.node.children[-1].end

    def _add(self, event: Any, kind: Kind, text: str | None, implicit: Any) -> Use:
        tag = event.tag
        if tag is None or tag == "!":
            tag = self._resolve(_YAML_KINDS[kind], text, implicit)
        node = Node(kind, tag, text or "", flow=bool(getattr(event, "flow_style", False)))
        if event.anchor is not None:
            # PyYAML's composer refuses this too, and with it everything that reads configs through PyYAML.
            if event.anchor in self._anchors:
                raise EditError(
                    f"{self._name}:{_line(event)}: the anchor &{event.anchor} is defined a second time: rename it"
                )
            self._anchors[event.anchor] = node
        return self._place(Use(node, event.start_mark.index, event.end_mark.index, _line(event)))

    def _add_alias(self, event: Any) -> None:
        line = _line(event)
        node = self._anchors.get(event.anchor)
        if node is None:
            raise EditError(
                f"{self._name}:{line}: the alias *{event.anchor} has no anchor before it: "
                f"define &{event.anchor}, or write the value"
            )
        node.aliases.append(self._place(Use(node, event.start_mark.index, event.end_mark.index, line, True)))

    def _place(self, use: Use) -> Use:
        if self._open:
            self._open[-1].node.children.append(use)
        else:
            self._root = use
        return use


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def lookup(root: Node, path: tuple[str, ...]) -> tuple[Use, Use] | None:
    """Key and value at `path` as a reader of the document sees them: through aliases and merge keys."""
    found = None
    node = root
    for key in path:
        found = _lookup_key(node, key)
        if found is None:
            return None
        node = found[1].node
    return found


def _lookup_key(mapping: Node, key: str) -> tuple[Use, Use] | None:
    if mapping.kind != "mapping":
        return None
    waiting = [mapping]
    seen: set[int] = set()
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if node.kind == "sequence":
            # The first of several merged mappings wins, so it must be the next one to be taken.
            waiting += [item.node for item in reversed(node.children)]
        elif node.kind == "mapping":
            entries = node.entries(key)
            if entries:
                return entries[-1]
            waiting += [v.node for k, v in node.pairs() if k.node.tag == _MERGE]
    return None


def loaded(node: Node) -> object:
    """The bool, int, float, str or None that a scalar loads as; for anything else the node itself."""
    if node.kind == "scalar" and node.tag in _KNOWN_TAGS:
        try:
            return yaml.constructor.SafeConstructor().construct_object(yaml.ScalarNode(node.tag, node.text))
        except (ValueError, LookupError):
            return node
    return node


def equal_but_for(old: Node, new: Node, values: set[tuple[str, ...]]) -> bool:
    """Whether two documents are the same but for the values at those paths.

    Each pair of nodes is compared once, however many aliases lead there.
    """
    on_the_way = {path[:depth] for path in values for depth in range(len(path))}
    waiting: list[tuple[Node, Node, tuple[str, ...] | None]] = [(old, new, ())]
    compared: set[tuple[int, int]] = set()
    while waiting:
        a, b, path = waiting.pop()
        if path is None:
            if (id(a), id(b)) in compared:
                continue
            compared.add((id(a), id(b)))
        if (a.kind, a.tag, a.text) != (b.kind, b.tag, b.text):
            return False
        if path is not None and a.kind == "mapping":
            pairs_a, pairs_b = (
                [(k, v) for k, v in node.pairs() if (*path, k.node.text) not in values] for node in (a, b)
            )
            if len(pairs_a) != len(pairs_b):
                return False
            for (key_a, value_a), (key_b, value_b) in zip(pairs_a, pairs_b, strict=True):
                deeper = (*path, key_a.node.text)
                waiting.append((key_a.node, key_b.node, None))
                waiting.append((value_a.node, value_b.node, deeper if deeper in on_the_way else None))
            continue
        if len(a.children) != len(b.children):
            return False
        waiting += [(x.node, y.node, None) for x, y in zip(a.children, b.children, strict=True)]
    return True
