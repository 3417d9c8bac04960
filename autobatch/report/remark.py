"""A sentence about runs, for people and, by its code, for programs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from autobatch.report.run_figures import RunFigures

T = TypeVar("T")


@dataclass(frozen=True)
class Remark:
    """One caveat or recommendation.

    Attributes:
        code: which kind it is, stable.
        text: a sentence, with the figures it stands on.
        runs: names of the runs that it is about.
    """

    code: str
    text: str
    runs: tuple[str, ...]


def names(runs: Iterable[RunFigures]) -> tuple[str, ...]:
    """Their names."""
    return tuple(run.run for run in runs)


def listed(runs: Iterable[RunFigures]) -> str:
    """``run1, run2, run3``, and of very many the first ones and a count."""
    found = names(runs)
    shown = ", ".join(found[:8])
    return shown if len(found) <= 8 else f"{shown} and {len(found) - 8} more"


def grouped(runs: Sequence[RunFigures], key: Callable[[RunFigures], T | None]) -> dict[T, list[RunFigures]]:
    """The runs by `key`, those without one left out."""
    groups: dict[T, list[RunFigures]] = {}
    for run in runs:
        value = key(run)
        if value is not None:
            groups.setdefault(value, []).append(run)
    return groups
