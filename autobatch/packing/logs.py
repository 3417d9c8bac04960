"""Reading torchtune's packing out of its log."""

from __future__ import annotations

import re
from pathlib import Path

_PROGRESS = re.compile(rb"Packing dataset:[^\r\n]*?\| (\d+)/(\d+) \[")
_TAIL_BYTES = 4096


def packing_progress(log: Path) -> tuple[int, int] | None:
    """(examples packed, examples) by the last progress bar in the end of `log`; None when there is none.

    The bar is tqdm's, with a carriage return between its states:
    ``Packing dataset:  45%|####      | 900/2000 [00:01<00:01, 890.21it/s]``
    """
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            found = _PROGRESS.findall(file.read())
    except OSError:
        return None
    return (int(found[-1][0]), int(found[-1][1])) if found else None
