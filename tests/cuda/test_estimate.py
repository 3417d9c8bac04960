"""`autobatch estimate`: trials on a simulated GPU, in a process of their own, and what a probe makes of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autobatch.estimate.on_file import forecast
from autobatch.probing.job import run_probe
from autobatch.records import Density, ProbeRequest, ProbeResult, Status, to_json
from autobatch.simulated_gpu.environment import SETTINGS
from tests.cuda.conftest import GIB, MIB, MakeRun, probe, simulate, tried


def estimate(run: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """As a user types it, where there is no GPU, simulated or not."""
    clean = {name: value for name, value in os.environ.items() if name not in (SETTINGS, "LD_PRELOAD")}
    command = [sys.executable, "-m", "autobatch.cli.main", "estimate", str(run), *words]
    return subprocess.run(command, env=clean, capture_output=True, text=True, check=False)


def estimated(run: Path, *words: str) -> dict[str, Any]:
    ended = estimate(run, "--json", *words)
    assert ended.returncode == 0, ended.stderr
    found: dict[str, Any] = json.loads(ended.stdout)
    return found


def sizes(found: dict[str, Any]) -> list[tuple[int, str]]:
    return [(trial["batch_size"], trial["verdict"]) for trial in found["trials"]]


def test_both_ends_of_the_bracket_are_run(run_on_card: MakeRun) -> None:
    ended = estimate(run_on_card())

    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[0].endswith("packs of 128 tokens")
    # 70 % of 79.11 GiB: 10 and 4 for each of 11.
    assert lines[1] == (
        "batch_size 11 fits in 70 % of h100-80gb (79.1 GiB): 54.0 GiB; 12 takes at least 58.0 GiB, at least "
        "73.3 % (simulated)"
    )
    told = ended.stderr.splitlines()
    assert told[0] == "simulating NVIDIA H100 80GB HBM3, 79.1 GiB: memory is counted, nothing is computed"
    assert [line.partition(" (")[0] for line in told[1:4]] == [
        "batch_size 1: 14.0 GiB, 17.7 %, fits",
        "batch_size 11: 54.0 GiB, 68.3 %, fits",
        "batch_size 12: at least 58.0 GiB, at least 73.3 %, over target",
    ]


def test_other_gpus_lie_on_the_line_unless_their_kernels_are_others(run_on_card: MakeRun) -> None:
    # A script may choose among real cards; one is simulated.
    found = estimated(run_on_card(exports="export CUDA_VISIBLE_DEVICES=3"))

    others = {gpu["gpu"]: (gpu["batch_size"], gpu["simulated"]) for gpu in found["gpus"]}
    # 70 % of 39.39 and of 139.80 GiB.
    assert others["a100-40gb"] == (4, False)
    assert others["h200-141gb"] == (21, False)
    assert others["t4-16gb"] == (None, False)
    assert others["v100-32gb"] == (None, False)
    (t4,) = (gpu["why"] for gpu in found["gpus"] if gpu["gpu"] == "t4-16gb")
    assert t4 == "other kernels: --gpu t4-16gb runs them"


def test_what_if_and_a_size_of_ones_own(run_on_card: MakeRun) -> None:
    found = estimated(
        run_on_card(),
        "--gpu",
        "a100-40gb",
        "--batch-size",
        "9",
        "--what-if",
        "each_gib=1",
        "--what-if",
        "how=bends",
    )

    # 10 and 4 for each of 9 are more than the card has.
    assert (found["batch_size"], found["reserved_bytes"]) == (9, None)
    assert found["fitting"]["batch_size"] == 4
    rows = [(row["settings"], row["peak_bytes"], row["fitting"]["batch_size"]) for row in found["what_if"]]
    assert rows == [("", None, 4), ("each_gib=1", 19 * GIB, 17), ("how=bends", None, 4)]


def test_not_even_one(run_on_card: MakeRun) -> None:
    ended = estimate(run_on_card(each_gib=80))

    assert ended.returncode == 0, ended.stderr
    answer = ended.stdout.splitlines()[1]
    assert answer == (
        "not even batch_size 1 fits in 70 % of h100-80gb (79.1 GiB): it runs out of memory (simulated)"
    )


def test_a_probe_begins_with_the_estimate_on_file(run_on_card: MakeRun) -> None:
    run = run_on_card()
    first = estimated(run)

    again = estimated(run, "--target", "0.6")
    result = run_probe(ProbeRequest(str(run)), forecaster=forecast)

    assert sizes(first) == [(1, "fits"), (11, "fits"), (12, "over target")]
    assert first["reused"] == 0
    # 47.5 GiB: what is on file is judged anew, and one more is run.
    assert again["fitting"]["batch_size"] == 9
    assert again["reused"] > 0
    assert tried(result) == [(11, "fits"), (12, "over target")]
    assert result.prediction is not None
    assert (result.prediction.batch_size, result.prediction.peak_bytes) == (11, 54 * GIB)


def test_a_gpu_that_this_torch_has_no_kernels_for(run_on_card: MakeRun) -> None:
    import torch

    volta = "sm_70" in (torch._C._cuda_getArchFlags() or "").split()

    ended = estimate(run_on_card(fixed_gib=1), "--gpu", "v100-32gb")

    assert ended.returncode == (0 if volta else 1)
    refusal = f"no estimate: torch {torch.__version__} has no kernels for Tesla V100-SXM2-32GB (sm_70)"
    assert (refusal in ended.stderr) is not volta


def test_settings_of_its_own_are_not_kept(run_on_card: MakeRun) -> None:
    run = run_on_card()

    found = estimated(run, "--set", "each_gib=2")

    assert found["fitting"]["batch_size"] == 22
    assert not (run / "probe" / "estimate.json").exists()


@pytest.mark.recipe
def test_a_probe_finds_the_kernels_of_an_estimate(make_run: MakeRun) -> None:
    run = make_run()
    found = estimated(run, "--capacity", "600MiB")
    largest = found["fitting"]["batch_size"]
    kernels = run / "probe" / "kernels"
    compiled = {path.name for path in kernels.rglob("*.cubin")}
    # Which of several kernels is the fastest, a simulated GPU doesn't know.
    assert not list(kernels.rglob("*.best_config"))

    # Where no GPU is simulated, no cache is chosen either.
    ended = simulate(
        "--capacity 600MiB",
        *("env", "-u", "TORCHINDUCTOR_CACHE_DIR", "-u", "TRITON_CACHE_DIR"),
        # The size beyond would be one that the estimate hasn't run, should the caches' state decide between two.
        *("autobatch", "probe", run, "--cluster", "inline", "--max-batch-size", str(largest)),
    )

    assert ended.returncode == 0, ended.stderr
    assert "estimate on a simulated GPU: batch_size" in ended.stderr
    result = json.loads((run / "probe" / "result.json").read_text())
    assert [trial["batch_size"] for trial in result["trials"]] == [largest]
    assert compiled
    assert {path.name for path in kernels.rglob("*.cubin")} == compiled


@pytest.mark.recipe
def test_rank_0_alone_takes_what_it_takes_among_others(make_run: MakeRun) -> None:
    run = make_run(recipe="--nproc_per_node 2 lora_finetune_distributed")

    found = estimated(run, "--capacity", "1GiB", "--batch-size", "40", "--target", "0.1")
    result = probe(run, max_batch_size=40)

    (measured,) = (trial for trial in result.trials if trial.batch_size == 40)
    (simulated,) = (trial for trial in found["trials"] if trial["batch_size"] == 40)
    assert found["world"]["processes_per_node"] == 2
    # What is reserved depends on which rank has benchmarked the kernels, in a buffer that the cache keeps.
    assert simulated["peaks_bytes"]["allocated"] == measured.peaks_by_rank[0]["allocated"] > 100 * MIB


def test_a_run_on_cpu_is_estimated_for_a_gpu(run_on_card: MakeRun) -> None:
    run = run_on_card(device="cpu")

    ended = estimate(run, "--set", "dtype=fp32")

    assert ended.returncode == 0, ended.stderr
    assert "device is cpu; the figures are for a GPU, as with device: cuda" in ended.stderr
    assert not (run / "probe").exists()


def test_a_density_is_shown_only_of_packs_as_long(run_on_card: MakeRun) -> None:
    run = run_on_card()
    density = Density(True, examples=600, packs=100, tokens=9000, max_seq_len=128, longest_example=66)
    result = ProbeResult(Status.DONE, "", ProbeRequest(str(run)), density=density)
    (run / "probe").mkdir()
    (run / "probe" / "result.json").write_text(json.dumps(to_json(result)))

    assert estimated(run, "--set", "seed=7")["density"] == 6.0
    assert estimated(run, "--set", "tokenizer.max_seq_len=64")["density"] is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(
            ("--timeout", "0.001"), "no estimate: it took longer than 0 s (--timeout)", id="no time"
        ),
        pytest.param(
            ("--set", "fixed_gib=many"),
            "no estimate: the recipe doesn't run on a simulated GPU: batch_size 1 crashed",
            id="the recipe fails",
        ),
    ],
)
def test_no_estimate(run_on_card: MakeRun, words: tuple[str, ...], said: str) -> None:
    ended = estimate(run_on_card(), *words)

    assert (ended.returncode, ended.stdout) == (1, "")
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
