"""What the probe's Slurm job asks for: precedence, profiles, and the sbatch script compared whole."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from autobatch.errors import UsageError
from autobatch.launch.drawing import draw_report
from autobatch.launch.entry import begin_job
from autobatch.launch.resources import Resources, resolve_resources
from autobatch.records import ProbeRequest, ProbeResult, Status
from autobatch.runs.settings import Profile, find_profile, parse_minutes, user_directory
from autobatch.world import World
from tests.conftest import MakeRun

GOLDEN = Path(__file__).parent / "golden"

PROFILES = """\
default: gpu
profiles:
  gpu:
    partition: gpu
    account: lab
    time: "00:15:00"
    setup:
      - module load cuda/12.8
      - source ~/venvs/tune/bin/activate
    environment:
      HF_HOME: /scratch/a user/hf
  mig:
    gres: gpu:1g.10gb:1
    mem-per-gpu: 16G
"""

HEADER = {
    "partition": "main",
    "gres": "gpu:a100:1",
    "mem": "64G",
    "cpus-per-task": "8",
    "constraint": "a100",
    "time": "12:00:00",
    "job-name": "train",
    "output": "slurm-%j.out",
    "exclusive": "",
}


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    (tmp_path / "autobatch.yaml").write_text(PROFILES)
    return tmp_path


CASES = [
    pytest.param({}, None, {}, "cpu", id="nothing-said"),
    pytest.param({}, None, HEADER, "cuda", id="header"),
    pytest.param({}, "gpu", HEADER, "cuda", id="profile-over-header"),
    pytest.param({"time": "10", "gpus": "1"}, "gpu", HEADER, "cuda", id="flags-over-all"),
    pytest.param({}, "mig", HEADER, "cuda", id="one-family-replaces-another"),
]


def resources(
    flags: dict[str, str], profile: str | None, header: dict[str, str], device: str, at: Path
) -> Resources:
    found = find_profile(profile, [at]) if profile else Profile()
    return resolve_resources(flags, found, header, device=device)


@pytest.mark.parametrize(("flags", "profile", "header", "device"), CASES)
def test_sbatch_script(
    flags: dict[str, str],
    profile: str | None,
    header: dict[str, str],
    device: str,
    profiles: Path,
    make_run: MakeRun,
    request: pytest.FixtureRequest,
) -> None:
    pytest.importorskip("submitit")
    from autobatch.launch.slurm import sbatch_script
    from autobatch.runs.directory import read_run

    directory = make_run()
    run = read_run(directory, ProbeRequest(str(directory)))

    script = sbatch_script(run, resources(flags, profile, header, device, profiles), after=None)

    assert not (directory / "probe").exists()
    script = script.replace(str(run.path), "RUN").replace(sys.executable, "PYTHON")
    script = re.sub(r"\S*/bin/python3?\S*", "PYTHON", script)
    assert script == (GOLDEN / f"{request.node.callspec.id}.sbatch").read_text()


def fake_slurm(folder: Path, state: str) -> dict[str, str]:
    """An environment with a Slurm that knows one job, in `state`, and takes no other."""
    folder.mkdir()
    for name, script in {
        "scontrol": f"echo 'JobId=17 JobState={state} Reason=None'",
        "sbatch": "echo 'sbatch: error: invalid partition' >&2; exit 1",
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.mark.parametrize(
    ("name", "state", "said"),
    [
        pytest.param("run1", "PENDING", "Slurm job 17 is to probe this run already", id="queued"),
        pytest.param("run1", "COMPLETED", "invalid partition", id="ended"),
        pytest.param("50%j", "COMPLETED", "Slurm reads `%`", id="a name that Slurm would read otherwise"),
    ],
)
def test_what_is_not_submitted(make_run: MakeRun, tmp_path: Path, name: str, state: str, said: str) -> None:
    run = make_run()
    run = run.rename(run.parent / name)
    (run / "probe").mkdir()
    note = {"cluster": "slurm", "job_id": "17", "attempt": "a", "log": "", "submitted": 0.0, "host": "login"}
    (run / "probe" / "job.json").write_text(json.dumps(note))

    ended = subprocess.run(
        [sys.executable, "-m", "autobatch.cli.main", "probe", str(run), "--cluster", "slurm"],
        env=fake_slurm(tmp_path / "bin", state),
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 2
    assert said in ended.stderr
    assert json.loads((run / "probe" / "job.json").read_text()) == note


def test_after_another_job(make_run: MakeRun) -> None:
    from autobatch.launch.slurm import sbatch_script
    from autobatch.runs.directory import read_run

    directory = make_run()
    run = read_run(directory, ProbeRequest(str(directory)))

    lines = sbatch_script(run, resolve_resources({}, Profile(), {}, device="cpu"), after="17").splitlines()

    assert "#SBATCH --dependency=afterok:17" in lines
    assert "#SBATCH --kill-on-invalid-dep=yes" in lines


@pytest.mark.parametrize(
    ("flags", "profile", "options"),
    [
        pytest.param({}, {}, {"gres": "gpu:a100:1", "mem": "64G"}, id="header"),
        pytest.param({"gpus": "2"}, {}, {"gpus": "2", "mem": "64G"}, id="gpus replaces gres"),
        pytest.param(
            {}, {"mem-per-cpu": "4G"}, {"gres": "gpu:a100:1", "mem-per-cpu": "4G"}, id="mem-per-cpu, mem"
        ),
        pytest.param(
            {"mem": "8G"}, {"mem-per-cpu": "4G"}, {"gres": "gpu:a100:1", "mem": "8G"}, id="flag over all"
        ),
    ],
)
def test_precedence(flags: dict[str, str], profile: dict[str, str], options: dict[str, str]) -> None:
    header = {"gres": "gpu:a100:1", "mem": "64G", "time": "99:00:00"}

    found = resolve_resources(flags, Profile("p", options=profile), header, device="cuda")

    assert dict(found.options) == options
    assert found.time_min == 20


def test_setup_ends_the_job_at_the_first_line_that_fails(profiles: Path) -> None:
    found = resources({}, "gpu", {}, "cuda", profiles)

    assert found.setup == (
        "set -e",
        "export HF_HOME='/scratch/a user/hf'",
        "module load cuda/12.8",
        "source ~/venvs/tune/bin/activate",
        "set +e",
    )
    assert found.time_min == 15


class TestProfiles:
    def test_default_of_the_nearest_file(self, profiles: Path) -> None:
        assert find_profile(None, [profiles / "run1", profiles]).name == "gpu"

    def test_none_anywhere(self, tmp_path: Path) -> None:
        assert find_profile(None, [tmp_path]) == Profile()

    def test_an_unknown_one_lists_the_others(self, profiles: Path) -> None:
        with pytest.raises(UsageError) as caught:
            find_profile("gpus", [profiles])

        assert "there are: gpu, mig" in str(caught.value)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            pytest.param("profiles:\n  a:\n    partitoin: x\n", "did you mean partition?", id="misspelt"),
            pytest.param("profile:\n  a: {}\n", "did you mean profiles?", id="top level"),
            pytest.param("profiles: [a]\n", "must be a mapping", id="list"),
            pytest.param("profiles:\n  a: 3\n", "must be a mapping of settings", id="number"),
            pytest.param(
                "profiles:\n  a:\n    setup: module load x\n", "list of shell lines", id="setup text"
            ),
            pytest.param("profiles: {a: !!python/object:os.system {}}\n", "can't be read", id="python tag"),
            pytest.param("default: b\nprofiles:\n  a: {}\n", "default names 'b'", id="default missing"),
            pytest.param("default: [b]\nprofiles:\n  a: {}\n", "the name of a profile", id="default list"),
            pytest.param("profiles:\n  a: {partition: [x]}\n", "single value on one line", id="option list"),
            pytest.param('profiles:\n  a: {partition: "x\\ny"}\n', "on one line", id="line break"),
            pytest.param("profiles:\n  a: {environment: {A B: 1}}\n", "no name of a variable", id="variable"),
            pytest.param("profiles:\n  a: {environment: {A: [1]}}\n", "a single value", id="variable list"),
            pytest.param("[" * 3000, "can't be read", id="deep"),
            pytest.param("profiles:\n  a: [\n", "autobatch.yaml:3: can't be read", id="with its line"),
        ],
    )
    def test_what_cannot_be_used_is_said(self, text: str, message: str, tmp_path: Path) -> None:
        (tmp_path / "autobatch.yaml").write_text(text)
        name = None if text.startswith("default") else "a"

        with pytest.raises(UsageError) as caught:
            find_profile(name, [tmp_path])

        assert message in str(caught.value)
        assert str(tmp_path / "autobatch.yaml") in str(caught.value)

    def test_values_are_what_is_written(self, tmp_path: Path) -> None:
        """YAML would make 5400 of the time, 493 of the octal number and True of `yes`."""
        (tmp_path / "autobatch.yaml").write_text(
            "default: yes\nprofiles:\n  yes:\n    time: 1:30:00\n    qos:\n"
            "    environment: {MODE: 0755, ON: true, EMPTY: }\n"
        )

        profile = find_profile(None, [tmp_path])

        assert (profile.name, profile.options) == ("yes", {"time": "1:30:00"})
        assert profile.environment == {"MODE": "0755", "ON": "true", "EMPTY": ""}
        assert resolve_resources({}, profile, {}, device="cpu").time_min == 90

    def test_user_directory(self) -> None:
        assert user_directory({"XDG_CONFIG_HOME": "/x"}) == Path("/x/autobatch")
        assert user_directory({"HOME": "/home/a"}) == Path("/home/a/.config/autobatch")


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("20", 20),
        ("20:30", 21),
        ("1:00:00", 60),
        ("00:15:00", 15),
        ("1-0", 1440),
        ("1-2:30", 1590),
        ("0:0:1", 1),
        ("2-01:00:30", 2941),
    ],
)
def test_times(text: str, minutes: int) -> None:
    assert parse_minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "0", "00:00:00", "1h", "-5", "1:2:3:4", "9" * 5000])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_minutes(text)

    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("header", "asked"),
    [
        pytest.param({}, {"gpus-per-node": "4"}, id="nothing said"),
        pytest.param({"gres": "gpu:a100:4", "nodes": "2"}, {"gres": "gpu:a100:4"}, id="header"),
        pytest.param(
            {"ntasks-per-node": "4", "cpus-per-task": "8", "gpus-per-task": "1"},
            {"cpus-per-task": "32", "gpus-per-node": "4"},
            id="a task for each rank",
        ),
    ],
)
def test_one_task_starts_all_ranks_of_a_node(header: dict[str, str], asked: dict[str, str]) -> None:
    found = resolve_resources({}, Profile(), header, device="cuda", world=World(2, 4, 8))

    assert found.options == asked


def test_the_probe_of_two_nodes_runs_on_the_first(make_run: MakeRun) -> None:
    from autobatch.launch.slurm import sbatch_script
    from autobatch.launch.submission import resources_for
    from autobatch.runs.directory import read_run

    path = make_run()
    script = path / "finetune.slurm"
    single = "tune run lora_finetune_single_device"
    distributed = "tune run --nnodes 2 --nproc_per_node 4 lora_finetune_distributed"
    script.write_text(script.read_text().replace(single, distributed))
    run = read_run(path, ProbeRequest(str(path)))

    lines = sbatch_script(run, resources_for(run, {}, Profile())).splitlines()

    assert run.world == World(2, 4, 8)
    assert {"#SBATCH --nodes=2", "#SBATCH --ntasks-per-node=1"} <= set(lines)
    assert " --nodes=1 --ntasks=1 " in next(line for line in lines if line.startswith("srun "))


@pytest.mark.parametrize(
    ("named", "number"),
    [pytest.param(None, signal.SIGUSR2, id="USR2"), pytest.param("USR1", signal.SIGUSR1, id="USR1")],
)
@pytest.mark.parametrize(
    ("seconds_left", "requeues"),
    [pytest.param(600, True, id="preempted"), pytest.param(60, False, id="late")],
)
def test_a_warning_of_the_time_limit_requeues_nothing(
    named: str | None,
    number: signal.Signals,
    seconds_left: int,
    requeues: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setenv("SLURM_JOB_ID", "28")
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + seconds_left))
    environment = {"SUBMITIT_PREEMPT_SIGNAL": named}
    heard = []
    before = {one: signal.getsignal(one) for one in (number, signal.SIGTERM)}
    try:
        # As submitit has done by then.
        signal.signal(number, lambda got, _: heard.append(got))
        begin_job(environment)
        signal.raise_signal(number)
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)

    assert heard == ([number] if requeues else [])


def test_the_report_is_drawn_though_slurm_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def sleep_instead(_: object, **settings: Any) -> None:
        started.append(subprocess.Popen(["sleep", "60"], preexec_fn=settings["preexec_fn"]))
        raise OSError("nothing to draw")

    monkeypatch.setattr(subprocess, "run", sleep_instead)
    draw_report(ProbeResult(Status.CRASHED, "", ProbeRequest(str(tmp_path))), tmp_path)
    (drawing,) = started
    try:
        drawing.send_signal(signal.SIGUSR2)
        time.sleep(0.3)
        code = drawing.poll()
    finally:
        drawing.kill()
        drawing.wait()

    assert code is None
