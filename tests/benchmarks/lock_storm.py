"""A storm: processes that write one file through several mount points, and are killed at random moments.

They append rows to one runs_plan.md, each as fast as it gets the lock, and note a row as reported when `edit_file`
has returned. Whoever is killed is replaced, round after round.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from autobatch.edits.files import edit_file
from autobatch.edits.lock import LEASE_S

PLAN = "runs_plan.md"

#: As long as the plan of a large experiment.
HEAD = "# Plan\n\n" + "A line of a plan that somebody wrote.\n" * 400

_ROOT = Path(__file__).parent.parent.parent

#: A host of its own, as far as processes can tell; it ends with the process that started it.
HOST = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "--uts")

_ROW = re.compile(r"\| g\d+w\d+ \d+ \||next|end")


@dataclass(frozen=True)
class Storm:
    """What came of one.

    Attributes:
        name: how the directory was seen.
        writers: processes at a time; rounds: of kills; kills: in all.
        reported: rows whose writer was told that they are written.
        lost: of those, not in the file; twice: in it more than once.
        torn: reads of a file that wasn't whole, and rows that aren't.
        waiting: directories beside the file of killed processes that had waited for its lock.
        left: names beside the file after one more edit, when those are old.
        next_s: seconds that this edit took.
        failed: last words of writers that ended by themselves.
    """

    name: str
    writers: int
    rounds: int
    kills: int
    reported: int
    lost: int
    twice: int
    torn: int
    waiting: int
    left: tuple[str, ...]
    next_s: float
    failed: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether nothing was lost, torn or left."""
        return not (self.lost or self.twice or self.torn or self.left or self.failed) and self.reported > 0


