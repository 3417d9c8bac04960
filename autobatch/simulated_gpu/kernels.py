"""Compiled kernels, kept for the next trials.

Most of a trial's time is compiling flex attention for its batch size. Inductor and Triton keep what they compiled
on disk, under the GPU's properties, which a simulated one shares with the real one: the trials of a probe find the
kernels that an estimate has compiled.
"""

from __future__ import annotations

import shutil
from pathlib import Path

#: Name of a run's own cache, in its `probe/`.
KERNELS = "kernels"

#: More than an estimate and a probe take (some 15 MiB a batch size); a cache that is used again and again would
#: grow without end.
_LIMIT_BYTES = 2**30


def kernel_cache(place: Path, limit_bytes: int = _LIMIT_BYTES) -> dict[str, str]:
    """Variables with which processes keep their compiled kernels in `place`; a full one is emptied first."""
    if _size(place) > limit_bytes:
        shutil.rmtree(place, ignore_errors=True)
    return {"TORCHINDUCTOR_CACHE_DIR": str(place / "inductor"), "TRITON_CACHE_DIR": str(place / "triton")}


def forget_timings(place: Path) -> None:
    """Forget which of several kernels was the fastest: on a simulated GPU all take equally long."""
    for file in place.rglob("*.best_config"):
        file.unlink(missing_ok=True)


def _size(place: Path) -> int:
    return sum(entry.stat().st_size for entry in place.rglob("*") if entry.is_file())
