"""How far the probe of a run is: from Slurm where it answers, from the run's own files where it doesn't."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

from autobatch.errors import UsageError
from autobatch.launch.note import JOB_NOTE, JobNote, read_note
from autobatch.launch.processes import end_job, is_job
from autobatch.launch.slurm import ALIVE, cancel_job, job_state
from autobatch.probing.events import EVENTS, Ended, EventReader, Failed, TrialBegan, TrialEnded
from autobatch.probing.lock import is_held
from autobatch.records import Status
from autobatch.runs.directory import CONFIG_NAME
from autobatch.runs.results import RESULT, find_result


@dataclass(frozen=True)
class ProbeStatus:
    """How far a probe is.

    Attributes:
        run: path of the run directory.
        state: ``not probed``, ``queued``, ``running``, ``done``, ``failed``, ``preempted`` or ``unknown``.
        detail: in words: trial and bracket, the answer, or what went wrong.
        job_id: of the last job; None when there was none.
        cluster: where that job ran; None when there was none.
        slurm_state: Slurm's own word; None when it wasn't asked or didn't answer.
        group: names of the runs that the job probes one after the other; empty where it is this one alone.
        group_done: of those, how many it is done with.
    """

    run: str
    state: str
    detail: str
    job_id: str | None = None
    cluster: str | None = None
    slurm_state: str | None = None
    group: tuple[str, ...] = ()
    group_done: int = 0


def status_of(run: Path) -> ProbeStatus:
    """How far the probe of a run is."""
    note = read_note(run / "probe")
    if note is None:
        return _from_result(run, None, None)
    slurm_state = job_state(note.job_id) if note.is_slurm else None
    state, detail = _judge(run, note, slurm_state)
    names = tuple(Path(member).name for member in note.members)
    done = sum(_last_word(Path(member), note.attempt) is not None for member in note.members)
    return ProbeStatus(str(run), state, detail, note.job_id, note.cluster, slurm_state, names, done)


def cancel(run: Path, *, whole_group: bool = False) -> str | None:
    """End the run's probe; returns its job id, or None when none is under way.

    Args:
        run: the run directory.
        whole_group: also when its job probes other runs too, which are ended with it.

    Raises:
        UsageError: there is no such run, its probe is a process of another machine, or its job probes other
            runs too.
    """
    if not (run / CONFIG_NAME).is_file():
        raise UsageError(f"{run}: no {CONFIG_NAME} here: name a run directory")
    note = read_note(run / "probe")
    if note is None or not _is_under_way(run, note, whole_group):
        return None
    others = [Path(member).name for member in note.members if Path(member) != run.resolve()]
    if others and not whole_group:
        raise UsageError(
            f"{run}: job {note.job_id} probes {', '.join(others)} with it: --group ends it for all of them"
        )
    if note.is_slurm:
        cancel_job(note.job_id)
        return note.job_id
    if note.host != socket.gethostname():
        raise UsageError(f"{run}: its probe runs on {note.host}: call autobatch cancel there")
    if not is_job(int(note.job_id)):
        raise UsageError(
            f"{run}: a probe is under way, and it isn't process {note.job_id} of {run / 'probe' / JOB_NOTE}: it "
            "was started by something else, such as a job that calls autobatch; end that"
        )
    end_job(int(note.job_id))
    return note.job_id


def _is_under_way(run: Path, note: JobNote, whole_group: bool) -> bool:
    """Whether the job in `note` isn't done with the run, or with any of its runs, as far as can be told."""
    slurm_state = job_state(note.job_id) if note.is_slurm else None
    runs = [run]
    if whole_group and note.members:
        if slurm_state is not None:
            return slurm_state in ALIVE
        # A run that another job has probed since has that job's note.
        notes = {Path(member): read_note(Path(member) / "probe") for member in note.members}
        runs = [member for member, theirs in notes.items() if theirs and theirs.attempt == note.attempt]
    states = ("queued", "running", "preempted", "unknown") if note.is_slurm else ("running",)
    return any(_judge(one, note, slurm_state)[0] in states for one in runs)


def _judge(run: Path, note: JobNote, slurm_state: str | None) -> tuple[str, str]:
    """State and detail of the job in `note`."""
    progress = _progress(run, note.attempt)
    # A job on this machine takes the lock some seconds after its start.
    is_local = not note.is_slurm and note.host == socket.gethostname()
    running = is_held(run / "probe") or (is_local and is_job(int(note.job_id)))
    word = _last_word(run, note.attempt) if note.members else None
    if word is not None:
        # Its job may go on with the others.
        if isinstance(word, Failed):
            return "failed", word.message.partition("\n")[0]
        ended = _from_result(run, None, None)
        return ended.state, ended.detail
    if note.members and not progress and (running or slurm_state == "RUNNING"):
        progress = _turn(run, note)
    if running or slurm_state in ("RUNNING", "COMPLETING"):
        return "running", progress or "setting up"
    if slurm_state in ALIVE:
        if progress:
            return "preempted", f"waits in the queue again, {progress}"
        return "queued", f"Slurm: {slurm_state}"
    result = _from_result(run, None, None, since=note.submitted)
    if result.state != "not probed":
        return result.state, result.detail
    if slurm_state is None and note.is_slurm:
        return (
            "unknown",
            f"Slurm doesn't answer, and the run has no result yet{', ' if progress else ''}{progress}",
        )
    said = f"Slurm: {slurm_state}; " if slurm_state else ""
    return "failed", f"{said}the job ended without a result; its log: {note.log}"


def _last_word(run: Path, attempt: str) -> Ended | Failed | None:
    """What a job said of a run when it had ended with it; None when it hasn't."""
    events = EventReader(run / "probe" / EVENTS, attempt).new()
    return next((event for event in events if isinstance(event, (Ended, Failed))), None)


def _turn(run: Path, note: JobNote) -> str:
    """Of a run that has no trial yet: which run of its group is being measured."""
    for member in map(Path, note.members):
        if _last_word(member, note.attempt) is None:
            return "" if member == run.resolve() else f"waits for {member.name}, which comes first"
    return ""


def _from_result(run: Path, job_id: str | None, cluster: str | None, since: float = 0.0) -> ProbeStatus:
    path = run / "probe" / RESULT
    try:
        result = find_result(path)
    except UsageError as error:
        return ProbeStatus(str(run), "unknown", str(error), job_id, cluster)
    # Resuming a probe whose answer is on file leaves the file as it is, so an old one is an answer too.
    if result is None or (result.status is not Status.DONE and path.stat().st_mtime < since):
        return ProbeStatus(str(run), "not probed", "no probe yet", job_id, cluster)
    state = "done" if result.status is Status.DONE else "failed"
    detail = result.message.partition("\n")[0]
    if result.device is not None and result.device.simulated:
        detail = f"on a simulated GPU: {detail}"
    return ProbeStatus(str(run), state, detail, job_id, cluster)


def _progress(run: Path, attempt: str) -> str:
    """``trial 3: batch_size 24 (17 fits, 40 doesn't)`` of the job's events; empty before the first trial."""
    began: TrialBegan | None = None
    ended = 0
    for event in EventReader(run / "probe" / EVENTS, attempt).new():
        if isinstance(event, TrialBegan):
            began = event
        elif isinstance(event, TrialEnded):
            ended += 1
    if began is None:
        return ""
    known = [f"{began.fits} fits"] if began.fits else []
    known += [f"{began.fails} doesn't"] if began.fails is not None else []
    bracket = f" ({', '.join(known)})" if known else ""
    return f"trial {ended + 1}: batch_size {began.batch_size}{bracket}"
