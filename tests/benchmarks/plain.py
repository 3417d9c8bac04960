"""A training as a user starts it, with nothing of autobatch inside, and the memory that it took.

`tune run RECIPE --config finetune.yaml batch_size=... max_steps_per_epoch=...` in a process of its own. On CPU
the peak is the kernel's for that process; on CUDA it is what torchtune itself logs after each step.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from autobatch.probing.meter import MALLOC_ENVIRONMENT
from autobatch.runs.out_of_memory import is_out_of_memory

GIB = 2**30

_POLL_S = 0.02

#: torchtune's names for the peaks, in GiB, and autobatch's.
_LOGGED = {"peak_memory_reserved": "reserved", "peak_memory_alloc": "allocated"}


@dataclass(frozen=True)
class PlainRun:
    """What a training took.

    Attributes:
        batch_size: sequences per micro-batch.
        steps: optimizer steps that it logged.
        peaks_bytes: highest, by metric; on CPU `resident`, on CUDA `reserved` and `allocated`.
        trained_bytes: on CPU, the peak when the last step had been logged and the checkpoint not been saved.
        seconds: from start to end.
        out_of_memory: it ended for want of memory.
    """

    batch_size: int
    steps: int
    peaks_bytes: dict[str, int]
    trained_bytes: int | None
    seconds: float
    out_of_memory: bool = False


class PlainRunFailed(Exception):
    """The training ended for a reason that isn't memory, or trained fewer steps than it was asked to."""


def run_plain(
    run_dir: Path,
    recipe: str,
    batch_size: int,
    *,
    steps: int,
    output_dir: Path,
    device: str,
    environment: Mapping[str, str],
    timeout_s: float = 900.0,
    overrides: Sequence[str] = (),
    logged_steps: int | None = None,
) -> PlainRun:
    """Train for `steps` optimizer steps and read the peak.

    Args:
        run_dir: directory of the finetune.yaml, where the recipe is started.
        recipe: name in torchtune's registry.
        batch_size: sequences per micro-batch.
        steps: optimizer steps, the last followed by saving the checkpoint.
        output_dir: for the checkpoint and the logs; emptied by the caller.
        device: ``cpu`` or ``cuda``.
        environment: what the training job's script exports.
        timeout_s: seconds after which it is killed.
        overrides: further ones for `tune run`, which win over those named here.
        logged_steps: that it logs in its own place with these overrides; None expects each of `steps`.

    Raises:
        PlainRunFailed: it failed for another reason than memory, or trained fewer steps.
    """
    logs, output = output_dir / "logs", output_dir / "tune.log"
    output_dir.mkdir(parents=True, exist_ok=True)
    script = Path(sys.executable).parent / "tune"
    tune = [str(script)] if script.exists() else [sys.executable, "-m", "torchtune._cli.tune"]
    command = [
        *tune, "run", recipe, "--config", "finetune.yaml",
        f"batch_size={batch_size}", f"max_steps_per_epoch={steps}", "epochs=1", f"output_dir={output_dir}",
        "log_every_n_steps=1", "log_peak_memory_stats=True", *overrides,
    ]  # fmt: skip
    expected = steps if logged_steps is None else logged_steps
    on_cpu = {**MALLOC_ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    began = time.monotonic()
    with output.open("wb") as log:
        process = subprocess.Popen(
            command,
            cwd=run_dir,
            env={**os.environ, **environment, **on_cpu},
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        trained, status, peak = _wait(process, logs, expected, began + timeout_s)
    seconds = time.monotonic() - began
    said = output.read_text(encoding="utf-8", errors="replace")
    logged = parse_step_log(_step_log(logs))
    if status != 0:
        if is_out_of_memory(said):
            return PlainRun(batch_size, len(logged), {}, None, seconds, out_of_memory=True)
        tail = "\n".join(said.splitlines()[-15:])
        raise PlainRunFailed(f"{' '.join(command[1:])} ended with status {status}:\n{tail}")
    if len(logged) != expected:
        raise PlainRunFailed(
            f"batch_size {batch_size}: {len(logged)} optimizer steps were logged instead of {expected}: "
            "the dataset has too few packs"
        )
    peaks = {"resident": peak} if device == "cpu" else logged_peaks(logged)
    return PlainRun(batch_size, len(logged), peaks, trained if device == "cpu" else None, seconds)


def parse_step_log(text: str) -> list[dict[str, float]]:
    """The values of each optimizer step, from the lines of torchtune's `DiskLogger`.

    ``Step 1 | loss:2.31 lr:3e-06 tokens_per_second_per_gpu:1234.5 peak_memory_reserved:7.9``
    """
    steps = []
    for line in text.splitlines():
        head, bar, values = line.partition(" | ")
        if bar and re.fullmatch(r"Step \d+", head):
            steps.append(
                {name: float(value) for name, _, value in (pair.partition(":") for pair in values.split())}
            )
    return steps


def logged_peaks(steps: list[dict[str, float]]) -> dict[str, int]:
    """The highest peaks of all steps, by autobatch's name of the metric.

    torchtune resets the allocator's peaks after each step that it logs, so each line has that step's own.
    """
    return {
        ours: round(max(step[theirs] for step in steps) * GIB)
        for theirs, ours in _LOGGED.items()
        if steps and theirs in steps[0]
    }


def _wait(
    process: subprocess.Popen[bytes], logs: Path, steps: int, deadline: float
) -> tuple[int | None, int, int]:
    """(peak after the last step, exit status, peak of the whole run), from the kernel."""
    trained = None
    while True:
        if steps and trained is None and len(parse_step_log(_step_log(logs))) >= steps:
            trained = _peak_so_far(process.pid)
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            # So that Popen doesn't wait for a process that is gone.
            process.returncode = os.waitstatus_to_exitcode(status)
            break
        if time.monotonic() > deadline:
            process.kill()
        time.sleep(_POLL_S)
    peak = usage.ru_maxrss * 1024
    # A process starts with the high-water mark of the memory that it was started from (execve in fs/exec.c):
    # of ours, which our own ru_maxrss isn't, since that is at least the mark of whoever started us.
    ours = _peak_so_far(os.getpid()) or 0
    if process.returncode == 0 and peak <= ours:
        raise PlainRunFailed(f"the peak of {peak} bytes may be that of the benchmark's own process ({ours})")
    return trained, process.returncode, peak


def _step_log(logs: Path) -> str:
    return "".join(path.read_text(encoding="utf-8") for path in logs.glob("log_*.txt"))


def _peak_so_far(pid: int) -> int | None:
    """VmHWM of a process; None when it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found.group(1)) * 1024 if found else None
