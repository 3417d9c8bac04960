"""The command line as a user meets it: in processes of its own, by output and exit code."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import pytest

import autobatch
from autobatch.cli.main import COMMANDS, main
from autobatch.errors import UsageError
from autobatch.records import Device, ProbeRequest, ProbeResult, Status, from_json, to_json
from tests.conftest import MakeRun, files_of

AUTOBATCH = Path(sys.executable).parent / "autobatch"

#: What no command may import before its job runs.
HEAVY = ("torch", "torchtune", "torchao", "datasets")

Ended = subprocess.CompletedProcess[str]


def call(*words: object, **environment: str) -> Ended:
    """Run a command line; without a terminal."""
    return subprocess.run(
        [AUTOBATCH, *map(str, words)],
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def imported_by(*words: object) -> tuple[int, list[str]]:
    """The exit code of a command line, and which of `HEAVY` and submitit it has imported."""
    code = (
        "import sys; from autobatch.cli.main import main; code = main(sys.argv[1:]); "
        f"print([n for n in {(*HEAVY, 'submitit')!r} if n in sys.modules], file=sys.stderr); sys.exit(code)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False
    )
    return ended.returncode, ended.stderr.splitlines()[-1:]


def shortest(command: list[str], repeats: int = 5) -> float:
    """Seconds that the quickest of some calls takes."""

    def once() -> float:
        began = time.perf_counter()
        subprocess.run(command, capture_output=True, check=True)
        return time.perf_counter() - began

    return min(once() for _ in range(repeats))


def wait_until(true: Callable[[], bool], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)


def tree(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


class TestHelp:
    def test_is_quick(self) -> None:
        seconds = shortest([str(AUTOBATCH), "--help"])
        python = shortest([sys.executable, "-c", "pass"])

        # On a loaded machine Python itself is slow to start.
        assert seconds < max(0.3, 8 * python)

    def test_lists_every_command_and_ends_with_an_example(self) -> None:
        ended = call("--help")

        assert ended.returncode == 0
        assert re.findall(r"(?m)^    (\w+)", ended.stdout) == list(COMMANDS)
        assert ended.stdout.endswith("example:\n  $ autobatch probe runs/run1\n")

    @pytest.mark.parametrize("command", COMMANDS)
    def test_of_a_command_ends_with_an_example_of_it(self, command: str) -> None:
        ended = call(command, "--help")

        assert ended.returncode == 0
        heading, *lines = ended.stdout.split("\n\n")[-1].splitlines()
        assert heading.startswith("example")
        assert lines[0].removeprefix("  $").lstrip().startswith(f"autobatch {command} ")

    @pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=" ".join)
    def test_imports_nothing_heavy(self, command: tuple[str, ...]) -> None:
        code = (
            "import sys; from autobatch.cli.main import main\n"
            "try: main(sys.argv[1:])\n"
            f"finally: print([n for n in {(*HEAVY, 'submitit', 'yaml', 'rich')!r} if n in sys.modules])"
        )

        ended = subprocess.run(
            [sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True, check=True
        )

        assert ended.stdout.splitlines()[-1] == "[]"

    def test_version(self) -> None:
        assert call("--version").stdout == f"autobatch {autobatch.__version__}\n"


class TestWrongUsage:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            pytest.param(["probe", "no/such/run"], "no/such/run: no such directory", id="no such directory"),
            pytest.param(["probe"], "the following arguments are required: PATH", id="no run"),
            pytest.param(["probe", "{run}", "--capacity", "much"], "'much' is not a size", id="capacity"),
            pytest.param(["probe", "{run}", "--capacity", "0GiB"], "at least one byte", id="no capacity"),
            pytest.param(["probe", "{run}", "--target", "1.5"], "target 1.5 is not in (0, 1]", id="target"),
            pytest.param(["probe", "{run}", "--target", "nan"], "target nan is not in (0, 1]", id="nan"),
            pytest.param(
                ["probe", "{run}", "--target", "most"], "invalid float value: 'most'", id="no number"
            ),
            pytest.param(["probe", "{run}", "--steps", "1"], "--steps 1 is less than 2", id="steps"),
            pytest.param(["probe", "{run}", "--trial-timeout", "0"], "is not a time", id="trial timeout"),
            pytest.param(
                ["probe", "{run}", "--max-batch-size", "0"], "--max-batch-size 0 is less than 1", id="cap"
            ),
            pytest.param(
                ["probe", "--hold-effective-batch", "{run}"], "write RUN before", id="effective batch"
            ),
            pytest.param(
                ["probe", "{run}", "--hold-effective-batch", "0"],
                "--hold-effective-batch 0 is less than 1",
                id="no effective batch",
            ),
            pytest.param(["probe", "{run}", "--colour", "blue"], "--colour blue", id="unknown option"),
            pytest.param(
                ["probe", "{run}", "--pack", "--unpacked"],
                "--unpacked: not allowed with argument --pack",
                id="pack and unpacked",
            ),
            pytest.param(
                ["probe", "{run}", "--cluster", "cloud"],
                "invalid choice: 'cloud'",
                id="cluster",
            ),
            pytest.param(["probe", "{run}", "--metric", "resident"], "invalid choice", id="metric"),
            pytest.param(["probe", "{run}", "--recipe", "lora"], "no recipe 'lora'", id="recipe"),
            pytest.param(["prob", "{run}"], "invalid choice: 'prob'", id="unknown command"),
            pytest.param([], "the following arguments are required: COMMAND", id="no command"),
            pytest.param(["report", "{run}"], "the run wasn't probed yet", id="report of an unprobed run"),
            pytest.param(["report", "no/such/run"], "no such file", id="report of no run"),
        ],
    )
    def test_exits_with_2_says_what_and_does_nothing(
        self, make_run: MakeRun, words: list[str], message: str
    ) -> None:
        run = make_run()
        before = tree(run.parent)

        ended = call(*(word.format(run=run) for word in words))

        assert ended.returncode == 2
        assert ended.stdout == ""
        assert message in ended.stderr
        assert "Traceback" not in ended.stderr
        assert tree(run.parent) == before

    def test_slurm_where_there_is_none(self, make_run: MakeRun, tmp_path: Path) -> None:
        run = make_run()
        before = tree(run.parent)

        ended = call("probe", run, "--cluster", "slurm", PATH=str(tmp_path))

        assert ended.returncode == 2
        assert ended.stdout == ""
        assert "there is no sbatch on the PATH" in ended.stderr
        assert "--cluster local" in ended.stderr
        assert tree(run.parent) == before

    def test_all_problems_of_a_run_at_once_with_their_lines(self, make_run: MakeRun) -> None:
        run = make_run()
        config = run / "finetune.yaml"
        text = config.read_text()
        text = text.replace("batch_size: 4 ", "batch_size: many ").replace("dtype: fp32", "dtype: fp16")
        config.write_text(text)

        ended = call("probe", run)

        assert ended.returncode == 2
        for key in ("batch_size", "dtype"):
            line = next(n for n, row in enumerate(text.splitlines(), 1) if row.startswith(f"{key}:"))
            assert f"finetune.yaml:{line}: {key} is" in ended.stderr


def damaged(probed: dict[str, Any], **changes: object) -> str:
    return json.dumps(probed | changes)


RESULT = to_json(
    ProbeResult(
        Status.DONE,
        "batch_size 4",
        ProbeRequest("run"),
        device=Device("cpu", "CPU", 2**30),
        capacity_bytes=2**30,
        batch_size=4,
    )
)
NOTE = {"cluster": "local", "job_id": "1", "attempt": "a", "log": "", "submitted": 0.0}


class TestDamagedFiles:
    """Whatever stands in `probe/`: a message and a documented exit code."""

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            pytest.param("result.json", "", id="empty"),
            pytest.param("result.json", json.dumps(RESULT)[:200], id="truncated"),
            pytest.param("result.json", "[" * 100_000, id="deep"),
            pytest.param("result.json", damaged(RESULT, device=None, capacity_bytes=None), id="no device"),
            pytest.param("result.json", damaged(RESULT, message=""), id="no message"),
            pytest.param("result.json", damaged(RESULT, seconds=float("nan")), id="not a number"),
            pytest.param("result.json", damaged(RESULT, seconds=10**400), id="beyond a float"),
            pytest.param("result.json", damaged(RESULT, schema_version=99), id="newer"),
            pytest.param("result.json", damaged(RESULT, message="\udcff ±"), id="no UTF-8"),
            pytest.param("job.json", "[" * 100_000, id="deep note"),
            pytest.param("job.json", json.dumps(NOTE | {"submitted": "abc"}), id="no time"),
            pytest.param("job.json", json.dumps(dict.fromkeys(NOTE)), id="nulls"),
            pytest.param("job.json", json.dumps(NOTE | {"job_id": "abc"}), id="no process"),
            pytest.param("events.jsonl", "[" * 100_000 + "\n", id="deep event"),
            pytest.param("events.jsonl", None, id="a directory for events"),
        ],
    )
    def test_are_said(self, make_run: MakeRun, capfd: Any, name: str, content: str | None) -> None:
        run = make_run()
        probe = run / "probe"
        probe.mkdir()
        (probe / "job.json").write_text(json.dumps(NOTE))
        if content is None:
            (probe / name).mkdir()
        else:
            (probe / name).write_text(content)
        codes = {}

        for words in (
            ["report"],
            ["report", "--json"],
            ["verify"],
            ["status"],
            ["status", "--json"],
            ["cancel"],
        ):
            codes[" ".join(words)] = main([*words, str(run)])
            said = capfd.readouterr()
            assert "a bug in autobatch" not in said.err
            if "--json" in words:
                json.loads(said.out)

        assert codes["status"] == codes["status --json"] == 0
        assert codes["verify"] == codes["cancel"] == 1
        assert codes["report"] == codes["report --json"]
        assert codes["report"] in (0, 2)

    def test_one_run_does_not_hide_the_others(self, make_run: MakeRun, capfd: Any) -> None:
        run = make_run()
        shutil.copytree(run, run.parent / "run2")
        (run / "probe").mkdir()
        (run / "probe" / "result.json").write_text(damaged(RESULT, schema_version=99))

        code = main(["status", "--json", str(run.parent)])

        states = {Path(s["run"]).name: s["state"] for s in json.loads(capfd.readouterr().out)}
        assert (code, states) == (0, {"run1": "unknown", "run2": "not probed"})

    def test_of_several_paths_each_run_once(self, make_run: MakeRun, capfd: Any) -> None:
        run = make_run()
        shutil.copytree(run, run.parent / "run2")

        code = main(["status", str(run.parent / "run2" / "finetune.yaml"), "--json", str(run.parent)])

        assert code == 0
        assert [Path(s["run"]).name for s in json.loads(capfd.readouterr().out)] == ["run2", "run1"]


class TestErrorsAsJson:
    @pytest.mark.parametrize(
        ("words", "said"),
        [
            pytest.param(["probe", "no/such/run", "--json"], "no such directory", id="no run"),
            pytest.param(["probe", "--json"], "required: PATH", id="a word missing"),
            pytest.param(["probe", "run", "--jso", "--cluster", "cloud"], "invalid choice", id="abbreviated"),
            pytest.param(["report", "no/such/run", "--json"], "no such file or directory", id="report"),
            pytest.param(["verify", "no/such/run", "--json"], "no such directory", id="verify"),
            pytest.param(["status", "no/such/run", "--json"], "no finetune.yaml", id="status"),
            pytest.param(["status", "x" * 300, "--json"], "File name too long", id="the system's own"),
        ],
    )
    def test_stdout_has_the_message_and_the_exit_code(self, words: list[str], said: str, capfd: Any) -> None:
        code = main(words)

        output = capfd.readouterr()
        answer = json.loads(output.out)
        assert set(answer) == {"error", "exit_code"}
        assert answer["exit_code"] == code == 2
        assert said in answer["error"]
        assert said in output.err

    def test_only_with_json(self, capfd: Any) -> None:
        code = main(["status", "x" * 300])

        assert code == 2
        assert capfd.readouterr().out == ""

    def test_a_disk_that_is_full(self, make_run: MakeRun) -> None:
        with Path("/dev/full").open("w") as full:
            ended = subprocess.run(
                [AUTOBATCH, "status", make_run()], stdout=full, stderr=subprocess.PIPE, text=True, check=False
            )

        assert ended.returncode == 2
        assert ended.stderr == "autobatch: No space left on device\n"

    def test_a_reader_that_has_gone(self, make_run: MakeRun) -> None:
        reading, writing = os.pipe()
        os.close(reading)

        ended = subprocess.run(
            [AUTOBATCH, "status", make_run()], stdout=writing, stderr=subprocess.PIPE, text=True, check=False
        )

        os.close(writing)
        assert (ended.returncode, ended.stderr) == (141, "")


class TestFilesInTheWay:
    """What the answer couldn't be written into is said before anything is measured."""

    @pytest.mark.parametrize(
        "name", ["../runs_plan.md", "probe/result.json", "probe/job.json", "probe/events.jsonl", "probe/lock"]
    )
    def test_a_directory(self, make_run: MakeRun, name: str) -> None:
        run = make_run()
        (run / name).unlink(missing_ok=True)
        (run / name).mkdir(parents=True)
        before = tree(run.parent)

        ended = call("probe", run, "--cluster", "inline", "--json")

        assert ended.returncode == 2
        assert str((run / name).resolve()) in json.loads(ended.stdout)["error"].replace("run1/../", "")
        assert {name: text for name, text in tree(run.parent).items() if "/probe/" not in name} == before

    @pytest.mark.parametrize("name", ["probe", "probe/job"])
    def test_a_file(self, make_run: MakeRun, name: str) -> None:
        run = make_run()
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("mine")

        ended = call("probe", run, "--cluster", "inline")

        assert ended.returncode == 2
        assert "move away what is in its place" in ended.stderr
        assert (run / name).read_text() == "mine"

    @pytest.mark.parametrize("name", [b"a\nb", b"r\xff", b"${oc.env:HOME}"], ids=ascii)
    def test_a_name_that_no_config_can_hold(self, make_run: MakeRun, name: bytes) -> None:
        run = make_run()
        renamed = Path(os.fsdecode(os.fsencode(run.parent) + b"/" + name))
        run.rename(renamed)

        ended = call("probe", renamed, "--cluster", "inline")

        assert ended.returncode == 2
        assert "rename it" in ended.stderr
        assert not (renamed / "probe").exists()

    def test_a_link_that_leads_to_itself(self, tmp_path: Path) -> None:
        (tmp_path / "run1").symlink_to("run1")

        ended = call("probe", tmp_path / "run1")

        assert ended.returncode == 2
        assert "run1: can't be read: " in ended.stderr


