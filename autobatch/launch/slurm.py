"""The probe's job on Slurm, through submitit; and what Slurm says of a job."""

from __future__ import annotations

import re
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from autobatch.errors import UsageError
from autobatch.launch.processes import SAFE_PATH
from autobatch.launch.resources import Resources
from autobatch.probing.events import EVENTS
from autobatch.probing.exported import exported
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


class SlurmTask:
    """A job, or a task of an array, that was handed to Slurm.

    Attributes:
        job_id: Slurm's: ``28``, or ``28_0``.
        log: its own output.
        attempt: marks its events; a requeued job keeps it.
    """

    def __init__(self, job_id: str, log: Path, attempt: str) -> None:
        self.job_id = job_id
        self.log = log
        self.attempt = attempt
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


class SlurmJob(SlurmTask):
    """The job of one run's probe, handed to Slurm.

    Attributes:
        events: file that its events go to.
    """

    def __init__(
        self, request: ProbeRequest, run: RunDirectory, resources: Resources, after: str | None = None
    ) -> None:
        from autobatch.launch.entry import ProbeJob

        attempt = uuid.uuid4().hex
        self.events = run.path / "probe" / EVENTS
        executor = executor_for(_folder(run), run.name, resources, after)
        executor.folder.mkdir(parents=True, exist_ok=True)
        try:
            with exported(SAFE_PATH):
                job = executor.submit(ProbeJob(to_json(request), attempt))
        except Exception as error:
            # submitit raises its own kinds for what sbatch says; all of it is for the user to read.
            raise UsageError(f"sbatch refused the probe's job: {error}") from error
        super().__init__(str(job.job_id), Path(job.paths.stderr), attempt)


def submit_array(
    executor: Any, tasks: Sequence[tuple[Sequence[Mapping[str, Any]], Sequence[str]]]
) -> list[SlurmTask]:
    """Submit the jobs of several groups as one array; of one group, as a plain job.

    Args:
        executor: of `executor_for`.
        tasks: of each group what `GroupJob` takes: requests, and runs whose measurements count.

    Raises:
        UsageError: sbatch refused it.
    """
    from autobatch.launch.group_job import GroupJob

    attempts = [uuid.uuid4().hex for _ in tasks]
    jobs = []
    try:
        with exported(SAFE_PATH), executor.batch():
            for (requests, others), attempt in zip(tasks, attempts, strict=True):
                jobs.append(executor.submit(GroupJob(requests, others, attempt)))
    except Exception as error:
        raise UsageError(f"sbatch refused the probes' jobs: {error}") from error
    return [
        SlurmTask(str(job.job_id), Path(job.paths.stderr), attempt)
        for job, attempt in zip(jobs, attempts, strict=True)
    ]


def sbatch_script(run: RunDirectory, resources: Resources, after: str | None = None) -> str:
    """The script that `SlurmJob` would submit, as submitit writes it; submits nothing."""
    executor = executor_for(_folder(run), run.name, resources, after)
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


def _folder(run: RunDirectory) -> Path:
    return run.path / "probe" / "job"


def executor_for(folder: Path, name: str, resources: Resources, after: str | None) -> Any:
    """submitit's executor for a probe's job.

    Args:
        folder: of its scripts and logs; made when a job is submitted.
        name: of the run, or of the experiment.
        resources: what to ask for.
        after: a job that must end well first.

    Raises:
        UsageError: Slurm can't write into such a directory.
    """
    import submitit

    from autobatch.launch.entry import SIGNAL_DELAY_S

    if "%" in str(folder):
        raise UsageError(
            f"{folder}: Slurm reads `%` in the path of a job's log as a pattern: rename the directory, or use "
            "--cluster local or inline"
        )
    executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=_MAX_REQUEUES)
    additional = dict(resources.options)
    if after is not None:
        additional |= {"dependency": f"afterok:{after}", "kill-on-invalid-dep": "yes"}
    executor.update_parameters(
        job_name=f"autobatch-{name}",
        time=resources.time_min,
        nodes=resources.nodes,
        ntasks_per_node=1,
        # The probe runs on the first node and starts what runs on the others itself.
        srun_args=["--nodes=1", "--ntasks=1"] if resources.nodes > 1 else None,
        setup=list(resources.setup) or None,
        signal_delay_s=SIGNAL_DELAY_S,
        additional_parameters={name: True if value == "" else value for name, value in additional.items()},
    )
    return executor
