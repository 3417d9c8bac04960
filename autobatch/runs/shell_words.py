"""Splits a batch script into words, as a shell would. Nothing is executed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

#: Words before a command that begin or go on with a branch, a loop or a group.
KEYWORDS = frozenset({"!", "{", "}", "do", "elif", "else", "if", "then", "time", "until", "while"})
_SEPARATOR = re.compile(r";;&|;;|;&|&&|\|\||\|&|[\n;|()]|&(?!>)")
_NAME = r"[^\s()<>&|;$'\"`\\#={}]+"
_FUNCTION = re.compile(rf"function[ \t]+({_NAME})(?:[ \t]*\([ \t]*\))?|({_NAME})[ \t]*\([ \t]*\)")
_VARIABLE = re.compile(r"\$([A-Za-z_]\w*)")
_TILDE = re.compile(r"~(?=[/\s;|&()<>]|\Z)")
_TILDE_FOLLOWS = re.compile(r"(?:[A-Za-z_]\w*\+?=)?")
_PARAMETER = re.compile(r"([A-Za-z_]\w*)(?::?-([^$`]*))?", re.DOTALL)
_SPECIAL_PARAMETER = re.compile(r"\$[0-9@*#?$!-]")
_HERE_DOCUMENT = re.compile(r"""<<(-?)[ \t]*((?:'[^'\n]*'|"[^"\n]*"|\\.|[^\s|&;()<>'"\\])+)""")
_QUOTED = re.compile(r"""'([^']*)'|"([^"]*)"|\\(.)""")
_REDIRECTION = re.compile(r"&>>?|<<<|<>|[<>]&|>\||>>|[<>]")

# In parentheses, what is quoted or a comment doesn't count; in "${...}" a single quote quotes nothing.
_BRACKETS = {
    "(": re.compile(r"""[()]|\\.|'[^']*'|"(?:\\.|[^"\\])*"|(?<=\s)#[^\n]*""", re.DOTALL),
    "{": re.compile(r"[{}]"),
}


@dataclass(frozen=True)
class Word:
    """One word of a command, quotes removed and known variables filled in.

    Attributes:
        text: the word; what isn't known stands in it as it was written.
        line: line of the script on which it begins, from 1.
        unknown: the expansions in it whose value can't be known before the script runs.
    """

    text: str
    line: int
    unknown: tuple[str, ...] = ()


