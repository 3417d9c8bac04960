"""Pictures of probes as PNG and SVG, drawn by matplotlib.

One probe: peak against batch_size, tokens per second beneath. Several: a small picture each, on one scale
where they were measured on one card. Every kind of point has a shape and every line a dash of its own, so
that the picture can be read without colour.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from autobatch.report.chart import Chart, Level, Mark
from autobatch.report.look import COLOURS, drawing, line_of, mark_words, shortened, style_of
from autobatch.units import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

_GIB = 2**30

#: Small pictures in one PNG or SVG; of more, the page shows all.
MOST_PANELS = 48


def probe_picture(chart: Chart, form: str, *, width_in: float = 7.2, on_page: bool = False) -> bytes:
    """One probe.

    Args:
        chart: what to draw.
        form: ``png`` or ``svg``.
        width_in: of the picture in inches; writing has one size, so a narrower picture is for a narrower screen.
        on_page: leave the ground away, and the title, which the page has.
    """
    with drawing():
        return _saved(probe_figure(chart, width_in=width_in, on_page=on_page), form, transparent=on_page)


def panel_picture(chart: Chart, form: str) -> bytes:
    """One probe of many on a page, without title or legend."""
    with drawing():
        return _saved(panel_figure(chart), form, transparent=True)


def experiment_picture(charts: Sequence[Chart], form: str, *, title: str, notes: Sequence[str] = ()) -> bytes:
    """Several probes side by side, the first `MOST_PANELS` of them.

    Args:
        charts: what to draw; on common scales where that is wanted.
        form: ``png`` or ``svg``.
        title: of the whole.
        notes: lines below: which runs aren't there, and why.
    """
    with drawing():
        return _saved(experiment_figure(charts, title, notes), form, transparent=False)


def probe_figure(chart: Chart, *, width_in: float, on_page: bool) -> Figure:
    """What `probe_picture` saves; to be called in `drawing`, as the two below."""
    is_narrow = width_in < 5
    figure = _figure(width_in, 3.3 + 0.11 * width_in + (1.1 if chart.throughput else 0.0))
    peak, throughput = _axes(figure, chart)
    answer, _, share = chart.answer.partition(": ")
    if not on_page:
        _title(figure, f"{chart.run}: {answer}", width_in)
        beside = shortened("; ".join(filter(None, (share, chart.device))), int(width_in * 13))
        peak.set_title(beside, loc="left", fontsize=8.5, color=COLOURS["muted"])
    _draw_peaks(peak, chart, 1.0)
    _draw_answer(peak, chart)
    peak.set_ylabel(f"{chart.peak_name} (GiB)")
    (peak if throughput is None else throughput).set_xlabel("batch_size (sequences)")
    if throughput is not None:
        peak.tick_params(labelbottom=False)
        _draw_throughput(throughput, chart)
    _legend(figure, [chart], columns=2 if is_narrow else 4)
    _label_levels(figure, peak, chart)
    return figure


def panel_figure(chart: Chart) -> Figure:
    """What `panel_picture` saves."""
    figure = _figure(3.0, 1.9)
    axes = figure.subplots()
    _draw_peaks(axes, chart, 0.8)
    axes.set_ylabel("peak (GiB)")
    axes.set_xlabel("batch_size (sequences)")
    _label_levels(figure, axes, chart, short=True)
    return figure


def experiment_figure(charts: Sequence[Chart], title: str, notes: Sequence[str]) -> Figure:
    """What `experiment_picture` saves."""
    shown = charts[:MOST_PANELS]
    count = len(shown)
    columns = 2 if count == 4 else min(count, 3 if count <= 9 else 4 if count <= 20 else 6)
    rows = math.ceil(len(shown) / columns)
    several_cards = len({chart.device for chart in shown}) > 1
    width = max(5.0, columns * (2.6 if columns < 6 else 2.3))
    figure = _figure(width, rows * (2.2 if several_cards else 2.0) + 1.2 + 0.16 * len(notes))
    _title(figure, title, width)
    grid = figure.subplots(rows, columns, squeeze=False)
    for place, axes in enumerate(grid.flat):
        if place >= len(shown):
            axes.set_visible(False)
            continue
        chart = shown[place]
        _draw_peaks(axes, chart, 0.75)
        axes.tick_params(labelsize=7.5)
        if place + columns >= len(shown):
            axes.set_xlabel("batch_size (sequences)")
        characters = int(width / columns * 12)
        axes.set_title(shortened(chart.run, characters), loc="left", fontsize=8.5, fontweight="bold", pad=15)
        below = [chart.answer.partition(",")[0], *([chart.device] if several_cards else [])]
        axes.annotate(
            shortened("; ".join(below), int(characters * 1.2)),
            (0, 1),
            xytext=(0, 4),
            xycoords="axes fraction",
            textcoords="offset points",
            fontsize=7.5,
            color=COLOURS["muted"],
        )
    peaks = {chart.peak_name for chart in shown}
    figure.supylabel(f"{peaks.pop() if len(peaks) == 1 else 'peak memory'} (GiB)", fontsize=9)
    _legend(figure, shown, columns=max(3, int(width / 1.7)), notes=notes)
    return figure


def _figure(width_in: float, height_in: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure((width_in, height_in), layout="constrained", facecolor=COLOURS["paper"])


def _axes(figure: Figure, chart: Chart) -> tuple[Axes, Axes | None]:
    if not chart.throughput:
        return figure.subplots(), None
    peak, throughput = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    return peak, throughput


def _title(figure: Figure, text: str, width_in: float) -> None:
    figure.suptitle(shortened(text, int(width_in * 10)), x=0.01, ha="left", fontsize=11, fontweight="bold")


def _draw_peaks(axes: Axes, chart: Chart, scale: float) -> None:
    """Lines and points; `scale` is that of the markers."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(0, chart.right)
    axes.set_ylim(0, chart.top)
    axes.grid(True, axis="y")
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(
        MaxNLocator(8 if scale == 1 else 5, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])
    )
    axes.yaxis.set_major_locator(MaxNLocator(6 if scale == 1 else 4, steps=[1, 2, 2.5, 5, 10]))
    for level in chart.levels:
        axes.axhline(level.gib, **line_of(level.name))
    ends = chart.fit_ends()
    if ends is not None:
        axes.plot(*zip(*ends, strict=True), **line_of("fit"), zorder=2)
    points = chart.points if chart.estimate is None else (chart.estimate, *chart.points)
    for point in points:
        axes.plot([point.batch_size], [point.gib], **style_of(point.mark, scale), clip_on=False, zorder=4)


