"""GPUs by name: their memory, and what PyTorch, Triton and inductor ask of one.

`total_bytes` is what the driver reports to a process, which is less than the name says. None was measured here:
each is the "total capacity" that PyTorch's out-of-memory messages give for such a card in public reports ("GPU 0
has a total capacity of 79.11 GiB"). Drivers and ECC move it by a few tenths of a GiB. A probe asks the card.
Multiprocessors and caches are NVIDIA's data sheets', shared memory and threads those of the CUDA C++ Programming
Guide's table of technical specifications per compute capability.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from autobatch.errors import UsageError

_KIB, _MIB, _GIB = 2**10, 2**20, 2**30

#: Of a compute capability: shared memory (KiB) of a multiprocessor and, at most, of a block; threads and blocks
#: of a multiprocessor.
_BY_CAPABILITY = {
    (7, 0): (96, 96, 2048, 32),
    (7, 5): (64, 64, 1024, 16),
    (8, 0): (164, 163, 2048, 32),
    (8, 6): (100, 99, 1536, 16),
    (8, 9): (100, 99, 1536, 24),
    (9, 0): (228, 227, 2048, 32),
    (10, 0): (228, 227, 2048, 32),
}


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: as `--gpu` takes it.
        product: as the driver calls it, and PyTorch's caches of compiled kernels with it.
        total_bytes: that a process sees.
        capability: CUDA compute capability.
        multiprocessors: streaming multiprocessors.
        l2_bytes: level 2 cache.
        bus_bits: width of the memory bus.
    """

    name: str
    product: str
    total_bytes: int
    capability: tuple[int, int]
    multiprocessors: int
    l2_bytes: int
    bus_bits: int

    def settings(self) -> dict[str, str | int]:
        """What the simulation's C sources are told, by the names that they use."""
        shared, block_shared, threads, blocks = _BY_CAPABILITY[self.capability]
        return {
            "name": self.product,
            "total_bytes": self.total_bytes,
            "major": self.capability[0],
            "minor": self.capability[1],
            "multiprocessors": self.multiprocessors,
            "l2_bytes": self.l2_bytes,
            "bus_bits": self.bus_bits,
            # Inductor estimates bandwidths with them; no decision about memory depends on that.
            "clock_khz": 1_500_000,
            "memory_clock_khz": 2_000_000,
            "shared_bytes_per_multiprocessor": shared * _KIB,
            "shared_bytes_per_block": block_shared * _KIB,
            "threads_per_multiprocessor": threads,
            "blocks_per_multiprocessor": blocks,
        }


def _gpu(
    name: str,
    product: str,
    gib: float,
    capability: tuple[int, int],
    multiprocessors: int,
    l2_mib: int,
    bus_bits: int,
) -> Gpu:
    return Gpu(
        name, product, round(gib * _GIB / _MIB) * _MIB, capability, multiprocessors, l2_mib * _MIB, bus_bits
    )


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("t4-16gb", "Tesla T4", 14.58, (7, 5), 40, 4, 256),
        _gpu("l4-24gb", "NVIDIA L4", 22.03, (8, 9), 58, 48, 192),
        _gpu("a10g-24gb", "NVIDIA A10G", 22.06, (8, 6), 80, 6, 384),
        _gpu("rtx4090-24gb", "NVIDIA GeForce RTX 4090", 23.64, (8, 9), 128, 72, 384),
        _gpu("v100-32gb", "Tesla V100-SXM2-32GB", 31.74, (7, 0), 80, 6, 4096),
        _gpu("a100-40gb", "NVIDIA A100-SXM4-40GB", 39.39, (8, 0), 108, 40, 5120),
        _gpu("l40s-48gb", "NVIDIA L40S", 44.40, (8, 9), 142, 96, 384),
        _gpu("a6000-48gb", "NVIDIA RTX A6000", 47.43, (8, 6), 84, 6, 384),
        _gpu("a100-80gb", "NVIDIA A100-SXM4-80GB", 79.14, (8, 0), 108, 40, 5120),
        _gpu("h100-80gb", "NVIDIA H100 80GB HBM3", 79.11, (9, 0), 132, 50, 5120),
        _gpu("h200-141gb", "NVIDIA H200", 139.80, (9, 0), 132, 50, 6144),
        _gpu("b200-180gb", "NVIDIA B200", 178.35, (10, 0), 148, 126, 8192),
    )
}

#: GPUs that can be cut into slices, with the GiB in the names of their eighths of memory.
_SLICED = {"a100-40gb": 5, "a100-80gb": 10, "h100-80gb": 10, "h200-141gb": 18, "b200-180gb": 23}

#: Eighths of the memory that a MIG slice of so many sevenths of the multiprocessors has (MIG User Guide, supported
#: profiles).
_EIGHTHS = {1: (1, 2), 2: (2,), 3: (4,), 4: (4,), 7: (8,)}


def gpu_named(name: str) -> Gpu:
    """The GPU that `--gpu` names: ``h100-80gb``, or a MIG slice of one, ``h100-80gb:3g.40gb``.

    Raises:
        UsageError: none is called so; the message names the valid names.
    """
    whole, _, profile = name.partition(":")
    if whole not in GPUS:
        raise UsageError(
            f"--gpu {name}: no such GPU; there are {', '.join(GPUS)}. For any other give --capacity, "
            "such as 48GiB"
        )
    return _slice(GPUS[whole], profile) if profile else GPUS[whole]


def _slice(gpu: Gpu, profile: str) -> Gpu:
    eighth_gib = _SLICED.get(gpu.name)
    profiles = {
        f"{sevenths}g.{eighths * eighth_gib}gb": (sevenths, eighths)
        for sevenths, sizes in _EIGHTHS.items()
        for eighths in sizes
        if eighth_gib is not None
    }
    if profile not in profiles:
        raise UsageError(
            f"--gpu {gpu.name}:{profile}: "
            + (
                f"no such MIG slice; there are {', '.join(profiles)}"
                if profiles
                else f"{gpu.name} has no MIG slices"
            )
        )
    sevenths, eighths = profiles[profile]
    return replace(
        gpu,
        name=f"{gpu.name}:{profile}",
        product=f"{gpu.product} MIG {profile}",
        total_bytes=gpu.total_bytes * eighths // 8,
        multiprocessors=gpu.multiprocessors * sevenths // 7,
        l2_bytes=gpu.l2_bytes * eighths // 8,
    )


def gpu_of_capacity(gpu: Gpu, total_bytes: int) -> Gpu:
    """`gpu` with another size of memory."""
    return replace(gpu, name=f"{gpu.name} with {_in_gib(total_bytes)}", total_bytes=total_bytes)


def gpu_of_product(product: str) -> Gpu | None:
    """The GPU that the driver calls `product`, or the one most like it; None when none is known.

    ``NVIDIA H100 PCIe`` is an H100 with another memory; its kernels are the same.
    """
    exact = next((gpu for gpu in GPUS.values() if gpu.product == product), None)
    if exact is not None:
        return exact
    words = set(re.findall(r"[a-z]+\d+\w*", product.lower()))
    return next((gpu for gpu in GPUS.values() if gpu.name.split("-")[0] in words), None)


def _in_gib(size: int) -> str:
    return f"{size / _GIB:.2f} GiB"
