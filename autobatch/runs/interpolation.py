"""Resolves a config's ``${...}`` one value at a time, so that each failure names its key and line."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from autobatch.runs.findings import Findings
from autobatch.runs.yaml_source import MAX_DEPTH, MAX_NODES

_ENVIRONMENT = re.compile(r"Environment variable '([^']*)' not found")
_NO_RESOLVER = re.compile(r"Unsupported interpolation type (\S+)")


class Unresolved:
    """Stands in the resolved config for a value that couldn't be resolved; the problem is reported."""


def resolve(config: DictConfig, where: Callable[[str], str], findings: Findings) -> dict[str, Any]:
    """The config as plain containers with every interpolation replaced by its value.

    Args:
        config: with interpolations.
        where: gives ``file:line`` of a dotted path.
        findings: gets a problem for each value that can't be resolved, or is ``???``.
    """
    resolved = _Resolver(where, findings).plain(config, "")
    assert isinstance(resolved, dict)
    return resolved


class _Resolver:
    def __init__(self, where: Callable[[str], str], findings: Findings) -> None:
        self._where = where
        self._findings = findings
        self._left = MAX_NODES

    def plain(self, node: Any, path: str, depth: int = 0) -> Any:
        self._left -= 1
        if depth > MAX_DEPTH or self._left < 0:
            section = path.partition(".")[0]
            self._findings.problem(
                f"{section}: its `${{...}}` contain one another, or expand to more than {MAX_NODES:,} values",
                self._where(section),
                "write the values out",
            )
            return Unresolved()
        if isinstance(node, DictConfig):
            return {key: self._item(node, key, path, depth) for key in node}
        if isinstance(node, ListConfig):
            return [self._item(node, index, path, depth) for index in range(len(node))]
        return node

    def _item(self, node: DictConfig | ListConfig, key: Any, path: str, depth: int) -> Any:
        below = f"{path}.{key}" if path else str(key)
        try:
            if OmegaConf.is_missing(node, key):
                self._findings.problem(
                    f"{below} is ???, which stands for a value that is still to be given",
                    self._where(below),
                    "write the value",
                )
                return Unresolved()
            value = node[key]
        except (OmegaConfBaseException, RecursionError) as error:
            self._report(below, error)
            return Unresolved()
        return self.plain(value, below, depth + 1)

    def _report(self, path: str, error: Exception) -> None:
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        if variable := _ENVIRONMENT.search(message):
            name = variable.group(1)
            what = f"{path} needs the environment variable {name}, which isn't set"
            remedy = f"export {name}=VALUE in finetune.slurm or here, or write ${{oc.env:{name},DEFAULT}}"
        elif resolver := _NO_RESOLVER.search(message):
            what = f"{path}: torchtune knows no `${{{resolver.group(1)}:...}}`"
            remedy = "write the value out; `${key}` and `${oc.env:NAME}` are known"
        elif isinstance(error, RecursionError) or "ecursi" in message or "to parent node" in message:
            what, remedy = f"{path}: its `${{...}}` leads back to itself", "write one of the values out"
        else:
            what, remedy = f"{path}: {message}", "correct the name between `${` and `}`, or add that key"
        self._findings.problem(what, self._where(path), remedy)
