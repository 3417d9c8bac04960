"""A probe that kills itself: `python -m tests.killed_probe RUN CAPACITY (trials N | rename N) [FORCED]`.

`trials N`: after the N-th trial. `rename N`: before the N-th file is put in its place, which is each time
between two writes of the write-back. With FORCED, the mark of an attempt, it measures anew.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

from autobatch.probing.events import Event, TrialEnded
from autobatch.probing.job import run_probe
from autobatch.records import ProbeRequest
from autobatch.units import parse_bytes


def main(run: str, capacity: str, what: str, count: str, forced: str = "") -> None:
    """Probe until the time comes."""
    left = int(count)

    def die_at_zero() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def tell(event: Event) -> None:
        if what == "trials" and isinstance(event, TrialEnded):
            die_at_zero()

    def audit(name: str, arguments: tuple[Any, ...]) -> None:
        # A lock is taken by a rename too.
        if what == "rename" and name == "os.rename" and not str(arguments[1]).endswith(".editing"):
            die_at_zero()

    sys.addaudithook(audit)
    request = ProbeRequest(run, capacity_bytes=parse_bytes(capacity), force=bool(forced))
    run_probe(request, tell, attempt=forced)


if __name__ == "__main__":
    main(*sys.argv[1:])
