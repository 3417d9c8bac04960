"""Inside an estimate's process: the user's recipe on fake tensors, followed by a `Tracker`."""

from __future__ import annotations

import gc
import json
import os
import runpy
import sys
import time
import traceback
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from autobatch.probing.components import TrialFinished
from autobatch.probing.meter import CpuMeter
from autobatch.probing.worker import enter_run
from autobatch.records import Metric, to_json
from autobatch.world import World


@dataclass(frozen=True)
class TraceSpec:
    """What the process needs to know.

    Attributes:
        recipe: path of the recipe file.
        config: path of the estimate's config.
        working_dir: where the config's relative paths start.
        cuda: follow what CUDA's kernels would keep, not the CPU's.
        offload: keep activations in the host's memory.
        batch_size: of the config.
        world: the processes of a distributed recipe, of which this is rank 0; None for one process.
        shards_on_host: parameters, gradients and optimizer state are in the host's memory.
        answer: where to write the trace, or why there is none, as JSON.
    """

    recipe: str
    config: str
    working_dir: str
    cuda: bool
    offload: bool
    batch_size: int
    world: World | None
    shards_on_host: bool
    answer: str


def record(spec: TraceSpec) -> None:
    """Run the recipe and write ``{"trace": ..., "resident": ..., "memory": ...}`` or ``{"error": ...}``.

    `resident` is the memory of this process before the recipe, what a trial's would be there; `memory` its peak.
    """
    enter_run(spec.working_dir, "cpu", as_command=spec.world is None)
    sys.argv = [spec.recipe, "--config", spec.config]
    sys.path.append(str(Path(spec.recipe).parent))
    try:
        answer = _record(spec)
    except BaseException as error:
        traceback.print_exc()
        answer = {"error": f"{type(error).__name__}: {error}"}
    Path(spec.answer).write_text(json.dumps(answer), encoding="utf-8")
    sys.stdout.flush()
    sys.stderr.flush()
    # Destructors of a recipe that failed may hang; whoever started this process kills what is left.
    os._exit(0)


def _record(spec: TraceSpec) -> dict[str, object]:
    import torchtune  # noqa: F401

    resident = CpuMeter().read().current_bytes[Metric.RESIDENT.value]
    from torch._subclasses.fake_tensor import FakeTensorMode

    from autobatch.estimate.device_path import cpu_path, cuda_path
    from autobatch.estimate.rank import rank_zero
    from autobatch.estimate.tracker import Tracker

    tracker = Tracker(updates_on_host=spec.cuda and spec.shards_on_host)
    began = time.monotonic()
    # Garbage is collected between steps alone, so that two batch sizes give one order of events; what the
    # imports left isn't looked through again.
    gc.collect()
    gc.freeze()
    gc.disable()
    with (
        cuda_path(offload=spec.offload) if spec.cuda else cpu_path(),
        rank_zero(spec.world, cuda=spec.cuda, offload=spec.shards_on_host) if spec.world else nullcontext(),
        FakeTensorMode(allow_non_fake_inputs=True),
        tracker,
    ):
        try:
            runpy.run_path(spec.recipe, run_name="__main__")
        except TrialFinished:
            trace = tracker.trace(spec.batch_size, time.monotonic() - began)
            memory = CpuMeter().read().peaks_bytes[Metric.RESIDENT.value]
            return {"trace": to_json(trace), "resident": resident, "memory": memory}
        except SystemExit as ended:
            return {"error": f"the recipe ended by itself with {ended.code!r}"}
    return {"error": "the recipe ended by itself"}