class TestDryRun:
    def test_says_what_would_be_done_and_does_nothing(self, make_run: MakeRun, tmp_path: Path) -> None:
        run = make_run()
        before = tree(run.parent)

        ended = call("probe", run, "--dry-run", "--capacity", "40GiB", "--target", "0.5", PATH=str(tmp_path))

        assert ended.returncode == 0
        lines = dict(line.split(": ", 1) for line in ended.stdout.splitlines() if ": " in line)
        assert lines["run"] == str(run)
        assert lines["recipe"].startswith("lora_finetune_single_device, from finetune.slurm:")
        assert lines["cluster"] == "local"
        assert lines["target"] == "50 % of 40.0 GiB"
        assert lines["would write"] == f"{run}/finetune.yaml, {run.parent}/runs_plan.md, {run}/probe/"
        assert tree(run.parent) == before

    def test_as_json(self, make_run: MakeRun) -> None:
        run = make_run()

        ended = call("probe", run, "--dry-run", "--json", "--cluster", "inline", "--capacity", "1GiB")

        plan = json.loads(ended.stdout)
        assert plan["cluster"] == "inline"
        assert plan["request"]["run_dir"] == str(run)
        assert plan["request"]["capacity_bytes"] == 2**30
        assert plan["would_write"] == [f"{run}/finetune.yaml", f"{run.parent}/runs_plan.md", f"{run}/probe/"]

    def test_imports_neither_torch_nor_submitit(self, make_run: MakeRun) -> None:
        assert imported_by("probe", make_run(), "--dry-run", "--cluster", "inline") == (0, ["[]"])


