"""The words of a batch script, as a shell would pass them on. Nothing is executed.

Covered: quotes, backslashes and continued lines, comments, `;` `&&` `||` `|` `&` and parentheses between
commands, redirections, here-documents, a `~` for HOME, and variables whose value is known (the environment,
literal assignments and `export` lines further up). Not covered: the value of `$(...)`, of positional
parameters and of arithmetic; such a word keeps its text and names in `Word.unknown` what isn't known.
Branches and loops are read as if each line ran once. What is set between parentheses ends there; the lines
of a function are read where it is called.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from autobatch.runs.shell_words import KEYWORDS, Lexer, Word

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=(.*)", re.DOTALL)
_APPENDING = re.compile(r"([A-Za-z_]\w*)\+=")
# Functions that call several others double the work from call to call.
_MOST_CALLS = 1000
_DEEPEST_CALL = 50


@dataclass(frozen=True)
class Directory:
    """Where a script is.

    Attributes:
        path: as far as its `cd` lines say; empty where it began, or where the last absolute one isn't known.
        line: of the last `cd`.
        is_known: False where a `cd` on the way isn't known.
    """

    path: PurePosixPath = field(default_factory=PurePosixPath)
    line: int | None = None
    is_known: bool = True

    def after(self, target: Word) -> Directory:
        """Where ``cd TARGET`` leads."""
        if target.unknown or re.match(r"-$|~[^/]", target.text):  # `cd -`, `cd ~ada`
            return Directory(is_known=False)
        path = self.path / target.text
        return Directory(path, target.line, self.is_known or path.is_absolute())


@dataclass(frozen=True)
class State:
    """What the commands so far have set.

    Attributes:
        variables: known by now, exported or not.
        exports: name to (value, line) of the variables that the script has exported.
        directory: to which it has changed.
    """

    variables: dict[str, str]
    exports: dict[str, tuple[str, int]] = field(default_factory=dict)
    directory: Directory = Directory()

    def copy(self) -> State:
        return State(dict(self.variables), dict(self.exports), self.directory)


@dataclass(frozen=True)
class Command:
    """One simple command, without its redirections.

    Attributes:
        words: the words, assignments before the command included.
        state: once it has run.
    """

    words: tuple[Word, ...]
    state: State


def assignment(word: Word) -> tuple[str, str] | None:
    """Name and value when `word` has the form ``NAME=value``."""
    match = _ASSIGNMENT.fullmatch(word.text)
    return (match.group(1), match.group(2)) if match else None


class Script:
    """Reads a shell script from its first command to its last.

    Attributes:
        state: after the commands so far; at the end, what the script leaves.
    """

    def __init__(self, text: str, state: State, first_line: int = 1) -> None:
        """`state` is that before the first line of `text`, which is line `first_line`."""
        self._text = text.replace("\r\n", "\n")
        self._first_line = first_line
        self.state = state.copy()
        self._functions: dict[str, tuple[str, int]] = {}
        self._uncalled: dict[str, None] = {}
        self._callers: list[str] = []
        self._calls = 0

    def commands(self) -> Iterator[Command]:
        """The commands in the order in which they run; behind them those of functions that nothing calls.

        Such a function may be called in a way that can't be seen here, so its commands are read; what they
        set ends with them.
        """
        yield from self._read(self._text, self._first_line)
        end = self.state.copy()
        while self._uncalled:
            yield from self._call(next(iter(self._uncalled)))
            self._restore(end)

    def _read(self, text: str, first_line: int) -> Iterator[Command]:
        lexer = Lexer(text, self.state.variables, first_line)
        tokens = lexer.tokens()
        nesting = _Nesting()
        before_subshells: list[State] = []
        for words, separator in tokens:
            if separator == "()":
                nesting.enter(words[:-1])
                separator = self._define(words[-1].text, lexer, tokens)
            elif command := nesting.enter(words):
                self.state = _apply(command, self.state)
                yield Command(command, self.state.copy())
                name = next((word.text for word in command if assignment(word) is None), "")
                if name in self._functions:
                    yield from self._call(name)
            depth = nesting.subshells
            nesting.separate(separator)
            if nesting.subshells > depth:
                before_subshells.append(self.state.copy())
            elif nesting.subshells < depth:
                self._restore(before_subshells.pop())

    def _define(self, name: str, lexer: Lexer, tokens: Iterator[tuple[tuple[Word, ...], str]]) -> str:
        """Keeps a function's body and runs nothing of it; the separator behind it, if that isn't its own."""
        at, line = lexer.at, lexer.line
        nesting = _Nesting()
        opened = False
        separator = ""
        for words, separator in tokens:
            command = nesting.enter(words[:-1] if separator == "()" else words)
            if (opened and not nesting.open) or (command and not opened and not nesting.open):
                break
            nesting.separate(separator)
            if opened and not nesting.open:
                separator = ""
                break
            opened = bool(nesting.open)
        self._functions[name] = (lexer.text[at : lexer.at], line)
        self._uncalled[name] = None
        return separator

    def _call(self, name: str) -> Iterator[Command]:
        self._uncalled.pop(name, None)
        if name in self._callers or self._calls == _MOST_CALLS or len(self._callers) == _DEEPEST_CALL:
            return
        self._calls += 1
        self._callers.append(name)
        yield from self._read(*self._functions[name])
        self._callers.pop()

    def _restore(self, state: State) -> None:
        # The lexers that are at work look into this dict.
        variables = self.state.variables
        variables.clear()
        variables.update(state.variables)
        self.state = State(variables, dict(state.exports), state.directory)


class _Nesting:
    """The parentheses, braces and `case` in which a command stands.

    Attributes:
        open: "(", "{", "case", or "pattern" where a `case` goes on with a pattern; the innermost last.
    """

    def __init__(self) -> None:
        self.open: list[str] = []

    @property
    def subshells(self) -> int:
        """How many parentheses are open."""
        return self.open.count("(")

    @property
    def _innermost(self) -> str:
        return self.open[-1] if self.open else ""

    def enter(self, words: tuple[Word, ...]) -> tuple[Word, ...]:
        """The command in `words`, without the keywords before it; empty when there is none."""
        while words:
            first = words[0].text
            if first == "esac" and self._innermost in ("case", "pattern"):
                self.open.pop()
            elif self._innermost == "pattern":
                return ()
            elif first == "case":
                self.open.append("pattern")
                return ()
            elif first == "{":
                self.open.append("{")
            elif first == "}" and self._innermost == "{":
                self.open.pop()
            elif first not in KEYWORDS:
                return words
            words = words[1:]
        return ()

    def separate(self, separator: str) -> None:
        """Follows what ended a command, as `Lexer.tokens` says it."""
        if separator == "(" and self._innermost != "pattern":
            self.open.append("(")
        elif separator == ")" and self._innermost == "(":
            self.open.pop()
        elif separator == ")" and self._innermost == "pattern":
            self.open[-1] = "case"
        elif separator in (";;", ";&", ";;&") and self._innermost == "case":
            self.open[-1] = "pattern"


def _apply(words: tuple[Word, ...], state: State) -> State:
    """What `state` becomes by a command; its dicts are changed in place."""
    _keep_assignments(words, state.variables, state.exports)
    if words[0].text == "cd" and len(words) == 2:
        return State(state.variables, state.exports, state.directory.after(words[1]))
    return state


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
