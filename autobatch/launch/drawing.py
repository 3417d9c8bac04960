"""Draws a probe's report beside its result, at the end of the job.

In a process of its own and within a time: whatever goes wrong in drawing, the probe's answer is on disk by then,
and its job must end as the answer says.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from autobatch.launch.processes import SAFE_PATH
from autobatch.probing.forkserver import die_with_parent
from autobatch.probing.slurm_warning import ignore_warning
from autobatch.records import ProbeResult

#: Names of the files in `probe/`.
PAGE, PICTURE = "report.html", "report.png"

#: It takes about 2 s on an idle machine.
_TIMEOUT_S = 60.0


def draw_report(result: ProbeResult, run_dir: Path, at_most_s: float = _TIMEOUT_S) -> str:
    """Write `probe/report.html` and, where there is a trial to draw, `probe/report.png`.

    Args:
        result: of the probe, as `probe/result.json` holds it.
        run_dir: of the run.
        at_most_s: seconds that there are for it.

    Returns:
        Why one couldn't be written; empty when all is well.
    """
    files = [run_dir / "probe" / name for name in ([PAGE, PICTURE] if result.trials else [PAGE])]
    seconds = max(min(at_most_s, _TIMEOUT_S), 0.0)
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
            preexec_fn=_begin,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{files[0]}: not within {seconds:.0f} s"
    except (OSError, subprocess.SubprocessError) as error:
        return f"{files[0]}: {error}"
    missing = [file for file in files if not file.is_file()]
    if not missing:
        return ""
    said = ended.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {ended.returncode}"]
    return f"{missing[0]}: {said[-1]}"


def _begin() -> None:
    """First of the process that draws: a job that is killed leaves nothing behind, one that is warned draws on."""
    ignore_warning()
    die_with_parent(signal.SIGKILL)
