"""What a person sees of a running probe, on stderr: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from autobatch.probing.events import (
    Began,
    Event,
    FoundDevice,
    Packed,
    Packing,
    Said,
    Stepped,
    TrialBegan,
    TrialEnded,
)
from autobatch.records import Limit
from autobatch.report.table import HEADER, density_line, trial_row
from autobatch.units import format_bytes, format_percent

if TYPE_CHECKING:
    from rich.console import RenderableType


class Renderer(Protocol):
    """Shows events as they come."""

    def show(self, event: Event) -> None:
        """Take one event."""


@contextmanager
def renderer() -> Iterator[Renderer]:
    """The renderer for this stderr."""
    if sys.stderr.isatty():
        with _LiveTable() as live:
            yield live
    else:
        yield PlainLines()


def describe(event: Event) -> list[str]:
    """The lines that both renderers show of an event."""
    if isinstance(event, Began):
        return [f"{event.run}: {event.recipe}", *event.notes]
    if isinstance(event, FoundDevice):
        share = format_percent(event.target_bytes, event.capacity_bytes)
        return [
            f"measuring on {event.device.label}: {event.metric} memory up to {format_bytes(event.target_bytes)} "
            f"({share} of {format_bytes(event.capacity_bytes)})"
        ]
    if isinstance(event, Packed):
        lines = [density_line(event.density)]
        if event.cap_reason == Limit.DATASET.value:
            lines.append(f"the dataset allows batch_size up to {event.cap}")
        else:
            lines.append(f"batch_size up to {event.cap} ({event.cap_reason})")
        return lines
    if isinstance(event, Said):
        return [event.text]
    return []


class PlainLines:
    """Lines as they come.

    Args:
        prefix: of each line; of a run among many.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._capacity: int | None = None
        self._tenth = 0
        self._widths = (10, 10, 11, 9, 9)

    def show(self, event: Event) -> None:
        """Take one event."""
        for line in describe(event):
            self._say(line)
        if isinstance(event, FoundDevice):
            self._capacity = event.capacity_bytes
        elif isinstance(event, Packing) and event.total:
            tenth = 10 * event.done // event.total
            if tenth > self._tenth:
                self._tenth = tenth
                self._say(f"packing: {event.done} of {event.total} examples")
        elif isinstance(event, Packed):
            self._row(HEADER)
        elif isinstance(event, TrialEnded):
            row = trial_row(event.trial, self._capacity)
            self._row((*row[:-1], row[-1] + (" (measured before)" if event.resumed else "")))

    def _say(self, line: str) -> None:
        _say(f"{self._prefix}{line}")

    def _row(self, cells: tuple[str, ...]) -> None:
        aligned = [cell.rjust(width) for cell, width in zip(cells, self._widths, strict=False)]
        self._say("  ".join([*aligned, cells[-1]]))


class _LiveTable:
    """The trials so far, and what is going on below them."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True)
        self._live = Live(console=self._console, refresh_per_second=8)
        self._rows: list[tuple[str, ...]] = []
        self._capacity: int | None = None
        self._doing = "starting"
        self._progress: tuple[int, int] | None = None

    def __enter__(self) -> _LiveTable:
        self._live.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self._doing, self._progress = "", None
        self._live.update(self._draw())
        self._live.__exit__(None, None, None)

    def show(self, event: Event) -> None:
        for line in describe(event):
            self._console.print(line, highlight=False, markup=False)
        self._progress = None
        if isinstance(event, FoundDevice):
            self._capacity = event.capacity_bytes
            self._doing = "loading the dataset"
        elif isinstance(event, Packing):
            self._doing, self._progress = "packing", (event.done, event.total)
        elif isinstance(event, TrialBegan):
            upper = f" and {event.fails} doesn't" if event.fails is not None else ""
            known = f"  ({event.fits} fits{upper})" if event.fits or event.fails else ""
            self._doing = f"batch_size {event.batch_size}: setting up{known}"
        elif isinstance(event, Stepped):
            self._doing = f"batch_size {event.batch_size}: {event.steps} optimizer steps"
        elif isinstance(event, TrialEnded):
            row = trial_row(event.trial, self._capacity)
            self._rows.append((*row[:-1], row[-1] + (" (measured before)" if event.resumed else "")))
            self._doing = "choosing"
        self._live.update(self._draw())

    def _draw(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        parts: list[RenderableType] = []
        if self._rows:
            table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
            for name in HEADER:
                table.add_column(name, justify="left" if name == HEADER[-1] else "right")
            for row in self._rows:
                table.add_row(*row, style="" if row[-1].startswith("fits") else "dim")
            parts.append(table)
        if self._progress is not None:
            parts.append(ProgressBar(total=self._progress[1], completed=self._progress[0], width=60))
        if self._doing:
            parts.append(Text(self._doing, style="italic"))
        return Group(*parts)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
