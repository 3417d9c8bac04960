"""Optimizer steps in a log: what metric loggers write of them, and what progress bars show."""

from __future__ import annotations

import math
import re
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from heapq import merge
from operator import ge, gt, itemgetter
from statistics import median

from autobatch.metrics.records import EpochMetrics

#: ``Step 7 | loss:2.31 lr:3e-06 ``, as DiskLogger and StdoutLogger write it; behind a progress bar, it may be.
_STEP = re.compile(rb"\bStep (\d{1,15}) \| ")
#: Each value of `log_dict` is followed by a space. Stdout in a file is written 8 KiB at a time, so that the end
#: of a line may be missing: without its space, a value isn't whole.
_VALUE = re.compile(rb"(\w+):([-+.\w]+)(?= |$)")
#: ``1|40|Loss: 10.48:  16%|###  | 40/250 [00:19<01:44,  2.00it/s]``: epoch, step, loss, steps of this epoch.
_BAR = re.compile(
    rb"(\d{1,9})\|(\d{1,15})\|Loss: ([^:|\s]+): +\d+%\|[^|]*\| (\d{1,15})/(\d{1,15}) \[((?:\d{1,9}:){1,3}\d{1,9})<"
)
_BAR_HEAD = re.compile(rb"\r(\d{1,9})\|(\d{1,15})\|Loss: ")
_LINE_END = re.compile(rb"[\r\n]|$")
_TOKENS = "tokens_per_second_per_gpu"
_PEAKS = {"peak_memory_reserved": "reserved", "peak_memory_alloc": "alloc", "peak_memory_active": "active"}
_KEPT = ("loss", _TOKENS, *_PEAKS)
#: Stands in a column where a step had no such value; no loss and no memory is as low.
_MISSING = -math.inf


class StepTable:
    """Values by optimizer step, in the order of the steps; columns of plain numbers, for there may be many.

    A step that comes again counts as it came last, and so do all after it: training went back.
    """

    def __init__(self) -> None:
        self.steps = array("q")
        self._columns: dict[str, array[float]] = {}

    def __len__(self) -> int:
        return len(self.steps)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Note the values of a step; those of the same step add up."""
        if self.steps and step < self.steps[-1]:
            self.go_back_to(step)
        if not self.steps or step > self.steps[-1]:
            self.steps.append(step)
            for column in self._columns.values():
                column.append(_MISSING)
        for name, value in values.items():
            if name not in self._columns:
                self._columns[name] = array("d", [_MISSING]) * len(self.steps)
            self._columns[name][-1] = value

    def extend(self, steps: Sequence[int], columns: Mapping[str, Iterable[float]]) -> None:
        """Add many steps at once, in ascending order, all of them later than those that are known."""
        known = len(self.steps)
        self.steps.extend(steps)
        for name in {*self._columns, *columns}:
            column = self._columns.setdefault(name, array("d", [_MISSING]) * known)
            column.extend(columns.get(name) or [_MISSING] * len(steps))

    def go_back_to(self, step: int) -> None:
        """Forget this step and all after it."""
        index = bisect_left(self.steps, step)
        del self.steps[index:]
        for column in self._columns.values():
            del column[index:]

    def values(self, name: str, first: int = 0, last: int = 2**62) -> list[float]:
        """What is known under a name of the steps from `first` to `last`."""
        if name not in self._columns:
            return []
        begin, end = bisect_left(self.steps, first), bisect_left(self.steps, last + 1)
        return [value for value in self._columns[name][begin:end] if value != _MISSING]

    def rows(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Each step with its values."""
        for index, step in enumerate(self.steps):
            values = {name: column[index] for name, column in self._columns.items()}
            yield step, {name: value for name, value in values.items() if value != _MISSING}

    def merged(self, other: StepTable) -> StepTable:
        """Both tables' steps, each once; where both know a value, the other's."""
        if not other or not self:
            return self or other
        both = StepTable()
        for step, values in merge(self.rows(), other.rows(), key=itemgetter(0)):
            both.add(step, values)
        return both


@dataclass
class EpochBar:
    """The progress bar of an epoch, when its last step had just been done.

    Attributes:
        last_step: of the training, not of the epoch.
        steps: done in this epoch.
        total: that this epoch has.
        seconds: since the epoch began; checkpoints come after.
        loss: of the last step.
    """

    last_step: int
    steps: int
    total: int
    seconds: float
    loss: float


