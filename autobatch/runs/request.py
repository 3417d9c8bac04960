"""What is asked of a probe, checked: by itself, and against the run's config."""

from __future__ import annotations

from autobatch.errors import UsageError
from autobatch.records import ProbeRequest
from autobatch.runs.config import RunConfig
from autobatch.runs.findings import Findings


def check_request(request: ProbeRequest) -> None:
    """Raises a `UsageError` that names every value of `request` that is out of range."""
    wrong = []
    if not 0 < request.target_fraction <= 1:
        wrong.append(f"target {request.target_fraction:g} is not in (0, 1]: give a fraction such as 0.70")
    limits: list[tuple[str, float | None, float]] = [
        ("--capacity", request.capacity_bytes, 1),
        ("--max-batch-size", request.max_batch_size, 1),
        ("--density-sample", request.density_sample, 1),
        ("--hold-effective-batch", request.effective_batch, 1),
        # Adam's state appears at the first step, so that the second is the first whose peak counts.
        ("--steps", request.min_steps, 2),
        ("--nproc-per-node", request.processes_per_node, 1),
        ("--nodes", request.nodes, 1),
    ]
    wrong += [
        f"{name} {value:g} is less than {least:g}"
        for name, value, least in limits
        if value is not None and value < least
    ]
    if not 0 < request.trial_timeout_s < float("inf"):
        wrong.append(f"--trial-timeout {request.trial_timeout_s:g} is not a time: give seconds above 0")
    if wrong:
        raise UsageError("\n".join(wrong))


def check_held(config: RunConfig, request: ProbeRequest, findings: Findings) -> None:
    """An effective batch that is held is written into finetune.yaml, where nothing may override it."""
    key = "gradient_accumulation_steps"
    if request.hold_effective_batch and key in config.overridden:
        findings.problem(
            f"overrides the {key} that --hold-effective-batch writes into finetune.yaml",
            config.where(key),
            "remove it from the `tune run` line",
        )
