"""How a value is written in YAML: as torchtune's configs write it."""

from __future__ import annotations

import re
from typing import Any, TypeAlias

import yaml

Value: TypeAlias = "int | bool | float | str | list[Value] | dict[str, Value] | None"


def format_value(value: Value) -> str:
    """On one line: ``True``, ``24``, ``null``, ``[q_proj, v_proj]``; a string in quotes where it needs them."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{', '.join(map(format_value, value))}]"
    if isinstance(value, dict):
        entries = (f"{format_value(key)}: {format_value(item)}" for key, item in value.items())
        return f"{{{', '.join(entries)}}}"
    if isinstance(value, (bool, int)):
        return str(value)
    if isinstance(value, str) and re.fullmatch(r"(/|(\.\.?/)+)?[A-Za-z_][A-Za-z0-9_./-]*", value):
        resolver: Any = yaml.resolver.Resolver()
        if resolver.resolve(yaml.ScalarNode, value, (True, False)) == "tag:yaml.org,2002:str":
            return value
    quotes = '"' if isinstance(value, str) else None
    dumped = yaml.safe_dump(value, default_style=quotes, width=float("inf"), allow_unicode=True)
    return dumped.removesuffix("\n").removesuffix("\n...")
