"""A run to be probed while something goes wrong, and what is there when all is over.

Each scene is an experiment of its own. The probe is the command line in processes of its own, known by a variable
in their environment, so that one that outlives it is found wherever it went.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

AUTOBATCH = Path(sys.executable).parent / "autobatch"
ROOT = Path(__file__).parent.parent.parent
MARK = "AUTOBATCH_BENCHMARK_SCENE"

#: Seconds in which the processes of a probe that has ended must be gone.
GONE_WITHIN_S = 5.0
_TIMEOUT_S = 600.0

#: Files of the user's, relative to the experiment.
OWN = ("run1/finetune.yaml", "run1/finetune.slurm", "runs_plan.md")
Files = dict[str, bytes]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def messages(self) -> list[str]:
        """What it says is wrong; a message may go on in further lines."""
        return re.findall(r"(?m)^autobatch: .*", self.err)

    @property
    def is_clear(self) -> bool:
        """One message, and nothing that only a programmer reads."""
        noise = ("Traceback", "a bug in autobatch", "Exception ignored")
        return len(self.messages) == 1 and not any(word in self.err for word in noise)


@dataclass(frozen=True)
class Base:
    """An experiment, and what an undisturbed probe makes of it.

    Attributes:
        experiment: laid out; it isn't probed itself.
        options: of the probe.
        seconds: that the probe takes.
        before, after: the user's files, measured figures as `#`.
        names: everything in the experiment after the probe but `probe/`.
        batch_size: the answer.
        probed: the experiment afterwards.
    """

    experiment: Path
    options: tuple[str, ...]
    seconds: float
    before: Files
    after: Files
    names: tuple[str, ...]
    batch_size: int
    probed: Path


class Scene:
    """One probe and its fault.

    Args:
        base: is copied.
        directory: for the copy; made here.
        number: of the run, for faults that come in kinds.
        probed: begin with an experiment that was probed before.
        slurm: environment in which Slurm's commands speak to a cluster; None where there is none.
    """

    def __init__(
        self,
        base: Base,
        directory: Path,
        number: int,
        *,
        probed: bool = False,
        slurm: Mapping[str, str] | None = None,
    ) -> None:
        self.base = base
        self.slurm = slurm
        self.number = number
        self.random = random.Random(uuid.uuid4().int)
        self.experiment = directory / "experiment"
        shutil.copytree(base.probed if probed else base.experiment, self.experiment, symlinks=True)
        self.run = self.experiment / "run1"
        self.mark = uuid.uuid4().hex

    def move_to(self, experiment: Path) -> None:
        """Let the experiment be somewhere else."""
        shutil.copytree(self.experiment, experiment, symlinks=True)
        self.experiment, self.run = experiment, experiment / "run1"

    def rename(self, name: str) -> None:
        """Call the run something else."""
        self.run = self.run.rename(self.experiment / name)

    def undo(self) -> None:
        """Give the user's files the text that they had before they were probed."""
        for name in OWN:
            shutil.copyfile(self.base.experiment / name, self.experiment / name)

    def start(
        self, *options: str, prefix: Sequence[str] = (), environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Begin the probe."""
        words = ("probe", str(self.run), *self.base.options, *options)
        return start([*prefix, str(AUTOBATCH), *words], {MARK: self.mark, **(environment or {})})

    def probe(self, *options: str, **more: Mapping[str, str]) -> Ended:
        """Probe, to the end."""
        return end_of(self.start(*options, **more))  # type: ignore[arg-type]

    def processes(self) -> dict[int, str]:
        """Command lines of the probe's processes, by id."""
        return marked(self.mark)

    def find(self, what: str) -> list[int]:
        """Ids of the probe's ``job``, its fork ``server``, or the server's ``workers``."""
        found = self.processes()
        names = {
            "job": r"autobatch\.cli\.job|submitit\.core\._submit",
            "server": r"multiprocessing\.forkserver",
        }
        servers = [pid for pid, command in found.items() if re.search(names["server"], command)]
        main = [pid for pid in servers if parent_of(pid) not in servers]
        if what == "server":
            return main
        if what == "workers":
            return [pid for pid in servers if parent_of(pid) in main]
        return [pid for pid, command in found.items() if re.search(names[what], command)]

    def some_time(self, share: float = 1.0) -> float:
        """A random moment of a probe, in seconds."""
        return self.random.uniform(0, share * self.base.seconds)

    def hit(self, process: subprocess.Popen[str], what: str, number: signal.Signals, after_s: float) -> bool:
        """Send a signal at that moment, or as soon after it as there is such a process; whether there was one."""
        time.sleep(after_s)
        while process.poll() is None:
            for pid in self.find(what):
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
                    return True
            time.sleep(0.002)
        return False

    def hit_itself(self, process: subprocess.Popen[str], number: signal.Signals, after_s: float) -> bool:
        """Send the command a signal at that moment, once it has started the job; whether it still ran."""
        time.sleep(after_s)
        if not until(lambda: bool(self.find("job")), process) or process.poll() is not None:
            return False
        process.send_signal(number)
        return True

    def files(self) -> Files:
        """The user's files, measured figures as `#`."""
        return without_figures(self.experiment)

    def is_before(self) -> bool:
        return self.files() == self.base.before

    def is_answered(self) -> bool:
        """Whether the files hold the answer, and nothing lies beside them."""
        return self.files() == self.base.after and names_in(self.experiment) == self.base.names

    def broken(self) -> list[str]:
        """Files that are neither as they were nor as they should be, and a result that isn't whole."""
        found = [
            n for n, text in self.files().items() if text not in (self.base.before[n], self.base.after[n])
        ]
        result = self.run / "probe" / "result.json"
        with suppress(FileNotFoundError):
            try:
                json.loads(result.read_bytes())
            except ValueError:
                found.append("run1/probe/result.json")
        return found

    def orphans(self) -> list[str]:
        """Command lines of processes that outlive the probe; they are ended here."""
        deadline = time.monotonic() + GONE_WITHIN_S
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return list(left.values())


def start(command: Sequence[str], environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Begin a command; its output is small enough for a pipe."""
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )


def end_of(process: subprocess.Popen[str]) -> Ended:
    """Wait for a command; one that hangs ended with status 124."""
    try:
        out, err = process.communicate(timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        return Ended(124, out, err)
    return Ended(process.returncode, out, err)


def marked(mark: str) -> dict[int, str]:
    """Processes with that mark in their environment."""
    found = {}
    for directory in Path("/proc").iterdir():
        if not directory.name.isdigit():
            continue
        with suppress(OSError):
            if f"{MARK}={mark}".encode() in (directory / "environ").read_bytes():
                command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[int(directory.name)] = command
    return found


def parent_of(pid: int) -> int:
    """Parent of a process; 0 when it has ended."""
    try:
        return int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0


def without_figures(experiment: Path) -> Files:
    """The user's files; repeats of a trial agree to 0.05 %, not to the last byte."""
    return {
        name: re.sub(rb"[0-9.]+ (MiB|GiB|%)", rb"# \1", (experiment / name).read_bytes())
        for name in OWN
        if (experiment / name).exists()
    }


def names_in(experiment: Path) -> tuple[str, ...]:
    """Every path below the experiment but those in `probe/`."""
    paths = (path.relative_to(experiment) for path in experiment.rglob("*"))
    return tuple(sorted(str(path) for path in paths if "probe" not in path.parts[:-1]))


@contextmanager
def mounted(*command: str, at: Path) -> Iterator[None]:
    """A mount, for as long as this lasts."""
    subprocess.run(["mount", *command, str(at)], check=True, capture_output=True)
    try:
        yield
    finally:
        # A process that was killed may hold it for a moment.
        for _ in range(100):
            if subprocess.run(["umount", str(at)], check=False, capture_output=True).returncode == 0:
                break
            time.sleep(0.1)


def until(true: Callable[[], bool], process: subprocess.Popen[str]) -> bool:
    """Wait for something while a process runs; whether it came about."""
    while process.poll() is None:
        if true():
            return True
        time.sleep(0.001)
    return bool(true())
