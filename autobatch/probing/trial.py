"""One trial from the job's side: write its config, start its process, say what came of it."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autobatch.probing.components import EventFile
from autobatch.probing.forkserver import Exit, ForkServer
from autobatch.probing.meter import oom_kills
from autobatch.probing.worker import TrialSpec, run_recipe
from autobatch.records import Metric, Trial, Verdict

if TYPE_CHECKING:
    from omegaconf import DictConfig

#: Two successive peaks within this fraction: the peak is at rest.
PEAK_TOLERANCE = 0.002

#: A peak that still grows after so many optimizer steps has no final value to measure.
MAX_STEPS = 8

#: Micro-batches of a step. With two the gradients are accumulated; more add no memory.
MAX_MICRO_BATCHES = 2

_COMPONENTS = "autobatch.probing.components"

#: Every spelling of out of memory that PyTorch, its libraries and Slurm use.
_OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED"
    r"|CUDNN_STATUS_ALLOC_FAILED|DefaultCPUAllocator: can't allocate memory|\bMemoryError\b"
    r"|Cannot allocate memory|std::bad_alloc|OUT_OF_MEMORY|Triton Error \[CUDA\]: out of memory"
    # Expandable segments; the C++ of bitsandbytes, which then ends the process.
    r"|CUDA driver error: out of memory|Error out of memory at line"
    # Out of memory on a MIG slice: the allocator asks NVML for its message, and asserts that NVML answers.
    r"|NVML_SUCCESS == [^\n]*INTERNAL ASSERT FAILED at [^\n]*CUDACachingAllocator"
)
#: cuDNN says so when it can't get its workspace; only then is it about memory.
_CUDNN_NOT_SUPPORTED = "CUDNN_STATUS_NOT_SUPPORTED"
#: Triton's word for a kernel that is too large for the chip, at any batch size.
_NOT_OUT_OF_MEMORY = re.compile(r"out of resource: shared memory")


@dataclass(frozen=True)
class TrialSetup:
    """What all trials of a probe share.

    Attributes:
        config: the run's config, unresolved.
        recipe: path of the recipe file.
        working_dir: where the config's relative paths start.
        device: ``cuda`` or ``cpu``.
        metric: the peak that counts.
        target_bytes: what it may reach.
        rows: file of stored rows.
        held_bytes: resident memory that the whole dataset takes.
        packed: whether they are packs.
        min_steps: optimizer steps of a trial, at least.
        timeout_s: after which a trial counts as hung.
        load_weights: use the config's own checkpointers.
        directory: where trials keep their files, `probe/` of the run.
    """

    config: DictConfig
    recipe: Path
    working_dir: Path
    device: str
    metric: Metric
    target_bytes: int
    rows: Path
    held_bytes: int
    packed: bool
    min_steps: int
    timeout_s: float
    load_weights: bool
    directory: Path


class TrialRunner:
    """Runs trials, each in a process of its own.

    Args:
        server: gives the processes.
        setup: what all trials share.
    """

    def __init__(self, server: ForkServer, setup: TrialSetup) -> None:
        self._server = server
        self._setup = setup

    def run(
        self,
        batch_size: int,
        on_step: Callable[[int], None] = lambda steps: None,
        *,
        at_most_s: float = float("inf"),
    ) -> Trial:
        """Measure one batch size. What went wrong is in the verdict; nothing is raised for it.

        Args:
            batch_size: sequences per micro-batch.
            on_step: called with the number of optimizer steps done so far.
            at_most_s: seconds after which it is ended, should that be before it counts as hung.
        """
        setup = self._setup
        name = f"batch_size_{batch_size}"
        log, events, config = (
            setup.directory / "trials" / f"{name}.{ext}" for ext in ("log", "events", "yaml")
        )
        log.parent.mkdir(parents=True, exist_ok=True)
        for left_over in (log, events):
            left_over.unlink(missing_ok=True)
        config.write_text(trial_config(setup, batch_size, events), encoding="utf-8")
        spec = TrialSpec(
            recipe=str(setup.recipe),
            config=str(config),
            working_dir=str(setup.working_dir),
            events=str(events),
            device=setup.device,
            skip_init=setup.device == "cpu" and not setup.load_weights,
        )
        event_file = EventFile(events)
        kills = oom_kills()
        asked = time.monotonic()
        ended = self._server.run(
            run_recipe,
            spec,
            log=log,
            timeout_s=min(setup.timeout_s, at_most_s),
            on_wait=lambda: on_step(sum(event["event"] == "step" for event in event_file.read())),
        )
        said = event_file.read()
        trial = read_trial(
            batch_size,
            said,
            ended,
            metric=setup.metric,
            oom_killed=oom_kills() > kills,
            output=_tail(log),
        )
        started = next((event["time"] for event in said if event["event"] == "started"), None)
        trial = replace(
            trial,
            start_seconds=None if started is None else started - asked,
            log=f"probe/trials/{log.name}",
        )
        return judge(trial, setup.metric, setup.target_bytes)


def trial_config(setup: TrialSetup, batch_size: int, events: Path) -> str:
    """The run's config with the four components swapped and the step counts cut, as YAML."""
    from omegaconf import OmegaConf

    steps = max(MAX_STEPS, setup.min_steps)
    config = setup.config.copy()
    accumulation = min(int(config.get("gradient_accumulation_steps") or 1), MAX_MICRO_BATCHES)
    overrides = {
        "batch_size": batch_size,
        "gradient_accumulation_steps": accumulation,
        "epochs": 1,
        # One more than the step counter lets happen: the recipe never gets to the end of its epoch.
        "max_steps_per_epoch": steps + 1,
        "log_every_n_steps": 1,
        # When on, torchtune resets the peaks at every logged step.
        "log_peak_memory_stats": False,
        "resume_from_checkpoint": False,
    }
    # Resolved with the trial's batch size, which other values may refer to, and before the sections go,
    # whose values they may refer to as well.
    sections: dict[str, Any] = OmegaConf.to_container(OmegaConf.merge(config, overrides), resolve=True)  # type: ignore[assignment]
    measuring = {"events": str(events), "device": setup.device}
    for name, section in sections.items():
        # One that is null stays null: recipes ask for it to know whether there is a second model.
        if not name.endswith("checkpointer") or not isinstance(section, dict):
            continue
        if setup.load_weights:
            section |= _output_of_trials(section, setup)
            continue
        sections[name] = {
            "_component_": f"{_COMPONENTS}.ConstantCheckpointer",
            "model": json.dumps(_model_of(name, sections)),
            "dtype": sections.get("dtype"),
            "device": setup.device,
            "model_type": section.get("model_type"),
        }
    sections["metric_logger"] = {
        "_component_": f"{_COMPONENTS}.StepCounter",
        **measuring,
        "metric": setup.metric.value,
        "min_steps": setup.min_steps,
        "max_steps": steps,
        "tolerance": PEAK_TOLERANCE,
    }
    sections["dataset"] = {
        "_component_": f"{_COMPONENTS}.StoredRows",
        **measuring,
        "path": str(setup.rows),
        "rows": batch_size * accumulation * (steps + 1),
        "held_bytes": setup.held_bytes,
        "packed": setup.packed,
    }
    sections["profiler"] = {"_component_": "torchtune.training.setup_torch_profiler", "enabled": False}
    return OmegaConf.to_yaml(OmegaConf.create(sections))


