"""What the logs of a training say, read in one pass: Slurm's output, torchtune's, a metric logger's.

Read as they are: progress bars with carriage returns, tracebacks of several ranks, binary junk, an end that
is missing. A block of a log is searched for the few words that matter before it is taken apart, which is what
makes a log of many megabytes a matter of seconds.

A log may tell of several trainings: a job that was requeued appends, a script may evaluate afterwards. The
last one counts. With `resume_from_checkpoint: True` it goes on where the one before it was; a recipe without
an optimizer doesn't train and is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from autobatch.metrics.log_ending import MEMORY_MARKS, TRACEBACK, Ending
from autobatch.metrics.log_files import find_logs
from autobatch.metrics.log_packing import PackingLines
from autobatch.metrics.log_steps import StepLines, number
from autobatch.metrics.log_text import blocks, lines
from autobatch.metrics.records import LogMetrics
from autobatch.runs.findings import Findings
from autobatch.runs.yaml_source import check_text

__all__ = ["find_logs", "read_logs"]

_HEADER = re.compile(rb"Running (\w{1,200}) with resolved config:")
_CONFIG_BYTES = 2**15
#: A text in a config may have empty lines in it.
_EMPTY_LINES = 5

#: Of "Memory stats after model init:", torchtune 0.6.1 and newer.
_AT_INIT = re.compile(rb"\w+ peak memory (alloc|reserved|active)(?:ation)?: (\d{1,9}(?:\.\d{1,9})?) GiB")
#: The planning document's own line, of recipes that write one.
_PEAK = re.compile(rb"[Pp]eak GPU memory[:\s]+(\d{1,9}(?:\.\d{1,9})?) ?Gi?B")
_WANDB = re.compile(rb"wandb: +(\w{1,100}) +([-+.\w]{1,40})\s*$")
_CLOCK = re.compile(rb"Training (started|completed).*?(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)")

_STEP_MARKS = {b"Step ", b"|Loss: "}

Rule = tuple[bytes, Callable[[bytes], None]]


def read_logs(paths: Sequence[Path]) -> LogMetrics:
    """What the files of one training say together.

    Args:
        paths: such as `find_logs` gives: Slurm's output, its error file, DiskLogger's file. A step that is in
            two of them counts once.

    Raises:
        UsageError: one can't be read.
    """
    training = _Training()
    for path in paths:
        training = training.merged(_Reader().read(path))
    return training.metrics(tuple(str(path) for path in paths))


class _Training:
    """Everything that is read of one training."""

    def __init__(self, recipe: str | None = None) -> None:
        self.recipe = recipe
        self.config: Mapping[str, Any] = {}
        self.steps = StepLines()
        self.packing = PackingLines()
        self.ending = Ending()
        self.at_init: dict[str, float] = {}
        self.summary: dict[str, float] = {}
        self.clock: dict[str, datetime] = {}

    def merged(self, other: _Training) -> _Training:
        both = _Training(self.recipe or other.recipe)
        both.config = self.config or other.config
        both.steps = self.steps.merged(other.steps)
        both.packing = self.packing.merged(other.packing)
        both.ending = self.ending.merged(other.ending)
        both.at_init = {**other.at_init, **self.at_init}
        both.summary = {**other.summary, **self.summary}
        both.clock = {**other.clock, **self.clock}
        return both

    def metrics(self, files: tuple[str, ...]) -> LogMetrics:
        steps, summary = self.steps, self.summary
        epoch = max((bar.total for bar in steps.bars.values()), default=0)
        loss, speed, seconds = steps.loss, steps.tokens_per_second, steps.training_seconds
        if seconds is None and len(self.clock) == 2:
            seconds = (self.clock["completed"] - self.clock["started"]).total_seconds()
        return LogMetrics(
            files=files,
            recipe=self.recipe,
            config=self.config,
            packing=self.packing.metrics(self.config, self.recipe, epoch),
            steps=steps.last_step or _whole(summary.get("global_step", 0)),
            epochs=steps.epochs(),
            peak_memory_gib=self._peaks(),
            tokens_per_second=summary.get("tokens_per_second_per_gpu") if speed is None else speed,
            training_seconds=seconds if seconds is None or seconds >= 0 else None,
            loss=summary.get("loss") if loss is None else loss,
            out_of_memory=self.ending.out_of_memory,
            error=self.ending.error,
            slurm_end=self.ending.slurm,
        )

    def _peaks(self) -> dict[str, float]:
        """The steps' peaks. Those of the model's init count beside them, not alone: training takes more."""
        peaks = self.steps.peaks()
        for kind in ("reserved", "alloc", "active"):
            last = self.summary.get(f"peak_memory_{kind}")
            if last is not None:
                peaks[kind] = max(last, peaks.get(kind, last))
        return {kind: max(peak, self.at_init.get(kind, peak)) for kind, peak in peaks.items()}


class _Reader:
    """Reads one file; `_training` is the last that it tells of."""

    def __init__(self) -> None:
        self._training = _Training()
        self._before = self._training
        self._muted = self._traced = False
        self._config: list[bytes] | None = None
        self._config_bytes = self._empty_lines = 0
        self._rules: tuple[Rule, ...] = (
            (b"with resolved config:", self._begin),
            (b"Step ", lambda line: self._training.steps.read_step(line)),
            (b"|Loss: ", self._read_bar),
            (b"Packing dataset:", lambda line: self._training.packing.read_bar(line)),
            (b"acked", lambda line: self._training.packing.read_counts(line)),
            (b"oaded", lambda line: self._training.packing.read_counts(line)),
            (b"acking ", lambda line: self._training.packing.read_statement(line)),
            (b" peak memory ", self._read_init),
            (b"eak GPU memory", self._read_peak),
            (b"wandb: ", self._read_summary),
            (b"Training ", self._read_clock),
            (TRACEBACK, lambda line: self._training.ending.read_traceback(line)),
            (b"CANCELLED AT", lambda line: self._training.ending.read_slurm(line)),
            (b": line ", lambda line: self._training.ending.read_signal(line)),
            *((mark, self._read_memory) for mark in MEMORY_MARKS),
        )

    def read(self, path: Path) -> _Training:
        for block in blocks(path):
            rules = [rule for rule in self._rules if rule[0] in block]
            within = self._config is not None or self._training.ending.in_traceback
            if not within and not self._muted and {mark for mark, _ in rules} <= _STEP_MARKS:
                before = self._training.steps.last_step
                if self._training.steps.read_block(block):
                    if b"|Loss: " in block and self._training.steps.last_step > before:
                        self._training.ending.went_on()
                    continue
            if rules or within:
                for line in lines(block):
                    self._read_line(line, rules)
        self._end_config()
        return self._training

    def _read_line(self, line: bytes, rules: Sequence[Rule]) -> None:
        if self._config is not None:
            self._add_to_config(line)
        self._traced = self._training.ending.in_traceback and TRACEBACK not in line
        if self._traced:
            self._training.ending.read_traceback(line)
        for mark, read in rules:
            if mark in line and (not self._muted or mark == self._rules[0][0]):
                read(line)

    def _begin(self, line: bytes) -> None:
        if (found := _HEADER.search(line)) is None:
            return
        self._muted = False
        self._before = self._training
        self._training = _Training(found.group(1).decode())
        if self._before.recipe is None:
            # What stands above the first recipe's header: a probe, in the same job, that tells of the dataset.
            self._training.packing = self._before.packing
        self._config, self._config_bytes, self._empty_lines = [], 0, 0

    def _add_to_config(self, line: bytes) -> None:
        """The config is YAML between two empty lines; one within a quoted text leaves it incomplete."""
        assert self._config is not None
        empty = not line.strip()
        if empty and not self._config:
            return
        self._config_bytes += len(line) + 1
        self._empty_lines += empty
        if self._config_bytes > _CONFIG_BYTES or (
            empty and (self._empty_lines > _EMPTY_LINES or _mapping_of(self._config))
        ):
            self._end_config()
        else:
            self._config.append(line)

    def _end_config(self) -> None:
        if self._config is None:
            return
        config, self._config = _mapping_of(self._config), None
        self._training.config = config
        if config and "optimizer" not in config:
            self._training, self._muted = self._before, True
        elif config.get("resume_from_checkpoint") is True and self._before.recipe is not None:
            self._training.steps = self._before.steps

    def _read_bar(self, line: bytes) -> None:
        if self._training.steps.read_bar(line):
            self._training.ending.went_on()

    def _read_memory(self, line: bytes) -> None:
        # In a traceback it is the error that counts, not the source that caught it.
        if not self._traced:
            self._training.ending.read_memory(line)

    def _read_init(self, line: bytes) -> None:
        if found := _AT_INIT.search(line):
            self._training.at_init[found.group(1).decode()] = float(found.group(2))

    def _read_peak(self, line: bytes) -> None:
        if found := _PEAK.search(line):
            peak = float(found.group(1))
            known = self._training.summary.get("peak_memory_reserved", peak)
            self._training.summary["peak_memory_reserved"] = max(known, peak)

    def _read_summary(self, line: bytes) -> None:
        if found := _WANDB.search(line):
            value = number(found.group(2))
            if value is not None and len(self._training.summary) < 1000:
                self._training.summary[found.group(1).decode()] = value

    def _read_clock(self, line: bytes) -> None:
        if (found := _CLOCK.search(line)) is None:
            return
        which, day, time = (part.decode() for part in found.groups())
        try:
            self._training.clock[which] = datetime.fromisoformat(f"{day} {time}")
        except ValueError:
            return


def _whole(value: float) -> int:
    """A number of steps; 0 for what isn't one."""
    return int(value) if 0 <= value < 2**63 else 0


def _mapping_of(text: Sequence[bytes]) -> Mapping[str, Any]:
    """A YAML mapping; empty when it isn't one, or not yet."""
    import yaml

    try:
        config = b"\n".join(text).decode("utf-8", "replace")
        # Loaded, merge keys of merge keys would take forever.
        if check_text(config, Path("log"), Findings()) is None:
            return {}
        loaded = yaml.safe_load(config)
    except Exception:  # whatever PyYAML's constructors raise on what was never meant as YAML
        return {}
    return loaded if isinstance(loaded, dict) and all(isinstance(key, str) for key in loaded) else {}
