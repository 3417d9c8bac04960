"""Bytes, fractions and durations as people write and read them. Inside autobatch: bytes and seconds."""

from __future__ import annotations

import re

from autobatch.errors import UsageError

_BYTES_PER_UNIT = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
_ABSURD_BYTES = 2**63


def parse_bytes(text: str) -> int:
    """Bytes of a size such as ``40GiB``, ``512 MiB`` or ``80GB`` (GB = 10**9, GiB = 2**30).

    Raises:
        UsageError: not a positive size, or an unknown unit.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = match.group(2).lower() if match else ""
    if not match or unit not in _BYTES_PER_UNIT:
        raise UsageError(f"{text!r} is not a size: write a number and a unit, such as 40GiB or 512MiB")
    size = float(match.group(1)) * _BYTES_PER_UNIT[unit]
    if not 1 <= size < _ABSURD_BYTES:
        raise UsageError(f"{text!r} is not a size: it must be at least one byte, and less than 2**63")
    return int(size)


def format_bytes(size: float) -> str:
    """``55.1 GiB`` or ``1.02 GiB`` from 1 GiB on, else ``512.0 MiB``."""
    if abs(size) < 2**30:
        return f"{size / 2**20:.1f} MiB"
    gib = size / 2**30
    return f"{gib:.1f} GiB" if abs(gib) >= 10 else f"{gib:.2f} GiB"


def format_percent(part: float, whole: float) -> str:
    """``68.9 %`` of `whole`."""
    return f"{100 * part / whole:.1f} %"


def format_seconds(seconds: float) -> str:
    """``8.1 s``, ``1 min 05 s`` or ``2 h 03 min``."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
