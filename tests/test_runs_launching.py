"""With how many processes a run trains: flags, the `tune run` line, the header; and what contradicts itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from autobatch.errors import UsageError
from autobatch.probing.node import check_allocation
from autobatch.records import ProbeRequest
from autobatch.runs.config import RunConfig
from autobatch.runs.findings import Findings
from autobatch.runs.launching import gpus_per_node, resolve_world
from autobatch.runs.recipes import resolve_recipe
from autobatch.runs.slurm_script import parse_script
from autobatch.world import World

LORA: dict[str, Any] = {
    "model": {"_component_": "torchtune.models.llama3_2.lora_llama3_2_1b"},
    "optimizer": {},
}
FULL = "full_finetune_distributed --config finetune.yaml"


def resolved(
    line: str | None,
    header: str = "",
    *,
    tmp_path: Path,
    recipe: str | None = None,
    device: str = "cuda",
    config: dict[str, Any] | None = None,
    options: Mapping[str, int] | None = None,
) -> tuple[World | None, Findings]:
    """The world of a run whose script has a header and a line."""
    script = None
    if line is not None:
        lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in header.split()), line]
        script = parse_script("\n".join(lines), tmp_path / "finetune.slurm", {})
    config = LORA | (config or {})
    (tmp_path / "mine.py").touch()
    found = resolve_recipe(recipe, script, config, tmp_path, cwd=tmp_path)
    findings = Findings()
    request = ProbeRequest(str(tmp_path), recipe, **(options or {}))  # type: ignore[arg-type]  # of integers
    read = RunConfig(tmp_path / "finetune.yaml", "", OmegaConf.create(config), config)
    return resolve_world(request, script, found, read, device, findings), findings


@pytest.mark.parametrize(
    ("line", "header", "options", "world", "source"),
    [
        pytest.param(f"tune run --nproc_per_node 4 {FULL}", "", {}, (1, 4), "finetune.slurm:2", id="nproc"),
        pytest.param(f"tune run --nproc-per-node=1 {FULL}", "", {}, (1, 1), "finetune.slurm:2", id="one process"),
        pytest.param(
            f"srun tune run --nnodes 2 --nproc_per_node 8 {FULL}", "--nodes=2", {}, (2, 8), "finetune.slurm:3",
            id="nodes",
        ),
        pytest.param(
            f"tune run --nproc_per_node gpu {FULL}", "--gres=gpu:a100:4", {}, (1, 4),
            "the GPUs in finetune.slurm's header", id="gpu, with gres",
        ),
        pytest.param(
            f"tune run --nnodes $SLURM_NNODES --nproc_per_node $SLURM_GPUS_ON_NODE {FULL}",
            "--nodes=2 --gpus=16", {}, (2, 8), "finetune.slurm:2 (#SBATCH --nodes)", id="variables",
        ),
        pytest.param(
            f"tune run --nproc_per_node 4 {FULL}", "", {"processes_per_node": 2}, (1, 2), "--nproc-per-node",
            id="a flag over the line",
        ),
        pytest.param(
            f"tune run --nproc_per_node 4 {FULL}", "", {"nodes": 3}, (3, 4), "--nodes", id="nodes by a flag"
        ),
        pytest.param(
            "tune run --nproc_per_node 2 mine.py --config finetune.yaml", "", {}, (1, 2), "finetune.slurm:2",
            id="a recipe of one's own",
        ),
    ],
)  # fmt: skip
def test_where_the_numbers_come_from(
    line: str, header: str, options: dict[str, int], world: tuple[int, int], source: str, tmp_path: Path
) -> None:
    found, findings = resolved(line, header, tmp_path=tmp_path, options=options)

    assert findings.problems == []
    assert found == World(*world, world[0] * world[1])
    (note,) = findings.notes
    assert note.startswith(f"world size {world[0] * world[1]}: ")
    assert source in note


@pytest.mark.parametrize(
    ("line", "recipe"),
    [
        pytest.param("tune run lora_finetune_single_device --config finetune.yaml", None, id="one device"),
        pytest.param("tune run mine.py --config finetune.yaml", None, id="a recipe of one's own"),
        pytest.param(f"tune run --nproc_per_node 4 {FULL}", "lora_finetune_single_device", id="--recipe"),
        pytest.param(None, None, id="inferred"),
    ],
)
def test_what_torchrun_does_not_start(line: str | None, recipe: str | None, tmp_path: Path) -> None:
    world, findings = resolved(line, tmp_path=tmp_path, recipe=recipe)

    assert world is None
    assert findings.problems == []


@pytest.mark.parametrize(
    ("line", "header", "options", "what", "where"),
    [
        pytest.param(
            "tune run --nproc_per_node 4 lora_finetune_single_device --config finetune.yaml", "", {},
            "trains on one device, and `tune run --nproc_per_node 4` starts 4 processes",
            "finetune.slurm:2", id="a recipe for one device",
        ),
        pytest.param(
            "tune run lora_finetune_single_device --config finetune.yaml", "", {"processes_per_node": 2},
            "lora_finetune_single_device trains on one device", "--nproc-per-node", id="and a flag",
        ),
        pytest.param(
            f"tune run {FULL}", "--gres=gpu:4", {}, "starts it without torchrun, and training would fail",
            "finetune.slurm:3", id="without torchrun",
        ),
        pytest.param(
            f"tune run --nproc_per_node gpu {FULL}", "", {}, "neither `tune run --nproc_per_node N` nor",
            "finetune.slurm:2", id="nobody says how many",
        ),
        pytest.param(
            f"tune run --nproc_per_node 4 {FULL}", "--gres=gpu:2", {},
            "4 processes on a node (from finetune.slurm:3), and the header asks for 2 GPUs there",
            "finetune.slurm:2", id="fewer GPUs than processes",
        ),
        pytest.param(
            f"tune run --nproc_per_node 4 {FULL} tensor_parallel_dim=3", "", {},
            "tensor_parallel_dim is 3, which doesn't divide the world size of 4", "finetune.yaml",
            id="tensor parallel",
        ),
    ],
)  # fmt: skip
def test_problems(
    line: str, header: str, options: dict[str, int], what: str, where: str, tmp_path: Path
) -> None:
    config = {"tensor_parallel_dim": 3} if "tensor_parallel" in line else {}

    _, findings = resolved(line, header, tmp_path=tmp_path, config=config, options=options)

    (problem,) = findings.problems
    assert what in problem.what
    assert problem.where.endswith(where)


def test_tensor_parallel_ranks_share_their_rows(tmp_path: Path) -> None:
    world, _ = resolved(
        f"tune run --nproc_per_node 8 {FULL}", tmp_path=tmp_path, config={"tensor_parallel_dim": 4}
    )

    assert world == World(1, 8, 2)


@pytest.mark.parametrize(
    ("header", "count"),
    [
        ({}, None),
        ({"gpus-per-node": "4"}, 4),
        ({"gpus-per-node": "a100:4"}, 4),
        ({"gres": "gpu:2"}, 2),
        ({"gres": "gpu"}, 1),
        ({"gres": "gpu:a100"}, 1),
        ({"gres": "gpu:a100:8"}, 8),
        ({"gres": "gpu:1g.10gb:1,nvme:2"}, 1),
        ({"gres": "nvme:2"}, None),
        ({"gpus": "8", "nodes": "2"}, 4),
        ({"gpus": "a100:8"}, 8),
        ({"gpus-per-task": "1", "ntasks-per-node": "4"}, 4),
        ({"gpus-per-task": "2", "ntasks": "4", "nodes": "2"}, 4),
    ],
    ids=str,
)
def test_gpus_of_a_node(header: dict[str, str], count: int | None) -> None:
    assert gpus_per_node(header) == count


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        pytest.param({}, "this isn't a Slurm job", id="no job"),
        pytest.param(
            {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "1"}, "this Slurm job has 1", id="one node"
        ),
    ],
)
def test_several_nodes_need_a_job_of_as_many(environ: dict[str, str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        check_allocation(World(2, 4, 8), environ)

    assert said in str(caught.value)
    check_allocation(World(2, 4, 8), {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2"})
    check_allocation(World(1, 4, 4), {})