@pytest.mark.recipe
class TestProbe:
    def test_local_through_submitit_and_its_report(self, make_run: MakeRun) -> None:
        run = make_run("misbehaving.py", misbehaviour="flat")
        before = files_of(run)

        ended = call("probe", run, "--cluster", "local", "--max-batch-size", "2", "--no-estimate")

        assert ended.returncode == 0, ended.stderr
        diffs, _, answer = ended.stdout.rpartition("\n\n")
        assert answer.startswith("batch_size 2 (peak ")
        assert "--max-batch-size is the limit, not the memory\n" in answer
        assert "\npacking density " in answer
        assert answer.endswith("written: finetune.yaml, ../runs_plan.md\n")
        assert "\n-batch_size: 4 " in diffs
        assert "\n+batch_size: 2 " in diffs
        assert f"+++ {run.parent}/runs_plan.md" in diffs
        talk = ended.stderr.splitlines()
        assert talk[0] == "cluster: local (--cluster local)"
        assert [line.split()[-1] for line in talk[-2:]] == ["fits", "fits"]
        assert "batch_size 2 (peak" not in ended.stderr
        assert files_of(run) != before
        assert (run / "probe" / "report.html").read_text().startswith("<!doctype html>")
        assert (run / "probe" / "report.png").read_bytes().startswith(b"\x89PNG")

        report = call("report", run)
        assert report.returncode == 0
        rows = [line.split() for line in report.stdout.splitlines()]
        assert ["batch_size", "peak", "of", "capacity", "tokens/s", "time", "verdict"] in rows
        assert [row[0] for row in rows if row[-1:] == ["fits"]] == ["1", "2"]
        assert answer.splitlines()[0] in report.stdout
        as_json = call("report", run, "--json")
        result = from_json(ProbeResult, json.loads(as_json.stdout))
        assert (result.status, result.batch_size) == (Status.DONE, 2)

    def test_no_wait_prints_the_job_id_alone(self, make_run: MakeRun) -> None:
        run = make_run("misbehaving.py", misbehaviour="flat")

        ended = call("probe", run, "--cluster", "local", "--max-batch-size", "1", "--no-wait")

        assert ended.returncode == 0
        assert ended.stdout.rstrip("\n").isdigit()
        assert ended.stdout.count("\n") == 1
        assert "log: " in ended.stderr
        result = run / "probe" / "result.json"
        wait_until(result.exists, "the job goes on by itself and answers")
        assert json.loads(result.read_text())["batch_size"] == 1
        wait_until(lambda: not alive(int(ended.stdout)), "the job ends")

    def test_json_of_a_probe_whose_report_cant_be_drawn(self, make_run: MakeRun) -> None:
        run = make_run("misbehaving.py", misbehaviour="flat")
        (run / "probe" / "report.html").mkdir(parents=True)

        ended = call("probe", run, "--cluster", "inline", "--max-batch-size", "1", "--json")

        result = from_json(ProbeResult, json.loads(ended.stdout))
        assert ended.returncode == 0
        assert (result.status, result.batch_size, result.batch_size_before) == (Status.DONE, 1, 4)
        assert json.loads((run / "probe" / "result.json").read_text()) == json.loads(ended.stdout)
        assert f"the report wasn't drawn: {run}/probe/report.html: " in ended.stderr

    @pytest.mark.parametrize(
        ("misbehaviour", "options", "code", "said"),
        [
            pytest.param("none", ["--capacity", "1MiB"], 1, "nothing fits: batch_size 1 ", id="nothing fits"),
            pytest.param("leaves early", [], 3, "the recipe ended by itself with 0", id="crashed"),
        ],
    )
    def test_a_refusal_has_its_exit_code_and_its_report(
        self, make_run: MakeRun, misbehaviour: str, options: list[str], code: int, said: str
    ) -> None:
        run = make_run("misbehaving.py", misbehaviour=misbehaviour)
        before = files_of(run)

        ended = call("probe", run, "--cluster", "inline", *options)

        assert (ended.returncode, ended.stdout) == (code, "")
        assert said in ended.stderr
        assert "Traceback" not in ended.stderr
        assert files_of(run) == before
        assert said in unescape((run / "probe" / "report.html").read_text())
        report = call("report", run)
        assert report.returncode == code
        assert said in report.stdout


