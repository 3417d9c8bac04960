"""A report as one HTML file: pictures, tables and words, nothing from elsewhere; light or dark as its reader.

Its template, `page.html.jinja`, escapes every word: names come from directories, and errors from recipes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autobatch.records import EffectiveBatch, ProbeResult, Status
from autobatch.report.chart import Chart, Mark, chart_of
from autobatch.report.experiment import (
    HEADER,
    LEGEND,
    NUMBERS,
    ProbedRun,
    charts_of,
    row_of,
    summary,
)
from autobatch.report.figures import panel_picture, probe_picture
from autobatch.report.look import COLOURS, mark_words
from autobatch.report.table import HEADER as TRIAL_HEADER
from autobatch.report.table import density_line, fit_line, prediction_line, printable, trial_row
from autobatch.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from markupsafe import Markup

_DARK = {
    "ink": "#e6e9ec",
    "muted": "#9aa4ae",
    "grid": "#333a41",
    "paper": "#14171a",
    "fits": "#4ac26b",
    "over": "#e3963e",
    "oom": "#ff6a69",
    "other": "#9aa4ae",
    "estimate": "#b794f6",
    "fit": "#5aa9f8",
}

#: Widths in inches for a desktop's screen and a phone's.
_WIDE, _NARROW = 7.2, 3.9

_SHAPES = {
    Mark.FITS: "dot",
    Mark.OVER_TARGET: "triangle",
    Mark.AT_LEAST: "arrow",
    Mark.OUT_OF_MEMORY: "cross",
    Mark.OTHER: "square",
    Mark.ESTIMATE: "diamond",
}


def probe_page(result: ProbeResult, run: str) -> str:
    """The page of one probe.

    Args:
        result: of the probe.
        run: name of the run.
    """
    chart = chart_of(result, run)
    answer = f"batch_size {result.batch_size}" if result.status is Status.DONE else result.status.value
    rows = [
        {
            "cells": [printable(cell) for cell in trial_row(trial, result.capacity_bytes)],
            "is_answer": trial.batch_size == chart.batch_size,
        }
        for trial in result.trials
    ]
    return _rendered(
        title=f"{chart.run}: {answer}",
        paragraphs=[printable(line) for line in _message_lines(result) if line.strip()],
        picture=_pictures(chart) if result.trials else None,
        table={
            "title": "Trials",
            "header": list(zip(TRIAL_HEADER, (True,) * 5 + (False,), strict=True)),
            "rows": rows,
            "notes": [],
        },
        facts=_facts(result),
        footer=_footer([result]),
    )


def experiment_page(runs: Sequence[ProbedRun], name: str) -> str:
    """The page of an experiment: every run in a table, and a small picture of each that was measured.

    Args:
        runs: of the experiment.
        name: of the experiment.
    """
    charts, one_range = charts_of(runs)
    drawn = [run for run in runs if run.is_drawn]
    ids = {run.name: f"run-{number}" for number, run in enumerate(drawn, 1)}
    several = len({chart.device for chart in charts}) > 1
    panels = [
        {
            "id": ids[run.name],
            "name": chart.run,
            "answer": f"{chart.answer}; {chart.device}" if several else chart.answer,
            "svg": _inline(panel_picture(chart, "svg"), ids[run.name], _label(chart)),
        }
        for run, chart in zip(drawn, charts, strict=True)
    ]
    notes = [LEGEND]
    if charts and not several:
        notes.insert(0, f"{charts[0].peak_name} on {charts[0].device or 'a device that no result names'}.")
    return _rendered(
        title=printable(name),
        paragraphs=[f"{summary(runs)}."],
        table={
            "title": "Runs",
            "header": list(zip(HEADER, NUMBERS, strict=True)),
            "rows": [
                {"cells": [printable(cell) for cell in row_of(run)], "target": ids.get(run.name)}
                for run in runs
            ],
            "notes": notes,
        },
        problems=[(printable(run.name), run.problem) for run in runs if run.problem and run.result],
        panels=panels,
        key=_key(charts, one_range),
        footer=_footer([run.result for run in runs if run.result is not None]),
    )


def _message_lines(result: ProbeResult) -> list[str]:
    """The answer, and what else it means where the result says so."""
    return [*result.message.splitlines(), *result.remarks]


def _rendered(**values: Any) -> str:
    from jinja2 import Environment, StrictUndefined

    template = Path(__file__).with_name("page.html.jinja").read_text(encoding="utf-8")
    nothing: dict[str, Any] = {
        "paragraphs": [],
        "picture": None,
        "problems": [],
        "panels": [],
        "key": "",
        "facts": [],
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    # A row without a target, or that isn't the answer, leaves the key away.
    for row in values["table"]["rows"]:
        row.setdefault("target", None)
        row.setdefault("is_answer", False)
    page = environment.from_string(template).render(**(nothing | values), colours=COLOURS, dark_colours=_DARK)
    # A name that isn't UTF-8 holds surrogates, which a file can't.
    return page.encode("utf-8", "replace").decode("utf-8")


def _pictures(chart: Chart) -> dict[str, Markup]:
    return {
        name: _inline(probe_picture(chart, "svg", width_in=width, on_page=True), name, _label(chart))
        for name, width in (("wide", _WIDE), ("narrow", _NARROW))
    }


def _inline(svg: bytes, prefix: str, label: str) -> Markup:
    """An SVG file as a part of a page: its ids its own, its colours the page's variables."""
    from markupsafe import Markup, escape

    text = svg.decode("utf-8")
    text = text[text.index("<svg ") :]
    text = re.sub(r'<style type="text/css">.*?</style>', "", text, flags=re.DOTALL)
    text = re.sub(r' (?:xmlns(?::\w+)?|version)="[^"]*"', "", text, count=3)
    text = re.sub(r"(?<= )id=\"|(?<=href=\")#|(?<=url\()#", lambda m: f"{m.group()}{prefix}-", text)
    text = text.replace("xlink:href", "href")
    for name, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{name})")
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1))


