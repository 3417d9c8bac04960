"""With how many processes a run trains: flags, then the `tune run` line, then the `#SBATCH` header.

    tune run --nnodes 2 --nproc_per_node 4 full_finetune_distributed --config finetune.yaml

starts eight. What that line leaves to the job (``--nproc_per_node gpu``, ``$SLURM_NNODES``) stands in the
header.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from autobatch.records import ProbeRequest
from autobatch.runs.config import RunConfig
from autobatch.runs.findings import Findings
from autobatch.runs.recipes import Recipe
from autobatch.runs.slurm_script import SlurmScript
from autobatch.world import World

_ONE_DEVICE = "trains on one device"


def resolve_world(
    request: ProbeRequest,
    script: SlurmScript | None,
    recipe: Recipe,
    config: RunConfig,
    device: str,
    findings: Findings,
) -> World | None:
    """The processes of a run's training; None for a recipe that torchrun doesn't start.

    Args:
        request: `processes_per_node` and `nodes` come before what the script says.
        script: the run's `finetune.slurm`; None when it has none.
        recipe: that trains the run.
        config: of it `tensor_parallel_dim` counts.
        device: ``cuda`` or ``cpu``.
        findings: hears where the numbers come from, and what is wrong with them.
    """
    if not recipe.is_distributed and recipe.is_registered:
        _refuse_several(request, script, recipe, findings)
        return None
    tune_run = script.tune_run if script else None
    launched = tune_run is not None and bool(tune_run.distributed_args)
    asked = request.processes_per_node is not None or request.nodes is not None
    if not recipe.is_distributed and not asked and not (launched and recipe.source == "finetune.slurm"):
        return None
    if script and tune_run and not launched and recipe.source == "finetune.slurm":
        where = script.where(tune_run.line)
        what = f"`tune run {tune_run.recipe}` starts it without torchrun, and training would fail"
        if not asked:
            findings.problem(what, where, f"write `tune run --nproc_per_node N {tune_run.recipe}`")
            return None
        findings.note(f"{where}: {what}: write `tune run --nproc_per_node N {tune_run.recipe}`")
    nodes, nodes_from = _nodes(request, script)
    processes, processes_from = _processes(request, script, nodes)
    if processes is None:
        where = "--recipe" if recipe.source == "option" else str(config.path)
        if script and tune_run and recipe.source == "finetune.slurm":
            where = script.where(tune_run.line)
        findings.problem(
            f"{recipe.name} trains on several devices, and neither `tune run --nproc_per_node N` nor the #SBATCH "
            "header says on how many",
            where,
            "say so with --nproc-per-node N (and --nodes N, for several nodes)",
        )
        return None
    _check_cards(script, processes, nodes, processes_from, device, findings)
    parallel = _tensor_parallel(config, nodes * processes, findings)
    world = World(nodes, processes, nodes * processes // parallel)
    sources = dict.fromkeys((processes_from, *((nodes_from,) if nodes > 1 else ())))
    findings.note(f"world size {world.size}: {world}, from {' and '.join(sources)}")
    return world


def gpus_per_node(header: Mapping[str, str]) -> int | None:
    """GPUs that a job with these `#SBATCH` options gets on each node; None when they don't say (sbatch(1))."""
    nodes = _number(header.get("nodes", "1")) or 1
    if "gpus-per-node" in header:
        return _gpus(header["gpus-per-node"])
    if "gres" in header:
        entries = [entry for entry in header["gres"].split(",") if re.match(r"(gres/)?gpu\b", entry.strip())]
        counts = [_gpus(entry.strip().partition("gpu")[2].lstrip(":=") or "1") for entry in entries]
        return sum(count for count in counts if count) or None
    if "gpus" in header:
        total = _gpus(header["gpus"])
        return total // nodes if total else None
    if "gpus-per-task" in header:
        tasks = _number(header.get("ntasks-per-node", ""))
        tasks = tasks or (_number(header.get("ntasks", "1")) or 1) // nodes
        each = _gpus(header["gpus-per-task"])
        return each * tasks if each and tasks else None
    return None


