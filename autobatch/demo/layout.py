"""Laying out a small run: experiment directory, run directory, model, tokenizer and data.

    DIR/
    ├── runs_plan.md
    ├── run1/
    │   ├── finetune.yaml        its paths are relative to run1/
    │   └── finetune.slurm
    ├── model/
    │   ├── model.pt             random weights
    │   ├── tokenizer-HASH.model
    │   └── special_tokens.json
    └── data/
        └── train.json

Two layouts of one `SmallRun` differ in no byte, in whatever directory they are.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from autobatch.demo.checkpoint import write_checkpoint
from autobatch.demo.examples import as_json, make_examples
from autobatch.demo.parts import filled_template
from autobatch.demo.tokenizer import TOKENIZER_VOCAB_SIZE, Tokenizer, train_tokenizer
from autobatch.errors import UsageError

#: The tokenizer is trained on as many examples, however many the dataset has: a dataset twice as long
#: is then tokenized alike.
_TOKENIZER_EXAMPLES = 2000

_QUANTIZED_BLOCK = 64 * 256  # torchao's NF4Tensor: 64 elements a block, 256 blocks a scaler block


@dataclass(frozen=True)
class SmallRun:
    """Every choice of a small run; the defaults are the demo's.

    Attributes:
        name: of the run directory and of the Slurm job.
        method: ``lora``, ``qlora`` and ``dora`` train adapters, ``full`` trains all weights.
        recipe: name in torchtune's registry; None takes the single-device recipe of the method.
        dtype: ``fp32`` or ``bf16``.
        device: as in finetune.yaml.
        max_seq_len: tokens of a packed sequence; longer examples are cut off by the tokenizer.
        vocab_size: of the model. The tokenizer uses the first 2,048 ids, so that a larger vocabulary
            (Llama 3's has 128,256) takes its memory in the embedding and the logits without one to train.
        num_layers, num_heads, num_kv_heads, embed_dim, intermediate_dim: the model's shape.
        lora_rank: of the adapters; their alpha is twice the rank.
        enable_activation_checkpointing: recompute activations in the backward pass.
        gradient_accumulation_steps: micro-batches of an optimizer step.
        batch_size: packed sequences of a micro-batch.
        packed: pack the examples.
        examples: rows of the dataset.
        optimizer: class of the optimizer, a dotted path.
        epochs: passes over the dataset.
        max_steps_per_epoch: optimizer steps after which an epoch ends; None goes through all of it.
        constant_weights: one number for all weights instead of random ones: a checkpoint of any size in a small
            file, for a probe, whose memory doesn't depend on them.
        sbatch_options: further options for finetune.slurm's header, such as ``--partition=gpu``.
    """

    name: str = "run1"
    method: Literal["lora", "qlora", "dora", "full"] = "lora"
    recipe: str | None = None
    dtype: Literal["fp32", "bf16"] = "fp32"
    device: str = "cpu"
    max_seq_len: int = 512
    vocab_size: int = TOKENIZER_VOCAB_SIZE
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int = 2
    embed_dim: int = 256
    intermediate_dim: int = 1024
    lora_rank: int = 8
    enable_activation_checkpointing: bool = False
    gradient_accumulation_steps: int = 1
    batch_size: int = 4
    packed: bool = True
    examples: int = 2000
    optimizer: str = "torch.optim.AdamW"
    epochs: int = 1
    max_steps_per_epoch: int | None = None
    constant_weights: bool = False
    sbatch_options: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        problems = self._problems()
        if problems:
            raise UsageError("a small run can't be laid out so: " + "; ".join(problems))

    @property
    def recipe_name(self) -> str:
        """The recipe that finetune.slurm runs."""
        family = "full" if self.method == "full" else "lora"
        return self.recipe or f"{family}_finetune_single_device"

    def _problems(self) -> list[str]:
        head_dim, rest = divmod(self.embed_dim, self.num_heads)
        kv_dim = head_dim * self.num_kv_heads
        checks = {
            f"name {self.name!r} must be letters, digits, '.', '_' or '-', and not model or data": (
                not re.fullmatch(r"\w[\w.-]*", self.name) or self.name in ("model", "data")
            ),
            f"vocab_size {self.vocab_size} is below the tokenizer's {TOKENIZER_VOCAB_SIZE}": (
                self.vocab_size < TOKENIZER_VOCAB_SIZE
            ),
            f"embed_dim {self.embed_dim} over num_heads {self.num_heads} must be an even number": (
                rest != 0 or head_dim % 2 != 0
            ),
            f"num_heads {self.num_heads} must be a multiple of num_kv_heads {self.num_kv_heads}": (
                self.num_heads % self.num_kv_heads != 0
            ),
            f"qlora needs weights of a multiple of {_QUANTIZED_BLOCK} elements": self.method == "qlora"
            and any(
                self.embed_dim * dim % _QUANTIZED_BLOCK
                for dim in (self.embed_dim, kv_dim, self.intermediate_dim)
            ),
        }
        return [problem for problem, found in checks.items() if found]


#: The shape of Llama 3.2 1B, to be trained on a GPU with LoRA as torchtune's own config does.
LLAMA_1B = SmallRun(
    device="cuda",
    dtype="bf16",
    max_seq_len=2048,
    vocab_size=128_256,
    num_layers=16,
    num_heads=32,
    num_kv_heads=8,
    embed_dim=2048,
    intermediate_dim=8192,
    lora_rank=64,
    enable_activation_checkpointing=True,
    examples=20_000,
    constant_weights=True,
)


def lay_out(directory: Path, run: SmallRun | None = None, *, force: bool = False) -> Path:
    """Write the run and everything it needs under `directory`.

    Args:
        directory: the experiment directory; made when missing.
        run: what to lay out; None lays out the demo.
        force: write into a directory that holds files already. Those of the layout are written anew,
            others stay.

    Returns:
        The run directory.

    Raises:
        UsageError: `directory` holds files already, or isn't a directory.
    """
    run = run or SmallRun()
    _refuse_occupied(directory, force)
    texts = [text for e in make_examples(_TOKENIZER_EXAMPLES) for text in (e.input, e.output)]
    tokenizer = train_tokenizer(texts)

    run_dir, model_dir, data_dir = directory / run.name, directory / "model", directory / "data"
    parameters = write_checkpoint(model_dir / "model.pt", run)
    for place in (run_dir, data_dir):
        place.mkdir(parents=True, exist_ok=True)
    values = _values(run, tokenizer, parameters)
    config = "finetune_full.yaml" if run.method == "full" else "finetune_lora.yaml"
    for path, text in {
        model_dir / tokenizer.file_name: tokenizer.model,
        model_dir / "special_tokens.json": tokenizer.special_tokens,
        data_dir / "train.json": as_json(make_examples(run.examples)),
        run_dir / "finetune.yaml": filled_template(config, values),
        run_dir / "finetune.slurm": filled_template("finetune.slurm", values),
        directory / "runs_plan.md": filled_template("runs_plan.md", values),
    }.items():
        path.write_text(text, encoding="utf-8")
    return run_dir


def _refuse_occupied(directory: Path, force: bool) -> None:
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory} is a file: name a directory for the demo")
    if not force and directory.is_dir() and any(directory.iterdir()):
        raise UsageError(
            f"{directory} holds files already: name a new or empty directory,\n"
            "    or add --force to write the demo's files over those of the same name"
        )


def _values(run: SmallRun, tokenizer: Tokenizer, parameters: int) -> dict[str, object]:
    """What the templates ask for."""
    lora_alpha = 2 * run.lora_rank
    return {
        **dataclasses.asdict(run),
        "recipe": run.recipe_name,
        "lora_alpha": lora_alpha,
        "lora_bullet": "" if run.method == "full" else f"- **LoRA alpha**: {lora_alpha} (2 × rank)\n",
        "gpus": "none, it trains on the CPU" if run.device == "cpu" else 1,
        "use_dora": run.method == "dora",
        "quantize_base": run.method == "qlora",
        "max_steps_per_epoch": "null" if run.max_steps_per_epoch is None else run.max_steps_per_epoch,
        "tokenizer_file": tokenizer.file_name,
        "parameters": f"{parameters / 1e6:.1f}M",
        "effective_batch_size": run.batch_size * run.gradient_accumulation_steps,
        "sbatch_options": "".join(f"#SBATCH {option}\n" for option in run.sbatch_options),
    }
