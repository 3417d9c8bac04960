"""torchtune's activation offloading without CUDA streams: what stays on the card, and for how long.

`torchtune/training/_activation_offloading.py`, `OffloadActivations` with its defaults: tensors of 1024 bytes or
more that the forward pass keeps are copied to the host; the last five stay on the card until a sixth comes;
parameters, buffers and what the output layer keeps stay.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks

from autobatch.estimate.tracker import current_tracker

_LEAST_BYTES = 1024
_STASH = 5


class Offloading(saved_tensors_hooks):
    """Keeps activations in the host's memory.

    Args:
        model: whose output layer keeps its own on the card.
    """

    def __init__(self, model: Any) -> None:
        self._stash: deque[torch.Tensor] = deque(maxlen=_STASH)
        self._off = False
        super().__init__(self._to_host, self._to_card)
        output = getattr(model, "output", None)
        head = output if isinstance(output, torch.nn.Module) else getattr(output, "linear", None)
        if isinstance(head, torch.nn.Module):
            head.register_forward_pre_hook(lambda *_: self._switch(off=True))
            head.register_forward_hook(lambda *_: self._switch(off=False), always_call=True)

    def _switch(self, *, off: bool) -> None:
        self._off = off

    def _to_host(self, tensor: torch.Tensor) -> tuple[torch.Tensor, bool]:
        small = tensor.numel() * tensor.element_size() < _LEAST_BYTES
        if self._off or small or isinstance(tensor, (torch.nn.Parameter, torch.nn.Buffer)):
            return tensor, False
        self._stash.append(tensor)
        with current_tracker().on_host():
            return torch.empty_like(tensor), True

    def _to_card(self, packed: tuple[torch.Tensor, bool]) -> torch.Tensor:
        tensor, offloaded = packed
        self._stash.clear()
        return torch.empty_like(tensor) if offloaded else tensor
