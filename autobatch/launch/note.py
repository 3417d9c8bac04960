"""`probe/job.json`: which job is probing a run."""

from __future__ import annotations

import json
import re
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from autobatch.edits.files import replace_file
from autobatch.records import from_json, to_json
from autobatch.runs.results import load_json

#: Name of the file in `probe/`.
JOB_NOTE = "job.json"


@dataclass(frozen=True)
class JobNote:
    """The last job that was started for a run.

    Attributes:
        cluster: ``slurm``, ``local`` or ``inline``.
        job_id: Slurm's, such as ``28`` or, of an array's task, ``28_0``; or a process id of `host`.
        attempt: marks its events.
        log: its own output.
        submitted: Unix time.
        host: from which it was started.
        members: paths of all runs that the job probes, this one among them; empty where it is the only one.
    """

    cluster: str
    job_id: str
    attempt: str
    log: str
    submitted: float
    host: str = ""
    members: tuple[str, ...] = ()

    @property
    def is_slurm(self) -> bool:
        """Whether Slurm knows of it."""
        return self.cluster == "slurm"


class _Job(Protocol):
    job_id: str
    attempt: str
    log: Path


def note_of(cluster: str, job: _Job, members: tuple[str, ...] = ()) -> JobNote:
    """The note of a job that was started here, now."""
    return JobNote(cluster, job.job_id, job.attempt, str(job.log), time.time(), socket.gethostname(), members)


def write_note(directory: Path, note: JobNote) -> None:
    """Put the note into a run's `probe/`."""
    replace_file(directory / JOB_NOTE, json.dumps(to_json(note), indent=2) + "\n", expected=None)


def read_note(directory: Path) -> JobNote | None:
    """The note in a run's `probe/`; None when there is none or it is damaged."""
    try:
        note = from_json(JobNote, load_json(directory / JOB_NOTE))
    except (OSError, ValueError):
        return None
    is_process = re.fullmatch(r"[1-9][0-9]{0,9}", note.job_id) is not None
    return note if note.is_slurm or is_process else None
