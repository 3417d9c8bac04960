"""What a measurement holds for: the run's fingerprint on a device, and the device itself."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from autobatch.errors import UsageError
from autobatch.probing.components import EventFile
from autobatch.probing.forkserver import ForkServer
from autobatch.probing.meter import find_device
from autobatch.probing.versions import installed_versions
from autobatch.probing.worker import describe_device
from autobatch.records import Device, PackingMode, ProbeRequest, from_json
from autobatch.runs.directory import RunDirectory
from autobatch.runs.fingerprint import data_signature, fingerprint

#: Environment variables that change how much memory the same training takes.
MEMORY_ENVIRONMENT = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_NO_CUDA_MEMORY_CACHING")


def is_packed(run: RunDirectory, request: ProbeRequest) -> bool:
    """Whether the run is probed with packed rows."""
    if request.packing is PackingMode.CONFIG:
        return run.packed
    return request.packing is PackingMode.PACK


def run_fingerprint(
    run: RunDirectory, request: ProbeRequest, device: Device | None, environ: Mapping[str, str] | None = None
) -> str:
    """Hash of everything that decides the memory of a trial of `run` on `device`.

    Args:
        run: the run.
        request: what is asked of its probe.
        device: that it is measured on; None while that isn't known, for comparing runs with one another.
        environ: variables that the training sees, the exports of its script among them. Default: this
            process's, to which those exports must have been applied.
    """
    environ = os.environ if environ is None else environ
    packed = is_packed(run, request)
    config = run.resolved()
    if isinstance(config["dataset"], dict):
        config["dataset"]["packed"] = packed
    extras = {
        "recipe": run.recipe.identity,
        "device": run.device if device is None else f"{device.kind} {device.label}",
        "load_weights": str(request.load_weights),
        "packed": str(packed),
        # The longest examples decide how large an unpacked batch is.
        "data": "" if packed else data_signature(config, run.working_dir),
        **{name: environ.get(name, "") for name in MEMORY_ENVIRONMENT},
        **installed_versions(),
    }
    if run.world is not None:
        extras["world"] = f"{run.world.nodes} x {run.world.processes_per_node}"
    return fingerprint(config, extras)


def device_of(run: RunDirectory, server: ForkServer, directory: Path, timeout_s: float) -> Device:
    """The device that `run` trains on, asked in a process of its own where that initialises CUDA.

    Args:
        run: the run.
        server: gives the process.
        directory: the run's `probe/`.
        timeout_s: how long the driver may take.

    Raises:
        UsageError: there is no such device here.
    """
    why = ""
    if run.device == "cpu":
        device = find_device("cpu", 0)
        if device is not None and run.world is not None:
            # The ranks of a node share its memory.
            device = replace(device, total_bytes=device.total_bytes // run.world.processes_per_node)
    else:
        answer, log = directory / "device.jsonl", directory / "device.log"
        for left_over in (answer, log):
            left_over.unlink(missing_ok=True)
        # The last of the cards on a node: without it there are too few.
        index = run.device_index if run.world is None else run.world.processes_per_node - 1
        server.run(describe_device, "cuda", index, str(answer), log=log, timeout_s=timeout_s)
        said = next(iter(EventFile(answer).read()), {"device": None, "why": ""})
        device = from_json(Device, said["device"]) if said["device"] else None
        why = f" ({said['why']})" if said["why"] else ""
    if device is None:
        number = f":{run.device_index}" if run.device_index else ""
        cards = f"{run.world.processes_per_node} cards" if run.world else "such card"
        raise UsageError(
            f"{run.config_path}: device is {run.device}{number} and this machine has no {cards}{why}. Probe where "
            "the training will run (--cluster slurm, or inside its job with --cluster inline); a batch_size "
            "measured on CPU memory would say nothing about the card"
        )
    return device
