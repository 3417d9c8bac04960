"""``key=value`` and ``~key`` arguments, taken as `tune run` takes them and written into the config's text."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from autobatch.edits.yaml_format import Value
from autobatch.errors import UsageError
from autobatch.runs.config import dotlist_entry
from autobatch.scaffold.draft import Draft, Key

_ADVICE = "write key=value with one `=`, such as model.lora_rank=16, or ~key to remove one"


def apply_overrides(draft: Draft, arguments: Sequence[str]) -> None:
    """Sets and removes what the arguments say.

    Raises:
        UsageError: every argument that can't be taken, in one message.
    """
    written = draft.written()
    problems = []
    removed: list[Key] = []
    values: dict[Key, Value] = {}
    given: dict[str, Any] = {}
    for argument in arguments:
        try:
            if argument.startswith("~"):
                removed.append(_removed(argument, written))
            else:
                given = _merged(given, _parsed(argument, written))
        except ValueError as error:
            problems.append(f"{argument}: {error}")
    if not problems:
        try:
            values = _flat(given, written, ())
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise UsageError("\n".join(problems))
    for key in removed:
        draft.remove(key)
    draft.set(values)
    draft.given |= {*values, *removed}
    draft.notes += [note for key in values if (note := _new_key(key, written))]


def _removed(argument: str, written: Mapping[str, Any]) -> Key:
    key = tuple(argument[1:].partition("=")[0].split("."))
    value = _value_at(written, key)
    if value is _NOTHING:
        raise ValueError(f"the config has no {'.'.join(key)} to remove")
    if key[-1] == "_component_" or (isinstance(value, Mapping) and "_component_" in value):
        raise ValueError("torchtune doesn't remove components; edit finetune.yaml afterwards")
    return key


def _parsed(argument: str, written: Mapping[str, Any]) -> dict[str, Any]:
    """The nested mapping that a ``key=value`` argument stands for."""
    entry = dotlist_entry(argument, written)
    if entry is None or not all(entry.partition("=")[0].split(".")):
        raise ValueError(_ADVICE)
    try:
        container = OmegaConf.to_container(OmegaConf.from_dotlist([entry]), resolve=False)
    except Exception as error:  # what stands behind `=` is YAML, and so are its errors
        raise ValueError(f"{(str(error) or type(error).__name__).splitlines()[0]}; {_ADVICE}") from error
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}


def _merged(first: dict[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(first)
    for key, value in second.items():
        before = merged.get(key)
        is_section = isinstance(value, Mapping) and isinstance(before, dict)
        merged[key] = _merged(before or {}, value) if is_section else value
    return merged


def _flat(given: Mapping[str, Any], written: Mapping[str, Any], path: Key) -> dict[Key, Value]:
    """Values by the longest key that leads to them through sections that the config has."""
    values: dict[Key, Value] = {}
    for name, value in given.items():
        key = (*path, str(name))
        there = written.get(str(name))
        if isinstance(value, Mapping) and isinstance(there, Mapping):
            values |= _flat(value, there, key)
        elif isinstance(value, Mapping) and isinstance(there, list):
            raise ValueError(f"{'.'.join(key)} is a list: give it as a whole, {'.'.join(key)}=[...]")
        else:
            values[key] = value
    return values


def _new_key(key: Key, written: Mapping[str, Any]) -> str | None:
    if _value_at(written, key) is not _NOTHING:
        return None
    beside = _value_at(written, key[:-1]) if len(key) > 1 else written
    names = [str(name) for name in beside] if isinstance(beside, Mapping) else []
    close = difflib.get_close_matches(key[-1], names, n=1)
    hint = f"; did you mean {'.'.join((*key[:-1], close[0]))}?" if close else ""
    return f"{'.'.join(key)} is new to this config: added{hint}"


class _Nothing:
    """Stands for a value that isn't there: None is one that may be."""


_NOTHING = _Nothing()


def _value_at(written: Any, key: Key) -> Any:
    for name in key:
        if not isinstance(written, Mapping) or name not in written:
            return _NOTHING
        written = written[name]
    return written
