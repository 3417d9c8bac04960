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