def _refuse_several(
    request: ProbeRequest, script: SlurmScript | None, recipe: Recipe, findings: Findings
) -> None:
    """A single-device recipe with several processes: torchtune refuses to start it."""
    tune_run = script.tune_run if script else None
    remedy = "name a distributed recipe, or train with one process"
    if (request.processes_per_node or 1) * (request.nodes or 1) > 1:
        option = "--nproc-per-node" if (request.processes_per_node or 1) > 1 else "--nodes"
        findings.problem(f"{recipe.name} {_ONE_DEVICE}", option, remedy)
    if script and tune_run and recipe.source == "finetune.slurm" and tune_run.processes != 1:
        findings.problem(
            f"{recipe.name} {_ONE_DEVICE}, and `tune run {' '.join(tune_run.distributed_args)}` starts "
            f"{tune_run.processes or 'an unknown number of'} processes",
            script.where(tune_run.line),
            remedy,
        )


def _nodes(request: ProbeRequest, script: SlurmScript | None) -> tuple[int, str]:
    if request.nodes is not None:
        return request.nodes, "--nodes"
    tune_run = script.tune_run if script else None
    if script and tune_run and tune_run.nodes is not None:
        return tune_run.nodes, f"{script.path.name}:{tune_run.line}"
    # With `--nnodes 1:4` or a variable, the job's nodes decide.
    if script and (number := _number(script.header.get("nodes", ""))):
        return number, f"{script.path.name}:{script.header_lines['nodes']} (#SBATCH --nodes)"
    return 1, "the default"


def _processes(request: ProbeRequest, script: SlurmScript | None, nodes: int) -> tuple[int | None, str]:
    if request.processes_per_node is not None:
        return request.processes_per_node, "--nproc-per-node"
    if script is None:
        return None, ""
    tune_run = script.tune_run
    if tune_run and tune_run.distributed_args and tune_run.processes_per_node is not None:
        return tune_run.processes_per_node, f"{script.path.name}:{tune_run.line}"
    count = gpus_per_node({"nodes": str(nodes), **script.header})
    return count, f"the GPUs in {script.path.name}'s header"


def _check_cards(
    script: SlurmScript | None, processes: int, nodes: int, source: str, device: str, findings: Findings
) -> None:
    cards = gpus_per_node({"nodes": str(nodes), **script.header}) if script else None
    if script and device == "cuda" and cards is not None and cards < processes:
        line = next(
            (script.header_lines[name] for name in ("gpus-per-node", "gres", "gpus", "gpus-per-task")
             if name in script.header_lines), None,
        )  # fmt: skip
        findings.problem(
            f"{processes} processes on a node (from {source}), and the header asks for {cards} GPU"
            f"{'s' if cards > 1 else ''} there: each needs one of its own",
            script.where(line),
            "ask for as many GPUs, or start fewer processes",
        )


def _tensor_parallel(config: RunConfig, size: int, findings: Findings) -> int:
    """Ranks that share their rows: `tensor_parallel_dim` of full_finetune_distributed."""
    dim = config.get("tensor_parallel_dim") or 1
    if not isinstance(dim, int) or isinstance(dim, bool) or dim < 1 or size % dim:
        findings.problem(
            f"tensor_parallel_dim is {dim!r}, which doesn't divide the world size of {size}",
            config.where("tensor_parallel_dim"),
            "set it to a divisor, or train with another number of processes",
        )
        return 1
    return dim


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[1-9][0-9]{0,5}", text.strip()) else None


def _gpus(text: str) -> int | None:
    """``4``, ``a100:4`` or several of the latter; a type alone is one."""
    counts = [_number(part.rpartition(":")[2]) for part in text.split(",")]
    known = [
        count if count else 1 for count, part in zip(counts, text.split(","), strict=True) if count or part
    ]
    return sum(known) or None
