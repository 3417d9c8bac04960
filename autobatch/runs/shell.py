"""The words of a batch script, as a shell would pass them on. Nothing is executed.

Covered: quotes, backslashes and continued lines, comments, `;` `&&` `||` `|` `&` and parentheses between
commands, redirections, here-documents, and variables whose value is known (the environment, literal
assignments and `export` lines further up). Not covered: the value of `$(...)`, of positional parameters
and of arithmetic; such a word keeps its text and names in `Word.unknown` what isn't known. Branches and
loops are read as if each line ran once.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from autobatch.runs.shell_words import Lexer, Word

_KEYWORDS = frozenset({"!", "{", "do", "elif", "else", "if", "then", "time", "until", "while"})
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_APPENDING = re.compile(r"([A-Za-z_]\w*)\+=")


@dataclass(frozen=True)
class Command:
    """One simple command, without its redirections.

    Attributes:
        words: the words, assignments before the command included.
        variables: the variables that the script had set when the command came, exported or not.
        exports: name to (value, line) of the variables that the script had exported by then.
    """

    words: tuple[Word, ...]
    variables: Mapping[str, str]
    exports: Mapping[str, tuple[str, int]]


def assignment(word: Word) -> tuple[str, str] | None:
    """Name and value when `word` has the form ``NAME=value``."""
    match = _ASSIGNMENT.fullmatch(word.text)
    return (match.group(1), match.group(2)) if match else None


def read_commands(text: str, environ: Mapping[str, str], first_line: int = 1) -> Iterator[Command]:
    """The commands of a shell script in the order in which they stand.

    Args:
        text: the script.
        environ: variables known before its first line.
        first_line: number of the first line of `text`.
    """
    variables = dict(environ)
    exports: dict[str, tuple[str, int]] = {}
    for words in Lexer(text.replace("\r\n", "\n"), variables, first_line).commands():
        while words and words[0].text in _KEYWORDS:
            words = words[1:]
        if not words:
            continue
        _keep_assignments(words, variables, exports)
        yield Command(words, dict(variables), dict(exports))


def _keep_assignments(
    words: tuple[Word, ...], variables: dict[str, str], exports: dict[str, tuple[str, int]]
) -> None:
    """Applies a command made of assignments, `export`, `declare`, `readonly` or `unset`."""
    first = words[0].text
    if appended := _APPENDING.match(first):
        variables.pop(appended.group(1), None)
        exports.pop(appended.group(1), None)
        return
    if first == "unset":
        for word in words[1:]:
            variables.pop(word.text, None)
            exports.pop(word.text, None)
        return
    declares = first in ("export", "declare", "typeset", "readonly", "local")
    if not declares and any(assignment(word) is None for word in words):
        return
    exported = first == "export" or (declares and any(word.text == "-x" for word in words))
    for word in words[1:] if declares else words:
        pair = assignment(word)
        if pair is None:
            if exported and word.text in variables:
                exports[word.text] = (variables[word.text], word.line)
            continue
        name, value = pair
        if word.unknown:
            variables.pop(name, None)
            exports.pop(name, None)
            continue
        variables[name] = value
        if exported or name in exports:
            exports[name] = (value, word.line)
