"""The Python call behind `autobatch probe`."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from autobatch.errors import JobError, UsageError
from autobatch.records import Metric, PackingMode, ProbeRequest, ProbeResult
from autobatch.units import parse_bytes

if TYPE_CHECKING:
    from autobatch.launch.submission import Submission
    from autobatch.probing.events import Event

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
    request = ProbeRequest(
        run_dir=str(run),
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
        processes_per_node=nproc_per_node,
        nodes=nodes,
    )
    return wait(start(request, cluster), on_event or (lambda event: None))


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
    raise JobError(
        f"the probe's job {submission.job_id} ended without a result; its log: {submission.log}\n"
        f"{_last_lines(submission.log)}".rstrip()
    )


def _last_lines(log: Path, count: int = 15) -> str:
    try:
        return "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-count:])
    except OSError:
        return ""


def _choice(kind: type[_Choice], text: str, name: str) -> _Choice:
    try:
        return kind(text)
    except ValueError as error:
        valid = ", ".join(str(member.value) for member in kind)
        raise UsageError(f"{name} {text!r} is unknown: it must be one of {valid}") from error
