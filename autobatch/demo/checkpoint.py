"""A Llama 3.2 with random weights, as a checkpoint that torchtune reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autobatch.demo.layout import SmallRun

#: Standard deviation of Llama's embeddings before training. With torch's default of 1 the tied output
#: layer would give a loss in the hundreds.
_EMBEDDING_STD = 0.02


def write_checkpoint(path: Path, run: SmallRun, seed: int = 0) -> int:
    """Write the state dict of a randomly initialised model, or one of a constant, to `path`, in the run's dtype.

    The format is torchtune's own, for `torchtune.training.FullModelTorchTuneCheckpointer`.

    The directory is made when missing, but only once the model could be built.

    Returns:
        The number of parameters.
    """
    import torch
    from torchtune.models.llama3_2 import llama3_2

    # On its own generator, for the caller's random numbers are none of our business.
    place = torch.device("meta") if run.constant_weights else torch.device("cpu")
    with torch.random.fork_rng(devices=[]), place:
        torch.manual_seed(seed)
        model = llama3_2(
            vocab_size=run.vocab_size,
            num_layers=run.num_layers,
            num_heads=run.num_heads,
            num_kv_heads=run.num_kv_heads,
            embed_dim=run.embed_dim,
            intermediate_dim=run.intermediate_dim,
            max_seq_len=run.max_seq_len,
        )
        torch.nn.init.normal_(model.tok_embeddings.weight, std=_EMBEDDING_STD)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[run.dtype]
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    if run.constant_weights:
        # A file holds what stands behind a tensor: here, one element.
        constant = torch.full((1,), _EMBEDDING_STD, dtype=dtype)
        weights = {name: constant.expand(tensor.shape) for name, tensor in weights.items()}
    torch.save(weights, path)
    return sum(parameter.numel() for parameter in model.parameters())
