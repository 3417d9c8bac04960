"""A probe's job as a process: what it is started with, and its end where it is one of this machine."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

#: What is in the command line of such a job: of submitit's controller, and of `--cluster inline`.
_COMMANDS = ("submitit.local._local", "autobatch.cli.job")

#: submitit passes over SIGTERM until the probe's own code runs, some seconds after the start.
_POLITE_S = 30.0
_AGAIN_S = 0.5

#: `python -m` looks for modules in the current directory first, `tune run` there last: a `random.py` or
#: `datasets.py` of the user's must not break the probe of a run that it doesn't break (Python 3.11 and newer).
SAFE_PATH = {"PYTHONSAFEPATH": "1"}


def is_job(pid: int) -> bool:
    """Whether `pid` is a probe's job: after it has ended, its number may be another process's."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
        # Of a process that has ended and wasn't waited for, the command line is empty.
        return any(name in command for name in _COMMANDS)
    except OSError:
        return False


def end_job(pid: int) -> None:
    """End a probe's job and wait until it has; its trials end with it."""
    began = time.monotonic()
    while is_job(pid):
        number = signal.SIGTERM if time.monotonic() - began < _POLITE_S else signal.SIGKILL
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + _AGAIN_S
        while time.monotonic() < deadline and is_job(pid):
            time.sleep(0.02)
