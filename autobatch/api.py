"""The Python call behind `autobatch probe`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from autobatch.errors import JobError, UsageError
from autobatch.records import Metric, PackingMode, Preference, ProbeRequest, ProbeResult, Unit
from autobatch.units import parse_bytes

if TYPE_CHECKING:
    from autobatch.launch.group_submission import GroupSubmission
    from autobatch.launch.resources import Resources
    from autobatch.launch.submission import Submission
    from autobatch.probing.events import Event
    from autobatch.runs.directory import RunDirectory

_Choice = TypeVar("_Choice", bound=Enum)


def probe(
    run: str | os.PathLike[str],
    *,
    cluster: str = "auto",
    target: float = 0.70,
    capacity: str | int | None = None,
    metric: str = "reserved",
    max_batch_size: int | None = None,
    recipe: str | None = None,
    steps: int = 3,
    trial_timeout_s: float = 600.0,
    load_weights: bool = False,
    packing: str = "config",
    density_sample: int | None = None,
    force: bool = False,
    estimate: bool = True,
    hold_effective_batch: bool | int = False,
    effective_batch_in: str = "sequences",
    prefer: str = "memory",
    nproc_per_node: int | None = None,
    nodes: int | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> ProbeResult:
    """Measure the largest batch_size of a run, write it into the run's files, and wait for the answer.

    Args:
        run: run directory (or its finetune.yaml).
        cluster: ``slurm`` submits a job, ``local`` starts one on this machine (both through submitit),
            ``inline`` uses a child process, ``auto`` is slurm where there is an sbatch, else local.
        target: fraction of the capacity that the peak may reach, above 0 and at most 1.
        capacity: plan for a card of this size, such as ``"40GiB"`` or a number of bytes; the default is the
            device's own.
        metric: the peak that counts on CUDA: ``reserved``, ``allocated`` or ``device``.
        max_batch_size: never go above.
        recipe: name in torchtune's registry or path of a recipe file; the default is the one in
            finetune.slurm, else inferred from the config.
        steps: optimizer steps of a trial, at least.
        trial_timeout_s: seconds after which a trial counts as hung.
        load_weights: read the real checkpoint in each trial.
        packing: ``config``, ``pack`` (set ``packed: True``) or ``unpacked`` (probe with the longest example).
        density_sample: estimate the density from about this many examples.
        force: measure again though a valid measurement is on file.
        estimate: begin the search with what an estimate says; the answer is the same without.
        hold_effective_batch: choose batch_size and gradient_accumulation_steps so that an update takes so many
            sequences; ``True`` for as many as the config says now.
        effective_batch_in: what that number counts, ``sequences`` or ``examples``.
        prefer: ``memory`` answers the largest batch_size that fits, ``throughput`` the smallest measured whose
            tokens/s are within 3 % of the best.
        nproc_per_node, nodes: processes of a distributed recipe on each node, and nodes; the default is what
            finetune.slurm says.
        on_event: hears what happens, in this thread.

    Returns:
        The result. Look at `status` first: only ``done`` comes with a `batch_size` and changed files.

    Raises:
        RunProblems: the run can't be probed; everything that is wrong with it.
        UsageError: an argument can't be used, or another probe of this run is running.
        JobError: the job ended without a result.
    """
    request = _request(
        str(run),
        target=target,
        capacity=capacity,
        metric=metric,
        max_batch_size=max_batch_size,
        recipe=recipe,
        steps=steps,
        trial_timeout_s=trial_timeout_s,
        load_weights=load_weights,
        packing=packing,
        density_sample=density_sample,
        force=force,
        estimate=estimate,
        hold_effective_batch=hold_effective_batch,
        effective_batch_in=effective_batch_in,
        prefer=prefer,
        nproc_per_node=nproc_per_node,
        nodes=nodes,
    )
    return wait(start(request, cluster), on_event or (lambda event: None))


def probe_all(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    cluster: str = "auto",
    max_parallel: int | None = None,
    on_event: Callable[[str, Event], None] | None = None,
    **options: Any,
) -> list[ProbeResult]:
    """Probe many runs, with one series of trials for all whose memory fingerprint is the same, and wait.

    Args:
        paths: experiment directories, whose runs are directly below, and runs; one or several.
        cluster: as for `probe`; on Slurm a job array, a task for each group of runs.
        max_parallel: tasks of an array that run at a time.
        on_event: hears what happens to which run (its path), in this thread.
        options: as for `probe`, from `target` on; for all runs.

    Returns:
        The results, in the order of the paths, and of the runs below one by name. Look at each `status`.

    Raises:
        UsageError: everything that is wrong with any of the runs, or with an argument; nothing was started.
        JobError: a run's job ended without a result for it. The others' are in their `probe/result.json`.
    """
    from autobatch.launch.group_submission import submit_arrays
    from autobatch.launch.group_wait import probe_groups_here, wait_for_groups
    from autobatch.launch.groups import group, read_members
    from autobatch.launch.submission import Cluster, refuse_in_vain, resolve_cluster, resources_for
    from autobatch.runs.experiment import runs_at
    from autobatch.runs.settings import Profile

    given = [paths] if isinstance(paths, (str, os.PathLike)) else paths
    runs, _ = runs_at([Path(path) for path in given])
    chosen, _ = resolve_cluster(_choice(Cluster, cluster, "cluster"))
    request = _request("", **options)

    def resources_of(run: RunDirectory) -> Resources | None:
        refuse_in_vain(run, chosen)
        return resources_for(run, {}, Profile()) if chosen is Cluster.SLURM else None

    members = read_members(runs, request, resources_of)
    groups = group(members)
    hear = on_event or (lambda run, event: None)

    def tell(submission: GroupSubmission, run: str, event: Event) -> None:
        hear(run, event)

    if chosen is Cluster.SLURM:
        outcomes = wait_for_groups(submit_arrays(groups, max_parallel=max_parallel), tell)
    else:
        outcomes = probe_groups_here(groups, chosen, tell)
    errors = [f"{outcome.run}: {outcome.error}" for outcome in outcomes if outcome.result is None]
    if errors:
        raise JobError("\n".join(errors))
    results = {outcome.run: outcome.result for outcome in outcomes if outcome.result is not None}
    return [results[member.request.run_dir] for member in members]


def start(request: ProbeRequest, cluster: str) -> Submission:
    """Check the run and start the probe's job; `request.run_dir` may be relative here."""
    from autobatch.launch.submission import Cluster, resolve_cluster, submit
    from autobatch.runs.directory import read_run

    chosen, _ = resolve_cluster(_choice(Cluster, cluster, "cluster"))
    run = read_run(Path(request.run_dir), request)
    return submit(replace(request, run_dir=str(run.path)), run, chosen)


