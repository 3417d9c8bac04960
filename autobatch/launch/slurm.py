"""The probe's job on Slurm, through submitit; and what Slurm says of a job."""

from __future__ import annotations

import re
import subprocess
import time
import uuid
from pathlib import Path
from typing import Any

from autobatch.errors import UsageError
from autobatch.launch.processes import safe_path
from autobatch.launch.resources import Resources
from autobatch.probing.events import EVENTS
from autobatch.records import ProbeRequest, to_json
from autobatch.runs.directory import RunDirectory
from autobatch.runs.slurm_client import ask

#: Asking more often only loads the controller.
_POLL_S = 2.0

#: How often a probe may be preempted and go on. With limits of 10 minutes and less submitit takes every
#: preemption for a timeout and counts it.
_MAX_REQUEUES = 50

#: States in which a job will still do something (squeue(1), JOB STATE CODES).
ALIVE = (
    "PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "REQUEUED", "REQUEUE_HOLD", "RESIZING", "SIGNALING",
    "STAGE_OUT", "SUSPENDED", "STOPPED",
)  # fmt: skip


class SlurmJob:
    """A probe's job that was handed to Slurm.

    Attributes:
        job_id: Slurm's.
        log: the job's own output.
        events: file that its events go to.
        attempt: marks them; a requeued job keeps it.
    """

    def __init__(
        self, request: ProbeRequest, run: RunDirectory, resources: Resources, after: str | None = None
    ) -> None:
        from autobatch.launch.entry import ProbeJob

        self.attempt = uuid.uuid4().hex
        self.events = run.path / "probe" / EVENTS
        executor = _executor(run, resources, after)
        executor.folder.mkdir(parents=True, exist_ok=True)
        try:
            with safe_path():
                job = executor.submit(ProbeJob(to_json(request), self.attempt))
        except Exception as error:
            # submitit raises its own kinds for what sbatch says; all of it is for the user to read.
            raise UsageError(f"sbatch refused the probe's job: {error}") from error
        self.job_id = str(job.job_id)
        self.log = Path(job.paths.stderr)
        self._asked = 0.0

    def finished(self) -> bool:
        """Whether Slurm says so, or no longer knows the job; asked every 2 s at most."""
        if time.monotonic() - self._asked < _POLL_S:
            return False
        self._asked = time.monotonic()
        state = job_state(self.job_id)
        return state is not None and state not in ALIVE

    def cancel(self) -> None:
        """scancel."""
        cancel_job(self.job_id)


def sbatch_script(run: RunDirectory, resources: Resources, after: str | None = None) -> str:
    """The script that `SlurmJob` would submit, as submitit writes it; submits nothing."""
    executor = _executor(run, resources, after)
    # submitit has no public way to see it.
    text: str = executor._make_submission_file_text(executor._submitit_command_str, "dry-run")
    return text


def submit_training(script: Path, probe_job: str) -> str:
    """Submit the training job so that it starts only if the probe's job ends with status 0.

    Returns:
        Its job id.

    Raises:
        UsageError: sbatch refused it.
    """
    command = [
        "sbatch",
        "--parsable",
        f"--dependency=afterok:{probe_job}",
        "--kill-on-invalid-dep=yes",
        script.name,
    ]
    ended = subprocess.run(command, cwd=script.parent, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise UsageError(
            f"{script}: sbatch refused the training job: {ended.stderr.strip()}; the probe's job {probe_job} "
            "is submitted and goes on"
        )
    return ended.stdout.strip().split(";")[0]


def job_state(job_id: str) -> str | None:
    """Slurm's word for the state of a job (``RUNNING``, ``COMPLETED``, ...); ``GONE`` when it has forgotten it.

    Asks the controller, then accounting. None when neither answers in time.
    """
    answered = False
    shown = ask("scontrol", "--oneliner", "show", "job", job_id)
    if shown is not None:
        answered = True
        for word in shown.split():
            if word.startswith("JobState="):
                return word.partition("=")[2]
    listed = ask("sacct", "--noheader", "--allocations", "--parsable2", "--format=State", f"--jobs={job_id}")
    if listed:
        # A cancelled job's state names who did it: "CANCELLED by 0".
        return listed.splitlines()[-1].split()[0]
    return "GONE" if answered else None


def seconds_left(job_id: str) -> int | None:
    """Seconds until the time limit of a running job; None when it has none or Slurm doesn't say."""
    listed = ask("squeue", "--noheader", "--format=%L", f"--jobs={job_id}")
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", (listed or "").strip())
    if not match:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def cancel_job(job_id: str) -> None:
    """scancel; a job that has ended stays as it is."""
    ask("scancel", job_id)


def _executor(run: RunDirectory, resources: Resources, after: str | None) -> Any:
    import submitit

    from autobatch.launch.entry import SIGNAL_DELAY_S

    if "%" in str(run.path):
        raise UsageError(
            f"{run.path}: Slurm reads `%` in the path of a job's log as a pattern: rename the directory, or use "
            "--cluster local or inline"
        )
    executor = submitit.SlurmExecutor(folder=run.path / "probe" / "job", max_num_timeout=_MAX_REQUEUES)
    additional = dict(resources.options)
    if after is not None:
        additional |= {"dependency": f"afterok:{after}", "kill-on-invalid-dep": "yes"}
    nodes = run.world.nodes if run.world is not None else 1
    executor.update_parameters(
        job_name=f"autobatch-{run.name}",
        time=resources.time_min,
        nodes=nodes,
        ntasks_per_node=1,
        # The probe runs on the first node and starts what runs on the others itself.
        srun_args=["--nodes=1", "--ntasks=1"] if nodes > 1 else None,
        setup=list(resources.setup) or None,
        signal_delay_s=SIGNAL_DELAY_S,
        additional_parameters={name: True if value == "" else value for name, value in additional.items()},
    )
    return executor