class Lexer:
    """Splits a script into words; looks `variables` up as they are when a word is reached.

    Attributes:
        text: the script.
        at: offset in it of what comes next.
        line: the line on which that stands.
    """

    def __init__(self, text: str, variables: Mapping[str, str], first_line: int) -> None:
        self.text = text
        self.at = 0
        self.line = first_line
        self._variables = variables
        self._words: list[Word] = []
        self._here_documents: list[tuple[bool, str]] = []
        self._drop_next_word = False
        self._start_word()

    def _start_word(self) -> None:
        self._pieces: list[str] = []
        self._in_word = False
        self._unknown: list[str] = []
        self._word_line = self.line

    def _add(self, piece: str) -> None:
        if not self._in_word:
            self._in_word = True
            self._word_line = self.line
        self._pieces.append(piece)

    def _take(self, count: int) -> str:
        taken = self.text[self.at : self.at + count]
        self.at += count
        self.line += taken.count("\n")
        return taken

    def _end_word(self) -> None:
        if self._in_word:
            if self._drop_next_word:
                self._drop_next_word = False
            else:
                self._words.append(Word("".join(self._pieces), self._word_line, tuple(self._unknown)))
        self._start_word()

    def _end_command(self) -> tuple[Word, ...]:
        self._end_word()
        self._drop_next_word = False
        words = tuple(self._words)
        self._words = []
        return words

    def tokens(self) -> Iterator[tuple[tuple[Word, ...], str]]:
        """Each run of words and the operator or line break that ends it; the last ends with an empty one.

        ``name ()`` and ``function name`` give the name as the last word and ``()`` as its end.
        """
        while self.at < len(self.text):
            if name := self._function_name():
                self._words.append(Word(name, self.line))
                yield self._end_command(), "()"
            elif separator := self._separator():
                words = self._end_command()
                if self._take(len(separator)) == "\n":
                    self._skip_here_documents()
                yield words, separator
            else:
                self._read_piece()
        yield self._end_command(), ""

    def _function_name(self) -> str:
        if self._in_word or any(word.text not in KEYWORDS for word in self._words):
            return ""
        header = _FUNCTION.match(self.text, self.at)
        if header is None:
            return ""
        self._take(len(header.group()))
        return header.group(1) or header.group(2)

    def _separator(self) -> str:
        separator = _SEPARATOR.match(self.text, self.at)
        if separator is None or (separator.group() == "(" and (self._is_array() or self._is_arithmetic())):
            return ""
        return separator.group()

    def _is_array(self) -> bool:
        """At the bracket of NAME=(...)."""
        return self._in_word and self._pieces[-1].endswith("=")

    def _is_arithmetic(self) -> bool:
        """At the first bracket of ((...)), whose inner brackets close right before the outer ones."""
        if self._in_word or not self.text.startswith("((", self.at):
            return False
        return self._length_to("(", ")") == self._length_to("(", ")", skipping=1) + 2

    def _read_piece(self) -> None:
        char = self.text[self.at]
        if char == "\\":
            escaped = self._take(2)[1:]
            if escaped != "\n":
                self._add(escaped)
        elif char == "'":
            self._add_single_quoted()
        elif char == '"':
            self._add_double_quoted()
        elif char in "$`":
            self._add_expansion()
        elif self._is_tilde():
            self._add_value(self._take(1), "HOME", None)
        elif char == "(":
            self._add_unknown(self._take(self._length_to("(", ")")))
        elif char in " \t":
            self._end_word()
            self._take(1)
        elif char == "#" and not self._in_word:
            end = self.text.find("\n", self.at)
            self.at = len(self.text) if end < 0 else end
        elif char in "<>" or char == "&":
            self._read_redirection()
        else:
            self._add(self._take(1))

    def _is_tilde(self) -> bool:
        """At a ``~`` for the home directory: alone or before a slash, first in a word or in an assignment."""
        is_tilde = _TILDE.match(self.text, self.at)
        return bool(is_tilde and _TILDE_FOLLOWS.fullmatch("".join(self._pieces)))

    def _add_single_quoted(self) -> None:
        end = self.text.find("'", self.at + 1)
        end = len(self.text) if end < 0 else end
        self._add("")
        self._add(self._take(end + 1 - self.at)[1:].removesuffix("'"))

    def _add_double_quoted(self) -> None:
        self._add("")
        self._take(1)
        while self.at < len(self.text) and self.text[self.at] != '"':
            char = self.text[self.at]
            if char == "\\":
                pair = self._take(2)
                if pair[1:] != "\n":
                    self._add(pair[1:] if pair[1:] in ("$", "`", '"', "\\") else pair)
            elif char in "$`":
                self._add_expansion()
            else:
                self._add(self._take(1))
        self._take(1)

    def _add_expansion(self) -> None:
        """Adds the value of what begins at `$` or a backtick, or its text where the value isn't known."""
        rest = self.text[self.at : self.at + 2]
        if variable := _VARIABLE.match(self.text, self.at):
            self._add_value(self._take(len(variable.group())), variable.group(1), None)
        elif rest == "${":
            written = self._take(self._length_to("{", "}"))
            parameter = _PARAMETER.fullmatch(written[2:-1])
            if parameter:
                self._add_value(written, parameter.group(1), parameter.group(2))
            else:
                self._add_unknown(written)
        elif rest == "$(":
            self._add_unknown(self._take(self._length_to("(", ")")))
        elif rest[0] == "`":
            end = self.text.find("`", self.at + 1)
            written = self._take((len(self.text) if end < 0 else end + 1) - self.at)
            if not written.startswith("`#"):  # a way to comment between continued lines: no command, no text
                self._add_unknown(written)
        elif _SPECIAL_PARAMETER.match(self.text, self.at):
            self._add_unknown(self._take(2))
        elif rest == "$'":
            self._take(1)
            self._add_single_quoted()
        else:
            self._add(self._take(1))

    def _add_value(self, written: str, name: str, default: str | None) -> None:
        if name in self._variables:
            self._add(self._variables[name] or default or "")
        elif default is not None and not default.startswith("~"):
            self._add(default)
        else:
            self._add_unknown(written)

    def _add_unknown(self, written: str) -> None:
        self._add(written)
        self._unknown.append(written)

    def _length_to(self, opening: str, closing: str, skipping: int = 0) -> int:
        """Length from here, `skipping` characters aside, to the bracket that closes the next one."""
        start = self.at + skipping
        depth = 0
        for found in _BRACKETS[opening].finditer(self.text, start):
            depth += {opening: 1, closing: -1}.get(found.group(), 0)
            if depth == 0 and found.group() == closing:
                return found.end() - start
        return len(self.text) - start

    def _read_redirection(self) -> None:
        if "".join(self._pieces).isdigit():
            self._start_word()  # the file descriptor in `2>log` is no argument
        self._end_word()
        if document := _HERE_DOCUMENT.match(self.text, self.at):
            delimiter = _QUOTED.sub(lambda quoted: quoted[quoted.lastindex or 0], document.group(2))
            self._here_documents.append((document.group(1) == "-", delimiter))
            self._take(len(document.group()))
        elif self.text[self.at + 1 : self.at + 2] == "(":
            self._add_unknown(self._take(self._length_to("(", ")")))
        else:
            operator = _REDIRECTION.match(self.text, self.at)
            self._take(len(operator.group()) if operator else 1)
            self._drop_next_word = True

    def _skip_here_documents(self) -> None:
        for strip_tabs, delimiter in self._here_documents:
            while self.at < len(self.text):
                end = self.text.find("\n", self.at)
                line = self._take((len(self.text) if end < 0 else end + 1) - self.at).rstrip("\n")
                if (line.lstrip("\t") if strip_tabs else line) == delimiter:
                    break
        self._here_documents = []
