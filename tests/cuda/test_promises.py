"""What a probe on a simulated card says, and doesn't do: write a batch_size, replace a real measurement."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from autobatch.errors import UsageError
from autobatch.probing.verification import failed_checks
from autobatch.records import Preference, ProbeResult, from_json
from tests.conftest import files_of
from tests.cuda.conftest import MakeRun, probe, simulate, tried


def rewritten(run: Path, **of_the_device: Any) -> None:
    """Change what result.json says of the device that was measured."""
    path = run / "probe" / "result.json"
    stored = json.loads(path.read_text())
    stored["device"].update(of_the_device)
    path.write_text(json.dumps(stored))


def test_what_a_simulated_probe_says_and_leaves_alone(run_on_card: MakeRun) -> None:
    run = run_on_card()
    before = files_of(run)

    ended = simulate("", "autobatch", "probe", run, "--cluster", "inline", "--no-estimate")

    assert ended.returncode == 0, ended.stderr
    assert files_of(run) == before
    assert "measuring on simulated NVIDIA H100 80GB HBM3: reserved memory up to 55.4 GiB" in ended.stderr
    rows = [line.split() for line in ended.stderr.splitlines() if line.endswith((" fits", " over target"))]
    # batch_size, peak, of capacity, tokens/s, time, verdict
    assert [(row[0], row[5]) for row in rows[:2]] == [("1", "-"), ("11", "-")]
    first, second, *_ = ended.stdout.splitlines()
    assert (
        first == "batch_size 11 (peak 54.0 GiB, 68.3 % of 79.1 GiB); batch_size 12 would take at least 73.3 %"
    )
    assert second == "on a simulated GPU: nothing was written to finetune.yaml and runs_plan.md"
    result = from_json(ProbeResult, json.loads((run / "probe" / "result.json").read_text()))
    assert tried(result) == [(1, "fits"), (11, "fits"), (12, "over target")]
    assert result.written == ()
    assert [trial.tokens_per_second for trial in result.trials] == [None] * 3
    assert result.device is not None
    assert (result.device.simulated, result.device.label) == (True, "simulated NVIDIA H100 80GB HBM3")
    assert "simulated NVIDIA H100 80GB HBM3" in (run / "probe" / "report.html").read_text()
    for command, words in (
        ("report", "simulated NVIDIA H100 80GB HBM3"),
        ("status", "done   on a simulated GPU: batch_size 11 (peak 54.0 GiB"),
    ):
        shown = simulate("", "autobatch", command, run)
        assert shown.returncode == 0, shown.stderr
        assert words in shown.stdout, command


def test_a_second_probe_answers_from_what_is_on_file(run_on_card: MakeRun) -> None:
    run = run_on_card()

    first, again = probe(run), probe(run)

    assert (first.reused, again.reused) == (False, True)
    assert again.message == first.message


def test_no_real_measurement_is_replaced(run_on_card: MakeRun) -> None:
    run = run_on_card()
    probe(run)
    rewritten(run, simulated=False)
    before = (run / "probe" / "result.json").read_bytes()

    with pytest.raises(UsageError) as refused:
        probe(run, force=True)

    assert str(refused.value) == (
        f"{run}/probe/result.json: holds what was measured on NVIDIA H100 80GB HBM3, and a simulated GPU would "
        "replace it: copy the run, or take `autobatch estimate`"
    )
    assert (run / "probe" / "result.json").read_bytes() == before


def test_no_throughput_is_compared(run_on_card: MakeRun) -> None:
    with pytest.raises(UsageError) as refused:
        probe(run_on_card(), prefer=Preference.THROUGHPUT)

    assert str(refused.value) == (
        "--prefer throughput: on a simulated GPU no kernel runs, so that tokens/s say nothing"
    )


class TestVerify:
    """Measured on the session's card; the answer was put into finetune.yaml by hand."""

    @pytest.fixture
    def run(self, run_on_card: MakeRun) -> Path:
        run = run_on_card()
        answer = probe(run).batch_size
        config = run / "finetune.yaml"
        config.write_text(config.read_text().replace("batch_size: 4 ", f"batch_size: {answer} "))
        return run

    def test_on_such_a_card(self, run: Path) -> None:
        assert failed_checks(run) == []

    def test_on_a_smaller_card(self, run: Path) -> None:
        ended = simulate("--gpu h100-80gb --capacity 40GiB", "autobatch", "verify", run)

        assert ended.returncode == 1
        assert (
            "simulated NVIDIA H100 80GB HBM3 has 40.0 GiB, and batch_size 11 was measured for 79.1 GiB: "
            "train on such a card, or probe here"
        ) in ended.stdout + ended.stderr

    def test_without_a_card(self, run: Path) -> None:
        ended = simulate("", "env", "CUDA_VISIBLE_DEVICES=", "autobatch", "verify", run)

        assert ended.returncode == 1
        assert "device is cuda and this machine has no such card" in ended.stdout + ended.stderr

    def test_what_was_measured_on_a_real_card(self, run: Path) -> None:
        rewritten(run, simulated=False)

        failed = failed_checks(run)

        assert failed[-1] == (
            "batch_size 11 was measured on a NVIDIA H100 80GB HBM3, and here is a simulated NVIDIA H100 80GB "
            "HBM3: probe here"
        )

    def test_another_allocator(self, run: Path) -> None:
        script = run / "finetune.slurm"
        script.write_text(
            "#!/bin/bash\nexport PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True\n"
            + script.read_text().removeprefix("#!/bin/bash\n")
        )

        failed = failed_checks(run)

        assert [line.partition(": ")[2] for line in failed] == [
            "was measured for another config, recipe, environment or other versions than these: probe again"
        ]
