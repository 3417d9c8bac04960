"""What a process is started with to see a simulated GPU, and how it can tell that it does."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from pathlib import Path

from autobatch.simulated_gpu.gpus import Gpu
from autobatch.simulated_gpu.kernels import kernel_cache
from autobatch.simulated_gpu.library import PRELOADED, library_dir

#: Holds the settings of the card; `sources/device.c` reads it.
SETTINGS = "AUTOBATCH_SIMULATED_GPU"

#: A job's choice among real cards would hide the simulated ones.
_OF_REAL_CARDS = ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")


def simulated_environment(
    gpu: Gpu,
    *,
    count: int = 1,
    taken_bytes: int = 0,
    trace: bool = False,
    environ: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """An environment in which a process, and all that it starts, sees simulated GPUs and no other.

    The loader reads it as a process begins: it says nothing to one that runs already.

    Args:
        gpu: what each card is.
        count: cards of the machine.
        taken_bytes: memory of each card that somebody else uses.
        trace: tell on stderr which of NVIDIA's functions were answered with "success" alone.
        environ: to start from. Default: this process's.

    Raises:
        NoSimulation: this environment has no CUDA build of PyTorch or no C compiler.
    """
    place = library_dir()
    libraries = str(place)
    environment = dict(os.environ if environ is None else environ)
    for name in _OF_REAL_CARDS:
        environment.pop(name, None)
    settings = {**gpu.settings(), "count": count, "taken_bytes": taken_bytes, "trace": int(trace)}
    environment[SETTINGS] = ";".join(f"{name}={value}" for name, value in settings.items())
    others = sorted(str(file) for file in place.glob("lib*.so.*"))
    preloaded = ":".join([str(place / PRELOADED), *others])
    environment["LD_PRELOAD"] = _first(preloaded, environment.get("LD_PRELOAD"))
    environment["LD_LIBRARY_PATH"] = _first(libraries, environment.get("LD_LIBRARY_PATH"))
    # Never the user's own: which kernel is the fastest isn't known here.
    environment |= kernel_cache(place / "kernels")
    # Inductor's pool of compile workers takes longer to start than it saves: flex attention has a few kernels.
    environment.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    # Triton links its helper to libcuda and would look for it in the loader's cache.
    environment["TRITON_LIBCUDA_PATH"] = libraries
    return environment


def _first(one: str, others: str | None) -> str:
    return f"{one}:{others}" if others else one


def is_simulated() -> bool:
    """Whether this process sees simulated GPUs: the library is loaded, whatever the environment says."""
    return hasattr(ctypes.CDLL(None), "autobatch_simulated_gpu")


def real_driver() -> str | None:
    """NVIDIA's driver, should this process have loaded it; None otherwise.

    A process that simulates must not: a card on the machine stays untouched.
    """
    ours = os.environ.get("TRITON_LIBCUDA_PATH", "")
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        path = line.partition("/")[2]
        name = path.rpartition("/")[2]
        if name.startswith(("libcuda.so", "libnvidia-ml.so")) and not f"/{path}".startswith(ours):
            return f"/{path}"
    return None
