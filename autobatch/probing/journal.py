"""`probe/trials.jsonl`: what a probe has measured, line by line, so that a killed one goes on from there.

The first line says what the measurements hold for (`key`); each further one is a trial, or the decision
that the write-back is about to carry out:

    {"key": {"fingerprint": "...", "device": {...}, ...}, "schema_version": 1}
    {"trial": {"batch_size": 1, "verdict": "fits", ...}, "measured": "2026-01-31T12:00:00+00:00"}
    {"trial": {"batch_size": 24, ...}, "measured": "...", "run": "/experiment/run1"}
    {"decision": {"batch_size": 24, "gradient_accumulation_steps": 1, "before": {"batch_size": 4, ...}}}

`run` names the run that a trial was measured for, where that is another with the same key. A journal with
another key holds measurements of something else; it is started anew. `forced` beside the key names the job's
attempt that was to measure all anew: requeued, it goes on from what it has measured itself.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from autobatch.records import SCHEMA_VERSION, EffectiveBatch, Trial, Verdict, from_json, to_json

#: Name of the file in `probe/`.
JOURNAL = "trials.jsonl"

#: Verdicts that say something about memory and are not measured again. The others (a crash, a hang) may
#: have been mended since.
_LASTING = (Verdict.FITS, Verdict.OVER_TARGET, Verdict.OUT_OF_MEMORY)


@dataclass(frozen=True)
class Decision:
    """The answer that the write-back carries out.

    Attributes:
        batch_size, gradient_accumulation_steps: the new values.
        before: what finetune.yaml said when the probe began.
    """

    batch_size: int
    gradient_accumulation_steps: int
    before: EffectiveBatch

    def is_for(self, batch_size: int, gradient_accumulation_steps: int) -> bool:
        """Whether these are the new values."""
        return (batch_size, gradient_accumulation_steps) == (
            self.batch_size,
            self.gradient_accumulation_steps,
        )


@dataclass(frozen=True)
class Origin:
    """Where a trial was measured.

    Attributes:
        run: path of the run; empty for the journal's own.
        measured: when; UTC, ISO 8601.
    """

    run: str
    measured: str


class Journal:
    """The journal of one run directory.

    Args:
        path: `probe/trials.jsonl`.
        key: what the measurements hold for.
        fresh: forget what is there, unless it was begun so by the same attempt.
        attempt: of the job; empty where there is none to go on with.

    Attributes:
        key: what the measurements hold for.
        trials: those that last, as they were added.
        origins: of each trial, by batch_size.
        decision: the last one.
    """

    def __init__(self, path: Path, key: dict[str, Any], *, fresh: bool = False, attempt: str = "") -> None:
        self._path = path
        self.key = key
        self.trials: list[Trial] = []
        self.origins: dict[int, Origin] = {}
        self.decision: Decision | None = None
        lines = _read_lines(path)
        forced = {"forced": attempt} if fresh and attempt else {}
        counts = not fresh or _is_begun_by(lines, attempt)
        if counts and lines and _key_of(lines) == key:
            for line in lines[1:]:
                self._take(line)
            self._end_torn_line()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            self._append({"key": key, "schema_version": SCHEMA_VERSION, **forced})

    def add_trial(self, trial: Trial, origin: Origin | None = None) -> Origin:
        """Record a trial; on disk when this returns.

        Args:
            trial: the trial.
            origin: None: it was measured just now, for this run.
        """
        origin = origin or Origin("", datetime.now(timezone.utc).isoformat(timespec="seconds"))
        self.origins[trial.batch_size] = origin
        run = {"run": origin.run} if origin.run else {}
        self._append({"trial": to_json(trial), "measured": origin.measured, **run})
        return origin

    def add_decision(self, decision: Decision) -> None:
        """Record the answer before anything of the user's is written."""
        self.decision = decision
        self._append({"decision": to_json(decision)})

    def _take(self, line: dict[str, Any]) -> None:
        try:
            if "trial" in line:
                measured = _measured(line)
                if measured is not None:
                    self.trials.append(measured[0])
                    self.origins[measured[0].batch_size] = measured[1]
            elif "decision" in line:
                self.decision = from_json(Decision, line["decision"])
        except ValueError:
            # A line that something else wrote or damaged: what it measured is measured again.
            return

    def _append(self, line: dict[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _end_torn_line(self) -> None:
        """A process killed while appending leaves a line without an end; the next must not continue it."""
        content = self._path.read_bytes()
        if content and not content.endswith(b"\n"):
            with self._path.open("ab") as file:
                file.write(b"\n")


def read_measured(path: Path) -> tuple[dict[str, Any], list[tuple[Trial, Origin]]] | None:
    """Key and lasting trials of a journal; None when there is none that this version understands."""
    lines = _read_lines(path)
    key = _key_of(lines) if lines else None
    if key is None:
        return None
    found = []
    for line in lines[1:]:
        with suppress(ValueError):
            measured = _measured(line) if "trial" in line else None
            if measured is not None:
                found.append(measured)
    return key, found


def is_lasting(trial: Trial) -> bool:
    """Whether a trial says something about memory, and need not be run again."""
    return trial.verdict in _LASTING


def _key_of(lines: list[dict[str, Any]]) -> dict[str, Any] | None:
    key = lines[0].get("key")
    return key if isinstance(key, dict) and lines[0].get("schema_version") == SCHEMA_VERSION else None


def _is_begun_by(lines: list[dict[str, Any]], attempt: str) -> bool:
    """Whether that attempt has begun the journal, by force."""
    return bool(lines and attempt) and lines[0].get("forced") == attempt


def _measured(line: dict[str, Any]) -> tuple[Trial, Origin] | None:
    """The trial of a line with where it was measured; None for one that doesn't last.

    Raises:
        ValueError: the line is damaged.
    """
    trial = from_json(Trial, line["trial"])
    origin = Origin(str(line.get("run", "")), str(line.get("measured", "")))
    return (trial, origin) if is_lasting(trial) else None


def _read_lines(path: Path) -> list[dict[str, Any]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    lines = []
    for line in text.splitlines():
        try:
            data = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(data, dict):
            lines.append(data)
    return lines
