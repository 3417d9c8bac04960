"""Slurm's commands, turned to one cluster."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from slurm.devcluster.cluster import Cluster

_POLL_S = 0.1
#: A client that loses its controller retries for long; no command here takes a second otherwise.
_COMMAND_TIMEOUT_S = 30


#: Starts three processes that SIGTERM doesn't end, writes their ids to a file and waits: a child, one that
#: has left the process group, and one that has emptied its environment too.
STUBBORN = """\
trap '' TERM
sleep 1000 & echo $! >> {pids}
setsid sleep 1000 & echo $! >> {pids}
env -i setsid sleep 1000 & echo $! >> {pids}
touch {pids}.written
wait
"""


@dataclass(frozen=True)
class Slurm:
    """A running cluster, as a user sees it.

    `environment` is for a process of one's own that is to speak to this cluster:
    `subprocess.run(["autobatch", "probe", run], env=slurm.environment)`.
    """

    cluster: Cluster

    @property
    def environment(self) -> dict[str, str]:
        return self.cluster.environment

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """What a command prints; it has to succeed."""
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
        )
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def sbatch(self, directory: Path, *arguments: str) -> str:
        """Submit from a directory; the job's id."""
        return self.run("sbatch", "--parsable", *arguments, cwd=directory).split(";")[0].strip()

    def wrap(self, directory: Path, shell: str, *arguments: str) -> str:
        """Submit a line of shell, its output in DIRECTORY/JOB.out; the job's id."""
        return self.sbatch(directory, f"--output={directory}/%j.out", *arguments, f"--wrap={shell}")

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol show job` says: {"JobState": "RUNNING", "Restarts": "0", ...}."""
        return dict(re.findall(r"(\w+)=(\S*)", self.run("scontrol", "--oneliner", "show", "job", job)))

    def wait_for(self, job: str, *states: str, timeout_s: float = 30) -> dict[str, str]:
        """Wait until a job is in one of these states."""
        deadline = time.monotonic() + timeout_s
        while (shown := self.job(job))["JobState"] not in states:
            assert time.monotonic() < deadline, f"job {job} is not {' or '.join(states)} but {shown}"
            time.sleep(_POLL_S)
        return shown


def stubborn(slurm: Slurm, directory: Path) -> tuple[str, list[int]]:
    """A running job that doesn't go by itself, and the processes that it has started."""
    pids = directory / "pids"
    job = slurm.wrap(directory, STUBBORN.format(pids=pids))
    wait_until((directory / "pids.written").exists)
    started = [int(line) for line in pids.read_text().split()]
    assert all(map(runs, started))
    return job, started


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def processes_of(directory: Path) -> list[str]:
    """Command lines of the processes that know of a directory, but for this one: found without our code."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = ((process / name).read_bytes() for name in ("cmdline", "environ"))
        except OSError:
            continue
        if process.name != str(os.getpid()) and bytes(directory) in command + environment:
            found.append(command.replace(b"\0", b" ").decode())
    return found


def wait_until(condition: Callable[[], bool], timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