class StepLines:
    """Reads steps of one training, line by line."""

    def __init__(self) -> None:
        self.table = StepTable()
        self.bars: dict[int, EpochBar] = {}

    def read_block(self, block: bytes) -> bool:
        """All lines of a block that has nothing else to say, at once, which is several times faster.

        Returns:
            False where the lines aren't the regular ones, in order: then it takes reading one by one.
        """
        count = block.count(b"|Loss: ")
        heads = _BAR_HEAD.findall(b"\r" + block) if count else []
        numbers = [int(step) for _, step in heads]
        latest = max((bar.last_step for bar in self.bars.values()), default=0)
        if len(heads) < count or (numbers and numbers[0] < latest) or any(map(gt, numbers, numbers[1:])):
            return False
        bars = []
        for epoch, step in dict(heads).items():
            # The first that shows the step: the bar is drawn again with it when the next step is done.
            start = block.index(b"%b|%b|Loss: " % (epoch, step))
            end = _LINE_END.search(block, start)
            bars.append(block[start : end.start() if end else None])
        if not all(map(_BAR.search, bars)) or not self._read_regular_steps(block):
            return False
        for bar in bars:
            self.read_bar(bar)
        return True

    def _read_regular_steps(self, block: bytes) -> bool:
        """Lines that all have the values that the first has."""
        count = block.count(b"Step ")
        first = _STEP.search(block) if count else None
        if first is None:
            return not count
        line = block[first.end() : block.find(b"\n", first.end())]
        names = [name.decode() for name, _ in _VALUE.findall(line)]
        kept = [name for name in names if name in _KEPT]
        pattern = "".join(
            rf"{name}:([-+.\w]+) " if name in _KEPT else rf"{name}:[-+.\w]+ " for name in names
        ).encode()
        found = re.findall(rb"\bStep (\d{1,15}) \| " + pattern + rb"(?=[\r\n]|$)", block)
        if not kept or len(found) != count:
            return False
        texts = list(zip(*found, strict=True))
        steps = [int(text) for text in texts[0]]
        if any(map(ge, steps, steps[1:])) or (self.table and steps[0] <= self.table.steps[-1]):
            return False
        try:
            columns = {
                name: array("d", map(float, column)) for name, column in zip(kept, texts[1:], strict=True)
            }
        except ValueError:
            return False
        self.table.extend(steps, columns)
        return True

    def read_step(self, line: bytes) -> None:
        """A metric logger's line."""
        if (found := _STEP.search(line)) is None:
            return
        values = {}
        for name, text in _VALUE.findall(line, found.end()):
            if (known := name.decode()) in _KEPT and (value := number(text)) is not None:
                values[known] = value
        self.table.add(int(found.group(1)), values)

    def read_bar(self, line: bytes) -> bool:
        """A progress bar's; whether it tells of a step that hadn't been seen."""
        if (found := _BAR.search(line)) is None:
            return False
        epoch, step, done, total = (int(found.group(i)) for i in (1, 2, 4, 5))
        loss, elapsed = number(found.group(3)), found.group(6)
        known = self.bars.get(epoch)
        if known is not None and step < known.last_step:
            # No header between: the recipe was started again by something that swallowed it.
            self.bars = {other: bar for other, bar in self.bars.items() if other < epoch}
            self.table.go_back_to(step)
        elif known is not None and step == known.last_step:
            # Drawn again, with the description of before, or because the bar was closed after a checkpoint.
            return False
        seconds = 0
        for part in elapsed.split(b":"):
            seconds = 60 * seconds + int(part)
        self.bars[epoch] = EpochBar(step, done, total, float(seconds), math.nan if loss is None else loss)
        return True

    def merged(self, other: StepLines) -> StepLines:
        """What both know: Slurm's file has the bars, DiskLogger's the values."""
        both = StepLines()
        both.table = self.table.merged(other.table)
        both.bars = {**self.bars, **other.bars}
        return both

    @property
    def last_step(self) -> int:
        """Of the training, as far as it is told; 0 before the first."""
        logged = self.table.steps[-1] if self.table else 0
        return max([logged, *(bar.last_step for bar in self.bars.values())])

    @property
    def loss(self) -> float | None:
        """Of the last step that has one."""
        if self.bars:
            last = max(self.bars.values(), key=lambda bar: bar.last_step)
            if not self.table or last.last_step >= self.table.steps[-1]:
                return last.loss
        return next(iter(self.table.values("loss")[-1:]), None)

    @property
    def tokens_per_second(self) -> float | None:
        """Median over the steps; the first, which compiles and warms up, is left out when there are others."""
        speeds = self.table.values(_TOKENS)
        return median(speeds[1:] or speeds) if speeds else None

    @property
    def training_seconds(self) -> float | None:
        """Over all epochs; None without progress bars."""
        return sum(bar.seconds for bar in self.bars.values()) if self.bars else None

    def peaks(self, first: int = 0, last: int = 2**62) -> dict[str, float]:
        """Largest peak of those steps, GiB, by kind."""
        return {
            kind: max(values)
            for name, kind in _PEAKS.items()
            if (values := self.table.values(name, first, last))
        }

    def epochs(self) -> tuple[EpochMetrics, ...]:
        """Each epoch that has a progress bar."""
        return tuple(self._epoch(number, self.bars[number]) for number in sorted(self.bars))

    def _epoch(self, epoch: int, bar: EpochBar) -> EpochMetrics:
        first = bar.last_step - bar.steps + 1
        speeds = self.table.values(_TOKENS, first, bar.last_step)
        if len(speeds) > 1 and first == 1:
            speeds = speeds[1:]
        peaks = self.peaks(first, bar.last_step)
        return EpochMetrics(
            epoch=epoch - 1,
            steps=bar.steps,
            training_time_minutes=bar.seconds / 60,
            tokens_per_second=median(speeds) if speeds else None,
            loss=bar.loss,
            peak_gpu_memory_gb=next((peaks[kind] for kind in _PEAKS.values() if kind in peaks), None),
        )


def number(text: bytes) -> float | None:
    """A number as Python prints it, ``nan`` included; None for anything else."""
    try:
        return float(text)
    except ValueError:
        return None
