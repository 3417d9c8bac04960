"""What an estimate tells a probe: where to begin, and what to compare the measured peak with.

A hint: whoever makes it is passed in, and when it fails, or is wrong by any factor, the search finds the same
answer with more trials.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from autobatch.errors import AutobatchError
from autobatch.probing.forkserver import ForkServer
from autobatch.records import Device, Metric, Prediction
from autobatch.runs.directory import RunDirectory


@dataclass(frozen=True)
class Occasion:
    """The probe that asks.

    Attributes:
        run: the run.
        packed: whether it is probed with packs.
        server: gives processes.
        device: what is measured on.
        metric: the peak that counts.
        held_bytes: resident memory that the dataset takes, where the model is in the same memory.
        timeout_s: after which no answer is worth waiting for.
    """

    run: RunDirectory
    packed: bool
    server: ForkServer
    device: Device
    metric: Metric
    held_bytes: int
    timeout_s: float


class Forecast(Protocol):
    """Predicted peaks."""

    @property
    def seconds(self) -> float:
        """Time that it took."""

    def peak_bytes(self, batch_size: int) -> int:
        """The predicted peak at `batch_size`, as the occasion's metric counts it."""

    def largest(self, target_bytes: int, at_most: int) -> int:
        """The largest batch_size whose predicted peak is at most `target_bytes`; 0 when none is."""


Forecaster: TypeAlias = Callable[[Occasion], Forecast]


class Hint:
    """What a forecast says about one probe; it says nothing when there is none.

    Args:
        forecast: the forecast; None for none.
        why: there is none.
        target_bytes: of the probe.
        cap: the largest batch_size worth trying.
    """

    def __init__(self, forecast: Forecast | None, why: str, target_bytes: int, cap: int) -> None:
        self._forecast = forecast
        self._why = why
        self.guess = None if forecast is None else max(1, min(cap, forecast.largest(target_bytes, cap)))

    def prediction(self, batch_size: int | None = None) -> Prediction | None:
        """For the result; `batch_size` is what the peak is predicted for, the guess before there is an answer."""
        if self._forecast is None or self.guess is None:
            return Prediction(None, None, None, 0.0, self._why) if self._why else None
        at = batch_size or self.guess
        return Prediction(self.guess, at, self._forecast.peak_bytes(at), self._forecast.seconds)


def hint_for(forecaster: Forecaster | None, occasion: Occasion, target_bytes: int, cap: int) -> Hint:
    """Ask `forecaster`, whatever may come of it."""
    if forecaster is None:
        return Hint(None, "", target_bytes, cap)
    try:
        return Hint(forecaster(occasion), "", target_bytes, cap)
    except AutobatchError as error:
        return Hint(None, str(error), target_bytes, cap)
    except Exception as error:  # a hint never ends a probe
        return Hint(None, f"no estimate: {type(error).__name__}: {error}", target_bytes, cap)
