"""Stands in for optimizers whose own code can't run on fake tensors: CUDA kernels behind ctypes, or compiled ones.

State is all of their memory: their kernels update a parameter in place.
"""

from __future__ import annotations

from typing import Any

import torch

from autobatch.estimate.state_formats import FORMATS

_LEAST_QUANTIZED = 4096
_LEAST_PAGED = 100_000


class LowBitAdam(torch.optim.Optimizer):
    """Takes the memory of the optimizer that `component` names, and changes nothing.

    Args:
        params: as every optimizer takes them.
        component: key of `FORMATS`.
        lr: for the scheduler.
    """

    def __init__(self, params: Any, component: str, lr: float = 1e-3, **_: Any) -> None:
        super().__init__(params, {"lr": lr})
        self._format = FORMATS[component]

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Make the state of each parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and not self.state[parameter]:
                    self.state[parameter].update(self._state_of(parameter))

    def _state_of(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        # A rank's part of it, where the model is sharded.
        parameter = getattr(parameter, "_local_tensor", parameter)
        how, elements = self._format, parameter.numel()
        if how.paged and elements >= _LEAST_PAGED and how.bits == 32:
            return {"absent": parameter.new_empty(0)}
        if how.bits == 32 or elements < _LEAST_QUANTIZED:
            dtype = parameter.dtype if how.small_as_parameter else torch.float32
            return {f"state{i}": torch.empty_like(parameter, dtype=dtype) for i in (1, 2)}
        state = {
            f"scale{i}": parameter.new_empty(-(-elements // how.block), dtype=torch.float32) for i in (1, 2)
        }
        if not (how.paged and elements >= _LEAST_PAGED):
            for i in (1, 2):
                state[f"state{i}"] = parameter.new_empty(elements * how.bits // 8, dtype=torch.uint8)
        return state
