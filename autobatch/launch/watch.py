"""How far the probe of a run is: from Slurm where it answers, from the run's own files where it doesn't."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autobatch.launch.slurm import ALIVE, cancel_job, job_state
from autobatch.launch.submission import JOB_NOTE
from autobatch.probing.events import EVENTS, EventReader, TrialBegan, TrialEnded
from autobatch.probing.lock import is_held
from autobatch.records import Status
from autobatch.runs.results import find_result

RESULT = "result.json"


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
    """

    run: str
    state: str
    detail: str
    job_id: str | None = None
    cluster: str | None = None
    slurm_state: str | None = None


def status_of(run: Path) -> ProbeStatus:
    """How far the probe of a run is."""
    note = _note(run)
    if note is None:
        return _from_result(run, None, None)
    job_id, cluster = str(note["job_id"]), str(note["cluster"])
    slurm_state = job_state(job_id) if cluster == "slurm" else None
    state, detail = _judge(run, note, slurm_state)
    return ProbeStatus(str(run), state, detail, job_id, cluster, slurm_state)


def cancel(run: Path) -> str | None:
    """End the run's probe; returns its job id, or None when none is under way."""
    note = _note(run)
    if note is None or status_of(run).state not in ("queued", "running", "preempted", "unknown"):
        return None
    job_id = str(note["job_id"])
    if note["cluster"] == "slurm":
        cancel_job(job_id)
    else:
        import signal

        os.kill(int(job_id), signal.SIGTERM)
    return job_id


def _judge(run: Path, note: dict[str, Any], slurm_state: str | None) -> tuple[str, str]:
    """State and detail of the job in `note`."""
    progress = _progress(run, str(note["attempt"]))
    running = is_held(run / "probe")
    if running or slurm_state in ("RUNNING", "COMPLETING"):
        return "running", progress or "setting up"
    if slurm_state in ALIVE:
        if progress:
            return "preempted", f"waits in the queue again, {progress}"
        return "queued", f"Slurm: {slurm_state}"
    result = _from_result(run, None, None, since=float(note["submitted"]))
    if result.state != "not probed":
        return result.state, result.detail
    if slurm_state is None and note["cluster"] == "slurm":
        return (
            "unknown",
            f"Slurm doesn't answer, and the run has no result yet{', ' if progress else ''}{progress}",
        )
    said = f"Slurm: {slurm_state}; " if slurm_state else ""
    return "failed", f"{said}the job ended without a result; its log: {note['log']}"


def _from_result(run: Path, job_id: str | None, cluster: str | None, since: float = 0.0) -> ProbeStatus:
    path = run / "probe" / RESULT
    result = find_result(path)
    # Resuming a probe whose answer is on file leaves the file as it is, so an old one is an answer too.
    if result is None or (result.status is not Status.DONE and path.stat().st_mtime < since):
        return ProbeStatus(str(run), "not probed", "no probe yet", job_id, cluster)
    state = "done" if result.status is Status.DONE else "failed"
    return ProbeStatus(str(run), state, result.message.splitlines()[0], job_id, cluster)


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


def _note(run: Path) -> dict[str, Any] | None:
    try:
        note = json.loads((run / "probe" / JOB_NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return (
        note
        if isinstance(note, dict) and {"job_id", "cluster", "attempt", "log", "submitted"} <= set(note)
        else None
    )
