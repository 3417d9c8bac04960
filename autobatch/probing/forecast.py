"""What an estimate tells a probe: where to begin, and what to compare the measured peak with.

A hint: whoever makes it is passed in, and when it is wrong by any factor, the search finds the same answer with
more trials.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from autobatch.records import Device, Metric, Prediction
from autobatch.runs.directory import RunDirectory


@dataclass(frozen=True)
class Occasion:
    """The probe that asks.

    Attributes:
        run: the run.
        packed: whether it is probed with packs.
        device: what is measured on.
        metric: the peak that counts.
    """

    run: RunDirectory
    packed: bool
    device: Device
    metric: Metric


class Forecast(Protocol):
    """Predicted peaks."""

    def peak_bytes(self, batch_size: int) -> int | None:
        """The predicted peak at `batch_size`, as the occasion's metric counts it; None where it isn't known."""

    def largest(self, target_bytes: int, at_most: int) -> int:
        """The largest batch_size whose predicted peak is at most `target_bytes`; 0 when none is."""


Forecaster: TypeAlias = Callable[[Occasion], Forecast | None]


class Hint:
    """What a forecast says about one probe; it says nothing when there is none.

    Args:
        forecast: the forecast; None for none.
        target_bytes: of the probe.
        cap: the largest batch_size worth trying.
    """

    def __init__(self, forecast: Forecast | None, target_bytes: int, cap: int) -> None:
        self._forecast = forecast
        self.guess = None if forecast is None else max(1, min(cap, forecast.largest(target_bytes, cap)))

    def prediction(self, batch_size: int | None = None) -> Prediction | None:
        """For the result; `batch_size` is what the peak is predicted for, the guess before there is an answer."""
        if self._forecast is None or self.guess is None:
            return None
        at = batch_size or self.guess
        return Prediction(self.guess, at, self._forecast.peak_bytes(at))
