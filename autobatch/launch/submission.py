"""Starting a probe's job and watching it: Slurm or this machine through submitit, or a plain process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from autobatch.errors import UsageError
from autobatch.probing.events import EVENTS, Ended, Event, EventReader, Failed
from autobatch.records import ProbeRequest, to_json
from autobatch.runs.directory import RunDirectory

#: Minutes that a probe's job may take on Slurm.
TIMEOUT_MIN = 20

#: submitit's local executor ends a job after its time; a probe on this machine has no queue to mind.
_LOCAL_TIMEOUT_MIN = 7 * 24 * 60

#: Options of the training job's header that decide on what kind of node it runs. Its time, output, name
#: and number of tasks are its own.
_INHERITED = (
    "partition", "account", "qos", "constraint", "gres", "gpus", "gpus-per-node", "gpus-per-task", "mem",
    "mem-per-cpu", "mem-per-gpu", "cpus-per-task", "cpus-per-gpu", "nodelist", "exclude", "reservation",
    "licenses", "clusters",
)  # fmt: skip


class Cluster(str, Enum):
    """Where the probe runs."""

    AUTO = "auto"
    SLURM = "slurm"
    LOCAL = "local"
    INLINE = "inline"


class Submission(Protocol):
    """A probe's job that was started.

    Attributes:
        job_id: Slurm's job id, or a process id.
        log: where the job's own output goes.
        events: file that its events go to.
        attempt: marks them.
    """

    job_id: str
    log: Path
    events: Path
    attempt: str

    def finished(self) -> bool:
        """Whether the job has ended, however it did."""

    def cancel(self) -> None:
        """End the job."""


def resolve_cluster(cluster: Cluster) -> tuple[Cluster, str]:
    """What `auto` means here, with the reason to say aloud.

    Raises:
        UsageError: Slurm was asked for and there is none.
    """
    has_slurm = shutil.which("sbatch") is not None
    if cluster is Cluster.SLURM and not has_slurm:
        raise UsageError(
            "--cluster slurm: there is no sbatch on the PATH. Call autobatch on a login node, or use "
            "--cluster local to probe on this machine"
        )
    if cluster is not Cluster.AUTO:
        return cluster, f"--cluster {cluster.value}"
    if has_slurm:
        return Cluster.SLURM, "sbatch is on the PATH"
    return Cluster.LOCAL, "no sbatch on the PATH"


def submit(request: ProbeRequest, run: RunDirectory, cluster: Cluster) -> Submission:
    """Start the probe's job.

    Args:
        request: what is asked.
        run: the run, read.
        cluster: where; not `auto`.
    """
    folder = run.path / "probe" / "job"
    folder.mkdir(parents=True, exist_ok=True)
    if cluster is Cluster.INLINE:
        return _PlainProcess(request, folder)
    return _SubmititJob(request, run, folder, slurm=cluster is Cluster.SLURM)


def follow(submission: Submission, poll_s: float = 0.1) -> Iterator[Event]:
    """The job's events until it has ended. The last is `Ended` or `Failed`, unless the job was killed."""
    reader = EventReader(submission.events, submission.attempt)
    while True:
        finished = submission.finished()
        for event in reader.new():
            yield event
            if isinstance(event, (Ended, Failed)):
                return
        if finished:
            return
        time.sleep(poll_s)


class _PlainProcess:
    """The job as a child of this process, ended with it."""

    def __init__(self, request: ProbeRequest, folder: Path) -> None:
        self.attempt = uuid.uuid4().hex
        self.events = folder.parent / EVENTS
        self.log = folder / "inline.log"
        # The job's own process inherits the file; closing ours is all there is to do here.
        with self.log.open("w", encoding="utf-8") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "autobatch.cli.job"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        assert self._process.stdin is not None
        with self._process.stdin as pipe:
            pipe.write(json.dumps({"request": to_json(request), "attempt": self.attempt}).encode())
        self.job_id = str(self._process.pid)

    def finished(self) -> bool:
        return self._process.poll() is not None

    def cancel(self) -> None:
        self._process.terminate()
        self._process.wait()


class _SubmititJob:
    """The job under submitit."""

    def __init__(self, request: ProbeRequest, run: RunDirectory, folder: Path, *, slurm: bool) -> None:
        import submitit

        self.attempt = uuid.uuid4().hex
        self.events = folder.parent / EVENTS
        executor: Any
        if slurm:
            executor = submitit.SlurmExecutor(folder=folder)
            executor.update_parameters(**_slurm_parameters(run))
            environment: dict[str, str | None] = {}
        else:
            executor = submitit.LocalExecutor(folder=folder)
            executor.update_parameters(timeout_min=_LOCAL_TIMEOUT_MIN)
            # submitit's local executor sets it to nothing; this undoes that inside the job.
            environment = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES")}
        from autobatch.launch.entry import probe_job

        self._job = executor.submit(probe_job, to_json(request), self.attempt, environment)
        self._slurm = slurm
        self.job_id = str(self._job.job_id)
        self.log = Path(self._job.paths.stderr)

    def finished(self) -> bool:
        return bool(self._job.done(force_check=False))

    def cancel(self) -> None:
        self._job.cancel()


def _slurm_parameters(run: RunDirectory) -> dict[str, Any]:
    header = run.script.header if run.script is not None else {}
    inherited = {name: header[name] for name in _INHERITED if name in header}
    return {
        "job_name": f"autobatch-{run.name}",
        "time": TIMEOUT_MIN,
        "nodes": 1,
        "ntasks_per_node": 1,
        "additional_parameters": inherited,
    }
