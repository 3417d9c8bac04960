"""What a fork server's children see of the card, without touching it in the benchmark's own process.

    python -m tests.benchmarks.gpu_facts cuda

prints one JSON object: the device, the driver, and for each of three children of one fork server whether it
was forked, whether CUDA had been initialised before it, and how long it took to start.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from autobatch.probing.forkserver import ForkServer

_CHILDREN = 3


def describe_child(kind: str, answer: str) -> None:
    """In a child: write what it sees, and then use the device."""
    started = time.monotonic()
    import torch
    import torchtune  # noqa: F401

    imported = time.monotonic()
    command = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    facts: dict[str, Any] = {
        "forked": b"forkserver" in command,
        "started": started,
        "torchtune_import_seconds": imported - started,
        "cuda_runtime": torch.version.cuda,
        "allocator": os.environ.get("PYTORCH_CUDA_ALLOC_CONF", ""),
    }
    if kind == "cuda":
        facts["available"] = torch.cuda.is_available()
        if facts["available"]:
            facts["sum"] = float(torch.ones(8, device="cuda").sum())
            facts["name"] = torch.cuda.get_device_name(0)
            facts["total_bytes"] = torch.cuda.mem_get_info(0)[1]
    Path(answer).write_text(json.dumps(facts), encoding="utf-8")


def fork_server_facts(kind: str) -> dict[str, Any]:
    """What `_CHILDREN` children of a fresh fork server say."""
    server = ForkServer({}, kind)
    children: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        answer, log = Path(scratch) / "answer.json", Path(scratch) / "child.log"
        for _ in range(_CHILDREN):
            answer.unlink(missing_ok=True)
            asked = time.monotonic()
            ended = server.run(describe_child, kind, str(answer), log=log, timeout_s=120)
            if not answer.exists():
                tail = log.read_text(errors="replace").splitlines()[-5:]
                return {"children": children, "error": f"status {ended.code}: " + " ".join(tail)}
            child = json.loads(answer.read_text(encoding="utf-8"))
            child["start_seconds"] = child.pop("started") - asked
            children.append(child)
    return {"children": children, "cold_starts": not all(child["forked"] for child in children)}


def driver_version() -> str | None:
    """Version of NVIDIA's driver, from nvidia-smi."""
    with suppress(OSError, subprocess.CalledProcessError):
        said = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            check=True,
            capture_output=True,
            text=True,
        )
        return said.stdout.split("\n", 1)[0].strip() or None
    return None


if __name__ == "__main__":
    print(json.dumps({**fork_server_facts(sys.argv[1]), "driver": driver_version()}))
