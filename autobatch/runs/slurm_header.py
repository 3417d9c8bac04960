"""The `#SBATCH` header of a batch script."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

# Source: sbatch man page. Short options that take a value, then those that don't.
_SHORT_OPTIONS = {
    "A": "account", "a": "array", "B": "extra-node-info", "C": "constraint", "c": "cpus-per-task",
    "D": "chdir", "d": "dependency", "e": "error", "F": "nodefile", "G": "gpus", "i": "input",
    "J": "job-name", "L": "licenses", "M": "clusters", "m": "distribution", "N": "nodes", "n": "ntasks",
    "o": "output", "p": "partition", "q": "qos", "S": "core-spec", "t": "time", "w": "nodelist",
    "x": "exclude",
}  # fmt: skip
_SHORT_FLAGS = {
    "H": "hold", "h": "help", "I": "immediate", "k": "no-kill", "O": "overcommit", "Q": "quiet",
    "s": "oversubscribe", "V": "version", "v": "verbose", "W": "wait",
}  # fmt: skip
_LONG_FLAGS = frozenset(_SHORT_FLAGS.values()) | {
    "contiguous", "exclusive", "get-user-env", "ignore-pbs", "nice", "no-requeue", "parsable", "propagate",
    "reboot", "requeue", "share", "spread-job", "stepmgr", "test-only", "usage", "use-min-nodes",
}  # fmt: skip
_ALIASES = {"tasks": "ntasks", "workdir": "chdir", "cluster": "clusters", "share": "oversubscribe"}


def read_header(text: str) -> tuple[dict[str, str], dict[str, int]]:
    """The options of a batch script's header and the line of each, by their long name without dashes.

    The header ends at the first line that is neither blank nor a comment (sbatch man page: "sbatch will
    stop processing further #SBATCH directives once the first non-comment non-whitespace line has been
    reached in the script"). A flag's value is empty; of an option given twice the last counts.
    """
    header: dict[str, str] = {}
    lines: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("#SBATCH"):
            for name, value in _header_options(_split(line.removeprefix("#SBATCH"))):
                header[name] = value
                lines[name] = number
        elif line.strip() and not line.lstrip().startswith("#"):
            break
    return header, lines


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line, comments=True)
    except ValueError:  # an unclosed quote, which Slurm takes as it is
        return line.split()


def _header_options(tokens: list[str]) -> Iterator[tuple[str, str]]:
    while tokens:
        token = tokens.pop(0)
        if token.startswith("--"):
            name, has_value, value = token[2:].partition("=")
            if not has_value and name not in _LONG_FLAGS and tokens and not tokens[0].startswith("-"):
                value = tokens.pop(0)
            yield _ALIASES.get(name, name), value
        elif len(token) > 1 and token.startswith("-"):
            letter, value = token[1], token[2:]
            if letter in _SHORT_FLAGS:
                yield _SHORT_FLAGS[letter], ""
                if value:
                    tokens.insert(0, f"-{value}")
            elif letter in _SHORT_OPTIONS:
                yield _SHORT_OPTIONS[letter], value or (tokens.pop(0) if tokens else "")
