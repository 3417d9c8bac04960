"""The runs that the GPU benchmark probes: Llama shapes with random weights, laid out from the demo's parts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from autobatch.demo import SmallRun, lay_out
from autobatch.demo.examples import Example, as_json, make_examples

#: Rows of a step's dataset are long, so that few of them make enough packs for 20 steps at any batch_size.
_EXAMPLES = 20_000
_EXAMPLES_PER_ROW = 10

_LORA = {
    "lora_attn_modules": ["q_proj", "v_proj", "output_proj"],
    "apply_lora_to_mlp": True,
    "lora_rank": 64,
    "lora_alpha": 128,
    "lora_dropout": 0.0,
}

_WEIGHT_STD = 0.02


@dataclass(frozen=True)
class Shape:
    """A model's size.

    Attributes:
        module: of torchtune's builders.
        builder: the plain one's name; with ``lora_`` before it, the other's.
        model_type: as torchtune's checkpointers call it.
        dimensions: arguments of the builder, where the size isn't in its name.
    """

    module: str
    builder: str
    model_type: str
    dimensions: tuple[tuple[str, int], ...] = ()

    def section(self, method: Literal["lora", "qlora", "full"]) -> dict[str, Any]:
        """The config's `model` section."""
        if method == "full":
            return {"_component_": f"{self.module}.{self.builder}", **dict(self.dimensions)}
        quantized = {"quantize_base": True} if method == "qlora" else {}
        return {
            "_component_": f"{self.module}.lora_{self.builder}",
            **_LORA,
            **quantized,
            **dict(self.dimensions),
        }


SHAPES = {
    "1b": Shape("torchtune.models.llama3_2", "llama3_2_1b", "LLAMA3_2"),
    "3b": Shape("torchtune.models.llama3_2", "llama3_2_3b", "LLAMA3_2"),
    "8b": Shape("torchtune.models.llama3_1", "llama3_1_8b", "LLAMA3"),
    "tiny": Shape(
        "torchtune.models.llama3_2",
        "llama3_2",
        "LLAMA3_2",
        (
            ("vocab_size", 2048),
            ("num_layers", 4),
            ("num_heads", 4),
            ("num_kv_heads", 2),
            ("embed_dim", 256),
            ("intermediate_dim", 1024),
            ("max_seq_len", 512),
        ),
    ),
}


@dataclass(frozen=True)
class GpuCase:
    """One run to probe.

    Attributes:
        shape: key of `SHAPES`.
        method: what is trained.
        checkpointing: recompute activations in the backward pass.
        answer_within_s: bar for the time from the call to the answer; None where there is none.
        cost_s: about what probe and both trainings take, to see whether it still fits the budget.
    """

    shape: str
    method: Literal["lora", "qlora", "full"]
    checkpointing: bool
    answer_within_s: float | None
    cost_s: float

    @property
    def name(self) -> str:
        return f"{self.method}-{self.shape}" + ("-checkpointing" if self.checkpointing else "")


#: The most valuable first: time may run out.
CASES = (
    GpuCase("1b", "lora", True, 60, 150),
    GpuCase("8b", "lora", True, 120, 240),
    GpuCase("1b", "lora", False, 60, 120),
    GpuCase("1b", "full", True, 60, 150),
    GpuCase("3b", "lora", True, None, 200),
    GpuCase("8b", "lora", False, 120, 180),
    GpuCase("8b", "qlora", True, 120, 270),
    GpuCase("3b", "lora", False, None, 150),
    GpuCase("1b", "full", False, 60, 120),
)

#: The same on CPU, in little.
REHEARSAL = (
    GpuCase("tiny", "lora", False, 60, 60),
    GpuCase("tiny", "full", True, 60, 60),
    GpuCase("tiny", "qlora", True, 60, 60),
)


def lay_out_case(directory: Path, case: GpuCase, models: Path, device: str, max_seq_len: int) -> Path:
    """Write the run; its weights are made when `models` doesn't hold them yet.

    Args:
        directory: the experiment directory.
        case: what to lay out.
        models: directory of the checkpoints, shared by the cases.
        device: ``cuda``, or ``cpu`` for the rehearsal.
        max_seq_len: tokens of a pack.

    Returns:
        The run directory.
    """
    from omegaconf import OmegaConf

    small = SmallRun(
        case.name,
        method=case.method,
        dtype="bf16",
        device=device,
        max_seq_len=max_seq_len,
        enable_activation_checkpointing=case.checkpointing,
        batch_size=1,
        examples=1,
    )
    run_dir = lay_out(directory, small, force=True)
    (directory / "data" / "train.json").write_text(as_json(_long_examples()), encoding="utf-8")
    shape = SHAPES[case.shape]
    weights = models / f"{case.shape}.pt"
    if not weights.exists():
        write_random_weights(weights, shape.section("full"), device)
    path = run_dir / "finetune.yaml"
    config: Any = OmegaConf.load(path)
    config["model"] = shape.section(case.method)
    config["checkpointer"].update(
        checkpoint_dir=str(models), checkpoint_files=[weights.name], model_type=shape.model_type
    )
    config["optimizer"]["fused"] = True
    path.write_text(OmegaConf.to_yaml(config), encoding="utf-8")
    return run_dir


def write_random_weights(path: Path, model: dict[str, Any], device: str) -> None:
    """A checkpoint in bf16 for `model`, in torchtune's format: small random matrices, ones for norms.

    The model itself is built without memory, and the numbers are drawn where that is fast.
    """
    import torch
    from omegaconf import OmegaConf
    from torchtune import config, training

    with training.set_default_dtype(torch.bfloat16), torch.device("meta"):
        shapes = {
            name: tensor.shape
            for name, tensor in config.instantiate(OmegaConf.create(model)).state_dict().items()
        }
    weights = {}
    for name, shape in shapes.items():
        tensor = torch.ones(shape, dtype=torch.bfloat16, device=device)
        weights[name] = (tensor.normal_(std=_WEIGHT_STD) if len(shape) > 1 else tensor).cpu()
    path.parent.mkdir(parents=True, exist_ok=True)
    # Whole or not at all: another call finds it and takes it for good.
    partial = path.with_suffix(".partial")
    torch.save(weights, partial)
    partial.rename(path)


def _long_examples() -> list[Example]:
    """The demo's examples, several joined to one."""
    short = make_examples(_EXAMPLES)
    groups = [short[i : i + _EXAMPLES_PER_ROW] for i in range(0, len(short), _EXAMPLES_PER_ROW)]
    return [
        Example("\n".join(e.input for e in group), "\n".join(e.output for e in group)) for group in groups
    ]
