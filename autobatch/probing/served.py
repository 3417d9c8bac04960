"""Imported first by the fork server: it ends with the process that started it, also while it still imports.

multiprocessing's server looks whether that one still is there when all of its imports are done, which on a busy
node may be half a minute later.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from types import FrameType

from autobatch.probing.forkserver import SERVED, SIGNAL_OF_THE_END, die_with_parent
from autobatch.probing.slurm_warning import ignore_warning


def end(number: int, frame: FrameType | None) -> None:
    """End this server and everything below it.

    The children end with the server (PDEATHSIG), but what they started doesn't, and each leads a group of its own.
    """
    for child in _children():
        # One that hasn't come as far as its own group notices by itself that the job is gone.
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    os._exit(128 + number)


def _children() -> list[int]:
    # Of the main thread, which is the one that forks. Kernels without CONFIG_PROC_CHILDREN lack the file.
    with suppress(OSError):
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    return []


ignore_warning()
signal.signal(SIGNAL_OF_THE_END, end)
die_with_parent(SIGNAL_OF_THE_END)
if os.environ.get(SERVED, str(os.getppid())) != str(os.getppid()):
    # It ended before this line.
    os._exit(1)
