"""`python -m autobatch.cli.job`: the job of `--cluster inline`, with its request, or a group's, on standard input.

Not a command for people: `autobatch probe --cluster inline` starts it.
"""

from __future__ import annotations

import json
import os
import signal
import sys

from autobatch.errors import AutobatchError, JobError
from autobatch.launch.entry import probe_job
from autobatch.launch.group_job import group_job
from autobatch.probing.forkserver import die_with_parent


def main() -> int:
    """Run the probe, or those of a group; the exit status is its outcome."""
    die_with_parent(signal.SIGTERM)
    asked = json.load(sys.stdin)
    if os.getppid() != asked["parent"]:
        # It ended while this process was starting.
        return JobError.exit_code
    try:
        if "requests" in asked:
            group_job(asked["requests"], asked["others"], asked["attempt"], {})
        else:
            probe_job(asked["request"], asked["attempt"], {})
    except AutobatchError as error:
        print(f"autobatch: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
