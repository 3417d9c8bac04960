"""What the figures of a benchmark depend on: versions and processor, without names of machines or paths.

Also how the figures get to disk.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from autobatch.probing.meter import find_device
from autobatch.probing.versions import installed_versions
from autobatch.runs.torchtune_source import registered_recipes


def machine_facts() -> dict[str, Any]:
    """Processor, cores and versions."""
    device = find_device("cpu", 0)
    return {
        "cpu": device.name if device else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "kernel": os.uname().release.split("-")[0],
        "versions": installed_versions(),
    }


def cold_start_seconds(repeats: int = 3) -> float:
    """Shortest time of a Python process that imports what torchtune's LoRA recipe imports, and ends."""
    recipe = registered_recipes()["lora_finetune_single_device"].path
    code = f"import runpy; runpy.run_path({str(recipe)!r}, run_name='recipe')"
    seconds = []
    for _ in range(repeats):
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        seconds.append(time.monotonic() - began)
    return min(seconds)


def write_json(value: Any, path: Path) -> None:
    """`value` as indented JSON, replaced as a whole."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    partial.rename(path)
