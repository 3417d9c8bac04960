"""`gpu_metrics.csv`: what nvidia-smi saw of the cards while a training ran.

    timestamp, utilization.gpu [%], utilization.memory [%], memory.used [MiB], memory.total [MiB], ...
    2025/10/20 14:30:00.123, 92 %, 40 %, 46285 MiB, 81559 MiB, 412.11 W, 61

Columns are found by name. Cells may be ``[N/A]`` (utilisation of a MIG slice) or ``[Not Supported]``. A
second header, as a requeued job that appends to the file writes it, begins the samples anew: the last
attempt is the one that trained. A line that isn't a sample, such as one cut off at the end, counts for nothing.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from autobatch.errors import UsageError

GPU_METRICS = "gpu_metrics.csv"

#: Cards are sampled one right after the other, every 30 s, or every second at the most often.
_SAME_ROUND = timedelta(seconds=0.5)

_GIB_PER_UNIT = {"KiB": 2.0**-20, "MiB": 2.0**-10, "GiB": 1.0, "": 2.0**-10}


@dataclass(frozen=True)
class GpuSample:
    """One card at one time.

    Attributes:
        time: by the node's clock, without a zone.
        memory_gib: in use, by whomever; None where the driver doesn't say.
        utilization_pct: part of the time in which a kernel ran; None where the driver doesn't say.
    """

    time: datetime
    memory_gib: float | None
    utilization_pct: float | None


@dataclass(frozen=True)
class GpuSamples:
    """The samples of a training, in the order of time."""

    samples: tuple[GpuSample, ...] = ()

    @property
    def start(self) -> datetime | None:
        """Time of the first sample."""
        return self.samples[0].time if self.samples else None

    @property
    def end(self) -> datetime | None:
        """Time of the last sample."""
        return self.samples[-1].time if self.samples else None

    @property
    def seconds(self) -> float | None:
        """From the first sample to the last."""
        return (self.samples[-1].time - self.samples[0].time).total_seconds() if self.samples else None

    @property
    def peak_memory_gib(self) -> float | None:
        """The most that any card was seen with; what lies between two samples isn't seen."""
        return max(self._memory(), default=None)

    @property
    def mean_memory_gib(self) -> float | None:
        """Mean over all samples of all cards."""
        return _mean(self._memory())

    @property
    def mean_utilization_pct(self) -> float | None:
        """Mean over all samples of all cards that have one."""
        return _mean([s.utilization_pct for s in self.samples if s.utilization_pct is not None])

    @property
    def gpus(self) -> int:
        """Cards that were sampled: the rows of a round, by the round that has the most."""
        most = count = 0
        last: datetime | None = None
        for sample in self.samples:
            count = count + 1 if last is not None and sample.time - last < _SAME_ROUND else 1
            last = sample.time
            most = max(most, count)
        return most

    def between(self, start: datetime, end: datetime) -> GpuSamples:
        """The samples from `start` to `end`, both included."""
        return GpuSamples(tuple(s for s in self.samples if start <= s.time <= end))

    def _memory(self) -> list[float]:
        return [s.memory_gib for s in self.samples if s.memory_gib is not None]


def read_gpu_samples(path: Path) -> GpuSamples:
    """The samples of the last attempt in a file; none when there is no file, or none in it.

    Raises:
        UsageError: it is there and can't be read.
    """
    try:
        with path.open(encoding="utf-8", errors="replace", newline="") as file:
            return GpuSamples(tuple(_last_attempt(file)))
    except FileNotFoundError:
        return GpuSamples()
    except OSError as error:
        raise UsageError(f"{path}: can't be read: {error.strerror}; check its permissions") from error


def _last_attempt(lines: Iterator[str]) -> list[GpuSample]:
    # A line that a dying node left may hold NUL bytes, or be longer than csv takes.
    usable = (line.replace("\0", "") for line in lines if len(line) < csv.field_size_limit())
    columns: dict[str, int] = {}
    width = 0
    samples: list[GpuSample] = []
    earlier: list[GpuSample] = []
    for row in csv.reader(usable, skipinitialspace=True, quoting=csv.QUOTE_NONE):
        if row and row[0].strip() == "timestamp":
            columns = {re.sub(r"\s*\[.*", "", cell).strip(): at for at, cell in enumerate(row)}
            width = len(row)
            earlier = samples or earlier
            samples = []
        elif columns and len(row) == width:
            sample = _sample(row, columns)
            if sample is not None:
                samples.append(sample)
    return samples or earlier


def _sample(row: Sequence[str], columns: dict[str, int]) -> GpuSample | None:
    def cell(name: str) -> str:
        return row[columns[name]].strip() if name in columns else ""

    try:
        time = datetime.strptime(cell("timestamp"), "%Y/%m/%d %H:%M:%S.%f")
    except ValueError:
        return None
    memory = re.fullmatch(r"([\d.]+)\s*(\w*)", cell("memory.used"))
    gib = None
    if memory and memory.group(2) in _GIB_PER_UNIT:
        gib = _number(memory.group(1))
        gib = gib * _GIB_PER_UNIT[memory.group(2)] if gib is not None else None
    return GpuSample(time, gib, _number(cell("utilization.gpu").removesuffix("%")))


def _number(text: str) -> float | None:
    # `strip` knows more kinds of space than `float` passes over.
    text = text.strip()
    return float(text) if re.fullmatch(r"\d+(\.\d*)?", text) else None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
