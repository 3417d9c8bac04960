"""Learning rate schedules that end a training, named in configs as `tests.recipes.schedules.NAME`."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR


def breaks(optimizer: Any, num_training_steps: int, last_epoch: int, *, at: int, how: str) -> LambdaLR:
    """At a step, an error of Python's (``error``) or of an allocation that nothing can hold (``memory``)."""

    def factor(step: int) -> float:
        if step == at and how == "memory":
            torch.empty(2**60, dtype=torch.uint8)
        if step == at:
            raise ValueError(f"the schedule ends at step {step}")
        return 1.0

    return LambdaLR(optimizer, factor, last_epoch)
