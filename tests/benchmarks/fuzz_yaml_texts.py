"""YAML texts to fuzz with: configs that somebody could have, changed here and there, and worse."""

from __future__ import annotations

import re
from collections.abc import Mapping

import yaml
from hypothesis import strategies as st

from autobatch.edits.yaml_format import Value
from autobatch.edits.yaml_nodes import Loader
from tests.benchmarks.fuzz_texts import fallen_apart, mutated, shipped_configs, with_breaks

Path = tuple[str, ...]
Values = Mapping[Path, Value]

LOADERS: dict[str, Loader] = {"C": yaml.CSafeLoader, "Python": yaml.SafeLoader}
BOM = "\ufeff"

PIECES = (
    *(
        ":",
        ": ",
        "- ",
        "? ",
        "# c",
        " # ",
        "\t",
        "  ",
        "\n",
        "\r\n",
        "\r",
        "\x85",
        "\u2028",
        "\x00",
        "\x07",
        "\ud800",
    ),
    *(
        "&a ",
        "*a",
        "&a",
        "<<: *a",
        "<<: ",
        "!!int ",
        "!!str ",
        "!t ",
        "!<x> ",
        "!!python/object:os.system ",
        "%YAML 1.1\n",
    ),
    *(
        "'",
        '"',
        "''",
        "\\",
        "|",
        ">",
        "|+\n",
        ">-\n",
        "|2\n",
        "[",
        "]",
        "{",
        "}",
        ", ",
        ",",
        "...\n",
        "---\n",
        "--- ",
    ),
    *(
        "batch_size: 4\n",
        "batch_size:",
        "dataset:\n",
        "  packed: False\n",
        "dataset: {packed: False}\n",
        "packed",
    ),
    *(
        "batch_size",
        "gradient_accumulation_steps: 1\n",
        "null",
        "~",
        "True",
        "yes",
        "0x18",
        "1_000",
        "1e3",
        "2024-01-01",
    ),
    *(
        "\nx: &a {batch_size: 1}\n",
        "é",
        "漢",
        "🙂",
        "\ufeff",
        "=",
        "@",
        "`",
        "${batch_size}",
        "1:30",
        ".inf",
        ".nan",
    ),
)
KEYS = st.sampled_from(
    [
        "batch_size",
        "gradient_accumulation_steps",
        "dataset",
        "packed",
        "model",
        "a",
        "b",
        "'q: k'",
        '"d # k"',
        "? x\n",
        "<<",
    ]
)
SCALARS = st.sampled_from(
    [
        *(
            "4",
            "24",
            "'4'",
            '"4"',
            "null",
            "~",
            "",
            "True",
            "false",
            "1e-5",
            "a b",
            "a\n  b",
            "*a",
            "&a 4",
            "!!int 4",
        ),
        *(
            "|\n  x\n  y",
            "|+\n  x\n\n",
            ">-\n  x\n",
            "'it''s'",
            '"\\" #"',
            "${bs} # c",
            "!t x",
            "&b !!str 4",
            "0o7",
            "0x18",
        ),
        *(
            "[]",
            "{}",
            "[1, {a: 2}]",
            "{packed: False, a: [1]}",
            "{batch_size}",
            "4 # fits",
            "4\t# tab",
            "é 漢",
            "*b",
        ),
    ]
)


@st.composite
def documents(draw: st.DrawFn, depth: int = 0) -> str:
    """Block mappings of block mappings, lists and scalars, with comments and blank lines between."""
    step = draw(st.sampled_from([1, 2, 2, 2, 4]))
    lines = []
    for key in draw(st.lists(KEYS, min_size=1, max_size=5, unique=draw(st.integers(0, 9)) > 0)):
        kind = draw(st.integers(0, 9))
        if kind < 6 or depth > 2:
            lines.append(f"{key}: {draw(SCALARS)}")
        elif kind < 8:
            anchor = draw(st.sampled_from(["", "", " &a", " &b", " !t", " # c"]))
            below = draw(documents(depth + 1))
            lines.append(f"{key}:{anchor}\n" + re.sub("(?m)^(?=.)", " " * step, below).rstrip("\n"))
        else:
            items = draw(st.lists(SCALARS, min_size=1, max_size=3))
            lines.append(f"{key}:\n" + "\n".join(f"- {item}" for item in items))
        lines.append(
            draw(st.sampled_from(["", "", "", "\n", "# c\n", "  # further in\n", "\t\n"])).rstrip("\n")
        )
    return "\n".join(line for line in lines if line) + "\n"


