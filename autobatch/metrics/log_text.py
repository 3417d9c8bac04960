"""The text of a log of any size, in blocks of whole lines.

A log holds what a terminal would show: carriage returns between the states of a progress bar, escape
sequences, and now and then bytes of no encoding. Memory stays bounded, whatever the length of its lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from autobatch.errors import UsageError

_BLOCK_BYTES = 2**20
#: A line of more than this is cut in two; none that says anything is as long.
_LONGEST_LINE = 2**16

#: Colours, and the cursor going up a line where tqdm draws below an older bar (ECMA-48, control sequences).
_ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


def blocks(path: Path) -> Iterator[bytes]:
    """Successive parts of a file, each ending where a line does, without escape sequences.

    Raises:
        UsageError: the file can't be read.
    """
    try:
        with path.open("rb") as file:
            rest = b""
            while chunk := file.read(_BLOCK_BYTES):
                text = rest + chunk
                end = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
                if len(text) - end > _LONGEST_LINE:
                    end = len(text)
                rest = text[end:]
                if end:
                    yield _without_escapes(text[:end])
            if rest:
                yield _without_escapes(rest)
    except OSError as error:
        raise UsageError(f"{path}: can't be read: {error.strerror or error}; name a log file") from error


def lines(block: bytes) -> list[bytes]:
    """The lines of a block. One that a carriage return ended, not a line feed, still ends with it."""
    found = block.replace(b"\r", b"\r\n").split(b"\n")
    # What is behind the last line feed is the next block's; an empty line there would end a config.
    return found if found[-1] else found[:-1]


def shown(line: bytes, most: int = 500) -> str:
    """A line for people, cut where it is too long."""
    text = line.strip().decode("utf-8", "replace")
    return text if len(text) <= most else text[: most - 3] + "..."


def _without_escapes(text: bytes) -> bytes:
    return _ESCAPES.sub(b"", text) if b"\x1b" in text else text
