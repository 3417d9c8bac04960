"""The rule of thumb for batch_size by the model's size, until it has been measured.

Source: the planning document, `get_batch_size_limits`. It speaks of one card of 80 GB that holds the whole
model, and knows nothing of max_seq_len, LoRA, precision or activation checkpointing: it can be wrong by a
factor, in both directions. Where `autobatch probe` has measured, the measurement counts and this doesn't.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from autobatch.runs.model_name import model_label

#: Smaller models than 0.5B are in no row: the document's smallest is 1B, which the 0.5B models share.
_SMALLEST = 0.4e9


@dataclass(frozen=True)
class SizeLimit:
    """The largest batch_size that the rule of thumb allows models of one size.

    Attributes:
        label: of the row.
        largest_billion: the size, as it stands in models' names, up to which the row holds.
        largest_parameters: the same by parameters, which names round: Llama 3.2 1B has 1.24e9, Gemma 7B
            8.54e9. The rows that the two give are the same for every model that torchtune names by size.
        packed: with ``packed: True``.
        unpacked: without.
    """

    label: str
    largest_billion: float
    largest_parameters: float
    packed: int
    unpacked: int


LIMITS = (
    SizeLimit("1B", 1, 1.3e9, 8, 20),
    SizeLimit("3B", 3, 3.5e9, 4, 12),
    SizeLimit("7B/8B", 8, 8.6e9, 2, 6),
    SizeLimit("13B", 13, 13.5e9, 1, 4),
    SizeLimit("70B", 70, 71e9, 1, 2),
    SizeLimit("more than 70B", float("inf"), float("inf"), 1, 1),
)


def limit_for(parameters: int) -> SizeLimit | None:
    """The row of a model with so many parameters; None for one that is smaller than any row."""
    if parameters < _SMALLEST:
        return None
    return next(limit for limit in LIMITS if parameters <= limit.largest_parameters)


def limit_by_name(model: Any) -> SizeLimit | None:
    """The row of a model by the size in its component's name; None when there is none in it.

    Args:
        model: the config's `model` section.
    """
    size = re.fullmatch(r"(\d+(?:\.\d+)?)B", model_label(model))
    if size is None or float(size[1]) * 1e9 < _SMALLEST:
        return None
    return next(limit for limit in LIMITS if float(size[1]) <= limit.largest_billion)
