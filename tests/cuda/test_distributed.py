"""torchtune's distributed recipes on simulated cards, and ranks of which one needs more than the others."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from autobatch.errors import UsageError
from autobatch.records import Status
from autobatch.world import World
from tests.conftest import RECIPES, files_of
from tests.cuda.conftest import GIB, MIB, MakeRun, probe, tried
from tests.test_probe_distributed import tensor_parallel

pytestmark = pytest.mark.recipe


@pytest.mark.parametrize(
    ("recipe", "method", "change", "ranks", "data_parallel", "reserved_mib"),
    [
        pytest.param("lora_finetune_distributed", "lora", None, 2, 2, 94, id="LoRA"),
        pytest.param("full_finetune_distributed", "full", None, 2, 2, 120, id="full"),
        pytest.param(
            "full_finetune_distributed",
            "full",
            tensor_parallel,
            4,
            2,
            118,
            id="full, tensor parallel",
            marks=pytest.mark.skipif(
                version("torch").startswith("2.6."),
                reason="the optimizer of torch 2.6 refuses parameters on two meshes (NotImplementedError)",
            ),
        ),
    ],
)
def test_recipes_of_torchtune(
    make_run: MakeRun,
    recipe: str,
    method: str,
    change: Callable[[Path], None] | None,
    ranks: int,
    data_parallel: int,
    reserved_mib: int,
) -> None:
    run = make_run(method, recipe=f"--nproc_per_node {ranks} {recipe}")
    if change is not None:
        change(run)
    before = files_of(run)
    # Once for its kernels: benchmarking them takes memory, of which rank depends on who is first.
    probe(run, max_batch_size=1)

    result = probe(run, max_batch_size=1, force=True)

    assert result.status is Status.DONE, result.message
    assert result.world == World(1, ranks, data_parallel)
    (trial,) = result.trials
    assert trial.verdict.value == "fits"
    assert [peaks["reserved"] / MIB for peaks in trial.peaks_by_rank] == [reserved_mib] * ranks
    assert trial.tokens_per_second is None
    assert files_of(run) == before


def test_too_few_cards(make_run: MakeRun) -> None:
    with pytest.raises(UsageError, match="device is cuda and this machine has no 5 cards"):
        probe(make_run(recipe="--nproc_per_node 5 lora_finetune_distributed"))


def unequal(make_run: MakeRun) -> Path:
    return make_run(
        recipe=f"--nproc_per_node 2 {RECIPES / 'ranks_on_card.py'}", more="\nfixed_gib: 10\neach_gib: 4\n"
    )


def test_the_largest_rank_counts(make_run: MakeRun) -> None:
    result = probe(unequal(make_run))

    # 70 % of 79.11 GiB are 55.4: rank 1 takes 10 and 6 for each of 7.
    assert tried(result) == [(1, "fits"), (7, "fits"), (8, "over target")]
    reserved = [[peaks["reserved"] for peaks in trial.peaks_by_rank] for trial in result.trials]
    # A segment of 2 MiB holds the weight. All ranks leave size 8 after its first step.
    assert [[peak - 2 * MIB for peak in peaks] for peaks in reserved] == [
        [14 * GIB, 16 * GIB],
        [38 * GIB, 52 * GIB],
        [42 * GIB, 58 * GIB],
    ]
    assert [len(trial.step_peaks_bytes) for trial in result.trials] == [3, 3, 1]
    assert result.peak_bytes == 52 * GIB + 2 * MIB


def test_out_of_memory_on_one_rank(make_run: MakeRun) -> None:
    result = probe(unequal(make_run), target_fraction=1.0)

    assert tried(result) == [(1, "fits"), (11, "fits"), (12, "out of memory")]
    detail = result.trials[-1].detail
    assert (
        "CUDA out of memory. Tried to allocate 72.00 GiB. GPU 1 has a total capacity of 79.11 GiB" in detail
    )
    assert "(rank 1 of 2)" in detail
    assert result.trials[-1].log == "probe/trials/batch_size_12.rank1.log"
