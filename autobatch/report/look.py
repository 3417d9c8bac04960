"""How pictures of probes look: colours, shapes and dashes, each of which tells what it stands for by itself."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from autobatch.report.chart import Mark

#: Colours by what they are for. The page replaces each by a CSS variable of that name.
COLOURS: Mapping[str, str] = {
    "ink": "#1b1f24",
    "muted": "#59636d",
    "grid": "#dfe4e9",
    "paper": "#fffffe",
    "fits": "#1a7f37",
    "over": "#a35a00",
    "oom": "#c9202c",
    "other": "#57606b",
    "estimate": "#8250de",
    "fit": "#0969d9",
}

_STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "svg.fonttype": "none",
    "svg.hashsalt": "autobatch",
    "axes.edgecolor": COLOURS["muted"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": COLOURS["ink"],
    "text.parse_math": False,
    "xtick.color": COLOURS["muted"],
    "ytick.color": COLOURS["muted"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"],
    "grid.color": COLOURS["grid"],
    "grid.linewidth": 0.6,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class _Shape:
    marker: str | tuple[tuple[float, float], ...]
    colour: str
    filled: bool
    size: float


#: Upwards, as corners of a polygon.
_ARROW = (
    (0.0, 1.0), (0.7, 0.1), (0.25, 0.1), (0.25, -1.0), (-0.25, -1.0), (-0.25, 0.1), (-0.7, 0.1), (0.0, 1.0),
)  # fmt: skip

_SHAPES = {
    Mark.FITS: _Shape("o", COLOURS["fits"], True, 7),
    Mark.OVER_TARGET: _Shape("^", COLOURS["over"], False, 8),
    Mark.AT_LEAST: _Shape(_ARROW, COLOURS["over"], True, 9),
    Mark.OUT_OF_MEMORY: _Shape("X", COLOURS["oom"], True, 9),
    Mark.OTHER: _Shape("s", COLOURS["other"], False, 7),
    Mark.ESTIMATE: _Shape("D", COLOURS["estimate"], False, 9),
}

_DASHES: Mapping[str, Any] = {
    "target": (0, (5, 3)),
    "planned": (0, (6, 2, 1, 2)),
    "capacity": "solid",
    "fit": (0, (1, 1.5)),
}


@contextmanager
def drawing() -> Iterator[None]:
    """Our own style, whatever matplotlibrc says; a character that the font doesn't have isn't worth a warning."""
    import matplotlib.style

    with warnings.catch_warnings(), matplotlib.style.context(["default", _STYLE]):
        warnings.simplefilter("ignore")
        yield


def mark_words(mark: Mark) -> str:
    """What a shape means."""
    return "out of memory (no peak)" if mark is Mark.OUT_OF_MEMORY else mark.value


def line_of(name: str) -> dict[str, Any]:
    """Of a line across, by the level's name, or of the ``fit``."""
    colour = COLOURS["fit"] if name == "fit" else COLOURS["ink"]
    return {"linestyle": _DASHES[name], "color": colour, "linewidth": 1.6 if name == "fit" else 1.2}


def style_of(mark: Mark, scale: float) -> dict[str, Any]:
    """Of a point, `scale` times as large as in a picture of its own."""
    shape = _SHAPES[mark]
    return {
        "linestyle": "none",
        "marker": shape.marker,
        "markersize": shape.size * scale,
        "markeredgecolor": shape.colour,
        "markerfacecolor": shape.colour if shape.filled else COLOURS["paper"],
        "markeredgewidth": 0.8 if shape.filled else 1.6,
    }


def shortened(text: str, characters: int) -> str:
    """`text` in at most that many characters, without its middle: names of runs differ at both ends."""
    if len(text) <= characters:
        return text
    kept = max(characters - 1, 2)
    return f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
