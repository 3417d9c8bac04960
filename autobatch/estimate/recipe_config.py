"""An estimate's config: a trial's, with nothing read from disk and the device's own choices spelled out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from autobatch.estimate.state_formats import FORMATS
from autobatch.probing.trial_config import model_section, shortened

if TYPE_CHECKING:
    from autobatch.estimate.subject import Subject

_COMPONENTS = "autobatch.estimate.components"

#: Optimizer steps to follow: Adam's state is there from the first on, so that the second holds everything.
STEPS = 2

#: Optimizers of torch.optim that run over all parameters at once on CUDA unless told otherwise
#: (torch/optim/optimizer.py, _default_to_fused_or_foreach), which takes temporary copies.
_FOREACH = (
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "ASGD",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
)


def estimate_config(subject: Subject, batch_size: int, steps: int = STEPS) -> str:
    """The config for one batch_size, as YAML."""
    from omegaconf import OmegaConf

    sections = shortened(subject.config, batch_size, steps)
    for name, section in sections.items():
        if name.endswith("checkpointer") and isinstance(section, dict):
            sections[name] = {
                "_component_": f"{_COMPONENTS}.HostCheckpointer",
                "model": json.dumps(model_section(name, sections)),
                "dtype": sections.get("dtype"),
                # Every tensor by itself: on CPU each counts.
                "device": "cpu",
                "model_type": section.get("model_type"),
            }
    sections["metric_logger"] = {"_component_": f"{_COMPONENTS}.LastStep", "steps": steps}
    sections["tokenizer"] = {
        "_component_": f"{_COMPONENTS}.NoTokenizer",
        "max_seq_len": subject.max_seq_len,
    }
    dataset = sections.get("dataset")
    pairs = "dpo" in str(sections.get("loss")).lower()
    kept = {k: v for k, v in dataset.items() if k == "collate_fn"} if isinstance(dataset, dict) else {}
    sections["dataset"] = {
        "_component_": f"{_COMPONENTS}.SyntheticRows",
        "rows": batch_size * sections["gradient_accumulation_steps"] * (steps + 1) * subject.data_parallel,
        "max_seq_len": subject.max_seq_len,
        "pairs": pairs,
        "packed": subject.packed,
        **kept,
    }
    sections["profiler"] = {"_component_": "torchtune.training.setup_torch_profiler", "enabled": False}
    if subject.device == "cuda":
        _as_on_cuda(sections, sharded=subject.world is not None and subject.world.size > 1)
    return OmegaConf.to_yaml(OmegaConf.create(sections))


def _as_on_cuda(sections: dict[str, Any], *, sharded: bool) -> None:
    """Fake tensors are on the CPU: what recipes and PyTorch choose by the device is chosen here."""
    sections["device"] = "cpu"
    # A compiled model under fake tensors runs as if it weren't compiled; compiling it takes minutes.
    sections["compile"] = False
    # Recipes refuse it on CPU; `worker` puts `Offloading` in its place.
    sections["enable_activation_offloading"] = False
    optimizer = sections.get("optimizer")
    if not isinstance(optimizer, dict):
        return
    component = str(optimizer.get("_component_"))
    if component in FORMATS:
        optimizer.update(_component_="autobatch.estimate.optimizers.LowBitAdam", component=component)
    module, _, name = component.rpartition(".")
    # Not over DTensors (_foreach_supported_types in the same file).
    if module.startswith("torch.optim") and name in _FOREACH and not optimizer.get("fused") and not sharded:
        optimizer.setdefault("foreach", True)


def offloads(subject: Subject) -> bool:
    """Whether activations are kept in the host's memory."""
    return subject.device == "cuda" and bool(subject.resolved().get("enable_activation_offloading"))


def shards_on_host(subject: Subject) -> bool:
    """Whether a rank keeps its parameters, gradients and optimizer state in the host's memory."""
    return subject.world is not None and bool(subject.resolved().get("fsdp_cpu_offload"))
