"""What an estimate's config swaps in, besides what a trial's does."""

from __future__ import annotations

from typing import Any


class NoTokenizer:
    """Stands where a recipe wants a tokenizer: its file need not be there, since the rows are tokens already.

    Args:
        max_seq_len: as the config says.
    """

    pad_id = 0

    def __init__(self, max_seq_len: int | None = None, **_: Any) -> None:
        self.max_seq_len = max_seq_len