def storm(
    name: str,
    directory: Path,
    views: Sequence[Path],
    *,
    writers: int,
    rounds: int,
    kills: int,
    round_s: float,
    seed: int = 0,
    hosts: bool = False,
    lock: str = "autobatch",
) -> Storm:
    """Let processes write and be killed.

    Args:
        name: for the table.
        directory: of the file.
        views: the same directory, as groups of writers see it.
        writers: in all.
        rounds: of kills.
        kills: in each round, in all.
        round_s: seconds of a round.
        seed: of the moments and the victims.
        hosts: make each group a host of its own.
        lock: ``autobatch``, or ``flock`` to see what that loses.
    """
    plan, reports = directory / PLAN, directory.with_name(f"{directory.name}-reports")
    plan.write_text(HEAD, encoding="utf-8")
    reports.mkdir()
    groups = []
    for number, view in enumerate(views):
        share = {"writers": writers // len(views), "kills": kills // len(views)}
        task = {"view": str(view), "reports": str(reports), "rounds": rounds, "round_s": round_s, "lock": lock,
                "seed": seed + number, "group": f"g{number}", **share}  # fmt: skip
        command = [sys.executable, "-m", "tests.benchmarks.lock_storm", "--group", json.dumps(task)]
        groups.append(
            subprocess.Popen(
                [*(HOST if hosts else ()), *command], cwd=_ROOT, stdout=subprocess.PIPE, text=True
            )
        )
    torn = 0
    while any(group.poll() is None for group in groups):
        text = plan.read_text(encoding="utf-8")
        torn += not (text.startswith(HEAD) and text.endswith("\n"))
        time.sleep(0.01)
    failed = [line for group in groups if group.stdout for line in group.stdout.read().splitlines()]
    failed += [f"a group ended with status {group.returncode}" for group in groups if group.returncode]
    began = time.monotonic()
    edit_file(plan, lambda text: f"{text}next\n", timeout_s=2 * LEASE_S)
    next_s = time.monotonic() - began
    waiting = [path for path in directory.iterdir() if path.name != PLAN]
    for path in waiting:
        # Of a process of another host nobody can say more than that its time is over.
        os.utime(path, (0, 0))
    edit_file(plan, lambda text: f"{text}end\n")
    reported = [row for path in reports.iterdir() for row in path.read_text(encoding="utf-8").splitlines()]
    rows = plan.read_text(encoding="utf-8").removeprefix(HEAD).splitlines()
    return Storm(
        name=name,
        writers=writers,
        rounds=rounds,
        kills=rounds * kills,
        reported=len(reported),
        lost=len(set(reported) - set(rows)),
        twice=len(rows) - len(set(rows)),
        torn=torn + sum(_ROW.fullmatch(row) is None for row in rows),
        waiting=len(waiting),
        left=tuple(sorted(path.name for path in directory.iterdir() if path.name != PLAN)),
        next_s=next_s,
        failed=tuple(failed),
    )


def run_group(view: str, reports: str, writers: int, rounds: int, kills: int, round_s: float, seed: int,
              group: str, lock: str) -> int:  # fmt: skip
    """One group of writers: start them, kill some of them at random moments, start others in their place."""
    chance = random.Random(seed)
    started = 0
    running: list[subprocess.Popen[str]] = []
    failed = False
    for _ in range(rounds):
        kept = len(running)
        while len(running) < writers:
            writer = f"{group}w{started}"
            started += 1
            command = [
                sys.executable,
                "-m",
                "tests.benchmarks.lock_storm",
                "--writer",
                writer,
                view,
                reports,
                lock,
            ]
            running.append(
                subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            )
        for process in running[kept:]:
            assert process.stdout is not None
            process.stdout.readline()
        moments = sorted(chance.uniform(0, round_s) for _ in range(kills))
        now = 0.0
        for moment in moments:
            time.sleep(moment - now)
            now = moment
            process = running.pop(chance.randrange(len(running)))
            process.kill()
            said = process.communicate()[0]
            if process.returncode != -signal.SIGKILL:
                failed = True
                print(f"{group}: a writer ended by itself: {said[-300:]!r}", flush=True)
        time.sleep(round_s - now)
    for process in running:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    return 1 if failed else 0


def write_rows(writer: str, view: str, reports: str, lock: str) -> None:
    """Append rows for ever, and report each that is written."""
    plan = Path(view) / PLAN
    report = os.open(Path(reports) / writer, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    change = _EDITS[lock]
    print("ready", flush=True)
    number = 0
    while True:
        row = f"| {writer} {number} |"
        change(plan, row)
        os.write(report, f"{row}\n".encode())
        number += 1


def _with_our_lock(plan: Path, row: str) -> None:
    edit_file(plan, lambda text: f"{text}{row}\n")


def _with_flock(plan: Path, row: str) -> None:
    """What an edit was before: flock on a file beside it."""
    descriptor = os.open(plan.with_name(f".{plan.name}.flock"), os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        temporary = plan.with_name(f".{plan.name}-{os.getpid()}-{row.strip('| ').replace(' ', '-')}")
        temporary.write_text(f"{plan.read_text(encoding='utf-8')}{row}\n", encoding="utf-8")
        temporary.replace(plan)
    finally:
        os.close(descriptor)


_EDITS: dict[str, Callable[[Path, str], None]] = {"autobatch": _with_our_lock, "flock": _with_flock}


@contextlib.contextmanager
def bind_mounts(directory: Path, count: int) -> Iterator[list[Path]]:
    """So many further mount points of a directory; needs root."""
    with _mounted(directory, count, lambda view: ["mount", "--bind", str(directory), str(view)]) as views:
        yield views


@contextlib.contextmanager
def fuse_mounts(directory: Path, count: int) -> Iterator[list[Path]]:
    """So many FUSE mounts of a directory, which ask their server for every name, as NFS does for an open file.

    Each is a file system of its own to the kernel: with caches of its own, and flock among its own processes only.
    """
    timeouts = "entry_timeout=0,attr_timeout=0,negative_timeout=0"
    with _mounted(
        directory, count, lambda view: ["bindfs", "-o", timeouts, str(directory), str(view)]
    ) as views:
        yield views


@contextlib.contextmanager
def _mounted(directory: Path, count: int, command: Callable[[Path], list[str]]) -> Iterator[list[Path]]:
    views = [directory.with_name(f"{directory.name}-view{number}") for number in range(count)]
    mounted = []
    try:
        for view in views:
            view.mkdir()
            subprocess.run(command(view), check=True)
            mounted.append(view)
        yield views
    finally:
        for view in mounted:
            subprocess.run(["umount", "--lazy", str(view)], check=True)


def dead_host_seconds(views: Sequence[Path]) -> float:
    """Seconds that a writer waits for the lock of a host that died with it."""
    code = (
        "import sys, time; from autobatch.edits.lock import locked\n"
        "with locked(sys.argv[1]): print('held', flush=True); time.sleep(600)"
    )
    command = [*HOST, sys.executable, "-c", code, str(views[0] / PLAN)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=_ROOT)
    assert holder.stdout is not None
    holder.stdout.readline()
    holder.kill()
    holder.communicate()
    began = time.monotonic()
    edit_file(views[1] / PLAN, lambda text: f"{text}after\n")
    return time.monotonic() - began


def main(arguments: Sequence[str]) -> int:
    """What this module's own processes do."""
    what, *details = arguments
    if what == "--group":
        return run_group(**json.loads(details[0]))
    write_rows(*details)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
