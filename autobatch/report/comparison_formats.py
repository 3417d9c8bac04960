"""A comparison as a text table, Markdown, JSON or CSV. Pure; every format ends with a newline."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from autobatch.report.columns import COLUMNS, cells, split_by_figures
from autobatch.report.compare import Comparison
from autobatch.report.remark import Remark
from autobatch.report.run_figures import RunFigures
from autobatch.report.table import printable, text_table

#: Of the JSON form.
SCHEMA_VERSION = 1


def as_text(comparison: Comparison) -> str:
    """An aligned table, then caveats and recommendations."""
    shown, _ = split_by_figures(comparison.runs)
    rows = [[printable(cell) for cell in cells(run, shown)] for run in comparison.runs]
    lines = text_table([c.heading for c in shown], rows, numbers=[not c.is_text for c in shown])
    for title, remarks in _sections(comparison):
        lines += ["", f"{title}:", *(f"  {printable(line)}" for line in remarks)]
    return "\n".join(lines) + "\n"


def as_markdown(comparison: Comparison) -> str:
    """A section for a report: a table, then lists."""
    shown, _ = split_by_figures(comparison.runs)
    rows = [[c.heading for c in shown], ["---" if c.is_text else "---:" for c in shown]]
    rows += [[_markdown(cell) for cell in cells(run, shown)] for run in comparison.runs]
    lines = ["## Comparison", "", *(f"| {' | '.join(row)} |" for row in rows)]
    for title, remarks in _sections(comparison):
        lines += ["", f"### {title.capitalize()}", "", *(f"- {_markdown(line)}" for line in remarks)]
    return "\n".join(lines) + "\n"


def as_csv(comparison: Comparison) -> str:
    """A line a run under the columns' keys; a figure that isn't known is empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([c.key for c in COLUMNS])
    for run in comparison.runs:
        row = _values(run)
        writer.writerow([_csv_cell(row[c.key]) for c in COLUMNS])
    return text.getvalue()


def as_json(comparison: Comparison) -> str:
    """Everything: each run by the columns' keys, caveats and recommendations with their codes."""
    data = {
        "schema_version": SCHEMA_VERSION,
        "experiment": comparison.experiment,
        "runs": [
            {
                **_values(run),
                "status": run.status,
                "failure": run.failure,
                "probe": run.probe,
                "probe_is_stale": run.probe_is_stale,
                "predicted_from": run.predicted_from,
                "gpu": run.gpu,
                "capacity_gb": _rounded(run.capacity_gb),
                "target_gb": _rounded(run.target_gb),
                "total_examples": run.total_examples,
            }
            for run in comparison.runs
        ],
        "caveats": [_remark(remark) for remark in comparison.caveats],
        "recommendations": [_remark(remark) for remark in comparison.recommendations],
    }
    text = json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # A directory's name that isn't UTF-8 holds surrogates, which only their escapes can be written of.
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


FORMATS: Mapping[str, Callable[[Comparison], str]] = {
    "text": as_text,
    "markdown": as_markdown,
    "json": as_json,
    "csv": as_csv,
}


def _sections(comparison: Comparison) -> list[tuple[str, Sequence[str]]]:
    """What stands below the table; each only when there is something to say."""
    _, missing = split_by_figures(comparison.runs)
    sections = [
        ("not known of any run", [", ".join(c.heading for c in missing)] if missing else []),
        ("to mind", [remark.text for remark in comparison.caveats]),
        ("recommendations", [remark.text for remark in comparison.recommendations]),
    ]
    return [(title, lines) for title, lines in sections if lines]


def _values(run: RunFigures) -> dict[str, Any]:
    return {c.key: _rounded(c.value(run)) for c in COLUMNS}


def _rounded(value: Any) -> Any:
    """Figures derived by division to six digits, so that a file doesn't differ in the last bit."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _csv_cell(value: Any) -> Any:
    if value is None:
        return ""
    if isinstance(value, str):
        return printable(value)
    return str(value).lower() if isinstance(value, bool) else value


def _remark(remark: Remark) -> dict[str, Any]:
    return {"code": remark.code, "runs": list(remark.runs), "text": remark.text}


def _markdown(text: str) -> str:
    """`text` as it is, in a table's cell or a list."""
    escaped = re.sub(r"[\\`*|<\[\]]", r"\\\g<0>", printable(text))
    # Inside of a word, as in lora_r8, an underscore stands for itself.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", escaped)
