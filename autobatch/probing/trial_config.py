"""A trial's config: the run's own, with four components swapped and the step counts cut."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autobatch.probing.effective_batch import MAX_MICRO_BATCHES
from autobatch.records import Metric
from autobatch.world import World

if TYPE_CHECKING:
    from omegaconf import DictConfig

#: Two successive peaks within this fraction: the peak is at rest.
PEAK_TOLERANCE = 0.002

#: A peak that still grows after so many optimizer steps has no final value to measure.
MAX_STEPS = 8

_COMPONENTS = "autobatch.probing.components"
_RANK_COMPONENTS = "autobatch.probing.rank_components"


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
        row_tokens: positions of a row in a batch; of a preference pair, those of the longer of the two. None on a
            simulated GPU, on which the time of a step says nothing.
        min_steps: optimizer steps of a trial, at least.
        timeout_s: after which a trial counts as hung.
        load_weights: use the config's own checkpointers.
        directory: where trials keep their files, `probe/` of the run.
        world: the processes of a distributed training; None where there is one without torchrun.
        alone: of `world` rank 0 runs alone.
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
    row_tokens: int | None
    min_steps: int
    timeout_s: float
    load_weights: bool
    directory: Path
    world: World | None = None
    alone: bool = False


def trial_config(setup: TrialSetup, batch_size: int, events: Path, *, end_when_over: bool = False) -> str:
    """The run's config with the four components swapped and the step counts cut, as YAML.

    Args:
        setup: what all trials share.
        batch_size: sequences per micro-batch.
        events: the trial's event file.
        end_when_over: end it after the first step whose peak is over the target.
    """
    from omegaconf import OmegaConf

    steps = max(MAX_STEPS, setup.min_steps)
    sections = shortened(setup.config, batch_size, steps)
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
            "model": json.dumps(model_section(name, sections)),
            "dtype": sections.get("dtype"),
            "device": setup.device,
            "model_type": section.get("model_type"),
        }
    pace = {
        "metric": setup.metric.value,
        "min_steps": setup.min_steps,
        "max_steps": steps,
        "tolerance": PEAK_TOLERANCE,
        "limit_bytes": setup.target_bytes if end_when_over else None,
    }
    rows = {
        **measuring,
        "path": str(setup.rows),
        "rows": batch_size * sections["gradient_accumulation_steps"] * (steps + 1),
        "held_bytes": setup.held_bytes,
        "packed": setup.packed,
    }
    if setup.world is None:
        sections["metric_logger"] = {"_component_": f"{_COMPONENTS}.StepCounter", **measuring, **pace}
        sections["dataset"] = {"_component_": f"{_COMPONENTS}.StoredRows", **rows}
    else:
        # Only rank 0 has a metric logger; every rank has the dataset.
        rows["rows"] *= setup.world.data_parallel
        sections["metric_logger"] = {"_component_": f"{_RANK_COMPONENTS}.RankLogger"}
        sections["dataset"] = {
            "_component_": f"{_RANK_COMPONENTS}.RankRows",
            "alone": setup.alone,
            **rows,
            **pace,
        }
    sections["profiler"] = {"_component_": "torchtune.training.setup_torch_profiler", "enabled": False}
    return OmegaConf.to_yaml(OmegaConf.create(sections))


def shortened(config: DictConfig, batch_size: int, steps: int) -> dict[str, Any]:
    """The config's sections, resolved, for `steps` optimizer steps at `batch_size`."""
    from omegaconf import OmegaConf

    overrides = {
        "batch_size": batch_size,
        "gradient_accumulation_steps": micro_batches(config),
        "epochs": 1,
        # One more than the step counter lets happen: the recipe never gets to the end of its epoch.
        "max_steps_per_epoch": steps + 1,
        "log_every_n_steps": 1,
        # When on, torchtune resets the peaks at every logged step.
        "log_peak_memory_stats": False,
        "resume_from_checkpoint": False,
    }
    # Resolved with the trial's batch size, which other values may refer to, and before any section goes,
    # whose values they may refer to as well.
    sections: dict[str, Any] = OmegaConf.to_container(OmegaConf.merge(config, overrides), resolve=True)  # type: ignore[assignment]
    return sections


def micro_batches(config: DictConfig) -> int:
    """Micro-batches of an optimizer step of a trial."""
    return min(int(config.get("gradient_accumulation_steps") or 1), MAX_MICRO_BATCHES)


def _output_of_trials(section: Mapping[str, Any], setup: TrialSetup) -> dict[str, str]:
    """Another output_dir for a checkpointer, which makes the directory although nothing is saved.

    torchtune refuses one within checkpoint_dir; there the config's own stays.
    """
    output = (setup.directory / "trials" / "output").resolve()
    weights = (setup.working_dir / str(section.get("checkpoint_dir", ""))).resolve()
    if "output_dir" not in section or weights in (output, *output.parents):
        return {}
    return {"output_dir": str(output)}


def model_section(checkpointer: str, resolved: Mapping[str, Any]) -> Any:
    """The model section that a checkpointer loads: `teacher_checkpointer` goes with `teacher_model`."""
    prefix = checkpointer.removesuffix("checkpointer")
    return resolved.get(f"{prefix}model", resolved.get("model"))
