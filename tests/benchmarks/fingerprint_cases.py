"""Changes of one key each of a small run's config, for the fingerprint benchmark and its test.

Three configs are changed: LoRA and full fine-tuning of the demo's model, packed, and LoRA without packing, with
eight examples that make one batch, so that every step is the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from autobatch.demo import SmallRun, lay_out
from autobatch.demo.examples import as_json, make_examples
from autobatch.probing.identity import run_fingerprint
from autobatch.records import Device, PackingMode, ProbeRequest
from autobatch.runs.directory import read_run

_EXAMPLES = 600

BASES = {
    "lora": SmallRun("lora", examples=_EXAMPLES),
    "full": SmallRun("full", method="full", examples=_EXAMPLES),
    "unpacked": SmallRun("unpacked", packed=False, batch_size=8, examples=_EXAMPLES),
}

#: What each config has besides its `SmallRun`.
_SETTINGS: Mapping[str, dict[str, Any]] = {"unpacked": {"dataset.split": "train[:8]"}}

#: Stands for a key that isn't there.
MISSING = "(missing)"


@dataclass(frozen=True)
class Change:
    """One key of one config, set to another value.

    Attributes:
        base: which config, of BASES.
        key: dotted.
        value: that it is set to; MISSING removes it.
        counts: whether the fingerprint must change.
        given: settings of both configs, before and after, by dotted key.
        along: settings that must change together with the key.
        shape: fields of `SmallRun`, for a key that decides the shapes of the weights.
        overrides: for `tune run`, beside those of every plain run; logged_steps: lines that it then logs.
        unmeasured: why it can't be measured here; empty when it can.
    """

    base: str
    key: str
    value: Any
    counts: bool
    given: Mapping[str, Any] = field(default_factory=dict)
    along: Mapping[str, Any] = field(default_factory=dict)
    shape: Mapping[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    logged_steps: int | None = None
    unmeasured: str = ""

    @property
    def name(self) -> str:
        return f"{self.base}:{self.key}={self.value}"


def _shape(key: str, value: int) -> Change:
    return Change("lora", f"model.{key}", value, True, shape={key: value})


_LOGGER = "torchtune.training.metric_logging"
_SCHEDULES = "torchtune.training.lr_schedulers"
_NO_CARD = "torchtune refuses it without a card"

CHANGES = (
    # The model.
    Change("lora", "model.lora_rank", 16, True),
    Change("lora", "model.lora_alpha", 64, False),
    Change("lora", "model.lora_dropout", 0.1, True),
    Change("lora", "model.lora_attn_modules", ["q_proj", "v_proj"], True),
    Change("lora", "model.apply_lora_to_mlp", False, True),
    Change("lora", "model.apply_lora_to_output", True, True),
    Change("lora", "model.use_dora", True, True),
    Change("lora", "model.quantize_base", True, True),
    Change("lora", "model.attn_dropout", 0.1, True),
    Change("lora", "model.norm_eps", 1e-6, True),
    Change("lora", "model.rope_base", 10_000, True),
    Change("lora", "model.scale_factor", 8, True),
    Change("lora", "model.max_seq_len", 1024, True),
    _shape("vocab_size", 4096),
    _shape("num_layers", 5),
    _shape("num_heads", 8),
    _shape("num_kv_heads", 4),
    _shape("embed_dim", 320),
    _shape("intermediate_dim", 1280),
    # Tokenizer and data.
    Change("lora", "tokenizer.max_seq_len", 256, True),
    Change("lora", "tokenizer.path", "${model_dir}/copy.model", True),
    Change("lora", "tokenizer.special_tokens_path", "${model_dir}/copy.json", True),
    Change("lora", "dataset.packed", False, True),
    Change("lora", "dataset.data_files", "${data_dir}/copy.json", False),
    Change("lora", "dataset.data_files", "${data_dir}/other.json", False),
    Change("lora", "dataset.split", "train[:90%]", False),
    Change("lora", "dataset.train_on_input", True, True),
    Change("lora", "dataset.new_system_prompt", "Answer briefly.", True),
    Change("lora", "data_dir", "../data2", False),
    Change("lora", "model_dir", "../model2", True),
    Change("lora", "shuffle", False, False),
    Change("lora", "seed", 1, False),
    Change("lora", "seed", None, False),
    Change("unpacked", "dataset.data_files", "${data_dir}/long.json", True),
    Change("unpacked", "dataset.split", "train[8:16]", True),
    Change("unpacked", "tokenizer.max_seq_len", 64, True),
    Change("unpacked", "optimizer.lr", 1e-5, False),
    Change("unpacked", "model.lora_alpha", 64, False),
    Change("unpacked", "shuffle", False, False),
    # The optimizer.
    *(
        Change(base, key, value, False)
        for base in ("lora", "full")
        for key, value in {
            "optimizer.lr": 1e-5,
            "optimizer.betas": [0.8, 0.95],
            "optimizer.eps": 1e-6,
        }.items()
    ),
    Change("lora", "optimizer.weight_decay", 0.1, False),
    Change("lora", "optimizer.weight_decay", 0.0, True),
    Change("full", "optimizer.weight_decay", 0.1, False, given={"optimizer.weight_decay": 0.01}),
    Change("full", "optimizer.weight_decay", 0.0, True, given={"optimizer.weight_decay": 0.01}),
    Change("full", "optimizer.fused", True, True),
    Change("full", "optimizer.foreach", True, True),
    Change("full", "optimizer.amsgrad", True, True),
    Change("full", "optimizer.maximize", True, True),
    Change("full", "optimizer._component_", "torch.optim.SGD", True),
    Change("full", "optimizer._component_", "torch.optim.Adafactor", True),
    Change("full", "optimizer._component_", "torchao.optim.AdamW8bit", True),
    Change(
        "full", "optimizer.momentum", 0.9, True, given={"optimizer._component_": "torch.optim.SGD"}
    ),
    Change("full", "optimizer_in_bwd", True, True),
    Change("lora", "lr_scheduler.num_warmup_steps", 100, False),
    Change("lora", "lr_scheduler.num_cycles", 1.0, False),
    Change("full", "lr_scheduler", {"_component_": f"{_SCHEDULES}.get_cosine_schedule_with_warmup",
                                    "num_warmup_steps": 10}, False),
    # Loss and step.
    Change("lora", "loss.num_output_chunks", 1, True),
    Change("lora", "loss.num_output_chunks", 16, True),
    Change("lora", "loss._component_", "torch.nn.CrossEntropyLoss", True),
    Change("lora", "clip_grad_norm", 1.0, True),
    Change("full", "clip_grad_norm", 1.0, True),
    Change("full", "clip_grad_norm", 0.5, False, given={"clip_grad_norm": 1.0}),
    Change("lora", "gradient_accumulation_steps", 2, True),
    Change("full", "gradient_accumulation_steps", 2, True),
    Change("full", "gradient_accumulation_steps", 4, False, given={"gradient_accumulation_steps": 2}),
    Change("lora", "batch_size", 5, False),
    # Precision and what is kept.
    Change("lora", "dtype", "bf16", True),
    Change("full", "dtype", "bf16", True),
    Change("lora", "device", "cuda", True, unmeasured="no card here"),
    Change("lora", "enable_activation_checkpointing", True, True),
    Change("full", "enable_activation_checkpointing", True, True),
    Change("lora", "enable_activation_offloading", True, True,
           given={"enable_activation_checkpointing": True}, unmeasured=_NO_CARD),
    Change("lora", "compile", True, True),
    # What surrounds training.
    Change("lora", "epochs", 2, False, overrides=("epochs=2", "max_steps_per_epoch=2")),
    Change("lora", "max_steps_per_epoch", 3, False, overrides=("max_steps_per_epoch=3",), logged_steps=3),
    Change("lora", "log_every_n_steps", 2, False, overrides=("log_every_n_steps=2",), logged_steps=2),
    Change("lora", "log_peak_memory_stats", False, False, overrides=("log_peak_memory_stats=False",)),
    Change("lora", "log_level", "DEBUG", False),
    Change("lora", "metric_logger._component_", f"{_LOGGER}.StdoutLogger", False,
           along={"metric_logger.log_dir": MISSING}, logged_steps=0),
    Change("lora", "metric_logger.log_dir", "${output_dir}/other/logs", False, logged_steps=0),
    Change("lora", "profiler.enabled", True, False),
    Change("lora", "output_dir", "./elsewhere", False),
    Change("lora", "checkpointer.output_dir", "${output_dir}/weights", False),
    Change("lora", "checkpointer.checkpoint_dir", "../model2", False),
    Change("lora", "checkpointer.checkpoint_files", ["copy.pt"], False),
    Change("lora", "checkpointer.model_type", "LLAMA3", True),
    Change("lora", "save_adapter_weights_only", False, False),
    Change("lora", "resume_from_checkpoint", True, False,
           unmeasured="a trial never resumes; the optimizer's state is there from the first step either way"),
    Change("lora", "run_name", "sweep-17", False),
    Change("lora", "note", "an unknown key", True),
)  # fmt: skip


def prepare(directory: Path) -> None:
    """Lay out the three configs and the files that changes name, under `directory`."""
    for run in BASES.values():
        lay_out(directory, run, force=True)
    data, model = directory / "data", directory / "model"
    shutil.copyfile(data / "train.json", data / "copy.json")
    (data / "other.json").write_text(as_json(make_examples(_EXAMPLES, seed=1)), encoding="utf-8")
    longest = sorted(make_examples(_EXAMPLES), key=lambda example: len(example.input) + len(example.output))
    (data / "long.json").write_text(as_json(longest[-8:]), encoding="utf-8")
    for copy, original in {
        "copy.model": next(model.glob("tokenizer-*.model")),
        "copy.json": model / "special_tokens.json",
        "copy.pt": model / "model.pt",
    }.items():
        shutil.copyfile(original, model / copy)
    for place in (data, model):
        shutil.copytree(place, directory / f"{place.name}2", dirs_exist_ok=True)


def pair(change: Change, directory: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The configs before and after a change, unresolved, of runs that `prepare` laid out in `directory`."""
    before = _settings(_read(directory / change.base), {**_SETTINGS.get(change.base, {}), **change.given})
    if change.shape:
        after = _settings(before, {f"model.{key}": value for key, value in change.shape.items()})
    else:
        after = _settings(before, {change.key: change.value, **change.along})
    return before, after


