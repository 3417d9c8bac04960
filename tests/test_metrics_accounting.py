"""What Slurm's clients print of a job, read; and the clients themselves, silent or slow."""

from __future__ import annotations

import os
import time
from datetime import datetime
from pathlib import Path

import pytest

from autobatch.metrics.accounting import Ask, JobAccount, job_accounts
from autobatch.runs.slurm_client import ask

SACCT = """\
77|COMPLETED|2025-10-20T14:30:00|2025-10-20T16:37:00|7620|billing=8,cpu=8,gres/gpu:a100=1,gres/gpu=1,mem=64G,node=1|n1
78|CANCELLED by 1000|2025-10-20T14:30:00|2025-10-20T14:31:00|60|cpu=8,gres/gpu:a100=2,mem=64G|n[1-2]
79|PENDING|Unknown|Unknown|0||None assigned
28_0|TIMEOUT|2025-10-20T14:30:00|2025-10-20T15:30:00|3600|cpu=2|n1
99|RUNNING|2025-10-20T14:30:00|Unknown|90|gres/gpu=1|n1
"""

#: Of Slurm 22.05, `scontrol --oneliner show job`.
RUNNING = (
    "JobId=80 JobName=finetune UserId=root(0) JobState=RUNNING Reason=None Restarts=0 ExitCode=0:0 "
    "RunTime=1-02:03:04 TimeLimit=12:00:00 StartTime=2025-10-20T14:30:00 EndTime=2025-10-21T02:30:00 NodeList=n1 "
    "NumNodes=2 NumCPUs=8 TRES=cpu=8,mem=64G,node=2,billing=8 TresPerNode=gres:gpu:a100:2 Power=\n"
)


def answers(**by_client: str | None) -> tuple[list[tuple[str, ...]], Ask]:
    """A Slurm that answers so, and what it was asked."""
    asked: list[tuple[str, ...]] = []

    def answer(*command: str) -> str | None:
        asked.append(command)
        return by_client[command[0]]

    return asked, answer


def test_accounting_answers_for_all_jobs_at_once() -> None:
    asked, answer = answers(sacct=SACCT, scontrol=None)

    accounts = job_accounts(["77", "78", "79", "28_0"], ask=answer)

    start = datetime(2025, 10, 20, 14, 30)
    assert accounts == {
        "77": JobAccount("77", "COMPLETED", start, datetime(2025, 10, 20, 16, 37), 7620, 1, "n1"),
        "78": JobAccount("78", "CANCELLED", start, datetime(2025, 10, 20, 14, 31), 60, 2, "n[1-2]"),
        "79": JobAccount("79", "PENDING", None, None, 0, None, ""),
        "28_0": JobAccount("28_0", "TIMEOUT", start, datetime(2025, 10, 20, 15, 30), 3600, None, "n1"),
    }
    assert [command[0] for command in asked] == ["sacct", "scontrol"]
    assert "--jobs=77,78,79,28_0" in asked[0]


def test_without_accounting_the_controller_is_asked() -> None:
    _, answer = answers(sacct=None, scontrol=RUNNING)

    (account,) = job_accounts(["80"], ask=answer).values()

    seconds = 26 * 3600 + 3 * 60 + 4
    assert account == JobAccount("80", "RUNNING", datetime(2025, 10, 20, 14, 30), None, seconds, 4, "n1")


def test_gpus_that_accounting_does_not_count() -> None:
    _, answer = answers(sacct="80|RUNNING|2025-10-20T14:00:00|Unknown|90|cpu=2|n1\n", scontrol=RUNNING)

    (account,) = job_accounts(["80"], ask=answer).values()

    assert account == JobAccount("80", "RUNNING", datetime(2025, 10, 20, 14), None, 90, 4, "n1")


@pytest.mark.parametrize(
    ("tres", "gpus"),
    [
        pytest.param("TresPerNode=gres:gpu:1", 1, id="count"),
        pytest.param("TresPerNode=gres:gpu", 1, id="one"),
        pytest.param("TresPerNode=gres/gpu:h100:4", 4, id="newer spelling, type"),
        pytest.param("TresPerNode=gres:gpu:1g.10gb:2", 2, id="MIG slices"),
        pytest.param("TresPerNode=gres:gpu:a100:1,gres:tmp:100", 1, id="beside others"),
        pytest.param("AllocTRES=cpu=1,gres/gpu=3 TresPerNode=gres:gpu:1", 3, id="allocated counts"),
        pytest.param("TRES=cpu=1,node=1", None, id="none"),
    ],
)
def test_gpus_as_the_controller_spells_them(tres: str, gpus: int | None) -> None:
    shown = f"JobId=1 JobState=COMPLETED NumNodes=1 StartTime=Unknown EndTime=N/A RunTime=INVALID {tres}"
    _, answer = answers(sacct="", scontrol=shown)

    account = job_accounts(["1"], ask=answer)["1"]

    assert (account.gpus, account.start, account.end, account.elapsed_s) == (gpus, None, None, None)


def test_a_cluster_that_is_down_is_asked_twice_however_many_jobs_there_are() -> None:
    asked, answer = answers(sacct=None, scontrol=None)

    accounts = job_accounts([str(job) for job in range(50)], ask=answer)

    assert accounts == {}
    assert [command[0] for command in asked] == ["sacct", "scontrol"]


def test_jobs_that_slurm_has_forgotten_are_missing() -> None:
    asked, answer = answers(sacct="", scontrol="")

    assert job_accounts(["1", "2"], ask=answer) == {}
    assert len(asked) == 3


def test_nothing_to_ask_asks_nothing() -> None:
    asked, answer = answers()

    assert job_accounts([], ask=answer) == {}
    assert asked == []


@pytest.mark.parametrize(
    ("script", "said"),
    [
        pytest.param("echo yes", "yes\n", id="answers"),
        pytest.param("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", "", id="says no"),
        pytest.param("echo 'Slurm accounting storage is disabled' >&2; exit 1", None, id="no accounting"),
        pytest.param("exec sleep 30", None, id="hangs"),
        pytest.param(None, None, id="no client"),
    ],
)
def test_a_client(
    script: str | None, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if script is not None:
        client = tmp_path / "sacct"
        client.write_text(f"#!/bin/sh\n{script}\n")
        client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin:/bin" if script else str(tmp_path))
    began = time.monotonic()

    assert ask("sacct", "--version", timeout_s=1.0) == said
    assert time.monotonic() - began < 10
