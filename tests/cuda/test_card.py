"""The search on a card's own memory, and which card it is, with a recipe that takes what its config says."""

from __future__ import annotations

import pytest

from autobatch.errors import UsageError
from autobatch.records import Status
from tests.cuda.conftest import CARD, GIB, MIB, MakeRun, probe, simulate, simulate_probe, tried


def test_a_line_is_answered_exactly(run_on_card: MakeRun) -> None:
    result = probe(run_on_card())

    # 70 % of 79.11 GiB: 10 and 4 for each of 11.
    assert tried(result) == [(1, "fits"), (11, "fits"), (12, "over target")]
    assert (result.batch_size, result.peak_bytes) == (11, 54 * GIB)
    assert [trial.before_bytes for trial in result.trials] == [10 * GIB] * 3
    assert result.capacity_bytes == CARD.total_bytes


def test_out_of_memory_ends_the_search_of_the_whole_card(run_on_card: MakeRun) -> None:
    result = probe(run_on_card(), target_fraction=1.0)

    assert tried(result) == [(1, "fits"), (17, "fits"), (18, "out of memory")]
    assert (result.batch_size, result.peak_bytes) == (17, 78 * GIB)
    assert result.message == (
        "batch_size 17 (peak 78.0 GiB, 98.6 % of 79.1 GiB); batch_size 18 ran out of memory"
    )
    # In torch's own words, with the card's own figures.
    assert result.trials[-1].detail.startswith(
        "OutOfMemoryError: CUDA out of memory. Tried to allocate 72.00 GiB. GPU 0 has a total capacity of "
        "79.11 GiB of which 69.11 GiB is free."
    )


def test_out_of_memory_on_the_first_size(run_on_card: MakeRun) -> None:
    result = probe(run_on_card(each_gib=80))

    assert tried(result) == [(1, "out of memory")]
    assert result.status is Status.NOTHING_FITS
    assert result.message.startswith(
        "nothing fits: batch_size 1 ran out of memory, and the target is 55.4 GiB (70.0 % of 79.1 GiB). "
        "10.0 GiB were in use before the first batch."
    )


def test_out_of_memory_in_the_middle_of_the_search(run_on_card: MakeRun) -> None:
    """A curve that bends: what two sizes promise runs out of memory, and the search goes on below it."""
    result = probe(run_on_card("bends", each_gib=2), target_fraction=0.95)

    assert tried(result) == [
        (1, "fits"),
        (32, "out of memory"),
        (16, "out of memory"),
        (8, "fits"),
        (12, "fits"),
        (14, "fits"),
        (15, "out of memory"),
    ]
    assert result.batch_size == 14


def test_a_trial_with_allocation_retries_does_not_fit(run_on_card: MakeRun) -> None:
    result = probe(run_on_card("retries", fixed_gib=1, each_gib=10), target_fraction=1.0)

    assert tried(result) == [(1, "fits"), (2, "fits"), (3, "fits"), (4, "over target")]
    assert [trial.alloc_retries for trial in result.trials] == [0, 0, 0, 1]
    peaks = [(trial.peak_bytes or 0) / GIB for trial in result.trials]
    # The last one has given 45 GiB back before it took 40: its peak is below that of the size before.
    assert peaks == [56, 66, 76, 46]
    assert result.message == (
        "batch_size 3 (peak 76.0 GiB, 96.1 % of 79.1 GiB); at batch_size 4 the allocator ran out and had to free "
        "its cache"
    )


def test_another_card_than_the_first(run_on_card: MakeRun) -> None:
    result = probe(run_on_card(device="cuda:1"))

    assert tried(result) == [(1, "fits"), (11, "fits"), (12, "over target")]


def test_a_card_that_is_not_there(run_on_card: MakeRun) -> None:
    with pytest.raises(UsageError, match="device is cuda:4 and this machine has no such card"):
        probe(run_on_card(device="cuda:4"))


@pytest.mark.parametrize(
    "visible", [pytest.param("", id="none"), pytest.param("GPU-unknown", id="unknown UUID")]
)
def test_a_hidden_card_is_none(run_on_card: MakeRun, visible: str) -> None:
    run = run_on_card()
    command = ("env", f"CUDA_VISIBLE_DEVICES={visible}", "autobatch", "probe", run, "--cluster", "inline")

    ended = simulate("--gpus 2", *command)

    assert ended.returncode == 2
    assert f"{run}/finetune.yaml: device is cuda and this machine has no such card" in ended.stderr
    assert not (run / "probe" / "result.json").exists()


def test_the_second_card_alone(run_on_card: MakeRun) -> None:
    run = run_on_card(exports="export CUDA_VISIBLE_DEVICES=1")

    result = simulate_probe("--gpus 2 --gpu a100-40gb", run)

    assert tried(result) == [(1, "fits"), (4, "fits"), (5, "over target")]
    assert result.device is not None
    assert result.device.label == "simulated NVIDIA A100-SXM4-40GB"


def test_a_slice_of_a_card_is_measured_as_a_slice(run_on_card: MakeRun) -> None:
    result = simulate_probe("--gpu h100-80gb:1g.10gb", run_on_card(fixed_gib=1, each_gib=1))

    # An eighth of the memory: 9.89 GiB, of which 70 % are 6.92.
    assert tried(result) == [(1, "fits"), (5, "fits"), (6, "over target")]
    assert result.capacity_bytes == CARD.total_bytes // 8
    assert result.device is not None
    assert result.device.label == "simulated NVIDIA H100 80GB HBM3 MIG 1g.10gb"


def test_a_card_that_others_use_runs_out_of_memory_earlier(run_on_card: MakeRun) -> None:
    result = simulate_probe("--taken 20GiB", run_on_card(), "--target", "0.95")

    # Of 79.11 GiB 59.11 are free: 10 and 4 for each of 12.
    assert tried(result) == [
        (1, "fits"),
        (16, "out of memory"),
        (8, "fits"),
        (12, "fits"),
        (14, "out of memory"),
        (13, "out of memory"),
    ]
    assert (result.batch_size, result.peak_bytes) == (12, 58 * GIB)


def test_the_metric_of_the_whole_card_counts_what_others_use(run_on_card: MakeRun) -> None:
    result = simulate_probe("--taken 20GiB", run_on_card(), "--metric", "device")

    assert tried(result) == [(1, "fits"), (6, "fits"), (7, "over target")]
    assert result.peak_bytes == (20 + 10 + 6 * 4) * GIB


@pytest.mark.parametrize(
    ("setting", "peak"),
    [
        # Mapped in pages of 20 MiB.
        pytest.param("expandable_segments:True", 78 * GIB + 8 * MIB, id="expandable segments"),
        pytest.param("backend:cudaMallocAsync", 78 * GIB, id="cudaMallocAsync"),
    ],
)
def test_other_allocators(run_on_card: MakeRun, setting: str, peak: int) -> None:
    run = run_on_card(exports=f"export PYTORCH_CUDA_ALLOC_CONF={setting}")

    result = simulate_probe("", run, "--target", "1.0")

    assert tried(result) == [(1, "fits"), (17, "fits"), (18, "out of memory")]
    assert result.peak_bytes == peak
