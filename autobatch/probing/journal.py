"""`probe/trials.jsonl`: what a probe has measured, line by line, so that a killed one goes on from there.

The first line says what the measurements hold for (`key`); each further one is a trial, or the decision
that the write-back is about to carry out:

    {"key": {"fingerprint": "...", "device": {...}, ...}, "schema_version": 1}
    {"trial": {"batch_size": 1, "verdict": "fits", ...}}
    {"decision": {"batch_size": 24, "gradient_accumulation_steps": 1, "before": {"batch_size": 4, ...}}}

A journal with another key holds measurements of something else; it is started anew.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autobatch.records import SCHEMA_VERSION, EffectiveBatch, Trial, Verdict, from_json, to_json

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


class Journal:
    """The journal of one run directory.

    Args:
        path: `probe/trials.jsonl`.
        key: what the measurements hold for.
        fresh: forget what is there.
    """

    def __init__(self, path: Path, key: dict[str, Any], *, fresh: bool = False) -> None:
        self._path = path
        self.trials: list[Trial] = []
        self.decision: Decision | None = None
        lines = [] if fresh else _read_lines(path)
        if lines and lines[0].get("key") == key and lines[0].get("schema_version") == SCHEMA_VERSION:
            for line in lines[1:]:
                self._take(line)
            self._end_torn_line()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            self._append({"key": key, "schema_version": SCHEMA_VERSION})

    def add_trial(self, trial: Trial) -> None:
        """Record a trial; on disk when this returns."""
        self._append({"trial": to_json(trial)})

    def add_decision(self, decision: Decision) -> None:
        """Record the answer before anything of the user's is written."""
        self.decision = decision
        self._append({"decision": to_json(decision)})

    def _take(self, line: dict[str, Any]) -> None:
        try:
            if "trial" in line:
                trial = from_json(Trial, line["trial"])
                if trial.verdict in _LASTING:
                    self.trials.append(trial)
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
