"""What an estimate's config swaps in, besides what a trial's does: rows and checkpoints without content.

They run inside the recipe, below a `Tracker`, and tell it what happens.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autobatch.probing.components import ConstantCheckpointer, TrialFinished


class LastStep:
    """A metric logger that ends the recipe after `steps` optimizer steps.

    Adam's state appears in the first; the second has everything in it.
    """

    def __init__(self, steps: int, **_: Any) -> None:
        self._steps = steps

    def log_config(self, config: Any) -> None:
        """Part of torchtune's metric logger interface."""

    def log(self, name: str, data: Any, step: int) -> None:
        """Part of torchtune's metric logger interface."""

    def log_dict(self, payload: Mapping[str, Any], step: int) -> None:
        """Called right after each optimizer step.

        Raises:
            TrialFinished: it was the last.
        """
        from autobatch.estimate.tracker import current_tracker

        if current_tracker().step_done() >= self._steps:
            raise TrialFinished

    def close(self) -> None:
        """Part of torchtune's metric logger interface."""


class SyntheticRows:
    """Rows of `max_seq_len` tokens: no dataset is read.

    Args:
        tokenizer: torchtune passes it, by position or by name.
        rows: length of the dataset.
        max_seq_len: tokens of each row.
        pairs: rows of a preference dataset: two sequences each.
        packed: kept in the section because recipes read it from there.
    """

    def __init__(
        self, tokenizer: Any = None, *, rows: int, max_seq_len: int, pairs: bool, packed: bool, **_: Any
    ) -> None:
        self._rows = rows
        self._max_seq_len = max_seq_len
        self._pairs = pairs
        self._packed = packed

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: int) -> dict[str, Any]:
        from autobatch.estimate.tracker import current_tracker

        if index >= self._rows:
            raise IndexError(index)
        tracker = current_tracker()
        tracker.first_batch()
        if self._packed:
            import torch

            # As many examples as tokens: their number says how long the row is, whatever their values.
            names = ("tokens", "labels", "input_pos", "seq_lens")
            with tracker.ignoring():
                return {name: torch.ones(self._max_seq_len, dtype=torch.long) for name in names}
        columns = (
            ("chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels")
            if self._pairs
            else ("tokens", "labels")
        )
        return {name: [1] * self._max_seq_len for name in columns}


class NoTokenizer:
    """Stands where a recipe wants a tokenizer: its file need not be there.

    Args:
        max_seq_len: as the config says.
    """

    pad_id = 0

    def __init__(self, max_seq_len: int | None = None, **_: Any) -> None:
        self.max_seq_len = max_seq_len


class HostCheckpointer(ConstantCheckpointer):
    """The trial's checkpointer, with its weights in the host's memory."""

    def load_checkpoint(self, *arguments: Any, **keywords: Any) -> dict[str, Any]:
        """A checkpoint as torchtune's own checkpointers return it."""
        from autobatch.estimate.tracker import current_tracker

        with current_tracker().on_host():
            return super().load_checkpoint(*arguments, **keywords)
