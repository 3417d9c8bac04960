"""What a trial's config swaps in: the four entries that torchtune itself instantiates from `_component_`.

| entry            | replaced by       | why                                                               |
|------------------|-------------------|-------------------------------------------------------------------|
| `metric_logger`  | `StepCounter`     | every recipe calls `log_dict` after each optimizer step           |
| `dataset`        | `StoredRows`      | rows that the job tokenized and packed once                       |
| `checkpointer`   | `ConstantCheckpointer`| no weights are read: memory doesn't depend on their values        |
| `profiler`       | disabled          | it would trace, and hold memory                                   |

They run in the trial's process, inside the user's recipe, and talk to the job through one file of JSON
lines (`EventFile`). Nested configs come as JSON strings: newer torchtune instantiates nested ones.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from autobatch.probing.meter import CpuMeter, meter_for, refuse_nothing
from autobatch.records import Metric

#: Every weight of a trial; memory doesn't depend on it.
_WEIGHT = 0.01


class TrialFinished(BaseException):
    """Leaves the recipe after its last step, before it saves anything.

    A BaseException, so that no recipe catches it as an error.
    """


class EventFile:
    """One JSON object a line, appended by the trial and read by the job."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)

    def append(self, event: str, **fields: Any) -> None:
        """Add a line; it survives the death of this process (it needn't survive the machine's)."""
        line = json.dumps({"event": event, "time": time.monotonic(), **fields})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All whole lines so far; a process killed while writing leaves a torn last one."""
        if not self._path.exists():
            return []
        events = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                events.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return events


class StepCounter:
    """A metric logger that reads the meter after each optimizer step and ends the trial.

    Args:
        events: path of the trial's event file.
        device: ``cuda`` or ``cpu``.
        metric: the peak that must come to rest.
        min_steps: optimizer steps to run at least.
        max_steps: stop here even if the peak is still growing.
        tolerance: two successive peaks within this fraction count as at rest.
        limit_bytes: a peak above it ends the trial at once; None: no peak does.
    """

    def __init__(
        self,
        events: str,
        device: str,
        metric: str,
        min_steps: int,
        max_steps: int,
        tolerance: float,
        limit_bytes: int | None = None,
        **_: Any,
    ) -> None:
        self._events = EventFile(events)
        self._meter = meter_for(device)
        self._metric = metric
        self._min_steps = min_steps
        self._max_steps = max_steps
        self._tolerance = tolerance
        self._limit_bytes = limit_bytes
        self._peaks: list[int] = []
        self._step_began: float | None = None

    def log_config(self, config: Any) -> None:
        """Part of torchtune's metric logger interface."""

    def log(self, name: str, data: Any, step: int) -> None:
        """Part of torchtune's metric logger interface."""

    def log_dict(self, payload: Mapping[str, Any], step: int) -> None:
        """Record time and peaks of an optimizer step.

        Raises:
            TrialFinished: the peak is at rest or over the limit, or `max_steps` have run.
        """
        # Recipes have waited for the card by now (`loss.item()`), all but those of the user's own perhaps.
        self._meter.wait()
        ended = time.monotonic()
        reading = self._meter.read()
        refuse_nothing(reading, self._metric)
        self._peaks.append(reading.peaks_bytes[self._metric])
        self._events.append(
            "step",
            peaks=reading.peaks_bytes,
            current=reading.current_bytes,
            retries=reading.alloc_retries,
            began=self._step_began,
            ended=ended,
        )
        if len(self._peaks) >= self._min_steps and is_at_rest(self._peaks, self._tolerance):
            self._events.append("finished")
            raise TrialFinished
        if is_over(self._peaks, self._limit_bytes):
            self._events.append("over")
            raise TrialFinished
        if len(self._peaks) >= self._max_steps:
            self._events.append("unstable")
            raise TrialFinished
        # Here, so that reading the meter and writing it down are in no step's time.
        self._step_began = time.monotonic()

    def close(self) -> None:
        """Part of torchtune's metric logger interface."""


def is_at_rest(peaks: Sequence[int], tolerance: float) -> bool:
    """Whether the last of two or more peaks is within this fraction of the one before."""
    return peaks[-1] - peaks[-2] <= tolerance * peaks[-1]


def is_over(peaks: Sequence[int], limit_bytes: int | None) -> bool:
    """Whether the highest peak is above the limit, if there is one."""
    return limit_bytes is not None and max(peaks) > limit_bytes


