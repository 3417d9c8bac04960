"""What Slurm knows of training jobs: from its accounting, else from the controller, which forgets."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from autobatch.runs.slurm_client import ask

#: Before a job's first second, and before its last.
_AHEAD = ("PENDING", "CONFIGURING")
_GOING_ON = (*_AHEAD, "RUNNING", "SUSPENDED")

_FIELDS = ("JobID", "State", "Start", "End", "ElapsedRaw", "AllocTRES", "NodeList")

Ask = Callable[..., "str | None"]


@dataclass(frozen=True)
class JobAccount:
    """A job, as Slurm tells it.

    Attributes:
        job_id: as it was asked for.
        state: ``COMPLETED``, ``FAILED``, ``CANCELLED``, ``TIMEOUT``, ``OUT_OF_MEMORY``, ``RUNNING``, ...
        start, end: by the cluster's clock, without a zone; None while they lie ahead.
        elapsed_s: seconds of its last attempt.
        gpus: that it was given; None when Slurm doesn't count GPUs.
        nodes: that it ran on; empty before it has started.
    """

    job_id: str
    state: str
    start: datetime | None = None
    end: datetime | None = None
    elapsed_s: int | None = None
    gpus: int | None = None
    nodes: str = ""


def job_accounts(job_ids: Sequence[str], *, ask: Ask = ask) -> dict[str, JobAccount]:
    """What Slurm knows of these jobs; those that it doesn't know are missing.

    Accounting is asked once for all of them, the controller for each of those of which something is missing,
    until it doesn't answer: a cluster that is down costs two time-outs of a client, however many jobs there are.
    """
    if not job_ids:
        return {}
    listed = ask(
        "sacct", "--noheader", "--parsable2", "--allocations",
        f"--format={','.join(_FIELDS)}", f"--jobs={','.join(job_ids)}",
    )  # fmt: skip
    accounts = _from_sacct(listed or "", job_ids)
    for job_id in job_ids:
        known = accounts.get(job_id)
        if known is not None and known.gpus is not None:
            continue
        shown = ask("scontrol", "--oneliner", "show", "job", job_id)
        if shown is None:
            break
        account = _from_scontrol(shown, job_id)
        if account is not None:
            # Many a site's accounting doesn't count GPUs (AccountingStorageTRES).
            accounts[job_id] = account if known is None else replace(known, gpus=account.gpus)
    return accounts


def job_output(job_id: str, *, ask: Ask = ask) -> Path | None:
    """The file that a job writes its output to; None when the controller doesn't know, or the file isn't here.

    It lies where sbatch was called, which needn't be the run directory.
    """
    shown = ask("scontrol", "show", "job", job_id) or ""
    for line in shown.splitlines():
        name, _, value = line.strip().partition("=")
        # A path may be too long to ask for.
        with suppress(OSError):
            if name == "StdOut" and value and Path(value).is_file():
                return Path(value)
    return None


def _from_sacct(listed: str, job_ids: Sequence[str]) -> dict[str, JobAccount]:
    accounts = {}
    for line in listed.splitlines():
        cells = line.split("|")
        if len(cells) != len(_FIELDS) or cells[0] not in job_ids or not cells[1].strip():
            continue
        job_id, state, start, end, elapsed, tres, nodes = cells
        accounts[job_id] = JobAccount(
            job_id,
            # A cancelled job's state names who did it: "CANCELLED by 0".
            state.split()[0],
            _time(start),
            _time(end),
            _count(elapsed),
            _allocated_gpus(tres),
            "" if nodes == "None assigned" else nodes,
        )
    return accounts


def _from_scontrol(shown: str, job_id: str) -> JobAccount | None:
    # Of an array's id it shows every task, one a line; a task that is asked for has one line.
    fields = dict(word.partition("=")[::2] for word in (shown.splitlines() or [""])[0].split())
    state = fields.get("JobState")
    if not state:
        return None
    gpus = _allocated_gpus(fields.get("AllocTRES") or fields.get("TRES") or "")
    if gpus is None:
        gpus = _requested_gpus(fields.get("TresPerNode", ""), fields.get("NumNodes", "1"))
    return JobAccount(
        job_id,
        state,
        _time(fields.get("StartTime", "")) if state not in _AHEAD else None,
        # Of a running job it is when its time limit ends.
        _time(fields.get("EndTime", ""))
        if state not in ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED")
        else None,
        _seconds(fields.get("RunTime", "")),
        gpus,
        fields.get("NodeList", "").replace("(null)", ""),
    )


def _allocated_gpus(tres: str) -> int | None:
    """GPUs in ``billing=8,cpu=8,gres/gpu=2,gres/gpu:a100=2,mem=64G,node=1``; None when none are counted."""
    counts = dict(item.partition("=")[::2] for item in tres.split(","))
    total = _count(counts.get("gres/gpu", ""))
    if total is not None:
        return total
    typed = [_count(count) for name, count in counts.items() if name.startswith("gres/gpu:")]
    known = [count for count in typed if count is not None]
    return sum(known) if known else None


def _requested_gpus(tres_per_node: str, nodes: str) -> int | None:
    """GPUs in ``gres:gpu:a100:2`` or ``gres/gpu:2``, a node's, times the number of nodes."""
    counts = [
        int(match.group(1) or 1)
        for item in tres_per_node.split(",")
        if (
            match := re.fullmatch(
                r"(?:gres[:/])?gpu(?::[A-Za-z][\w.]*|:\d+g\.[\w.]+)?(?::([0-9]{1,9}))?(?:\(.*)?", item
            )
        )
    ]
    most = _count(nodes.partition("-")[0])
    return sum(counts) * most if counts and most is not None else None


def _count(text: str) -> int | None:
    """A whole number as Slurm prints one."""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def _time(text: str) -> datetime | None:
    try:
        # Without a zone, as Slurm prints it by default: times are compared with those of other sources.
        return datetime.fromisoformat(text).replace(tzinfo=None)
    except ValueError:  # Unknown, None, N/A
        return None


def _seconds(text: str) -> int | None:
    match = re.fullmatch(r"(?:([0-9]{1,9})-)?([0-9]{1,9}):([0-9]{1,9}):([0-9]{1,9})", text)
    if not match:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
