"""A model that tells what it is given."""

from typing import Any

import torch
from torch import nn
from torchtune.models.llama3_2 import llama3_2


def telling_llama3_2(**settings: Any) -> nn.Module:
    """`llama3_2` that prints a line for every batch: how many rows it has."""
    model: nn.Module = llama3_2(**settings)

    def tell(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        tokens: torch.Tensor = named["tokens"]
        print(f"rows {tokens.shape[0]}")  # noqa: T201  # it is read from the log

    model.register_forward_pre_hook(tell, with_kwargs=True)
    return model
