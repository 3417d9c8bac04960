"""Pictures of probes in characters, for a terminal. Pure.

Our own, for a few points and lines, so that it can do with ASCII: plotext, the library for this, is a compiled one
since version 6, which also has none of version 5's calls.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autobatch.report.chart import Chart, Mark
from autobatch.report.experiment import ProbedRun
from autobatch.report.table import printable
from autobatch.units import format_bytes

_ROWS = 14
_LEAST_WIDTH, _MOST_WIDTH = 50, 100
_NAME_WIDTH = 28
_GIB = 2**30

_COLOURS = {
    Mark.FITS: "32",
    Mark.OVER_TARGET: "33",
    Mark.AT_LEAST: "33",
    Mark.OUT_OF_MEMORY: "31",
    Mark.OTHER: "35",
    Mark.ESTIMATE: "36",
}


@dataclass(frozen=True)
class Glyphs:
    """The characters of a picture.

    Attributes:
        marks: of each kind of point.
        levels: of each kind of line across.
        fit: of the fitted line.
        axes: vertical, corner, horizontal, tick below.
        bar: of a bar, its empty rest, and the target on it.
    """

    marks: Mapping[Mark, str]
    levels: Mapping[str, str]
    fit: str
    axes: str
    bar: tuple[str, str, str]

    @property
    def every(self) -> str:
        """All of them."""
        return "".join([*self.marks.values(), *self.levels.values(), self.fit, self.axes, *self.bar])


UNICODE = Glyphs(
    {
        Mark.FITS: "●",
        Mark.OVER_TARGET: "▲",
        Mark.AT_LEAST: "↑",
        Mark.OUT_OF_MEMORY: "✕",
        Mark.OTHER: "□",
        Mark.ESTIMATE: "◇",
    },
    {"target": "╌", "planned": "─", "capacity": "━"},
    "·",
    "│└─┬",
    ("█", "·", "┃"),
)
ASCII = Glyphs(
    {
        Mark.FITS: "o",
        Mark.OVER_TARGET: "^",
        Mark.AT_LEAST: "A",
        Mark.OUT_OF_MEMORY: "x",
        Mark.OTHER: "#",
        Mark.ESTIMATE: "?",
    },
    {"target": "-", "planned": "=", "capacity": "="},
    ".",
    "|+-+",
    ("#", ".", "|"),
)


@dataclass(frozen=True)
class Terminal:
    """What the picture is drawn for.

    Attributes:
        width: columns.
        unicode: whether its encoding has more than ASCII.
        colour: whether it obeys colours.
    """

    width: int
    unicode: bool
    colour: bool

    @property
    def glyphs(self) -> Glyphs:
        """The characters that it can show."""
        return UNICODE if self.unicode else ASCII


def probe_plot(chart: Chart, terminal: Terminal) -> list[str]:
    """Peak against batch_size; empty when there is nothing to draw or no room."""
    width = min(terminal.width, _MOST_WIDTH)
    if not chart.points or width < _LEAST_WIDTH:
        return []
    glyphs = terminal.glyphs
    ticks = _ticks(chart.top, 4)
    gutter = max(len(f"{tick:g}") for tick in ticks)
    names = [" ".join(level.words) for level in chart.levels]
    margin = max((len(name) + 1 for name in names), default=0)
    columns = width - gutter - 2 - margin
    grid = [[" "] * columns for _ in range(_ROWS)]

    def row(gib: float) -> int:
        return round((1 - gib / chart.top) * (_ROWS - 1))

    def column(batch_size: float) -> int:
        return min(round(batch_size / chart.right * (columns - 1)), columns - 1)

    beside: dict[int, str] = {}
    for level, name in zip(chart.levels, names, strict=True):
        at = row(level.gib)
        grid[at] = [glyphs.levels[level.name]] * columns
        while at in beside:
            at -= 1
        beside[at] = name
    ends = chart.fit_ends()
    if ends is not None:
        (begin, low), (end, high) = ends
        for x in range(column(begin), column(end) + 1, 2):
            share = (x / (columns - 1) * chart.right - begin) / (end - begin)
            y = row(low + min(max(share, 0.0), 1.0) * (high - low))
            grid[y][x] = glyphs.fit
    points = chart.points if chart.estimate is None else (chart.estimate, *chart.points)
    for point in points:
        grid[row(point.gib)][column(point.batch_size)] = _coloured(
            glyphs.marks[point.mark], point.mark, terminal
        )
    labels = {row(tick): f"{tick:g}" for tick in ticks}
    lines = [f"{chart.peak_name}, GiB"]
    for at, cells in enumerate(grid):
        label = labels.get(at, "").rjust(gutter)
        lines.append(f"{label} {glyphs.axes[0]}{''.join(cells)} {beside.get(at, '')}".rstrip())
    lines += _x_axis(chart, columns, gutter, glyphs)
    return [*lines, *_key(chart, width, terminal)]


def experiment_plot(runs: Sequence[ProbedRun], terminal: Terminal) -> list[str]:
    """A bar a run: its peak as a share of its capacity, with the target on it; empty when there is no room."""
    shown = [run for run in runs if run.result is not None and run.result.capacity_bytes]
    width = min(terminal.width, _MOST_WIDTH)
    if not shown or width < _LEAST_WIDTH:
        return []
    mark = terminal.glyphs.bar[-1]
    names = [printable(run.name) for run in runs]
    name_width = min(max(len(name) for name in names), _NAME_WIDTH, width // 3)
    columns = width - name_width - 12
    lines = [f"peak as a share of the capacity ({mark} is the target)"]
    for run, name in zip(runs, names, strict=True):
        label = _shortened(name, name_width, terminal).ljust(name_width)
        result = run.result
        if result is None or not result.capacity_bytes or result.peak_bytes is None or run.problem:
            words = "not probed" if result is None and run.problem == "not probed" else "no batch_size"
            lines.append(f"{label}  {words}")
            continue
        share = result.peak_bytes / result.capacity_bytes
        target = None if not result.target_bytes else result.target_bytes / result.capacity_bytes
        lines.append(f"{label}  {_bar(share, target, columns, terminal)} {100 * share:5.1f} %")
    return lines


def _bar(share: float, target: float | None, columns: int, terminal: Terminal) -> str:
    full, rest, mark = terminal.glyphs.bar
    filled = min(round(share * columns), columns)
    at = columns if target is None else min(round(target * columns), columns - 1)
    before, after = min(filled, at), max(filled - at - 1, 0)
    parts = [full * before, rest * (at - before)]
    if target is not None:
        parts += [mark, full * after, rest * (columns - at - 1 - after)]
    if terminal.colour:
        parts = [f"\x1b[{_COLOURS[Mark.FITS]}m{part}\x1b[0m" if full in part else part for part in parts]
    return "".join(parts)


def _x_axis(chart: Chart, columns: int, gutter: int, glyphs: Glyphs) -> list[str]:
    ticks = _ticks(chart.right, max(2, columns // 10), whole=True)
    line = [glyphs.axes[2]] * columns
    numbers = [" "] * (columns + 6)
    for tick in ticks:
        at = min(round(tick / chart.right * (columns - 1)), columns - 1)
        line[at] = glyphs.axes[3]
        text = f"{tick:g}"
        begin = max(at - len(text) // 2, 0)
        numbers[begin : begin + len(text)] = text
    return [
        f"{' ' * gutter} {glyphs.axes[1]}{''.join(line)}",
        f"{' ' * (gutter + 2)}{''.join(numbers)}".rstrip(),
        f"{' ' * (gutter + 2)}{'batch_size, sequences'.center(columns)}".rstrip(),
    ]


def _key(chart: Chart, width: int, terminal: Terminal) -> list[str]:
    """What the characters mean, on as many lines as it takes."""
    entries = []
    for mark in chart.marks:
        words = "out of memory (no peak)" if mark is Mark.OUT_OF_MEMORY else mark.value
        entries.append((terminal.glyphs.marks[mark], words, mark))
    parts = [
        (f"{_coloured(glyph, mark, terminal)} {words}", len(words) + 2) for glyph, words, mark in entries
    ]
    if chart.fit is not None:
        fixed, each = (format_bytes(gib * _GIB) for gib in chart.fit)
        words = f"{terminal.glyphs.fit} fit: {fixed} + {each} for each sequence"
        parts.append((words, len(words)))
    lines, used = [""], 0
    for text, length in parts:
        if used and used + 3 + length > width:
            lines, used = [*lines, ""], 0
        lines[-1] += ("   " if used else "") + text
        used += (3 if used else 0) + length
    return lines


def _ticks(end: float, most: int, *, whole: bool = False) -> list[float]:
    """Round numbers from 0, at most `most` + 1 of them, below `end`."""
    least = end / most
    power = 10.0 ** math.floor(math.log10(least)) if least > 0 else 1.0
    factors = (1, 2, 5, 10) if whole else (1, 2, 2.5, 5, 10)
    step = next(power * factor for factor in factors if power * factor >= least * 0.999)
    if whole:
        step = max(1.0, round(step))
    return [round(step * place, 10) for place in range(int(end / step) + 1)]


def _coloured(text: str, mark: Mark, terminal: Terminal) -> str:
    return f"\x1b[1;{_COLOURS[mark]}m{text}\x1b[0m" if terminal.colour else text


def _shortened(text: str, characters: int, terminal: Terminal) -> str:
    if len(text) <= characters:
        return text
    dots = "…" if terminal.unicode else ".."
    kept = characters - len(dots)
    return text[: (kept + 1) // 2] + dots + text[len(text) - kept // 2 :]
