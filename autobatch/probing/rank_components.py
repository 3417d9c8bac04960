"""What the config of a distributed trial swaps in: each rank reads its own meter, and all stop together.

Only rank 0 has a metric logger in torchtune's distributed recipes, so the readings are taken where every rank
is: in the dataset. An optimizer step leaves a mark (a hook that torch calls after each `step`, whichever
optimizer), and the next row that the rank asks for finds it: the step is over, the next has not begun.

    rank 0   step 3  log_dict  row: read, tell the others, hear them   all at rest: finished
    rank 1   step 3            row: read, tell the others, hear them   all at rest: finished

Each hears the same and decides the same, at the same place in the program, so that no rank waits in a collective
for one that has left.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from autobatch.probing.components import (
    EventFile,
    StoredRows,
    TrialFinished,
    in_worker,
    is_at_rest,
    is_over,
)
from autobatch.probing.meter import meter_for, refuse_nothing

#: A rank that waits for another one longer has long been ended by the trial's own time limit.
_PATIENCE = timedelta(days=7)

#: What a rank says of its peak after a step: none of these, one, or both.
_AT_REST, _OVER = "at rest", "over"


def rank_file(path: str | Path, rank: int) -> Path:
    """A rank's own file beside `path`: `batch_size_4.rank1.log`."""
    path = Path(path)
    return path.with_name(f"{path.stem}.rank{rank}{path.suffix}")


class RankLogger:
    """The metric logger of rank 0, which has nothing to keep: every rank reads its own meter."""

    def __init__(self, **_: Any) -> None:
        pass

    def log_config(self, config: Any) -> None:
        """Part of torchtune's metric logger interface."""

    def log(self, name: str, data: Any, step: int) -> None:
        """Part of torchtune's metric logger interface."""

    def log_dict(self, payload: Mapping[str, Any], step: int) -> None:
        """Part of torchtune's metric logger interface."""

    def close(self) -> None:
        """Part of torchtune's metric logger interface."""


class RankRows(StoredRows):
    """`StoredRows` that read the rank's meter after each optimizer step and end the trial on all ranks at once.

    torchtune resets CUDA's peaks as training begins. The meter keeps the maximum of its readings and is first
    read here, when the model and its optimizer are set up, so that the peak of loading counts too.

    Args:
        tokenizer: as for `StoredRows`.
        events: path of the trial's event file, of which each rank has its own.
        device: ``cuda`` or ``cpu``.
        metric: the peak that must come to rest.
        min_steps: optimizer steps to run at least.
        max_steps: stop here even if the peak is still growing.
        tolerance: two successive peaks within this fraction count as at rest.
        limit_bytes: a peak above it on any rank ends the trial at once; None: no peak does.
        alone: no other rank is there.
        rest: as for `StoredRows`.
    """

    def __init__(
        self,
        tokenizer: Any = None,
        *,
        events: str,
        device: str,
        metric: str,
        min_steps: int,
        max_steps: int,
        tolerance: float,
        limit_bytes: int | None = None,
        alone: bool = False,
        **rest: Any,
    ) -> None:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        own = events if alone else str(rank_file(events, int(os.environ["RANK"])))
        super().__init__(tokenizer, events=own, device=device, **rest)
        self._own_events = EventFile(own)
        self._meter = meter_for(device)
        self._meter.read()
        self._metric = metric
        self._cuda = device == "cuda"
        self._min_steps = min_steps
        self._max_steps = max_steps
        self._tolerance = tolerance
        self._limit_bytes = limit_bytes
        self._peaks: list[int] = []
        self._others = None if alone else _Others()
        self._stepped = False
        self._step_began: float | None = None
        register_optimizer_step_post_hook(self._mark)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if in_worker():
            raise RuntimeError(
                "the recipe reads its dataset in worker processes, where the ranks of a trial can't be stopped "
                "together: probe with num_workers 0"
            )
        if self._stepped:
            self._stepped = False
            self._end_step()
        return super().__getitem__(index)

    def _mark(self, *_: Any) -> None:
        # With optimizer_in_bwd each parameter has an optimizer, and a step has many of these.
        self._stepped = True

    def _end_step(self) -> None:
        """Read, and stop if every rank is to.

        Raises:
            TrialFinished: the peaks of all ranks are at rest or one is over the limit, or `max_steps` have run.
        """
        self._meter.wait()
        ended = time.monotonic()
        reading = self._meter.read()
        refuse_nothing(reading, self._metric)
        self._peaks.append(reading.peaks_bytes[self._metric])
        self._own_events.append(
            "step",
            peaks=reading.peaks_bytes,
            current=reading.current_bytes,
            retries=reading.alloc_retries,
            began=self._step_began,
            ended=ended,
        )
        steps = len(self._peaks)
        enough = steps >= self._min_steps
        if enough or self._limit_bytes is not None:
            state = self._state(enough)
            said = [state] if self._others is None else self._others.after(steps, state)
            if all(_AT_REST in words for words in said):
                self._leave("finished")
            if any(_OVER in words for words in said):
                self._leave("over")
            if steps >= self._max_steps:
                self._leave("unstable")
        # Here, so that reading the meter and waiting for the others are in no step's time.
        self._step_began = time.monotonic()

    def _state(self, enough: bool) -> list[str]:
        at_rest = enough and is_at_rest(self._peaks, self._tolerance)
        over = is_over(self._peaks, self._limit_bytes)
        return [*([_AT_REST] if at_rest else []), *([_OVER] if over else [])]

    def _leave(self, how: str) -> None:
        import torch

        if self._cuda:
            # Other ranks may wait for what this one has enqueued and its card hasn't done yet.
            torch.cuda.synchronize()
        self._own_events.append(how)
        raise TrialFinished


class _Others:
    """What the ranks tell one another, through the store that they met in: no collective, no memory on a card."""

    def __init__(self) -> None:
        from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # not in its stubs

        self._rank, self._size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self._store = PrefixStore("autobatch", TCPStore(address, port, is_master=False, timeout=_PATIENCE))

    def after(self, step: int, here: list[str]) -> list[list[str]]:
        """What each rank says of its peak after `step`, this one `here`; waits until all have."""
        self._store.set(f"{step}/{self._rank}", json.dumps(here))
        return [json.loads(self._store.get(f"{step}/{rank}")) for rank in range(self._size)]
