"""Which runs are one group, and which groups one array; nothing is measured here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from autobatch.errors import RunProblems, UsageError
from autobatch.launch.groups import Group, arrays, group, read_members
from autobatch.launch.resources import Resources, resolve_resources
from autobatch.records import PackingMode, ProbeRequest
from autobatch.runs.directory import RunDirectory
from autobatch.runs.experiment import is_for_many, runs_at
from autobatch.runs.settings import Profile
from tests.conftest import MakeRun
from tests.many_runs import copy_run

REQUEST = ProbeRequest("")


def names(groups: Sequence[Group]) -> list[list[str]]:
    return [[member.run.name for member in one.members] for one in groups]


def grouped(run: Path, request: ProbeRequest = REQUEST) -> list[list[str]]:
    runs, _ = runs_at([run.parent])
    return names(group(read_members(runs, request)))


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"lr": "1e-5"}, id="learning rate"),
        pytest.param({"seed": 7}, id="seed"),
        pytest.param({"epochs": 3, "max_steps_per_epoch": 9}, id="epochs"),
        pytest.param({"output_dir": "./elsewhere"}, id="output"),
        pytest.param({"num_warmup_steps": 99}, id="schedule"),
        pytest.param({"batch_size": 9}, id="batch size"),
        pytest.param({"script": "export WANDB_NAME=run2"}, id="a tracker's variable"),
    ],
)
def test_runs_of_one_group(make_run: MakeRun, settings: dict[str, str]) -> None:
    run = make_run()
    copy_run(run, "run2", **settings)

    assert grouped(run) == [["run1", "run2"]]


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"lora_rank": 16}, id="rank"),
        pytest.param({"max_seq_len": 256}, id="length of a row"),
        pytest.param({"dtype": "bf16"}, id="dtype"),
        pytest.param({"gradient_accumulation_steps": 2}, id="gradients of a second micro-batch"),
        pytest.param({"clip_grad_norm": 1.0}, id="clipping"),
        pytest.param({"script": "export OMP_NUM_THREADS=2"}, id="variable"),
        pytest.param({"data_files": "${data_dir}/more.json"}, id="size of the dataset, on a CPU"),
    ],
)
def test_runs_of_two_groups(make_run: MakeRun, settings: dict[str, str]) -> None:
    run = make_run()
    (run.parent / "data" / "more.json").write_text((run.parent / "data" / "train.json").read_text() + "\n")
    copy_run(run, "run2", **settings)
    copy_run(run, "run3")

    assert grouped(run) == [["run1", "run3"], ["run2"]]


def test_another_dataset_of_one_size_is_no_other_group(make_run: MakeRun) -> None:
    run = make_run()
    data = run.parent / "data"
    (data / "other.json").write_bytes((data / "train.json").read_bytes())
    copy_run(run, "run2", data_files="${data_dir}/other.json")

    assert grouped(run) == [["run1", "run2"]]


def test_another_dataset_is_another_group_where_its_longest_example_decides(make_run: MakeRun) -> None:
    run = make_run()
    data = run.parent / "data"
    (data / "other.json").write_bytes((data / "train.json").read_bytes())
    copy_run(run, "run2", data_files="${data_dir}/other.json", packed=False)
    copy_run(run, "run3", packed=False)
    copy_run(run, "run4", packed=False, lr="1e-6")

    unpacked = replace(REQUEST, packing=PackingMode.UNPACKED)

    assert grouped(run, unpacked) == [["run1", "run3", "run4"], ["run2"]]


def test_on_a_card_the_size_of_the_dataset_does_not_matter(make_run: MakeRun) -> None:
    run = make_run()
    (run.parent / "data" / "more.json").write_text("[]" + " " * 99)
    copy_run(run, "run2", device="cuda", data_files="${data_dir}/more.json")
    copy_run(run, "run3", device="cuda")

    assert grouped(run) == [["run1"], ["run2", "run3"]]


def test_groups_that_ask_for_other_resources_are_other_arrays(make_run: MakeRun) -> None:
    run = make_run()
    for name in ("run2", "run3", "run4"):
        copy_run(run, name, lora_rank=name[-1])
    copy_run(run, "run5")
    gives = {"run2": {"mem": "3G"}, "run4": {"mem": "3G"}}

    def resources_of(one: RunDirectory) -> Resources:
        # The same from a flag and from the header is the same.
        flags, header = ({}, gives[one.name]) if one.name == "run2" else (gives.get(one.name, {}), {})
        return resolve_resources(flags, Profile(), header, device="cpu")

    runs, _ = runs_at([run.parent])
    groups = group(read_members(runs, REQUEST, resources_of))

    assert names(groups) == [["run1", "run5"], ["run2"], ["run3"], ["run4"]]
    split = [names(tasks) for tasks in arrays(groups)]
    assert split == [[["run1", "run5"], ["run3"]], [["run2"], ["run4"]]]


def test_everything_that_is_wrong_with_any_run_is_said_at_once(make_run: MakeRun) -> None:
    run = make_run()
    bad = copy_run(run, "run2", batch_size="many")
    worse = copy_run(run, "run3", dtype="fp17")
    (copy_run(run, "run4") / "finetune.yaml").write_text("[")

    def resources_of(one: RunDirectory) -> None:
        raise UsageError(f"{one.name}: no such profile")

    with pytest.raises(RunProblems) as problems:
        read_members([bad, worse, run], REQUEST)
    with pytest.raises(UsageError) as mixed:
        read_members([run, bad, run.parent / "run4"], REQUEST, resources_of)

    where = [problem.where for problem in problems.value.problems]
    line = next(
        number
        for number, text in enumerate((bad / "finetune.yaml").read_text().splitlines(), 1)
        if text.startswith("batch_size:")
    )
    assert f"{bad / 'finetune.yaml'}:{line}" in where
    assert any(str(worse) in one for one in where)
    for said in ("run1: no such profile", "run2/finetune.yaml:", "run4/finetune.yaml:"):
        assert said in str(mixed.value)


class TestPaths:
    def test_an_experiment_several_runs_and_what_is_none(self, make_run: MakeRun) -> None:
        run = make_run()
        second = copy_run(run, "run2")
        # What an array writes is no run.
        (run.parent / "probe" / "job").mkdir(parents=True)

        runs, notes = runs_at([run / "finetune.yaml", run.parent / "data", run.parent])

        assert runs == [run, second]
        assert notes == [f"{run.parent / 'data'}: no finetune.yaml here or one level below; passed over"]

    def test_every_missing_path_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError) as caught:
            runs_at([tmp_path / "a", tmp_path, tmp_path / "b"])

        assert str(caught.value).splitlines() == [
            f"{tmp_path / name}: no such file or directory" for name in ("a", "b")
        ]

    def test_no_run_anywhere(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError) as caught:
            runs_at([tmp_path])

        assert "no finetune.yaml here or one level below" in str(caught.value)

    def test_one_run_is_not_many(self, make_run: MakeRun) -> None:
        run = make_run()

        assert not is_for_many([run])
        assert not is_for_many([run / "finetune.yaml"])
        assert is_for_many([run.parent])
        assert is_for_many([run, run])
