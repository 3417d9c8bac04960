"""A report as a file: PNG, SVG or HTML, by the file's suffix."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from autobatch.errors import UsageError
from autobatch.records import ProbeResult
from autobatch.report.chart import chart_of
from autobatch.report.experiment import ProbedRun, charts_of, not_drawn, summary
from autobatch.report.table import printable

SUFFIXES = (".png", ".svg", ".html")

#: Lines below a PNG or SVG that say which runs aren't in it; the page and the table say it of all.
_MOST_NOTES = 6


def form_of(path: Path) -> str:
    """``png``, ``svg`` or ``html``.

    Raises:
        UsageError: it ends otherwise.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path}: a report is written as {', '.join(SUFFIXES)}: let its name end so")
    return path.suffix.lower()[1:]


def probe_file(result: ProbeResult, form: str, name: str) -> bytes:
    """One probe as the content of a file.

    Args:
        result: of the probe.
        form: ``png``, ``svg`` or ``html``.
        name: of the run.

    Raises:
        UsageError: there is no trial to draw; the page says why.
    """
    if form == "html":
        from autobatch.report.page import probe_page

        return probe_page(result, name).encode()
    from autobatch.report.figures import probe_picture

    if not result.trials:
        raise UsageError(
            f"{name}: nothing was measured, so there is nothing to draw: {result.message}\n"
            "    write the page instead (.html), which says so"
        )
    return probe_picture(chart_of(result, name), form)


def experiment_file(runs: Sequence[ProbedRun], form: str, name: str) -> bytes:
    """The probes of an experiment as the content of a file.

    Args:
        runs: every run of it.
        form: ``png``, ``svg`` or ``html``.
        name: of the experiment.

    Raises:
        UsageError: there is no trial to draw.
    """
    if form == "html":
        from autobatch.report.page import experiment_page

        return experiment_page(runs, name).encode()
    from autobatch.report.figures import MOST_PANELS, experiment_picture

    charts, one_range = charts_of(runs)
    if not charts:
        raise UsageError(f"{name}: nothing was measured, so there is nothing to draw: call autobatch probe")
    notes = [] if one_range else ["batch_size scales differ"]
    if len(charts) > MOST_PANELS:
        notes.append(f"the first {MOST_PANELS} of {len(charts)} runs; the page (.html) has all")
    missing = not_drawn(runs)
    notes += [f"not drawn: {line}" for line in missing[:_MOST_NOTES]]
    if len(missing) > _MOST_NOTES:
        notes.append(f"not drawn either: {len(missing) - _MOST_NOTES} more, see the table")
    return experiment_picture(charts, form, title=f"{printable(name)}: {summary(runs)}", notes=notes)
