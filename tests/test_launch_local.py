"""Probes on this machine: how they are ended, and what a second one of the same run meets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from socket import gethostname

import pytest

from autobatch.launch.watch import cancel
from autobatch.probing.events import EVENTS, EventLog, Failed
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
    run = make_run()
    (run / "probe").mkdir()
    note = {"cluster": "local", "job_id": "1", "attempt": "a", "log": "", "submitted": 0.0}
    note |= {"host": gethostname()} | change
    (run / "probe" / "job.json").write_text(json.dumps(note))

    with only_one(run / "probe"):
        ended = call("cancel", run)

    assert ended.returncode == 2
    assert said in ended.stderr


def of_a_group(run: Path, note: dict[str, object], done: list[bool]) -> list[Path]:
    """Runs of which `note` names the job, with its last word on those that it is done with."""
    runs = [run.with_name(f"run{number}") for number in range(1, len(done) + 1)]
    for one, is_done in zip(runs, done, strict=True):
        (one / "probe").mkdir(parents=True, exist_ok=True)
        (one / "finetune.yaml").touch()
        members = [str(member) for member in runs]
        (one / "probe" / "job.json").write_text(json.dumps(note | {"attempt": "a", "members": members}))
        if is_done:
            EventLog(one / "probe" / EVENTS, "a")(Failed("the answer is no", 1))
    return runs


@pytest.mark.parametrize(
    ("done", "group", "ends"),
    [
        pytest.param([True, False], "--group", True, id="the other goes on"),
        pytest.param([True, False], "", False, id="without --group it's done"),
        pytest.param([True, True], "--group", False, id="both are done"),
    ],
)
def test_cancel_of_a_run_that_is_done_ends_the_group(
    make_run: MakeRun, done: list[bool], group: str, ends: bool
) -> None:
    # What its command line says makes it a job.
    code = "import time; time.sleep(600)"
    job = subprocess.Popen([sys.executable, "-c", code, "autobatch.cli.job"])
    note = {"cluster": "inline", "job_id": str(job.pid), "log": "", "submitted": 0.0, "host": gethostname()}
    first, *_ = of_a_group(make_run(), note, done)
    try:
        threading.Thread(target=job.wait, daemon=True).start()
        cancelled = call("cancel", first, *filter(None, [group]))
        ended = job.poll() is not None
    finally:
        job.kill()
        job.wait()

    assert ended == ends
    assert (cancelled.returncode, cancelled.stdout.strip()) == ((0, str(job.pid)) if ends else (1, ""))


def test_cancel_leaves_alone_what_probes_a_run_of_a_group_that_has_ended(make_run: MakeRun) -> None:
    note = {"cluster": "inline", "job_id": "1", "log": "", "submitted": 0.0, "host": gethostname()}
    first, second = of_a_group(make_run(), note, [True, False])
    (second / "probe" / "job.json").write_text(json.dumps(note | {"attempt": "b"}))

    with only_one(second / "probe"):
        cancelled = call("cancel", first, "--group")

    assert cancelled.returncode == 1


@pytest.mark.parametrize(
    ("state", "ends"), [("RUNNING", True), ("PENDING", True), ("COMPLETED", False), ("", True)]
)
def test_cancel_of_a_run_that_is_done_ends_the_slurm_job_of_the_group(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, ends: bool
) -> None:
    note = {"cluster": "slurm", "job_id": "28_0", "log": "", "submitted": 0.0}
    first, *_ = of_a_group(make_run(), note, [True, False])
    ended = tmp_path / "ended"
    clients = {
        # Without a state, Slurm doesn't answer.
        "scontrol": f"echo JobState={state}" if state else "exit 1",
        "sacct": "exit 1",
        "scancel": f"echo $1 > {ended}",
    }
    for name, script in clients.items():
        client = tmp_path / "bin" / name
        client.parent.mkdir(exist_ok=True)
        client.write_text(f"#!/bin/sh\n{script}\n")
        client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")

    assert cancel(first, whole_group=True) == ("28_0" if ends else None)
    assert (ended.read_text() == "28_0\n") if ends else not ended.exists()
    assert cancel(first) is None


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
