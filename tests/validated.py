"""Runs to validate: a config of Llama 3.2 1B that has nothing to find, to be changed by each test."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from autobatch.validation.findings import Finding, Report, Severity
from autobatch.validation.validator import validate

#: A packed LoRA run of one card. Packed at half of the rule of thumb's 8: nothing is found.
CONFIG: dict[str, Any] = {
    "model": {
        "_component_": "torchtune.models.llama3_2.lora_llama3_2_1b",
        "lora_attn_modules": ["q_proj", "v_proj"],
        "lora_rank": 8,
        "lora_alpha": 16,
    },
    "tokenizer": {
        "_component_": "torchtune.models.llama3.llama3_tokenizer",
        "path": "../model/tokenizer.model",
        "max_seq_len": 2048,
    },
    "checkpointer": {
        "_component_": "torchtune.training.FullModelHFCheckpointer",
        "checkpoint_dir": "../model",
        "checkpoint_files": ["model.safetensors"],
        "output_dir": "output",
        "model_type": "LLAMA3_2",
    },
    "dataset": {
        "_component_": "torchtune.datasets.instruct_dataset",
        "source": "json",
        "data_files": "../data/train.json",
        "split": "train",
        "packed": True,
    },
    "optimizer": {"_component_": "torch.optim.AdamW", "lr": 3e-4},
    "loss": {"_component_": "torchtune.modules.loss.CEWithChunkedOutputLoss"},
    "lr_scheduler": {
        "_component_": "torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup",
        "num_warmup_steps": 10,
    },
    "batch_size": 4,
    "gradient_accumulation_steps": 1,
    "epochs": 1,
    "max_steps_per_epoch": None,
    "enable_activation_checkpointing": True,
    "enable_activation_offloading": False,
    "clip_grad_norm": None,
    "device": "cuda",
    "dtype": "bf16",
}

ALL_SCRIPT = "#!/bin/bash\n#SBATCH --time=1:00:00\ntune run {recipe} --config finetune.yaml\n"


def changed(**changes: Any) -> dict[str, Any]:
    """`CONFIG` with values at dotted paths (``model__lora_rank``) changed; `...` removes a key."""
    config = copy.deepcopy(CONFIG)
    for path, value in changes.items():
        *above, key = path.split("__")
        section = config
        for name in above:
            section = section.setdefault(name, {})
        if value is ...:
            del section[key]
        else:
            section[key] = value
    return config


def write_run(
    experiment: Path, name: str = "run1", config: Mapping[str, Any] = CONFIG, recipe: str | None = None
) -> Path:
    """Writes a run directory and the files that its config names; returns its path."""
    run = experiment / name
    for file, text in {
        "model/tokenizer.model": "a",
        "model/model.safetensors": "a",
        "data/train.json": '[{"input": "a", "output": "b"}]',
    }.items():
        (experiment / file).parent.mkdir(parents=True, exist_ok=True)
        (experiment / file).write_text(text)
    run.mkdir()
    (run / "finetune.yaml").write_text(yaml.safe_dump(dict(config), sort_keys=False))
    if recipe is not None:
        (run / "finetune.slurm").write_text(ALL_SCRIPT.format(recipe=recipe))
    return run


def report_of(path: Path, *, build: bool = False) -> Report:
    """The one report on `path`."""
    (report,) = validate([path], build=build)
    return report


def found(report: Report, check: str) -> list[Finding]:
    """The findings of one check."""
    return [finding for finding in report.findings if finding.check == check]


def severities(report: Report, check: str) -> list[str]:
    """Severities of the findings of one check."""
    return [finding.severity.value for finding in found(report, check)]


def errors(report: Report) -> list[str]:
    """What the errors say."""
    return [finding.what for finding in report.findings if finding.severity is Severity.ERROR]
