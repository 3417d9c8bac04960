"""Dataset components for tests, named in configs as `tests.recipes.datasets.NAME`."""

from __future__ import annotations

from typing import Any


def accepts_packed_and_ignores_it(tokenizer: Any, *, packed: bool = False, **_: Any) -> list[dict[str, Any]]:
    """Three unpacked rows, whatever `packed` says."""
    return [{"tokens": [1] * length, "labels": [1] * length} for length in (5, 9, 7)]


def empty(tokenizer: Any, *, packed: bool = False, **_: Any) -> list[dict[str, Any]]:
    """No row at all."""
    return []


def rows_of_another_kind(tokenizer: Any, **_: Any) -> list[dict[str, Any]]:
    """Rows whose length nobody can tell."""
    return [{"pixels": [1, 2, 3]}]


_EXAMPLES = [{"tokens": [1] * length, "labels": [1] * length} for length in (5, 9, 7, 8, 3)]


def two_packs(tokenizer: Any, *, packed: bool = False, **_: Any) -> Any:
    """Five examples, of which so many train as fit into two packs."""
    from torchtune.datasets import PackedDataset

    return PackedDataset(_EXAMPLES, max_seq_len=16, max_packs=2, split_across_pack=True)


def packs_of_its_own(tokenizer: Any, *, packed: bool = False, **_: Any) -> Any:
    """The last pack is made as torchtune makes it, and left out."""
    from torchtune.datasets import PackedDataset

    class AllButTheLast(PackedDataset):  # type: ignore[misc]  # torchtune comes without types
        def __len__(self) -> int:
            return len(self.packs) - 1

    return AllButTheLast(_EXAMPLES, max_seq_len=10)