class StoredRows:
    """Rows that the job stored, repeated as often as a trial needs.

    Args:
        tokenizer: torchtune passes it, by position or by name; the rows are tokenized already.
        path: file written by `autobatch.packing.build`.
        rows: length of the dataset.
        held_bytes: resident memory that the real dataset takes. Where the model is in the same memory, as
            much is taken here.
        events: path of the trial's event file.
        device: ``cuda`` or ``cpu``.
        packed: kept in the section because recipes read it from there.
    """

    def __init__(
        self,
        tokenizer: Any = None,
        *,
        path: str,
        rows: int,
        held_bytes: int,
        events: str,
        device: str,
        packed: bool,
        **_: Any,
    ) -> None:
        import torch

        meter = CpuMeter()
        before = meter.read().current_bytes[Metric.RESIDENT.value]
        self._rows: list[dict[str, Any]] = torch.load(path, weights_only=True)
        if device == "cpu":
            taken = meter.read().current_bytes[Metric.RESIDENT.value] - before
            # Ones, for pages of zeros that nobody wrote aren't resident.
            self._held = torch.ones(max(0, held_bytes - taken), dtype=torch.uint8)
        self._length = rows
        self._events = EventFile(events)
        self._device = device
        self._began = False

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index >= self._length:
            raise IndexError(index)
        if not self._began:
            self._began = True
            # The recipe is set up and asks for its first batch: what is in use now is there at any size. A forked
            # worker of the recipe's DataLoader can't use CUDA; the search does without this reading.
            if self._device == "cpu" or not in_worker():
                reading = meter_for(self._device).read()
                self._events.append("first_batch", current=reading.current_bytes)
        return self._rows[index % len(self._rows)]


def in_worker() -> bool:
    """Whether this is a worker process of a DataLoader."""
    from torch.utils.data import get_worker_info

    return get_worker_info() is not None


class ConstantCheckpointer:
    """One constant in the model's shapes instead of its weights; saves nothing.

    Not zero, with which DoRA divides by the norm of its weights and trains on NaN: a recipe may stop at that.

    Args:
        model: the config's model section, as JSON.
        dtype: the config's dtype.
        device: ``cuda`` or ``cpu``.
        model_type: kept in the section because recipes read it from there.
    """

    def __init__(self, model: str, device: str, dtype: str | None = None, **_: Any) -> None:
        self._model: dict[str, Any] = json.loads(model)
        self._device = device
        self._dtype = dtype

    def load_checkpoint(self, *_: Any, **__: Any) -> dict[str, Any]:
        """A checkpoint as torchtune's own checkpointers return it: the base model's weights alone.

        On CPU every tensor has memory of its own, and its pages are touched: there the weights read from a file
        count towards the peak, and one expanded from a single element crashes the fused optimizers. Elsewhere
        recipes only copy from here to the card, so one block does for all: touching the pages of
        16 GB takes many seconds.
        """
        import torch
        from torchtune import training
        from torchtune.modules.peft import get_adapter_params

        model = self._build()
        adapter = get_adapter_params(model)
        weights = {name: tensor for name, tensor in model.state_dict().items() if name not in adapter}
        if self._device == "cpu":
            filled = {
                name: torch.full(tensor.shape, _WEIGHT, dtype=tensor.dtype, device="cpu")
                for name, tensor in weights.items()
            }
            return {training.MODEL_KEY: filled}
        sizes: dict[torch.dtype, int] = {}
        for tensor in weights.values():
            sizes[tensor.dtype] = max(tensor.numel(), sizes.get(tensor.dtype, 0))
        blocks = {
            dtype: torch.full((size,), _WEIGHT, dtype=dtype, device="cpu") for dtype, size in sizes.items()
        }
        return {
            training.MODEL_KEY: {
                name: blocks[tensor.dtype][: tensor.numel()].view(tensor.shape)
                for name, tensor in weights.items()
            }
        }

    def save_checkpoint(self, *_: Any, **__: Any) -> None:
        """Never called: the trial ends before the recipe saves."""

    def _build(self) -> Any:
        """The model on the meta device: shapes without memory."""
        import torch
        from omegaconf import OmegaConf
        from torchtune import config, training

        dtype = training.get_dtype(self._dtype, device=torch.device("cpu"))
        with training.set_default_dtype(dtype), torch.device("meta"), _unquantized():
            return config.instantiate(OmegaConf.create(self._model))


@contextmanager
def _unquantized() -> Iterator[None]:
    """Build QLoRA layers with their plain weights: a checkpoint holds those, and NF4 has no meta form."""
    import torchtune.modules.low_precision.nf4_linear as nf4_linear
    import torchtune.modules.peft.dora as dora
    import torchtune.modules.peft.lora as lora

    modules = (nf4_linear, dora, lora)
    originals = [module.to_nf4 for module in modules]
    try:
        for module in modules:
            module.to_nf4 = lambda weight, **_: weight.detach()
        yield
    finally:
        for module, original in zip(modules, originals, strict=True):
            module.to_nf4 = original
