"""Texts to fuzz with: what hypothesis changes in a text that somebody could have, and the shipped configs."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from hypothesis import strategies as st

ROOT = Path(__file__).parent.parent.parent

#: What YAML, Markdown or Python take for the end of a line, each in its own way.
BREAKS = ("\n", "\r\n", "\r", "\x85", "\u2028", "\u2029", "\x0b", "\x0c")


@cache
def shipped_configs() -> tuple[str, ...]:
    """Every config of torchtune's and of `configs/`, as text."""
    spec = importlib.util.find_spec("torchtune")
    assert spec is not None
    assert spec.origin is not None
    paths = [
        *(Path(spec.origin).parents[1] / "recipes/configs").rglob("*.yaml"),
        *ROOT.glob("configs/*.yaml"),
    ]
    return tuple(path.read_text(encoding="utf-8") for path in sorted(paths))


def with_breaks(text: str, line_break: str) -> str:
    """`text` with other line breaks."""
    return text.replace("\n", line_break)


@st.composite
def mutated(draw: st.DrawFn, texts: st.SearchStrategy[str], pieces: Sequence[str], most: int = 4) -> str:
    """A text after some changes: cut, doubled, moved or joined lines, pieces put in, other characters."""
    text = draw(texts)
    for _ in range(draw(st.integers(0, most))):
        at = draw(st.integers(0, max(len(text), 1))) % (len(text) + 1)
        change = draw(st.sampled_from(tuple(_CHANGES)))
        text = _CHANGES[change](text, at, draw(st.integers(0, 40)), draw(st.sampled_from(pieces)))
    if draw(st.integers(0, 9)) == 0:
        text = with_breaks(text, draw(st.sampled_from(BREAKS)))
    return text


def _double_line(text: str, at: int, length: int, piece: str) -> str:
    start, end = text.rfind("\n", 0, at) + 1, text.find("\n", at) + 1
    return text[:end] + text[start:end] + text[end:] if end else text


def _drop_line(text: str, at: int, length: int, piece: str) -> str:
    start, end = text.rfind("\n", 0, at) + 1, text.find("\n", at) + 1
    return text[:start] + text[end:] if end else text[:start]


def _indent_line(text: str, at: int, length: int, piece: str) -> str:
    start = text.rfind("\n", 0, at) + 1
    return text[:start] + " " * (length % 9) + text[start:]


def _dedent_line(text: str, at: int, length: int, piece: str) -> str:
    start = text.rfind("\n", 0, at) + 1
    return text[:start] + text[start:].lstrip(" ")


def _break_of_one_line(text: str, at: int, length: int, piece: str) -> str:
    end = text.find("\n", at)
    return text if end < 0 else text[:end] + BREAKS[length % len(BREAKS)] + text[end + 1 :]


def _comment_line(text: str, at: int, length: int, piece: str) -> str:
    end = text.find("\n", at)
    return text if end < 0 else f"{text[:end]} # {piece.strip()}{text[end:]}"


_CHANGES: dict[str, Callable[[str, int, int, str], str]] = {
    "put in": lambda text, at, length, piece: text[:at] + piece + text[at:],
    "put over": lambda text, at, length, piece: text[:at] + piece + text[at + len(piece) :],
    "cut out": lambda text, at, length, piece: text[:at] + text[at + length :],
    "cut off": lambda text, at, length, piece: text[:at],
    "begin later": lambda text, at, length, piece: text[at:],
    "double": lambda text, at, length, piece: text[: at + length] + text[at:],
    "double line": _double_line,
    "drop line": _drop_line,
    "indent line": _indent_line,
    "dedent line": _dedent_line,
    "another break": _break_of_one_line,
    "comment": _comment_line,
    "mark": lambda text, at, length, piece: "\ufeff" + text,
}


def fallen_apart(data: bytes) -> str:
    """Bytes of any encoding as autobatch reads a file that it edits."""
    return data.decode("utf-8", "surrogateescape")


def common_ends(one: str, two: str) -> tuple[int, int]:
    """Characters that both texts begin with, and that both end with (which may overlap)."""
    shorter = min(len(one), len(two))
    front = next((i for i in range(shorter) if one[i] != two[i]), shorter)
    back = next((i for i in range(shorter) if one[-1 - i] != two[-1 - i]), shorter)
    return front, back


def is_insertion(before: str, after: str) -> bool:
    """Whether `after` is `before` with something put in at one place."""
    front, back = common_ends(before, after)
    return len(after) >= len(before) and front + back >= len(before)


def whole_lines(text: str) -> list[str]:
    """Lines as Markdown has them, with their breaks."""
    return re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+\Z", text)