def write(config: Mapping[str, Any], base: str, run: Path) -> None:
    """A run directory with this config and the script of its base."""
    from omegaconf import OmegaConf

    run.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(dict(config)), run / "finetune.yaml")
    shutil.copyfile(run.parent / base / "finetune.slurm", run / "finetune.slurm")


def shaped(change: Change) -> SmallRun:
    """What to lay out for a change of shapes."""
    return replace(BASES[change.base], **change.shape)


def fingerprint_of(run: Path, device: str = "cpu") -> str:
    """The fingerprint that a probe of the run would have."""
    packed = read_run(run, ProbeRequest(str(run), packing=PackingMode.UNPACKED)).packed
    request = ProbeRequest(str(run), packing=PackingMode.CONFIG if packed else PackingMode.UNPACKED)
    return run_fingerprint(read_run(run, request), request, Device(device, "a device", 2**33), {})


def value_of(config: Mapping[str, Any], key: str) -> Any:
    """The value at a dotted key; MISSING where there is none."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return MISSING
        value = value[part]
    return value


def _read(run: Path) -> dict[str, Any]:
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(OmegaConf.load(run / "finetune.yaml"), resolve=False)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def _settings(config: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    changed = dict(config)
    for key, value in values.items():
        first, _, rest = key.partition(".")
        if rest:
            changed[first] = _settings(changed.get(first) or {}, {rest: value})
        elif value == MISSING:
            changed.pop(first, None)
        else:
            changed[first] = value
    return changed
