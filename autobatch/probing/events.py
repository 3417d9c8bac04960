"""What a probe tells while it runs: one JSON object a line in `probe/events.jsonl`.

Whoever watches (the terminal's live table, `autobatch status`, an agent) follows that file; the job itself
prints nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from autobatch.records import Density, Device, ProbeResult, Trial, from_json, to_json

#: Name of the file in `probe/`.
EVENTS = "events.jsonl"


@dataclass(frozen=True)
class Began:
    """The probe has read the run.

    Attributes:
        run: its name.
        recipe: the recipe and where its name came from.
        notes: things to say aloud.
    """

    run: str
    recipe: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class FoundDevice:
    """What will be measured on, and against what."""

    device: Device
    capacity_bytes: int
    target_bytes: int
    metric: str


@dataclass(frozen=True)
class Packing:
    """Examples packed so far."""

    done: int
    total: int


@dataclass(frozen=True)
class Packed:
    """The dataset is packed."""

    density: Density
    cap: int
    cap_reason: str


@dataclass(frozen=True)
class TrialBegan:
    """A batch size is being measured.

    Attributes:
        batch_size: the size.
        fits, fails: the bracket; `fails` is None while nothing has failed.
    """

    batch_size: int
    fits: int
    fails: int | None


@dataclass(frozen=True)
class Stepped:
    """Optimizer steps that the current trial has done."""

    batch_size: int
    steps: int


@dataclass(frozen=True)
class TrialEnded:
    """A trial's outcome, measured now or taken from the journal."""

    trial: Trial
    resumed: bool


@dataclass(frozen=True)
class Wrote:
    """A file of the user's was changed.

    Attributes:
        path: the file.
        diff: what changed, as a unified diff.
    """

    path: str
    diff: str


@dataclass(frozen=True)
class Said:
    """Anything else worth a line."""

    text: str


@dataclass(frozen=True)
class Ended:
    """The probe is over."""

    result: ProbeResult


@dataclass(frozen=True)
class Failed:
    """The probe ended without a result: its input couldn't be used, or a file couldn't be written.

    Attributes:
        message: for the user.
        exit_code: of the error.
    """

    message: str
    exit_code: int


Event: TypeAlias = (
    Began | FoundDevice | Packing | Packed | TrialBegan | Stepped | TrialEnded | Wrote | Said | Ended | Failed
)

_KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (
        Began,
        FoundDevice,
        Packing,
        Packed,
        TrialBegan,
        Stepped,
        TrialEnded,
        Wrote,
        Said,
        Ended,
        Failed,
    )
}


class EventLog:
    """Writes the events of one attempt at a probe; `Began` starts the file anew.

    Args:
        path: `probe/events.jsonl`.
        attempt: names the attempt, for whoever waits for this one.
    """

    def __init__(self, path: Path, attempt: str) -> None:
        self._path = path
        self._attempt = attempt
        path.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, event: Event) -> None:
        fields = {"event": type(event).__name__, "time": time.time(), "attempt": self._attempt}
        with self._path.open("w" if isinstance(event, Began) else "a", encoding="utf-8") as file:
            file.write(json.dumps(fields | to_json(event)) + "\n")


class EventReader:
    """Follows the events of one attempt.

    Args:
        path: `probe/events.jsonl`; it need not exist yet.
        attempt: whose events; another attempt may be writing the same file.
    """

    def __init__(self, path: Path, attempt: str) -> None:
        self._path = path
        self._attempt = attempt
        self._offset = 0
        self._first_line = b""

    def new(self) -> Iterator[Event]:
        """The events that were added since the last call."""
        try:
            with self._path.open("rb") as file:
                first_line = file.readline()
                if first_line != self._first_line:
                    # An attempt has begun the file anew; it may be longer again than it was.
                    self._first_line, self._offset = first_line, 0
                file.seek(self._offset)
                chunk = file.read()
        except OSError:
            return
        whole = chunk[: chunk.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            event = _parse(line, self._attempt)
            if event is not None:
                yield event


def _parse(line: bytes, attempt: str) -> Event | None:
    """The event of a line; None for another attempt's, or one that this version doesn't know."""
    try:
        data = json.loads(line)
        if data["attempt"] != attempt:
            return None
        event: Event = from_json(_KINDS[data["event"]], data)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return event