def wait(submission: Submission, tell: Callable[[Event], None]) -> ProbeResult:
    """Follow a probe's job to its end; whatever interrupts the wait ends the job too.

    Raises:
        AutobatchError: the job ended without a result.
    """
    from autobatch.launch.group_wait import without_result
    from autobatch.launch.submission import follow
    from autobatch.probing.events import Ended, Failed

    try:
        for event in follow(submission):
            tell(event)
            if isinstance(event, Ended):
                return event.result
            if isinstance(event, Failed):
                raise (UsageError if event.exit_code == UsageError.exit_code else JobError)(event.message)
    except BaseException:
        submission.cancel()
        raise
    raise JobError(without_result(submission.job_id, submission.log))


def _request(
    run_dir: str,
    *,
    target: float = 0.70,
    capacity: str | int | None = None,
    metric: str = "reserved",
    max_batch_size: int | None = None,
    recipe: str | None = None,
    steps: int = 3,
    trial_timeout_s: float = 600.0,
    load_weights: bool = False,
    packing: str = "config",
    density_sample: int | None = None,
    force: bool = False,
    estimate: bool = True,
    hold_effective_batch: bool | int = False,
    effective_batch_in: str = "sequences",
    prefer: str = "memory",
    nproc_per_node: int | None = None,
    nodes: int | None = None,
) -> ProbeRequest:
    return ProbeRequest(
        run_dir=run_dir,
        recipe=recipe,
        target_fraction=target,
        capacity_bytes=parse_bytes(capacity) if isinstance(capacity, str) else capacity,
        metric=_choice(Metric, metric, "metric"),
        max_batch_size=max_batch_size,
        min_steps=steps,
        trial_timeout_s=trial_timeout_s,
        load_weights=load_weights,
        packing=_choice(PackingMode, packing, "packing"),
        density_sample=density_sample,
        force=force,
        estimate=estimate,
        hold_effective_batch=hold_effective_batch is not False,
        effective_batch=None if isinstance(hold_effective_batch, bool) else hold_effective_batch,
        effective_batch_in=_choice(Unit, effective_batch_in, "effective_batch_in"),
        prefer=_choice(Preference, prefer, "prefer"),
        processes_per_node=nproc_per_node,
        nodes=nodes,
    )


def _choice(kind: type[_Choice], text: str, name: str) -> _Choice:
    try:
        return kind(text)
    except ValueError as error:
        valid = ", ".join(str(member.value) for member in kind)
        raise UsageError(f"{name} {text!r} is unknown: it must be one of {valid}") from error