def with_anchors(text: str) -> str:
    """`text` without aliases that no anchor precedes, and with each anchor once."""
    for name in "ab":
        first = text.find(f"&{name} ")
        first = len(text) if first < 0 else first + 1
        head, tail = text[:first], text[first:]
        text = head.replace(f"*{name}", name) + tail.replace(f"&{name} ", "")
    return text


HEADS = st.sampled_from(["", "", "", BOM, "---\n", "%YAML 1.1\n---\n", "# c\n", "\n", "--- # c\n"])
TAILS = st.sampled_from(["", "", "", "...\n", "# end", "\n\n", "---\na: 1\n"])
GRAMMAR = st.builds(
    lambda head, text, tail, line_break: with_breaks(head + text + tail, line_break),
    HEADS,
    st.builds(
        lambda text, odd: text if odd else with_anchors(text),
        documents(),
        st.sampled_from([True, *[False] * 5]),
    ),
    TAILS,
    st.sampled_from(["\n", "\n", "\n", "\r\n", "\r", "\x85", "\u2028"]),
)
SOUP = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)
FLOW = st.builds("{{a: {}, batch_size: {}, dataset: {{packed: {}}}}}".format, SCALARS, SCALARS, SCALARS)
TEXTS = st.one_of(
    GRAMMAR,
    mutated(GRAMMAR, PIECES),
    mutated(FLOW, PIECES),
    SOUP,
    st.builds("batch_size:{}\nz: {}".format, SOUP, SOUP),
    mutated(st.deferred(lambda: st.sampled_from(shipped_configs())), PIECES),
    st.binary(max_size=60).map(fallen_apart),
)
NUMBERS = st.integers(1, 10**6)
ANY_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=12),
    st.lists(st.one_of(st.integers(0, 9), st.text(max_size=4)), max_size=3),
)  # fmt: skip
OWNED = st.dictionaries(
    st.sampled_from([("batch_size",), ("gradient_accumulation_steps",), ("dataset", "packed")]), NUMBERS,
    min_size=1, max_size=3,
).map(lambda values: {path: True if path[-1] == "packed" else value for path,
  value in values.items()})  # fmt: skip
OTHERS = st.dictionaries(
    st.sampled_from([("a",), ("model", "a"), ("b", "b"), ("x",)]), ANY_VALUES, min_size=1, max_size=1
)
EDITS = st.tuples(TEXTS, st.one_of(OWNED, OWNED, OTHERS), st.sampled_from(tuple(LOADERS)))


STATUS = st.builds(
    lambda head, entries, tail: head + "runs:\n" + "".join(entries) + tail,
    HEADS,
    st.lists(
        st.builds(
            "- name: {}\n  status: {}\n  metrics:\n    steps: {}\n    mine: 1\n".format,
            st.sampled_from(["run1", "run2", "'a: b'", "x # c"]), SCALARS, SCALARS,
        ),
        max_size=3,
    ),
    TAILS,
)  # fmt: skip
PATHS = st.sampled_from(
    [("batch_size",), ("dataset",), ("dataset", "packed"), ("a",), ("model", "a"), ("b", "b", "a")]
)
ENTRIES = st.sampled_from(
    [
        {"status": "planned"},
        {"status": "done", "metrics": {"steps": 7, "loss": 2.5, "note": None}},
        {"metrics": {"b": "x: y"}},
    ]
)
