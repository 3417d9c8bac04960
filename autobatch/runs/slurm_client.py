"""Asking Slurm's own clients (scontrol, sacct, squeue, scancel)."""

from __future__ import annotations

import subprocess

#: A client waits long for a controller that is down; nobody should wait with it.
_CLIENT_TIMEOUT_S = 15.0


def ask(*command: str, timeout_s: float = _CLIENT_TIMEOUT_S) -> str | None:
    """What a Slurm client prints; empty when it says no; None when there is none or it doesn't answer."""
    try:
        ended = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=timeout_s
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if ended.returncode != 0:
        # "Invalid job id specified" is an answer; a controller that can't be reached is none.
        return "" if "Invalid job id" in ended.stderr else None
    return ended.stdout
