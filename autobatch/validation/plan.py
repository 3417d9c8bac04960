"""Whether `runs_plan.md` accounts for packing: planning document, section 2.C, and its table of runs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autobatch.edits.markdown_blocks import Blocks, Row, plain
from autobatch.validation.findings import Collector, Report
from autobatch.validation.subject import Subject

_SECTION = re.compile(r"packing analysis(?!\w)")


@dataclass(frozen=True)
class PlanRow:
    """A row of the table below ``## Packing Analysis``.

    Attributes:
        line: from 1.
        cells: text by column name, in small letters without spaces (``batchsize``).
    """

    line: int
    cells: dict[str, str]


def check_plan(path: Path, subjects: Sequence[Subject]) -> Report:
    """Holds a plan against the configs of its runs.

    Args:
        path: of the plan.
        subjects: the runs beside it that could be read.
    """
    c = Collector()
    path = path.resolve()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = "not UTF-8" if isinstance(error, UnicodeDecodeError) else f"can't be read: {error.strerror}"
        c.error("plan", why, str(path), "save it as UTF-8, or check its permissions")
        return Report(str(path), path.name, c.sorted(), readable=False)
    packed = [subject.name for subject in subjects if subject.packed]
    rows = read_rows(text)
    if not subjects:
        c.info(
            "plan",
            "no run with a finetune.yaml lies beside the plan, so there is nothing to hold it against",
            str(path),
        )
    elif packed and not re.search("pack(ing|ed)", text, re.IGNORECASE):
        c.error(
            "plan-packing",
            f"the plan doesn't mention packing, and {', '.join(packed)} "
            f"{'packs' if len(packed) == 1 else 'pack'} (packed: True): its batch sizes may be those of unpacked "
            "runs",
            str(path),
            "measure them with autobatch probe RUN, which writes them into the plan, or write there how they "
            "account for packing",
        )
    elif packed and rows is None:
        c.info(
            "plan-packing",
            "there is no table below ## Packing Analysis",
            str(path),
            "autobatch probe RUN writes it",
        )
    for subject in subjects:
        for row in rows or []:
            if row.cells.get("run") == subject.name:
                _compare(subject, row, f"{path}:{row.line}", c)
                break
    facts = {"runs": [subject.name for subject in subjects], "packed_runs": packed}
    return Report(str(path), path.name, c.sorted(), facts)


def read_rows(text: str) -> list[PlanRow] | None:
    """The rows of the table below ``## Packing Analysis``; None when there is no such table."""
    blocks = Blocks(text)
    for section in blocks.sections(lambda title: _SECTION.match(title) is not None):
        for table in blocks.tables(section):
            header = [_column(cell) for cell in Row.parse(blocks.lines[table.start]).cells]
            if {"run", "batchsize"} & set(header):
                lines = range(table.start + 2, table.end)
                parsed = [(n, Row.parse(blocks.lines[n])) for n in lines]
                return [
                    PlanRow(n + 1, {name: row.get(i) for i, name in enumerate(header)}) for n, row in parsed
                ]
    return None


def _compare(subject: Subject, row: PlanRow, where: str, c: Collector) -> None:
    size = subject.integer("batch_size")
    planned = re.match(r"\W*(\d+)", row.cells.get("batchsize", ""))
    if planned and size is not None and int(planned[1]) != size:
        c.warning(
            "plan-batch-size",
            f"the plan gives {subject.name} batch_size {planned[1]}, and its finetune.yaml {size}",
            where,
            "correct the one that is old; autobatch probe writes both",
        )
    packed = re.match(r"\W*(true|false|yes|no)\b", row.cells.get("packed", ""), re.IGNORECASE)
    if packed and (packed[1].lower() in ("true", "yes")) != subject.packed:
        c.warning(
            "plan-packed",
            f"the plan gives {subject.name} packed {packed[1]}, and its finetune.yaml {subject.packed}",
            where,
            "correct the one that is old, and measure batch_size again: autobatch probe",
        )


def _column(title: str) -> str:
    return plain(title.replace(r"\|", "|")).replace(" ", "")
