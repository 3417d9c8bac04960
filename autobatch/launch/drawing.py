"""Draws a probe's report beside its result, at the end of the job.

In a process of its own and within a time: whatever goes wrong in drawing, the probe's answer is on disk by then,
and its job must end as the answer says.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from autobatch.launch.processes import SAFE_PATH
from autobatch.records import ProbeResult

#: Names of the files in `probe/`.
PAGE, PICTURE = "report.html", "report.png"

#: It takes about 2 s; a probe that comes to its time limit keeps 10 s and Slurm's warning time for its end.
_TIMEOUT_S = 20.0


def draw_report(result: ProbeResult, run_dir: Path) -> str:
    """Write `probe/report.html` and, where there is a trial to draw, `probe/report.png`.

    Returns:
        Why one couldn't be written; empty when all is well.
    """
    files = [run_dir / "probe" / name for name in ([PAGE, PICTURE] if result.trials else [PAGE])]
    if result.reused and all(file.is_file() for file in files):
        return ""
    try:
        for name in (PAGE, PICTURE):
            # A picture of an earlier result is worse than none.
            (run_dir / "probe" / name).unlink(missing_ok=True)
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "autobatch.cli.main", "report", str(run_dir), "--json", "--force"),
                *(word for file in files for word in ("--output", str(file))),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            # Of a notebook that started the job; no window is wanted.
            env=os.environ | SAFE_PATH | {"MPLBACKEND": "agg"},
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"{files[0]}: {error}"
    missing = [file for file in files if not file.is_file()]
    if not missing:
        return ""
    said = ended.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {ended.returncode}"]
    return f"{missing[0]}: {said[-1]}"
