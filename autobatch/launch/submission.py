"""Starting a probe's job and watching it: Slurm or this machine through submitit, or a plain process."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from autobatch.edits.together import refuse_unwritable
from autobatch.errors import UsageError
from autobatch.launch.note import JOB_NOTE, JobNote, note_of, read_note, write_note
from autobatch.launch.processes import SAFE_PATH, end_job, is_job
from autobatch.launch.resources import Resources, resolve_resources
from autobatch.launch.slurm import ALIVE, SlurmJob, job_state
from autobatch.probing.events import EVENTS, Ended, Event, EventReader, Failed
from autobatch.probing.exported import exported
from autobatch.probing.lock import is_held, second_one
from autobatch.records import ProbeRequest, to_json
from autobatch.runs.directory import RunDirectory
from autobatch.runs.results import RESULT
from autobatch.runs.settings import Profile

#: submitit's local executor ends a job after its time; a probe on this machine has no queue to mind.
_LOCAL_TIMEOUT_MIN = 7 * 24 * 60


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


def submit(
    request: ProbeRequest,
    run: RunDirectory,
    cluster: Cluster,
    *,
    resources: Resources | None = None,
    after: str | None = None,
) -> Submission:
    """Start the probe's job, and note it in `probe/job.json`.

    Args:
        request: what is asked.
        run: the run, read.
        cluster: where; not `auto`.
        resources: on Slurm, what to ask for.
        after: on Slurm, a job that must end well first.

    Raises:
        UsageError: another probe of the run is under way, or its answer couldn't be written.
    """
    directory = run.path / "probe"
    refuse_in_vain(run, cluster)
    folder = directory / "job"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{folder}: can't be made ({error.strerror}): make the run writable, or move away what is in its place"
        ) from error
    submission: Submission
    if cluster is Cluster.INLINE:
        submission = PlainProcess({"request": to_json(request)}, folder / "inline.log", directory / EVENTS)
    elif cluster is Cluster.LOCAL:
        from autobatch.launch.entry import probe_job

        submission = LocalJob(probe_job, (to_json(request),), folder, directory / EVENTS)
    else:
        submission = SlurmJob(
            request,
            run,
            resources or resources_for(run, {}, Profile()),
            after,
        )
    try:
        write_note(directory, note_of(cluster.value, submission))
    except BaseException:
        # Nobody would know of it.
        submission.cancel()
        raise
    return submission


def refuse_in_vain(run: RunDirectory, cluster: Cluster) -> None:
    """Refuse what the job would refuse: a second probe, and files that it couldn't write its answer into.

    A second one in Slurm's queue is refused too: status and cancel know of one.

    Raises:
        UsageError: one of these.
    """
    directory = run.path / "probe"
    if is_held(directory):
        raise second_one(directory)
    note = read_note(directory)
    if note is not None and is_process_of_group(note):
        raise second_one(directory)
    if cluster is Cluster.SLURM and note is not None and note.is_slurm and job_state(note.job_id) in ALIVE:
        raise UsageError(
            f"{run.path}: Slurm job {note.job_id} is to probe this run already: wait for it, or end it (autobatch "
            "cancel) and try again"
        )
    for path in (
        run.config_path,
        run.plan_path,
        directory / RESULT,
        directory / JOB_NOTE,
        directory / EVENTS,
    ):
        refuse_unwritable(path)


def is_process_of_group(note: JobNote) -> bool:
    """Whether a run is among those that a process of this machine is probing now, or will."""
    is_here = not note.is_slurm and bool(note.members) and note.host == socket.gethostname()
    return is_here and is_job(int(note.job_id))


def resources_for(run: RunDirectory, flags: Mapping[str, str], profile: Profile) -> Resources:
    """What a probe of `run` asks Slurm for."""
    return resolve_resources(flags, profile, _header(run), device=run.device, world=run.world)


def _header(run: RunDirectory) -> Mapping[str, str]:
    return run.script.header if run.script is not None else {}


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


def _without_submitit(environment: Mapping[str, str]) -> dict[str, str]:
    """Of a job of the user's own through submitit: the probe in it isn't what submitit's signals are for."""
    return {name: value for name, value in environment.items() if name != "SUBMITIT_EXECUTOR"}


class PlainProcess:
    """The job as a child of this process, ended with it.

    Args:
        asked: what `autobatch.cli.job` reads.
        log: gets the job's output.
        events: file of its events.
    """

    def __init__(self, asked: Mapping[str, Any], log: Path, events: Path) -> None:
        self.attempt = uuid.uuid4().hex
        self.events = events
        self.log = log
        # The job's own process inherits the file; closing ours is all there is to do here.
        with self.log.open("w", encoding="utf-8") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "autobatch.cli.job"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_without_submitit(os.environ) | SAFE_PATH,
            )
        assert self._process.stdin is not None
        asked = {**asked, "attempt": self.attempt, "parent": os.getpid()}
        # Should it have ended already, its log says why.
        with suppress(BrokenPipeError), self._process.stdin as pipe:
            pipe.write(json.dumps(asked).encode())
        self.job_id = str(self._process.pid)

    def finished(self) -> bool:
        return self._process.poll() is not None

    def cancel(self) -> None:
        self._process.terminate()
        self._process.wait()


class LocalJob:
    """The job on this machine, under submitit's local executor.

    Args:
        function: that it calls, with `arguments`, the attempt's mark and the environment.
        arguments: as JSON.
        folder: gets its log.
        events: file of its events.
    """

    def __init__(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], folder: Path, events: Path
    ) -> None:
        import submitit

        self.attempt = uuid.uuid4().hex
        self.events = events
        executor = submitit.LocalExecutor(folder=folder)
        executor.update_parameters(timeout_min=_LOCAL_TIMEOUT_MIN)
        # The executor sets it to nothing; this undoes that inside the job.
        environment = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES")}
        # Ctrl-C is for this process, which ends the job: submitit's controller would say so in a traceback.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with exported(SAFE_PATH):
                self._job = executor.submit(function, *arguments, self.attempt, environment)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self.job_id = str(self._job.job_id)
        self.log = Path(self._job.paths.stderr)

    def finished(self) -> bool:
        return bool(self._job.done())

    def cancel(self) -> None:
        # Not submitit's, which interrupts its controller: that says so in a traceback on our terminal.
        end_job(int(self.job_id))
