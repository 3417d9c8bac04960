"""Distributed recipes on fake tensors: what each rank holds, and what it gathers."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from torch._subclasses.fake_tensor import FakeTensorMode

from autobatch.cli.main import main
from autobatch.estimate.recipe_config import estimate_config, offloads, shards_on_host
from autobatch.estimate.subject import read_subject
from autobatch.estimate.trace import Kind, Peak, Trace, replay
from autobatch.estimate.tracker import Tracker
from autobatch.estimate.worker import TraceSpec, record
from autobatch.probing.forkserver import ForkServer
from autobatch.probing.meter import MALLOC_ENVIRONMENT
from autobatch.records import from_json
from autobatch.world import World

MakeRun = Callable[..., Path]
MIB = 2**20
BATCH_SIZE = 2

#: 2 layers, 256 wide, fp32, untied and without biases.
MODEL = {
    "_component_": "torchtune.models.llama3.llama3",
    "vocab_size": 4096,
    "num_layers": 2,
    "num_heads": 4,
    "num_kv_heads": 2,
    "embed_dim": 256,
    "max_seq_len": 512,
    "intermediate_dim": 1024,
    "attn_dropout": 0.0,
    "norm_eps": 1e-5,
}
EMBEDDING = 4096 * 256
LAYER = 256 * (2 * 256 + 2 * 128 + 3 * 1024 + 2)
PARAMETERS = 2 * EMBEDDING + 2 * LAYER + 256

#: Name: recipe, ranks, settings.
RECORDED: Mapping[str, tuple[str, int, tuple[str, ...]]] = {
    "one": ("full_finetune_single_device", 1, ()),
    "1": ("full_finetune_distributed", 1, ()),
    "2": ("full_finetune_distributed", 2, ()),
    "8": ("full_finetune_distributed", 8, ()),
    "8, offloaded": ("full_finetune_distributed", 8, ("fsdp_cpu_offload=True",)),
    "8, by 2": ("full_finetune_distributed", 8, ("tensor_parallel_dim=2",)),
}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, laid_out: Path) -> Path:
    """Full fine-tuning on a card, with nothing beside the config."""
    content = OmegaConf.load(laid_out / "run1" / "finetune.yaml")
    content.device = "cuda"
    content.model = MODEL
    content.tensor_parallel_plan = {"_component_": "torchtune.models.llama3.base_llama_tp_plan"}
    content.optimizer_in_bwd = False
    path = tmp_path_factory.mktemp("sharded") / "my.yaml"
    path.write_text(OmegaConf.to_yaml(content), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def peaks(config: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Peak]:
    """Of each of `RECORDED`, at batch_size 2."""
    server = ForkServer(MALLOC_ENVIRONMENT, "cpu")
    scratch = tmp_path_factory.mktemp("traces")

    def peak(name: str) -> Peak:
        recipe, ranks, settings = RECORDED[name]
        processes = ranks if "distributed" in recipe else None
        subject = read_subject(config, recipe, settings, processes_per_node=processes)
        written, answer, log = (scratch / f"{name}.{ext}" for ext in ("yaml", "json", "log"))
        written.write_text(estimate_config(subject, BATCH_SIZE), encoding="utf-8")
        spec = TraceSpec(
            recipe=str(subject.recipe.path),
            config=str(written),
            working_dir=str(scratch),
            cuda=True,
            offload=offloads(subject),
            batch_size=BATCH_SIZE,
            world=subject.world,
            shards_on_host=shards_on_host(subject),
            answer=str(answer),
        )
        server.run(record, spec, log=log, timeout_s=300)
        said = json.loads(answer.read_text(encoding="utf-8"))
        assert "error" not in said, said
        trace = from_json(Trace, said["trace"])
        return replay(trace, trace.sizes, BATCH_SIZE, cuda=True)

    with ThreadPoolExecutor(max_workers=2) as pool:
        return dict(zip(RECORDED, pool.map(peak, RECORDED), strict=True))


@pytest.mark.parametrize("ranks", [2, 8])
def test_what_lasts_is_divided_by_the_ranks(peaks: dict[str, Peak], ranks: int) -> None:
    by_kind = peaks[str(ranks)].by_kind

    assert by_kind[Kind.PARAMETERS] == pytest.approx(4 * PARAMETERS / ranks, rel=0.01)
    assert by_kind[Kind.OPTIMIZER] == pytest.approx(2 * 4 * PARAMETERS / ranks, rel=0.02)


def test_activations_are_not(peaks: dict[str, Peak]) -> None:
    # At the peak, in the backward pass of the output layer or of the last layers.
    assert peaks["8"].by_kind[Kind.ACTIVATIONS] == pytest.approx(
        peaks["2"].by_kind[Kind.ACTIVATIONS], rel=0.02
    )


def test_gathered_layers_count_whole(peaks: dict[str, Peak]) -> None:
    # The root's parameters, embedding and output among them, stay gathered from the forward pass on.
    for ranks in ("2", "8"):
        assert peaks[ranks].by_kind[Kind.COLLECTIVES] >= 4 * (2 * EMBEDDING + LAYER)


def test_one_rank_is_as_one_device(peaks: dict[str, Peak]) -> None:
    assert peaks["1"].allocated_bytes == pytest.approx(peaks["one"].allocated_bytes, rel=0.03)
    assert peaks["1"].by_kind[Kind.COLLECTIVES] == 0
    assert peaks["one"].by_kind[Kind.COLLECTIVES] == 0


def test_offloaded_shards_leave_the_card(peaks: dict[str, Peak]) -> None:
    offloaded, kept = peaks["8, offloaded"], peaks["8"]

    for kind in (Kind.PARAMETERS, Kind.GRADIENTS, Kind.OPTIMIZER):
        assert offloaded.by_kind[kind] == 0, kind
    assert offloaded.by_kind[Kind.COLLECTIVES] >= kept.by_kind[Kind.COLLECTIVES]
    assert offloaded.training_bytes == pytest.approx(kept.training_bytes - 3 * 4 * PARAMETERS / 8, rel=0.03)
    assert offloaded.before_bytes < MIB


def test_tensor_parallel_ranks_share_their_layers(peaks: dict[str, Peak]) -> None:
    both, data_alone = peaks["8, by 2"], peaks["8"]

    # Norms alone are whole on each of the two.
    assert both.by_kind[Kind.PARAMETERS] == pytest.approx(data_alone.by_kind[Kind.PARAMETERS], rel=0.03)
    assert both.by_kind[Kind.COLLECTIVES] < 0.7 * data_alone.by_kind[Kind.COLLECTIVES]


def test_loading_takes_a_whole_weight_at_a_time(peaks: dict[str, Peak]) -> None:
    shards = peaks["8"].before_bytes

    assert 4 * EMBEDDING < peaks["8"].setup_bytes <= shards + 4 * EMBEDDING + MIB


def test_a_storage_that_is_resized_comes_and_goes() -> None:
    tracker = Tracker()
    with FakeTensorMode(), tracker:
        tensor = torch.zeros(1000)
        tracker.first_batch()
        storage = tensor.untyped_storage()
        for size in (0, 4000, 0):
            storage.resize_(size)
            tracker.resized(storage)
        again = torch.ones(10)
    del tensor, storage, again

    trace = tracker.trace(1, 0.0)

    assert trace.sizes == (4000, 4000, 40)
    # Made and given up, twice; then another one made and dropped, after the first, which has no more to drop.
    assert trace.events == (1, -1, 2, -2, 3, -3)


def test_a_cache_that_is_emptied_and_one_for_each_stream() -> None:
    trace = Trace(
        batch_size=1,
        sizes=(100 * MIB, 12 * MIB, 12 * MIB, 12 * MIB),
        kinds=(Kind.OTHER,) * 4,
        on_host=(False,) * 4,
        events=(1, -1, 2, -2, 3, -3, 4),
        first_batch=2,
        steps=(7,),
        streams=(0, 0, 1, 1),
        emptied=2,
    )

    # 100 MiB, handed back; then the first of 12, which the second on another stream can't have, but the third can.
    assert replay(trace, trace.sizes, 1, cuda=True).reserved_bytes == 100 * MIB
    assert replay(trace, (MIB // 2, *trace.sizes[1:]), 1, cuda=True).reserved_bytes == 24 * MIB
    # Never handed back, they serve again.
    kept = replace(trace, emptied=None)
    assert replay(kept, trace.sizes, 1, cuda=True).reserved_bytes == 112 * MIB
    # Loading counts in a recipe that resets the peak by itself, as its probe counts it.
    assert replay(trace, trace.sizes, 1, cuda=True).allocated_bytes == 100 * MIB
    assert replay(kept, trace.sizes, 1, cuda=True).allocated_bytes == 12 * MIB


def test_the_command_says_for_how_many_ranks(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run()
    script = run / "finetune.slurm"
    started = "tune run --nnodes 2 --nproc_per_node 4 lora_finetune_distributed"
    script.write_text(script.read_text().replace("tune run lora_finetune_single_device", started))

    code = main(["estimate", str(run), "--batch-size", "1", "--json"])

    shown = capsys.readouterr()
    assert code == 0, shown.err
    assert "world size 8: 2 nodes with 4 processes each, from finetune.slurm:" in shown.err
    found = json.loads(shown.out)
    assert from_json(World, found["world"]) == World(2, 4, 8)
    assert found["by_kind"][Kind.COLLECTIVES.value] > 0
    assert found["off_line_fraction"] < 0.005


def test_a_number_of_ranks_must_be_known(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asking = ["estimate", str(config), "--recipe", "full_finetune_distributed"]

    code = main(asking)

    assert code == 2
    assert "say so with --nproc-per-node N" in capsys.readouterr().err
    assert main([*asking, "--nproc-per-node", "2", "--nodes", "2", "--timeout", "0.001"]) == 1
    said = capsys.readouterr().err
    assert "took longer than" in said
