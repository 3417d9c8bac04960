"""The skills: their form, installing them, and every command that one of them names, run for real."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from autobatch.cli.main import COMMANDS
from autobatch.probing.job import run_probe
from autobatch.records import ProbeRequest, Status
from autobatch.skills.catalog import Skill, skills
from tests.skill_commands import BLOCKS, substituted, write_autobatch

NAMES = {
    "plan-runs",
    "create-torchtune-config",
    "setup-experiment-dirs",
    "update-run-status",
    "monitor-jobs",
    "summarize-experiments",
}
EACH_SKILL = pytest.mark.parametrize("skill", skills(), ids=lambda skill: skill.name)

#: What a command gets besides, to end in seconds on any machine: as a skill names it, it is for a cluster.
ALSO = {"probe": "--cluster inline --max-batch-size 2"}

#: Skills whose steps are taken before the runs train; those of the others, afterwards.
BEFORE_TRAINING = {"plan-runs", "create-torchtune-config", "setup-experiment-dirs"}

#: Commands that are right to end with another exit code than 0 where they are run here.
ENDS_WITH = {
    "autobatch cancel RUN": 1,  # no probe is under way
    "autobatch density --log LOG": 1,  # torchtune 0.6.1's log counts examples, not packs
}

#: Each command once, and whether the runs have trained by then.
COMMAND_LINES = sorted(
    {
        (line, block.skill not in BEFORE_TRAINING)
        for block in BLOCKS
        if block.info == "sh"
        for line in block.commands
    }
)


class TestForm:
    def test_all_six_are_there(self) -> None:
        assert {skill.name for skill in skills()} == NAMES

    @EACH_SKILL
    def test_the_front_matter_is_what_agents_read(self, skill: Skill) -> None:
        _, front, _ = skill.text.split("---\n", 2)
        data = yaml.safe_load(front)

        assert data == {"name": skill.name, "description": skill.description}
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", skill.name)
        assert len(skill.description) <= 1024
        assert "Use when" in skill.description

    @EACH_SKILL
    def test_says_when_what_to_ask_what_it_means_and_what_on_each_exit_code(self, skill: Skill) -> None:
        headings = re.findall(r"(?m)^## (.+)$", skill.text)
        codes = re.findall(r"(?m)^\| (\d) \|", skill.text.split("## Exit codes")[1])

        assert [h for h in headings if h in WANTED] == WANTED
        assert {"0", "1", "2", "3"} <= set(codes)

    @EACH_SKILL
    def test_names_nothing_that_isnt_there(self, skill: Skill) -> None:
        text = re.sub(r"(?ms)^ *```.*?^ *```$", "", skill.text)

        named = re.findall(r"`autobatch ([a-z]+)([^`]*)`", text)
        in_tables = set(re.findall(r"skills? ([a-z]+(?:-[a-z]+)+)", text))

        assert {command for command, _ in named} <= set(COMMANDS)
        for command, rest in named:
            unknown = set(re.findall(r"--[a-z-]+", rest)) - options_of(command)
            assert unknown == set(), f"autobatch {command}{rest}"
        assert in_tables <= NAMES

    def test_the_plan_has_the_template_and_the_question(self) -> None:
        plan = next(skill.text for skill in skills() if skill.name == "plan-runs")
        (template,) = (block for block in BLOCKS if block.info == "markdown")

        bullets = [line.split("**")[1] for line in template.commands if line.startswith("- **")]

        assert template.skill == "plan-runs"
        assert bullets[1:] == [
            "Recipe", "GPUs per job", "Epochs", "Dataset packing", "Batch sizes", "Gradient accumulation",
            "LoRA alpha",
        ]  # fmt: skip
        assert "**Should dataset packing be enabled?**" in plan

    def test_every_command_is_in_a_block_that_is_run(self) -> None:
        assert {block.info for block in BLOCKS} == {"sh", "sh slurm", "markdown"}
        outside = {"autobatch", "squeue", "sbatch"}
        first = {
            line.split()[0] for block in BLOCKS if block.info.startswith("sh") for line in block.commands
        }
        assert first <= outside


WANTED = ["When to use it", "What to ask the user", "Steps", "What the output means", "Exit codes"]


def options_of(command: str) -> set[str]:
    parser = argparse.ArgumentParser()
    importlib.import_module(f"autobatch.cli.{command}").add_arguments(parser)
    return {option for action in parser._actions for option in action.option_strings}


@dataclass(frozen=True)
class Workplace:
    """Where the commands are run: always the same directory, whose results then hold."""

    directory: Path

    @property
    def experiment(self) -> Path:
        return self.directory / "experiment"

    def keep(self, state: str) -> None:
        """Remember the experiment as it is."""
        shutil.copytree(self.experiment, self.directory / state)

    def restore(self, state: str) -> None:
        """The experiment as it was then."""
        shutil.rmtree(self.experiment)
        shutil.copytree(self.directory / state, self.experiment)

    def shell(self, line: str) -> subprocess.CompletedProcess[str]:
        """Run a line in bash with this checkout's `autobatch` on the PATH."""
        path = f"{self.directory / 'bin'}:{os.environ['PATH']}"
        return subprocess.run(
            ["bash", "-c", line],
            cwd=self.directory,
            env=os.environ | {"PATH": path, "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )


@pytest.fixture(scope="module")
def workplace(laid_out: Path, tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """With an experiment whose run was probed, and the same after a few steps of training."""
    place = Workplace(tmp_path_factory.mktemp("workplace"))
    write_autobatch(place.directory / "bin")
    shutil.copytree(laid_out, place.experiment)
    run = place.experiment / "run1"
    assert run_probe(ProbeRequest(str(run), max_batch_size=2)).status is Status.DONE
    place.keep("probed")
    tune = Path(sys.executable).parent / "tune"
    words = ["run", "lora_finetune_single_device", "--config", "finetune.yaml", "max_steps_per_epoch=3"]
    with (run / "slurm-7.out").open("w") as log:
        subprocess.run([tune, *words], cwd=run, stdout=log, stderr=log, check=True, timeout=300)
    place.keep("trained")
    return place


@pytest.mark.recipe
@pytest.mark.parametrize(("line", "trained"), COMMAND_LINES)
def test_every_command_of_a_skill_runs(line: str, trained: bool, workplace: Workplace) -> None:
    workplace.restore("trained" if trained else "probed")

    ended = workplace.shell(substituted(line, ALSO))

    told = f"{line}\n{ended.stdout}{ended.stderr}"
    assert ended.returncode == ENDS_WITH.get(line, 0), told
    assert "Traceback" not in ended.stderr, told


def call(*words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `autobatch skills`, in this process."""
    from autobatch.cli.main import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["skills", *map(str, words)])
    return code, out.getvalue(), err.getvalue()


def files_below(directory: Path) -> dict[str, str]:
    return {str(p.relative_to(directory)): p.read_text() for p in directory.rglob("*") if p.is_file()}


class TestInstall:
    def test_copies_each_and_leaves_nothing_else(self, tmp_path: Path) -> None:
        place = tmp_path / ".claude" / "skills"

        code, out, err = call("install", place)

        assert (code, err) == (0, "")
        assert files_below(place) == {f"{s.name}/SKILL.md": s.text for s in skills()}
        assert out.splitlines()[0].split() == [str(place / "create-torchtune-config" / "SKILL.md"), "written"]

    def test_again_changes_nothing(self, tmp_path: Path) -> None:
        call("install", tmp_path)
        before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}

        code, out, _ = call("install", tmp_path)

        assert code == 0
        assert {line.split()[-1] for line in out.splitlines()} == {"unchanged"}
        assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before

    def test_a_file_that_differs_stops_everything(self, tmp_path: Path) -> None:
        mine = tmp_path / "plan-runs" / "SKILL.md"
        mine.parent.mkdir()
        mine.write_text("mine")

        code, out, err = call("install", tmp_path)

        assert (code, out) == (2, "")
        assert str(mine) in err
        assert "--force" in err
        assert files_below(tmp_path) == {"plan-runs/SKILL.md": "mine"}

    def test_force_replaces_it_and_leaves_others(self, tmp_path: Path) -> None:
        mine = tmp_path / "plan-runs" / "SKILL.md"
        mine.parent.mkdir()
        mine.write_text("mine")
        (tmp_path / "plan-runs" / "notes.md").write_text("kept")
        (tmp_path / "other").mkdir()

        code, out, _ = call("install", tmp_path, "--force")

        assert code == 0
        assert [line.split()[-1] for line in out.splitlines() if str(mine) in line] == ["replaced"]
        assert mine.read_text() == next(s.text for s in skills() if s.name == "plan-runs")
        assert (tmp_path / "plan-runs" / "notes.md").read_text() == "kept"
        assert (tmp_path / "other").is_dir()

    def test_list_tells_and_writes_nothing(self, tmp_path: Path) -> None:
        place = tmp_path / "skills"

        code, out, _ = call("install", place, "--list")

        assert code == 0
        assert {line.split()[-1] for line in out.splitlines()} == {"missing"}
        assert not place.exists()

    def test_a_directory_that_cant_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")

        code, out, err = call("install", tmp_path / "file" / "skills")

        assert (code, out) == (2, "")
        assert "can't be made" in err

    @pytest.mark.parametrize("words", [("install",), ("list", "somewhere"), ("--force",)], ids=" ".join)
    def test_wrong_usage(self, words: tuple[str, ...]) -> None:
        code, out, err = call(*words)

        assert (code, out) == (2, "")
        assert err.startswith("autobatch: ")

    @pytest.mark.parametrize("below", ["", "plan-runs"], ids=["the directory", "one of a skill's name"])
    def test_a_file_where_a_directory_belongs(self, tmp_path: Path, below: str) -> None:
        place = tmp_path / "skills"
        if below:
            place.mkdir()
        (place / below).write_text("a file")

        code, out, err = call("install", place)

        assert (code, out) == (2, "")
        assert "is not a directory" in err


def test_listed_with_what_they_do() -> None:
    code, out, _ = call()

    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == sorted(NAMES)