def _label(chart: Chart) -> str:
    """What the picture shows, for who doesn't see it."""
    points = [
        f"{point.batch_size} {point.mark.value}"
        + ("" if point.mark in (Mark.OUT_OF_MEMORY, Mark.OTHER) else f" ({format_bytes(point.gib * 2**30)})")
        for point in chart.points
    ]
    return f"{chart.peak_name} against batch_size of {chart.run}: {', '.join(points)}"


def _key(charts: Sequence[Chart], one_range: bool) -> str:
    """What shapes and lines mean, in words: the pictures have no legend of their own."""
    if not charts:
        return ""
    marks = [mark for mark in Mark if any(mark in chart.marks for chart in charts)]
    words = [f"{_SHAPES[mark]}: {mark_words(mark)}" for mark in marks]
    names = {level.name for chart in charts for level in chart.levels}
    lines = {"target": "dashed", "planned": "dash-dotted", "capacity": "solid"}
    words += [f"{dash} line: {name}" for name, dash in lines.items() if name in names]
    words += ["dotted line: fit"] if any(chart.fit for chart in charts) else []
    scales = (
        "one scale for each card" if one_range else "one GiB scale for each card; batch_size scales differ"
    )
    return f"{'; '.join(words)}. Drawn on {scales}."


def _facts(result: ProbeResult) -> list[tuple[str, str]]:
    request = result.request
    facts = [("run", request.run_dir), ("recipe", result.recipe)]
    if result.device is not None:
        facts.append(
            ("device", f"{result.device.label}, {format_bytes(result.device.total_bytes)}"),
        )
    if result.capacity_bytes and result.target_bytes:
        planned = " (--capacity)" if request.capacity_bytes else ""
        facts += [
            ("capacity", f"{format_bytes(result.capacity_bytes)}{planned}"),
            ("target", f"{format_bytes(result.target_bytes)} ({100 * request.target_fraction:g} %)"),
        ]
    facts += [
        ("fit", fit_line(result.fit).removeprefix("fit: ") if result.fit is not None else ""),
        ("estimate", prediction_line(result).removeprefix("estimate: ")),
        ("dataset", density_line(result.density) if result.density is not None else ""),
        ("before", _batch(result.before) if result.before is not None else ""),
        ("after", _batch(result.after) if result.after is not None else ""),
        ("written", ", ".join(result.written)),
    ]
    facts.append(("time", f"{len(result.trials)} trials, {format_seconds(result.seconds)} in all"))
    facts.append(("versions", ", ".join(f"{name} {version}" for name, version in result.versions.items())))
    return [(name, printable(value)) for name, value in facts if value]


def _batch(batch: EffectiveBatch) -> str:
    return (
        f"batch_size {batch.batch_size}, gradient_accumulation_steps {batch.gradient_accumulation_steps}: "
        f"{batch.sequences} sequences an update, about {batch.examples:.0f} examples"
    )


def _footer(results: Sequence[ProbeResult]) -> str:
    ended = sorted(result.ended for result in results if result.ended)
    if not ended:
        return "autobatch report"
    when = ended[0] if ended[0] == ended[-1] else f"{ended[0]} to {ended[-1]}"
    return printable(f"autobatch report; probed {when}")
