"""Reading memory inside a trial: CUDA's caching allocator, or the process's resident set on CPU."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from autobatch.records import Device, Metric
from autobatch.simulated_gpu.environment import is_simulated, real_driver


@dataclass(frozen=True)
class Reading:
    """Memory as a meter sees it at one moment.

    Attributes:
        peaks_bytes: highest since the process began, by metric.
        current_bytes: in use now, by metric.
        alloc_retries: times the allocator freed its cache and tried again.
    """

    peaks_bytes: dict[str, int]
    current_bytes: dict[str, int]
    alloc_retries: int = 0


class Meter(Protocol):
    """What a step counter needs."""

    def read(self) -> Reading:
        """Memory now, and its peaks so far."""

    def wait(self) -> None:
        """Return when the device has done what it was given."""


class CpuMeter:
    """Peak resident set of this process, from the kernel's high-water mark.

    Repeatable to 0.05 % only when malloc is pinned (`MALLOC_ENVIRONMENT`), which must be in the
    environment before the process starts.
    """

    def read(self) -> Reading:
        """VmHWM and VmRSS of /proc/self/status (proc(5)); the kernel gives KiB."""
        fields = dict(
            line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line
        )
        peak, now = (int(fields[name].split()[0]) * 1024 for name in ("VmHWM", "VmRSS"))
        return Reading({Metric.RESIDENT.value: peak}, {Metric.RESIDENT.value: now})

    def wait(self) -> None:
        """The CPU has done it already."""


class CudaMeter:
    """Peaks of PyTorch's caching allocator and use of the whole card.

    torchtune resets the allocator's peaks at model initialisation, so the meter keeps the maximum of its
    own readings. It reads in `log_dict`, after the optimizer step.
    """

    def __init__(self) -> None:
        self._peaks: dict[str, int] = {}

    def read(self) -> Reading:
        """Reserved and allocated bytes (torch.cuda.memory_stats) and device use (mem_get_info)."""
        import torch

        stats = torch.cuda.memory_stats()
        free, total = torch.cuda.mem_get_info()
        current = {
            Metric.RESERVED.value: torch.cuda.memory_reserved(),
            Metric.ALLOCATED.value: torch.cuda.memory_allocated(),
            Metric.DEVICE.value: total - free,
        }
        peaks = {
            Metric.RESERVED.value: torch.cuda.max_memory_reserved(),
            Metric.ALLOCATED.value: torch.cuda.max_memory_allocated(),
            Metric.DEVICE.value: total - free,
        }
        self._peaks = {name: max(peak, self._peaks.get(name, 0)) for name, peak in peaks.items()}
        return Reading(dict(self._peaks), current, int(stats.get("num_alloc_retries", 0)))

    def wait(self) -> None:
        """Kernels run on after the calls that launch them."""
        import torch

        torch.cuda.synchronize()


#: Makes the resident set a function of what is allocated: every large block is mapped by itself and
#: unmapped when freed. With glibc's moving thresholds, repeats of one trial spread by up to 18.6 %.
MALLOC_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_ARENA_MAX": "1",
}


def meter_for(kind: str) -> Meter:
    """The meter for a device kind, ``cuda`` or ``cpu``."""
    return CudaMeter() if kind == "cuda" else CpuMeter()


def find_device(kind: str, index: int) -> Device | None:
    """The device that trials will run on; None when there is no such CUDA device.

    Initialises CUDA in this process when `kind` is ``cuda``.

    Raises:
        RuntimeError: what should be a simulated GPU has loaded NVIDIA's driver.
    """
    if kind == "cpu":
        return Device("cpu", _cpu_name(), cpu_capacity_bytes())
    import torch

    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        return None
    # mem_get_info rather than the device's properties: on a MIG slice it is the slice's memory.
    _, total = torch.cuda.mem_get_info(index)
    simulated = is_simulated()
    driver = real_driver() if simulated else None
    if driver is not None:
        raise RuntimeError(f"a process with a simulated GPU has loaded {driver}")
    return Device("cuda", torch.cuda.get_device_name(index), total, simulated)


def cpu_capacity_bytes() -> int:
    """Memory that this process may use: the least of machine, cgroups and the Slurm allocation."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_cgroup_limits()]
    slurm_mib = os.environ.get("SLURM_MEM_PER_NODE", "")
    if slurm_mib.isdigit() and int(slurm_mib) > 0:
        limits.append(int(slurm_mib) * 2**20)
    return min(limits)


def oom_kills() -> int:
    """How many processes the kernel's OOM killer has ended on this machine since it booted."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def _cgroup_limits() -> list[int]:
    """Limits of this process's cgroup and of those above it, versions 1 and 2 (cgroups(7))."""
    limits = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            root, name = Path("/sys/fs/cgroup"), "memory.max"
        elif "memory" in controllers.split(","):
            root, name = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
        else:
            continue
        here = root / group.lstrip("/")
        for folder in (here, *here.parents):
            try:
                limits.append(int((folder / name).read_text()))
            except (OSError, ValueError):
                # No such file (the root group), or the word "max".
                continue
    return limits


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "CPU"


def refuse_nothing(reading: Reading, metric: str) -> None:
    """Raise if a training step took no memory at all: then it took it where the meter doesn't look.

    PyTorch counts each card by itself, and a recipe of the user's may not make its card the current one.
    """
    if reading.peaks_bytes[metric] <= 0:
        raise RuntimeError(
            f"no {metric} memory on the current device after an optimizer step: the recipe trains on another "
            "one, or without PyTorch's allocator; call torch.cuda.set_device in it, as torchtune's get_device does"
        )