def _output_of_trials(section: Mapping[str, Any], setup: TrialSetup) -> dict[str, str]:
    """Another output_dir for a checkpointer, which makes the directory although nothing is saved.

    torchtune refuses one within checkpoint_dir; there the config's own stays.
    """
    output = (setup.directory / "trials" / "output").resolve()
    weights = (setup.working_dir / str(section.get("checkpoint_dir", ""))).resolve()
    if "output_dir" not in section or weights in (output, *output.parents):
        return {}
    return {"output_dir": str(output)}


def _model_of(checkpointer: str, resolved: dict[str, Any]) -> Any:
    """The model section that a checkpointer loads: `teacher_checkpointer` goes with `teacher_model`."""
    prefix = checkpointer.removesuffix("checkpointer")
    return resolved.get(f"{prefix}model", resolved.get("model"))


def read_trial(
    batch_size: int,
    events: Sequence[dict[str, Any]],
    ended: Exit,
    *,
    metric: Metric,
    oom_killed: bool,
    output: str,
) -> Trial:
    """What a trial's events and its exit say. Whether a finished trial fits is `judge`'s to say."""
    steps = [event for event in events if event["event"] == "step"]
    first = next((event for event in events if event["event"] == "first_batch"), None)
    error = next((event for event in events if event["event"] == "error"), None)
    names = {event["event"] for event in events}
    peaks = tuple(step["peaks"][metric.value] for step in steps)
    trial = Trial(
        batch_size=batch_size,
        verdict=Verdict.CRASHED,
        peak_bytes=peaks[-1] if peaks else None,
        peaks_bytes=dict(steps[-1]["peaks"]) if steps else {},
        before_bytes=_in_use(first["current"], metric) if first else None,
        step_peaks_bytes=peaks,
        alloc_retries=max((step["retries"] for step in steps), default=0),
        tokens_per_second=steps[-1]["tokens_per_second"] if steps else None,
        seconds=ended.seconds,
        training_seconds=steps[-1]["time"] - first["time"] if steps and first else 0.0,
    )
    if "finished" in names:
        return replace(trial, verdict=Verdict.FITS)
    if "unstable" in names:
        return replace(trial, verdict=Verdict.UNSTABLE, detail=_growth(peaks))
    if ended.timed_out:
        return replace(trial, verdict=Verdict.TIMED_OUT, detail=output)
    said = f"{error['kind']}: {error['message']}" if error else output
    killed = ended.code == -signal.SIGKILL
    if is_out_of_memory(said) or (killed and oom_killed):
        return replace(trial, verdict=Verdict.OUT_OF_MEMORY, peak_bytes=None, detail=said)
    if error is None:
        said = f"{_describe_exit(ended)} before its last step\n{output}".rstrip()
    return replace(trial, detail=said)


