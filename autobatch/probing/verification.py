"""Whether a run's result still holds where its training is about to start.

Slurm counts a job id that it no longer knows as a dependency that is satisfied, so that a training job may
start without any probe behind it. This check, as the first line of the training job, closes that hole.
"""

from __future__ import annotations

import os
from pathlib import Path

from autobatch.errors import UsageError
from autobatch.probing.forkserver import ForkServer
from autobatch.probing.identity import device_of, is_packed, run_fingerprint
from autobatch.records import ProbeResult, Status
from autobatch.runs.directory import RunDirectory, read_run
from autobatch.runs.results import RESULT, load_result
from autobatch.units import format_bytes

#: Cards of one model differ by a few MiB in what the driver leaves.
_SAME_CAPACITY = 0.99

_DEVICE_TIMEOUT_S = 120.0


def failed_checks(run_dir: Path) -> list[str]:
    """What speaks against training this run here and now; nothing, when the result holds.

    Raises:
        UsageError: the run itself can't be read.
    """
    if not run_dir.exists():
        raise UsageError(f"{run_dir}: no such directory: name a run directory, such as runs/run1")
    path = (run_dir if run_dir.is_dir() else run_dir.parent) / "probe" / RESULT
    try:
        result = load_result(path)
    except UsageError as error:
        return [str(error)]
    if result.status is not Status.DONE:
        return [f"{path}: the probe found no batch_size: {result.message}"]
    if result.device is None or result.capacity_bytes is None:
        return [f"{path}: is damaged: it names no device or capacity; probe again with --force"]
    run = read_run(run_dir, result.request)
    if run.script is not None:
        os.environ.update(run.script.exports)
    return [*_config_checks(run, result, path), *_device_checks(run, result)]


def holds_for_config(run: RunDirectory, result: ProbeResult) -> bool:
    """Whether a result was measured for the run as it is now: config, recipe, environment, versions.

    Says nothing of batch_size, which a probe searches, nor of the card here.
    """
    if result.device is None or is_packed(run, result.request) != run.packed:
        return False
    environment = {**os.environ, **(run.script.exports if run.script else {})}
    return run_fingerprint(run, result.request, result.device, environment) == result.fingerprint


def _config_checks(run: RunDirectory, result: ProbeResult, path: Path) -> list[str]:
    failed = []
    if run.batch_size != result.batch_size:
        failed.append(
            f"{run.config_path}: batch_size is {run.batch_size}, and {result.batch_size} was measured: put it "
            "back, or probe again"
        )
    steps = result.gradient_accumulation_steps
    if result.request.hold_effective_batch and run.gradient_accumulation_steps != steps:
        failed.append(
            f"{run.config_path}: gradient_accumulation_steps is {run.gradient_accumulation_steps}, and {steps} "
            "holds the effective batch: put it back, or probe again"
        )
    assert result.device is not None
    if run_fingerprint(run, result.request, result.device) != result.fingerprint:
        failed.append(
            f"{path}: was measured for another config, recipe, environment or other versions than these: "
            "probe again"
        )
    return failed


def _device_checks(run: RunDirectory, result: ProbeResult) -> list[str]:
    """The card here must have the memory that was planned for."""
    assert result.device is not None
    assert result.capacity_bytes is not None
    if run.device == "cpu":
        return []
    server = ForkServer({}, run.device)
    try:
        here = device_of(run, server, run.path / "probe", _DEVICE_TIMEOUT_S)
    except UsageError as error:
        return [str(error)]
    if here.simulated != result.device.simulated:
        return [
            f"batch_size {result.batch_size} was measured on a {result.device.label}, and here is a {here.label}: "
            "probe here"
        ]
    if here.total_bytes < _SAME_CAPACITY * result.capacity_bytes:
        return [
            f"{here.label} has {format_bytes(here.total_bytes)}, and batch_size {result.batch_size} was measured "
            f"for {format_bytes(result.capacity_bytes)}: train on such a card, or probe here"
        ]
    return []
