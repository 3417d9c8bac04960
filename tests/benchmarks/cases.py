"""The small runs that the exactness benchmark probes, and the capacity that each is given.

The capacities come from one formula, fixed before anything was measured with it: roughly the memory at
batch_size 6. Where a target falls between two sizes is left to chance.
"""

from __future__ import annotations

from dataclasses import dataclass

from autobatch.demo import SmallRun

MIB = 2**20

#: The fraction of the capacity that a peak may reach: autobatch's default.
TARGET = 0.70

#: Llama 3's vocabulary.
FULL_VOCABULARY = 128_256

#: The batch_size that the capacities are meant for.
_AIM = 6

#: Python with torch, torchtune and a dataset, before the model.
_IMPORTS_BYTES = 450 * MIB

_DTYPE_BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True)
class Case:
    """One run to probe.

    Attributes:
        run: what is laid out.
    """

    run: SmallRun

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def capacity_bytes(self) -> int:
        """Whole MiB, so that `predicted_bytes` at batch_size 6 is about the target."""
        return round(predicted_bytes(self.run, _AIM) / TARGET / MIB) * MIB


def predicted_bytes(run: SmallRun, batch_size: int) -> int:
    """A rule of thumb for the peak on CPU: only capacities are chosen by it.

    Weights (with gradients and Adam's two moments when all are trained), and for each token of a batch
    9 vectors of the model's width and 4 of the feed-forward's for every layer that keeps its activations,
    and 3 of the vocabulary.
    """
    size = _DTYPE_BYTES[run.dtype]
    embedding = run.vocab_size * run.embed_dim
    key_value = run.embed_dim // run.num_heads * run.num_kv_heads
    layer = run.embed_dim * (2 * run.embed_dim + 2 * key_value + 3 * run.intermediate_dim)
    copies = 4 if run.method == "full" else 1
    layer_bytes = layer / 2 if run.method == "qlora" else layer * size
    weights = copies * (embedding * size + run.num_layers * layer_bytes)
    kept = 9 * run.embed_dim + 4 * run.intermediate_dim
    if run.enable_activation_checkpointing:
        activations = run.num_layers * run.embed_dim + kept
    else:
        activations = run.num_layers * kept
    token = (activations + 3 * run.vocab_size) * size
    return round(_IMPORTS_BYTES + weights + batch_size * run.max_seq_len * token)


CASES = (
    Case(SmallRun("lora-fp32")),
    Case(SmallRun("lora-bf16-checkpointing", dtype="bf16", enable_activation_checkpointing=True,
                  embed_dim=512, num_heads=8, num_kv_heads=4, intermediate_dim=2048)),
    Case(SmallRun("lora-fp32-accumulation", max_seq_len=128, gradient_accumulation_steps=4, num_layers=6,
                  intermediate_dim=2048)),
    Case(SmallRun("lora-bf16-vocabulary", dtype="bf16", max_seq_len=128, vocab_size=FULL_VOCABULARY)),
    Case(SmallRun("qlora-bf16", method="qlora", dtype="bf16")),
    Case(SmallRun("qlora-bf16-accumulation", method="qlora", dtype="bf16", max_seq_len=128,
                  gradient_accumulation_steps=4, num_layers=6, intermediate_dim=2048)),
    Case(SmallRun("full-fp32-checkpointing-accumulation", method="full", gradient_accumulation_steps=4,
                  enable_activation_checkpointing=True)),
    Case(SmallRun("full-fp32-vocabulary", method="full", max_seq_len=128, vocab_size=FULL_VOCABULARY)),
    Case(SmallRun("full-bf16", method="full", dtype="bf16")),
    Case(SmallRun("dora-fp32", method="dora", max_seq_len=128, num_layers=6, intermediate_dim=2048)),
)  # fmt: skip
