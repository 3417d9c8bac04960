"""Probes on this machine: how they are ended, and what a second one of the same run meets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from autobatch.probing.lock import is_held, only_one
from tests.conftest import MakeRun, files_of, heed_interrupts

pytestmark = pytest.mark.recipe

AUTOBATCH = [sys.executable, "-m", "autobatch.cli.main"]


def wait_until(true: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)


def processes_of(mark: str) -> list[int]:
    """Processes, however they were started, whose environment has the mark."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdecimal():
            try:
                state = (process / "stat").read_text().rpartition(")")[2].split()[0]
                if state != "Z" and f"AUTOBATCH_MARK={mark}".encode() in (process / "environ").read_bytes():
                    found.append(int(process.name))
            except OSError:
                continue
    return found


@pytest.fixture
def hanging(make_run: MakeRun) -> Path:
    """A run whose first trial never ends."""
    return make_run("misbehaving.py", misbehaviour="hang", at=1)


def start(run: Path, *words: str) -> subprocess.Popen[str]:
    """A probe that is waited for, with its trial under way."""
    began = subprocess.Popen(
        [*AUTOBATCH, "probe", str(run), *words, "--no-estimate", "--json"],
        env=os.environ | {"AUTOBATCH_MARK": str(run)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    wait_until((run / "probe" / "trials" / "batch_size_1.log").exists, "the trial begins")
    return began


def call(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AUTOBATCH, *map(str, words)], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("cluster", ["local", "inline"])
def test_a_second_one_is_refused_and_cancel_ends_the_first(hanging: Path, cluster: str) -> None:
    before = files_of(hanging)
    probe = start(hanging, "--cluster", cluster)
    (status,) = json.loads(call("status", hanging, "--json").stdout)
    second = call("probe", hanging, "--cluster", "inline", "--json")

    cancelled = call("cancel", hanging)

    stdout, _ = probe.communicate(timeout=60)
    wait_until(lambda: not processes_of(str(hanging)), "nothing of it is left", seconds=20)
    assert (status["state"], status["job_id"]) == ("running", cancelled.stdout.strip())
    assert second.returncode == 2
    assert "another probe of this run is under way" in json.loads(second.stdout)["error"]
    assert cancelled.returncode == 0
    assert probe.returncode == 3
    assert json.loads(stdout)["exit_code"] == 3
    assert files_of(hanging) == before
    assert call("cancel", hanging).returncode == 1


@pytest.mark.parametrize(
    ("number", "code"),
    [pytest.param(signal.SIGTERM, 143, id="SIGTERM"), pytest.param(signal.SIGINT, 130, id="SIGINT")],
)
def test_whatever_ends_the_waiting_command_ends_the_probe(
    hanging: Path, number: signal.Signals, code: int
) -> None:
    probe = start(hanging, "--cluster", "local")

    probe.send_signal(number)

    stdout, stderr = probe.communicate(timeout=60)
    wait_until(lambda: not processes_of(str(hanging)), "nothing of it is left", seconds=20)
    assert probe.returncode == code
    assert json.loads(stdout)["exit_code"] == code
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param({"host": "another-node"}, "runs on another-node", id="another machine"),
        pytest.param({"job_id": str(os.getpid())}, "isn't process", id="another process"),
    ],
)
def test_cancel_ends_no_process_that_isnt_the_probe(
    make_run: MakeRun, change: dict[str, str], said: str
) -> None:
    import socket

    run = make_run()
    (run / "probe").mkdir()
    note = {"cluster": "local", "job_id": "1", "attempt": "a", "log": "", "submitted": 0.0}
    note |= {"host": socket.gethostname()} | change
    (run / "probe" / "job.json").write_text(json.dumps(note))

    with only_one(run / "probe"):
        ended = call("cancel", run)

    assert ended.returncode == 2
    assert said in ended.stderr


def test_a_module_of_the_users_in_the_current_directory_is_not_imported(
    make_run: MakeRun, tmp_path: Path
) -> None:
    if sys.version_info < (3, 11):
        pytest.skip("Python 3.10 has no PYTHONSAFEPATH")
    run = make_run("misbehaving.py", misbehaviour="flat")
    here = tmp_path / "here"
    here.mkdir()
    for name in ("random", "datasets"):
        (here / f"{name}.py").write_text("raise RuntimeError('the module in the current directory')\n")

    ended = subprocess.run(
        # As the installed command is: without the current directory on its own path.
        [sys.executable, "-P", *AUTOBATCH[1:], "probe", run, "--cluster", "inline", "--max-batch-size", "1"],
        cwd=here,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert ended.returncode == 0, ended.stderr


def test_whoever_may_only_read_a_run_may_ask_whether_it_is_probed(tmp_path: Path) -> None:
    with only_one(tmp_path):
        opened = []

        def audit(event: str, arguments: tuple[object, ...]) -> None:
            if event == "open" and str(arguments[0]).startswith(str(tmp_path)):
                opened.append(arguments[2])

        sys.addaudithook(audit)
        held = is_held(tmp_path)

    assert held
    assert not is_held(tmp_path)
    assert [int(str(flags)) & os.O_ACCMODE for flags in opened[:1]] == [os.O_RDONLY]