def judge(trial: Trial, metric: Metric, target_bytes: int) -> Trial:
    """`trial` with its verdict for this metric and target; only finished trials have a choice."""
    if trial.verdict not in (Verdict.FITS, Verdict.OVER_TARGET):
        return trial
    peak = trial.peaks_bytes[metric.value]
    fits = peak <= target_bytes and trial.alloc_retries == 0
    return replace(trial, peak_bytes=peak, verdict=Verdict.FITS if fits else Verdict.OVER_TARGET)


def is_out_of_memory(message: str) -> bool:
    """Whether an error message is one of PyTorch's spellings of out of memory."""
    if _NOT_OUT_OF_MEMORY.search(message):
        return False
    return bool(_OUT_OF_MEMORY.search(message)) or _CUDNN_NOT_SUPPORTED in message


def was_killed(trial: Trial) -> bool:
    """Whether the trial's process was killed from outside, which says nothing about its batch size."""
    return trial.verdict is Verdict.CRASHED and trial.detail.startswith("killed by signal")


def _in_use(current: Mapping[str, int], metric: Metric) -> int:
    """What the first batch comes on top of.

    Of reserved memory, what set-up has left in the allocator's cache isn't: the first batch takes it.
    """
    if metric is Metric.RESERVED:
        return current.get(Metric.ALLOCATED.value, current[metric.value])
    return current[metric.value]


def _describe_exit(ended: Exit) -> str:
    if ended.code < 0:
        return f"killed by signal {-ended.code} ({signal.Signals(-ended.code).name})"
    return f"ended with status {ended.code}"


def _growth(peaks: Sequence[int]) -> str:
    per_step = (peaks[-1] - peaks[1]) / (len(peaks) - 2)
    return (
        f"the peak still grows after {len(peaks)} optimizer steps, "
        f"by {per_step / 2**20:.1f} MiB a step: the recipe leaks memory, or its steps differ in size"
    )


def _tail(log: Path, lines: int = 20) -> str:
    """The last lines of a trial's output, without the intermediate states of progress bars."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 65536))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return ""
    visible = [line.rsplit("\r", 1)[-1] for line in text.splitlines()]
    return "\n".join([line for line in visible if line.strip()][-lines:])
