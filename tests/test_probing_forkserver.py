"""Processes from the fork server: how they end, and that nothing of them stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from autobatch.probing.forkserver import Exit, ForkServer
from tests import forked

REPOSITORY = Path(__file__).parent.parent

Run = Callable[..., Exit]


@pytest.fixture(scope="module")
def server() -> ForkServer:
    """A server that has imported what it imports."""
    server = ForkServer({})
    ended = server.run(forked.end_with, 0, log=Path(os.devnull), timeout_s=120)
    assert ended.code == 0
    return server


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "child.log"


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped doesn't."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in ("Z", "X")


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def wait_until(true: Callable[[], bool], what: str, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("target", "argument", "code"),
    [
        pytest.param(forked.end_with, 0, 0, id="0"),
        pytest.param(forked.end_with, 3, 3, id="sys.exit(3)"),
        pytest.param(forked.leave_with, 7, 7, id="os._exit(7)"),
        pytest.param(forked.kill_itself, signal.SIGKILL, -9, id="SIGKILL"),
        pytest.param(forked.kill_itself, signal.SIGSEGV, -11, id="SIGSEGV"),
        pytest.param(forked.kill_itself, signal.SIGTERM, -15, id="SIGTERM"),
    ],
)
def test_how_a_child_ends(
    server: ForkServer, log: Path, target: Callable[[int], None], argument: int, code: int
) -> None:
    ended = server.run(target, argument, log=log, timeout_s=60)

    assert (ended.code, ended.timed_out) == (code, False)
    assert 0 < ended.seconds < 10


def test_a_child_that_raises_ends_with_1_and_its_traceback_in_the_log(server: ForkServer, log: Path) -> None:
    ended = server.run(forked.fail, log=log, timeout_s=60)

    assert (ended.code, ended.timed_out) == (1, False)
    assert log.read_text().endswith("ValueError: something is wrong\n")


def test_output_of_child_and_grandchild_is_appended_to_the_log(server: ForkServer, log: Path) -> None:
    log.write_text("before\n")

    server.run(forked.say, "to stdout", "to stderr", log=log, timeout_s=60)

    assert log.read_text().startswith("before\n")
    assert sorted(log.read_text().splitlines()[1:]) == ["from a grandchild", "to stderr", "to stdout"]


def test_a_log_that_cannot_be_written_ends_the_child(server: ForkServer, tmp_path: Path) -> None:
    ended = server.run(forked.end_with, 0, log=tmp_path / "no" / "such" / "folder", timeout_s=60)

    assert ended.code == 1


def test_starting_a_child_is_cheap(server: ForkServer, log: Path) -> None:
    seconds = [server.run(forked.end_with, 0, log=log, timeout_s=60).seconds for _ in range(5)]

    assert min(seconds) < 0.5


def test_the_preload_is_there_and_torchtune_is_not(server: ForkServer, log: Path, tmp_path: Path) -> None:
    answer = tmp_path / "imported"

    server.run(
        forked.write_what_is_imported,
        str(answer),
        "torch",
        "torchao",
        "datasets",
        "torchtune",
        "submitit",
        log=log,
        timeout_s=60,
    )

    assert answer.read_text().splitlines() == [
        "torch True",
        "torchao True",
        "datasets True",
        "torchtune False",
        "submitit False",
    ]


def test_the_timeout_kills_the_whole_process_group(server: ForkServer, log: Path, tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    ended = server.run(forked.hang_with_a_grandchild, str(pids), log=log, timeout_s=2)

    assert (ended.code, ended.timed_out) == (-signal.SIGKILL, True)
    assert 2 <= ended.seconds < 10
    child, grandchild = map(int, pids.read_text().split())
    wait_until(lambda: not alive(child) and not alive(grandchild), "both are gone")


def test_a_grandchild_does_not_outlive_a_child_that_ended_well(
    server: ForkServer, log: Path, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"

    ended = server.run(forked.leave_a_grandchild, str(pid), log=log, timeout_s=60)

    assert ended.code == 0
    wait_until(lambda: not alive(int(pid.read_text())), "the grandchild is gone")


def test_an_exception_while_waiting_kills_the_child(server: ForkServer, log: Path, tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    def interrupted() -> None:
        if pids.exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        server.run(forked.hang_with_a_grandchild, str(pids), log=log, timeout_s=60, on_wait=interrupted)

    child, grandchild = map(int, pids.read_text().split())
    wait_until(lambda: not alive(child) and not alive(grandchild), "both are gone")


def test_on_wait_is_called_meanwhile(server: ForkServer, log: Path, tmp_path: Path) -> None:
    calls = []

    server.run(
        forked.hang_with_a_grandchild,
        str(tmp_path / "pids"),
        log=log,
        timeout_s=1.5,
        on_wait=lambda: calls.append(time.monotonic()),
    )

    assert len(calls) >= 5


@pytest.mark.parametrize(
    ("how", "stopped"),
    [
        pytest.param("hang", False, id="forked"),
        pytest.param("hang", True, id="forked and stopped"),
        pytest.param("hang-cold", False, id="cold"),
    ],
)
def test_a_child_dies_when_its_parent_is_killed(tmp_path: Path, how: str, stopped: bool) -> None:
    pids = tmp_path / "pids"
    parent = subprocess.Popen(
        [sys.executable, "-m", "tests.forked", how, str(tmp_path / "log"), str(pids)], cwd=REPOSITORY
    )
    try:
        wait_until(pids.exists, "the child runs", seconds=120)
        child, grandchild = map(int, pids.read_text().split())
        running = alive(child) and alive(grandchild)
        if stopped:
            # As on a node so busy that the child's own watch on the job gets no time before the server is gone.
            os.kill(child, signal.SIGSTOP)
    finally:
        parent.kill()
        parent.wait()

    assert running
    wait_until(lambda: not alive(child) and not alive(grandchild), "both are gone")


@pytest.mark.parametrize(
    ("how", "named", "number"),
    [
        pytest.param("hang", {}, signal.SIGUSR2, id="forked"),
        pytest.param("hang-cold", {}, signal.SIGUSR2, id="cold"),
        pytest.param(
            "hang", {"SUBMITIT_PREEMPT_SIGNAL": "USR1"}, signal.SIGUSR1, id="forked, another signal"
        ),
    ],
)
def test_server_and_child_outlive_slurms_warning(
    tmp_path: Path, how: str, named: dict[str, str], number: signal.Signals
) -> None:
    pids = tmp_path / "pids"
    job = subprocess.Popen(
        [sys.executable, "-m", "tests.forked", how, str(tmp_path / "log"), str(pids)],
        cwd=REPOSITORY,
        env=os.environ | named,
    )
    try:
        wait_until(pids.exists, "the child runs", seconds=120)
        child, grandchild = map(int, pids.read_text().split())
        processes = [child, grandchild, *([parent_of(child)] if how == "hang" else [])]
        for pid in processes:
            os.kill(pid, number)
        time.sleep(0.5)
        alive_after = [alive(pid) for pid in processes]
    finally:
        job.kill()
        job.wait()

    assert job.pid not in processes
    assert all(alive_after)


def test_the_launcher_of_a_node_outlives_slurms_warning(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    os.mkfifo(spec)
    launcher = subprocess.Popen(
        [sys.executable, "-m", "autobatch.probing.node", str(spec)], cwd=REPOSITORY, stdin=subprocess.PIPE
    )

    writing: list[int] = []

    def is_read() -> bool:
        with suppress(OSError):
            writing.append(os.open(spec, os.O_WRONLY | os.O_NONBLOCK))
        return bool(writing)

    try:
        wait_until(is_read, "it reads what to launch", seconds=120)
        launcher.send_signal(signal.SIGUSR2)
        time.sleep(0.5)
        code = launcher.poll()
    finally:
        launcher.kill()
        launcher.wait()
        for descriptor in writing:
            os.close(descriptor)

    assert code is None


def test_a_server_that_still_imports_dies_when_its_job_is_killed() -> None:
    job = subprocess.Popen(
        [sys.executable, "-m", "tests.forked", "serve"], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert job.stdout is not None
    server = int(job.stdout.readline())
    # Its imports take seconds; the first of them is what is tested.
    wait_until(lambda: b"forkserver" in Path(f"/proc/{server}/cmdline").read_bytes(), "the server runs")
    time.sleep(0.3)

    job.kill()
    job.wait()

    wait_until(lambda: not alive(server), "the server is gone", seconds=3)


def test_the_environment_reaches_a_child(tmp_path: Path) -> None:
    answer = tmp_path / "environment"

    subprocess.run(
        [sys.executable, "-m", "tests.forked", "environment", str(tmp_path / "log"), str(answer)],
        cwd=REPOSITORY,
        env=os.environ | {"INHERITED": "from outside", "TIKTOKEN_CACHE_DIR": "/somewhere"},
        check=True,
    )

    assert answer.read_text().splitlines() == [
        "AUTOBATCH_TEST=from the server's environment",
        "TIKTOKEN_CACHE_DIR=",
        "INHERITED=from outside",
    ]


def test_a_server_that_was_killed_counts_as_a_killed_child_and_is_replaced(
    server: ForkServer, log: Path
) -> None:
    os.kill(forked.server_pid(), signal.SIGSTOP)
    killed = forked.server_pid()
    timer = threading.Timer(0.5, os.kill, (killed, signal.SIGKILL))
    timer.start()

    first = server.run(forked.end_with, 0, log=log, timeout_s=60)
    second = server.run(forked.end_with, 5, log=log, timeout_s=120)

    assert first.code == -signal.SIGKILL
    assert second.code == 5
    assert forked.server_pid() != killed