def _draw_answer(axes: Axes, chart: Chart) -> None:
    """A line from the answer down to the x axis, and its figure where there is nothing else."""
    if chart.batch_size is None:
        return
    at_answer = [point.gib for point in chart.points if point.batch_size == chart.batch_size]
    if not at_answer:
        return
    axes.plot([chart.batch_size] * 2, [0, at_answer[-1]], color=COLOURS["fits"], linewidth=1, zorder=1)
    is_left = chart.batch_size < chart.right / 2
    axes.annotate(
        f"batch_size {chart.batch_size}",
        (chart.batch_size, 0),
        xytext=(5 if is_left else -5, 5),
        textcoords="offset points",
        ha="left" if is_left else "right",
        fontweight="bold",
        color=COLOURS["fits"],
    )


def _label_levels(figure: Figure, axes: Axes, chart: Chart, *, short: bool = False) -> None:
    """Names of the lines right of the picture; of two that are close, the upper moves up."""
    size = 7.5 if short else 8.5
    labels = [level.words[0] if short else "\n".join(level.words) for level in chart.levels]
    texts = [
        axes.annotate(
            label,
            (1, level.gib / chart.top),
            xytext=(4, 0),
            xycoords="axes fraction",
            textcoords="offset points",
            va="center",
            fontsize=size,
            annotation_clip=False,
        )
        for label, level in zip(labels, chart.levels, strict=True)
    ]
    # How high the axes are, and so how far apart the lines, is known when the rest has found its place.
    figure.draw_without_rendering()
    height_pt = axes.get_window_extent().height * 72 / figure.dpi
    apart = (1.25 if short else 2.6) * size / height_pt
    least = 0.0
    for text, level in zip(texts, chart.levels, strict=True):
        at = max(level.gib / chart.top, least)
        least = at + apart
        text.xy = (1, at)


def _draw_throughput(axes: Axes, chart: Chart) -> None:
    from matplotlib.ticker import MaxNLocator

    measured = chart.throughput
    rates = [point.tokens_per_second or 0.0 for point in measured]
    axes.plot([point.batch_size for point in measured], rates, color=COLOURS["muted"], linewidth=1, zorder=2)
    for point, rate in zip(measured, rates, strict=True):
        axes.plot([point.batch_size], [rate], **style_of(point.mark, 0.8), clip_on=False, zorder=4)
    axes.set_ylim(0, (max(rates) or 1.0) * 1.25)
    axes.set_ylabel("tokens/s")
    axes.grid(True, axis="y")
    axes.set_axisbelow(True)
    axes.yaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 2.5, 5, 10]))


def _legend(
    figure: Figure, charts: Sequence[Chart], *, columns: int, notes: Sequence[str] | None = None
) -> None:
    """What shapes and lines mean, at the foot; of several charts the lines across too, below `notes`."""
    from matplotlib.lines import Line2D

    occurring = {mark for chart in charts for mark in chart.marks}
    handles: list[Line2D] = [
        Line2D([], [], label=mark_words(mark), **style_of(mark, 0.9)) for mark in Mark if mark in occurring
    ]
    if any(chart.fit is not None for chart in charts):
        handles.append(Line2D([], [], label=_fit_label(charts, columns), **line_of("fit")))
    title = None
    if notes is not None:
        names = {level.name: _level_label(level, charts) for chart in charts for level in chart.levels}
        handles += [Line2D([], [], label=label, **line_of(name)) for name, label in names.items()]
        title = "\n".join(shortened(note, int(figure.get_figwidth() * 13)) for note in notes)
    # Five in four columns would leave one alone.
    columns = 3 if columns == 4 and len(handles) > 4 else min(columns, len(handles))
    figure.legend(
        handles=handles,
        loc="outside lower left",
        ncols=columns,
        fontsize=8.5,
        title=title or None,
        title_fontsize=8.5,
        alignment="left",
    )


def _fit_label(charts: Sequence[Chart], columns: int) -> str:
    if len(charts) > 1 or charts[0].fit is None or columns < 3:
        return "fitted line"
    fixed, each = charts[0].fit
    return f"fit: {format_bytes(fixed * _GIB)} + {format_bytes(each * _GIB)} × batch_size"


def _level_label(level: Level, charts: Sequence[Chart]) -> str:
    """With its figure where that holds for every chart."""
    words = {other.words for chart in charts for other in chart.levels if other.name == level.name}
    return " ".join(level.words) if len(words) == 1 else level.name


def _saved(figure: Figure, form: str, *, transparent: bool) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    out = io.BytesIO()
    # No date, so that a picture of the same result is the same file.
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None} if form == "svg" else None
    figure.savefig(out, format=form, dpi=150, metadata=metadata, transparent=transparent)
    return out.getvalue()
