"""A finetune.yaml that is being made: its text, what it says, and what the user should be told."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from autobatch.edits.yaml_format import Value
from autobatch.edits.yaml_lines import remove_key
from autobatch.edits.yaml_values import set_values
from autobatch.errors import RunProblems
from autobatch.runs.config import RunConfig, parse_config
from autobatch.runs.findings import Findings

Key = tuple[str, ...]


class Draft:
    """The text of a config, edited in place of the file.

    Attributes:
        text: as it is now.
        given: keys that the user set with ``key=value``: no later choice of ours replaces them.
        notes: what was chosen, for the user to hear.
    """

    def __init__(self, text: str, path: Path) -> None:
        """`path` is what messages call it."""
        self.text = text
        self.given: set[Key] = set()
        self.notes: list[str] = []
        self._path = path
        self._parsed: tuple[str, RunConfig] | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        return str(self._path)

    @property
    def config(self) -> RunConfig:
        """What the text says.

        Raises:
            RunProblems: it can't be loaded.
        """
        if self._parsed is None or self._parsed[0] != self.text:
            findings = Findings()
            # A `???` or an unset variable is for the validation to judge: it may be set before training.
            config = parse_config(self.text, self._path, None, findings)
            if config is None:
                raise RunProblems(findings.problems)
            self._parsed = self.text, config
        return self._parsed[1]

    def written(self) -> dict[str, Any]:
        """The config as plain containers, ``${...}`` as written."""
        container = OmegaConf.to_container(self.config.config, resolve=False)
        assert isinstance(container, dict)
        return {str(key): value for key, value in container.items()}

    def set(self, values: Mapping[Key, Value]) -> None:
        """Sets values, but for those that the user gave as ``key=value``.

        Raises:
            EditError: they can't be set without changing something else.
        """
        ours = {key: value for key, value in values.items() if not self._is_given(key)}
        self.text = set_values(self.text, ours, name=self.name)

    def remove(self, key: Key) -> None:
        """Removes an entry, if it is there and the user didn't give it."""
        if not self._is_given(key):
            self.text = remove_key(self.text, key, name=self.name)

    def begin_with(self, comment: str) -> None:
        """Puts a comment line before everything else."""
        newline = re.search("\r\n|\n|\r", self.text)
        bom = "\ufeff" if self.text.startswith("\ufeff") else ""
        rest = self.text.removeprefix(bom)
        self.text = f"{bom}# {comment}{newline.group() if newline else chr(10)}{rest}"

    def _is_given(self, key: Key) -> bool:
        return any(key[: len(given)] == given for given in self.given)