def alive(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


class TestPythonCall:
    @pytest.mark.recipe
    def test_probe_returns_the_result_and_imports_no_torch(self, make_run: MakeRun) -> None:
        run = make_run("misbehaving.py", misbehaviour="flat")
        code = f"""
import json, sys
import autobatch
events = []
result = autobatch.probe(sys.argv[1], cluster="inline", max_batch_size=1, on_event=events.append)
print(json.dumps({{
    "batch_size": result.batch_size,
    "is a ProbeResult": isinstance(result, autobatch.ProbeResult),
    "heavy": [name for name in {HEAVY!r} if name in sys.modules],
    "events": [type(event).__name__ for event in events],
}}))
"""

        ended = subprocess.run(
            [sys.executable, "-c", code, run], capture_output=True, text=True, check=True, timeout=300
        )

        said: dict[str, Any] = json.loads(ended.stdout)
        events = said.pop("events")
        assert said == {"batch_size": 1, "is a ProbeResult": True, "heavy": []}
        assert (events[0], events[-1]) == ("Began", "Ended")

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            pytest.param({"cluster": "cloud"}, "must be one of auto, slurm, local, inline", id="cluster"),
            pytest.param({"metric": "used"}, "must be one of reserved, allocated, device", id="metric"),
            pytest.param({"packing": "both"}, "must be one of config, pack, unpacked", id="packing"),
            pytest.param({"capacity": "much"}, "'much' is not a size", id="capacity"),
            pytest.param({"capacity": 0}, "--capacity 0 is less than 1", id="capacity in bytes"),
            pytest.param({"target": 0}, "target 0 is not in (0, 1]", id="target"),
            pytest.param({"prefer": "speed"}, "must be one of memory, throughput", id="prefer"),
            pytest.param({"effective_batch_in": "tokens"}, "must be one of sequences, examples", id="unit"),
            pytest.param(
                {"hold_effective_batch": 0}, "--hold-effective-batch 0 is less", id="effective batch"
            ),
        ],
    )
    def test_arguments_that_cannot_be_used(
        self, make_run: MakeRun, options: dict[str, Any], message: str
    ) -> None:
        run = make_run()

        with pytest.raises(UsageError) as caught:
            autobatch.probe(run, **({"cluster": "inline"} | options))

        assert message in str(caught.value)
        assert not (run / "probe").exists()

    def test_no_such_attribute(self) -> None:
        with pytest.raises(AttributeError) as caught:
            _ = autobatch.prob

        assert str(caught.value) == "module 'autobatch' has no attribute 'prob'"
