"""Part of an entry that people may have edited."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

#: Larger numbers are slips of the pen, and overflow in what is computed from them.
_LARGEST = 1e15


class Section:
    """Values by key; one of another kind than asked for is left out, and said.

    Args:
        values: the mapping; anything else counts as an empty one.
        prefix: what the keys are below, for remarks, such as ``metrics.``.
        remarks: hears what was left out.
    """

    def __init__(self, values: Any, prefix: str, remarks: list[str]) -> None:
        self._values: Mapping[str, Any] = values if isinstance(values, Mapping) else {}
        self._prefix = prefix
        self._remarks = remarks

    def known(self) -> dict[str, Any]:
        """What has a value, of whatever kind."""
        return {key: value for key, value in self._values.items() if value is not None}

    def section(self, key: str) -> Section:
        """The mapping at `key`."""
        return Section(self._values.get(key), f"{key}.", self._remarks)

    def number(self, key: str, *, finite: bool = True) -> float | None:
        """The number at `key`; with `finite`, neither infinite nor NaN."""
        value = self._values.get(key)
        if isinstance(value, float) and not finite and not math.isfinite(value):
            return value
        if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST:
            return float(value)
        self._leave_out(key, value, f"a number up to {_LARGEST:g}")
        return None

    def integer(self, key: str) -> int | None:
        """The whole number at `key`."""
        value = self._values.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST:
            return value
        self._leave_out(key, value, f"a whole number up to {_LARGEST:g}")
        return None

    def boolean(self, key: str) -> bool | None:
        """The boolean at `key`."""
        value = self._values.get(key)
        if isinstance(value, bool):
            return value
        self._leave_out(key, value, "a boolean")
        return None

    def text(self, key: str) -> str | None:
        """The value at `key`, of whatever kind, as text."""
        value = self._values.get(key)
        return value if value is None or isinstance(value, str) else _shown(value)

    def _leave_out(self, key: str, value: Any, kind: str) -> None:
        if value is not None:
            self._remarks.append(f"{self._prefix}{key} is {_shown(value)}, not {kind}: left out")


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= 60 else f"{text[:60]}..."
