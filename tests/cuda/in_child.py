"""What tests call in a process of its own, where CUDA is untouched: see the fixture `in_child`."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

GIB = 2**30


def answer(path: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Write what `function` returns as JSON."""
    Path(path).write_text(json.dumps(function(*arguments)))


def untouched() -> dict[str, bool]:
    import torch

    seen = {
        "initialised": torch.cuda.is_initialized(),  # type: ignore[no-untyped-call]  # torch's
        "spoiled": torch.cuda._is_in_bad_fork(),
        "torchtune": "torchtune" in sys.modules,
        "inductor": "torch._inductor.compile_fx" in sys.modules,
        "asks NVML alone": "PYTORCH_NVML_BASED_CUDA_CHECK" in os.environ,
    }
    torch.zeros(1, device="cuda")
    return {**seen, "usable": torch.cuda.is_initialized()}  # type: ignore[no-untyped-call]  # torch's


def visible(devices: str) -> dict[str, Any]:
    """What is seen with CUDA_VISIBLE_DEVICES: by NVML, by the driver, and which cards they are."""
    os.environ["CUDA_VISIBLE_DEVICES"] = devices
    import torch

    by_nvml = torch.cuda.device_count()
    if not by_nvml:
        return {"by_nvml": 0, "available": torch.cuda.is_available()}
    torch.cuda.init()  # type: ignore[no-untyped-call]  # torch's
    cards = [str(torch.cuda.get_device_properties(index).uuid) for index in range(torch.cuda.device_count())]
    return {"by_nvml": by_nvml, "cards": [int(uuid.rpartition("-")[2], 16) for uuid in cards]}


def memory_of_the_second_of_two() -> dict[str, Any]:
    """Memory on the one card that is seen is counted there, and the pointer is said to be on it."""
    os.environ["CUDA_VISIBLE_DEVICES"] = "1"
    import torch

    held = torch.zeros(GIB, dtype=torch.uint8, device="cuda")
    free, total = torch.cuda.mem_get_info()
    shared = torch.from_dlpack(held)  # type: ignore[attr-defined]  # torch's
    return {"taken": total - free, "device": str(shared.device)}


def sixty_gib() -> dict[str, int]:
    """Resident memory of the process, before and with 60 GiB on the card that are written to."""
    import torch

    torch.zeros(1, device="cuda")
    before = _resident()
    held = torch.ones(60 * GIB, dtype=torch.uint8, device="cuda")
    held.mul_(2)
    return {"grown": _resident() - before, "allocated": torch.cuda.memory_allocated()}


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def copies() -> dict[str, Any]:
    """Sums of what was copied around: ones on the host, whatever is on the card."""
    import torch

    ones = torch.ones(3 * 2**20 + 5)
    pinned = ones.pin_memory()
    received = torch.ones(3 * 2**20 + 5).pin_memory()
    # Off the boundaries of pages, which what lies beside them must survive.
    received[3:-3].copy_(ones.cuda()[3:-3])
    small = torch.ones(7)
    small[2:5].copy_(torch.ones(3, device="cuda"))
    return {
        "pinned": (ones.is_pinned(), pinned.is_pinned(), received.is_pinned()),
        "host to host": pinned.sum().item() - ones.numel(),
        "host to pinned": torch.empty_like(ones).pin_memory().copy_(ones).sum().item() - ones.numel(),
        "card to host": received.tolist()[:4] + received.tolist()[-4:],
        "card to host, all": received.sum().item(),
        "card to host, small": small.tolist(),
        "through the card": ones.cuda().cpu().sum().item(),
        "an item": torch.ones(1, device="cuda").item(),
    }


def two_threads() -> dict[str, list[int]]:
    """Cards that two threads allocate on at once, each with its own current card."""
    import torch

    torch.zeros(1, device="cuda")
    before = [torch.cuda.mem_get_info(card)[0] for card in range(2)]
    both = threading.Barrier(2)
    kept, current = [], [-1, -1]

    def work(card: int) -> None:
        torch.cuda.set_device(card)
        for _ in range(20):
            both.wait()
            kept.append(torch.empty((card + 1) * GIB, dtype=torch.uint8, device="cuda"))
        current[card] = torch.cuda.current_device()

    threads = [threading.Thread(target=work, args=(card,)) for card in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    after = [torch.cuda.mem_get_info(card)[0] for card in range(2)]
    taken = [(b - a) // GIB for b, a in zip(before, after, strict=True)]
    return {"current": current, "taken": taken}


def cycles(count: int) -> dict[str, int]:
    """Free memory of the card after so many blocks, each a little larger, were allocated and freed."""
    import torch

    torch.zeros(1, device="cuda")
    torch.cuda.empty_cache()
    before = torch.cuda.mem_get_info()[0]
    for cycle in range(count):
        block = torch.empty(70 * GIB + cycle * 2**21, dtype=torch.uint8, device="cuda")
        del block
        torch.cuda.empty_cache()
    return {"lost": before - torch.cuda.mem_get_info()[0]}


def attention(backend: str, masked: bool) -> dict[str, Any]:
    """Forward and backward of one of torch's attentions."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.nn.functional import scaled_dot_product_attention

    q, k, v = (
        torch.zeros(2, 4, 128, 64, device="cuda", dtype=torch.bfloat16, requires_grad=True) for _ in range(3)
    )
    mask = torch.ones(2, 1, 128, 128, device="cuda", dtype=torch.bool) if masked else None
    with sdpa_kernel(getattr(SDPBackend, backend)):
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    node = type(out.grad_fn).__name__
    out.sum().backward()  # type: ignore[no-untyped-call]  # torch's
    return {"node": node, "gradients": [tuple(t.grad.shape) for t in (q, k, v) if t.grad is not None]}


def drivers() -> dict[str, Any]:
    """Libraries of the driver in this process, of those that a simulated GPU stands for."""
    import torch

    from autobatch.simulated_gpu.environment import is_simulated, real_driver

    torch.zeros(1, device="cuda")
    mapped = {line.rpartition(" ")[2].strip() for line in Path("/proc/self/maps").read_text().splitlines()}
    found = [path for path in mapped if Path(path).name.startswith(("libcuda.so", "libnvidia-ml"))]
    return {
        "simulated": is_simulated(),
        "real": real_driver(),
        "directories": sorted({str(Path(p).parent) for p in found}),
    }


def peaks_of_a_meter() -> list[dict[str, Any]]:
    """Readings of the CUDA meter: with 3 GiB, after they were given back, after the peaks were reset."""
    import torch

    from autobatch.probing.meter import CudaMeter

    meter = CudaMeter()
    held = torch.empty(3 * GIB, dtype=torch.uint8, device="cuda")
    readings = [meter.read()]
    del held
    readings.append(meter.read())
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    readings.append(meter.read())
    meter.wait()
    return [vars(reading) for reading in readings]


def device(kind: str, index: int) -> dict[str, Any] | None:
    from autobatch.probing.meter import find_device

    found = find_device(kind, index)
    return vars(found) | {"label": found.label} if found else None
