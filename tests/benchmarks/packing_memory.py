"""What packing does to memory: one small model, datasets of short and of long examples, packed and not.

    python -m tests.benchmarks.packing_memory
    python -m tests.benchmarks.packing_memory --json figures.json --markdown table.md

Each case is probed on the CPU at batch_size 1 and 8, and nothing else differs between the cases than the
length of the examples, `packed` and `max_seq_len`. Exit status 1 when a bar of `failed_bars` fails, else 0.
About two minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import autobatch
from autobatch.demo import SmallRun
from autobatch.demo.examples import Example, as_json, make_examples
from autobatch.records import Density, Trial, to_json
from tests.benchmarks.exactness import in_a_process_of_its_own
from tests.benchmarks.judging import markdown_table
from tests.benchmarks.machine import machine_facts, write_json

MIB = 2**20

#: The larger of the two batch sizes that are measured.
BATCH_SIZE = 8

#: The efficiency factor of the planning document's formula.
_DOCUMENT_FACTOR = 0.9

HEADER = (
    "dataset", "packed", "max_seq_len", "examples per row", "not padding", "longest example",
    "peak at 1", f"peak at {BATCH_SIZE}", "each row",
)  # fmt: skip


_EXPECTED_HEADER = (
    "dataset", "density", "peak unpacked", "packed, expected", "packed, measured",
    "row unpacked", "packed, expected", "packed, measured",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A dataset and how it is laid into rows.

    Attributes:
        dataset: which examples.
        packed: as in finetune.yaml.
        max_seq_len: tokens of a packed row, and the most that an unpacked one may have.
    """

    dataset: str
    packed: bool
    max_seq_len: int = 512

    @property
    def name(self) -> str:
        return f"{self.dataset}-{'packed' if self.packed else 'unpacked'}-{self.max_seq_len}"


CASES = (
    Case("short", packed=True),
    Case("mixed", packed=True),
    Case("long", packed=True),
    Case("short", packed=False),
    Case("mixed", packed=False),
    Case("long", packed=False),
    Case("mixed", packed=True, max_seq_len=1024),
    Case("mixed", packed=False, max_seq_len=1024),
)


@dataclass(frozen=True)
class Measured:
    """A case and what its probe measured.

    Attributes:
        case: which.
        density: of its dataset.
        one: the trial at batch_size 1.
        more: the trial at BATCH_SIZE.
    """

    case: Case
    density: Density
    one: Trial
    more: Trial

    @property
    def row_bytes(self) -> float:
        """Memory that each further row of a batch takes."""
        return (_peak(self.more) - _peak(self.one)) / (BATCH_SIZE - 1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every case, print the table, write the figures."""
    options = _parser().parse_args(arguments)
    # On a busy machine OpenMP's spinning threads would wait for each other most of the time.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    measured = []
    for case in CASES:
        with tempfile.TemporaryDirectory(prefix="packing-memory-") as scratch:
            measured.append(measure(case, Path(scratch)))
        print("  ".join(row(measured[-1])), flush=True)
    facts = {**machine_facts(), "date": datetime.now(timezone.utc).date().isoformat()}
    lines = report(facts, measured)
    print("\n".join(lines))
    if options.json:
        figures = [{**to_json(m), "row_bytes": m.row_bytes} for m in measured]
        write_json({**facts, "batch_size": BATCH_SIZE, "cases": figures}, options.json)
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if failed_bars(measured) else 0


def measure(case: Case, scratch: Path) -> Measured:
    """Lay the case out and probe it up to BATCH_SIZE."""
    run = SmallRun(max_seq_len=case.max_seq_len, packed=case.packed)
    in_a_process_of_its_own(scratch, run)
    (scratch / "data" / "train.json").write_text(as_json(_DATASETS[case.dataset]()), encoding="utf-8")
    result = autobatch.probe(
        scratch / run.name,
        cluster="inline",
        capacity="64GiB",
        max_batch_size=BATCH_SIZE,
        packing="config" if case.packed else "unpacked",
        # From 1, whose peak is wanted too.
        estimate=False,
    )
    trials = {trial.batch_size: trial for trial in result.trials}
    if result.density is None or not {1, BATCH_SIZE} <= trials.keys():
        raise RuntimeError(f"{case.name}: {result.message}")
    return Measured(case, result.density, trials[1], trials[BATCH_SIZE])


def failed_bars(measured: Sequence[Measured]) -> list[str]:
    """What configs/README.md says of packing and these figures don't bear out."""
    peaks = {m.case.name: _peak(m.more) for m in measured}
    rows = {m.case.name: m.row_bytes for m in measured}
    packed = [peaks[f"{name}-packed-512"] for name in _DATASETS]
    checks = {
        "packed peaks of different densities differ by more than 1 %": max(packed) / min(packed) > 1.01,
        "short rows unpacked take more than a third of a packed row": (
            rows["short-unpacked-512"] > rows["short-packed-512"] / 3
        ),
        "max_seq_len twice as large takes less than twice the memory of a packed row": (
            rows["mixed-packed-1024"] < 1.9 * rows["mixed-packed-512"]
        ),
        "max_seq_len above the longest example changes unpacked memory by more than 1 %": (
            abs(peaks["mixed-unpacked-1024"] / peaks["mixed-unpacked-512"] - 1) > 0.01
        ),
    }
    return [bar for bar, failed in checks.items() if failed]


def report(facts: dict[str, Any], measured: Sequence[Measured]) -> list[str]:
    """The tables as Markdown, with what they were measured on."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    failed = [f"- {bar}" for bar in failed_bars(measured)]
    return [
        "# What packing does to memory, on CPU",
        "",
        f"{facts['cpu']}, {facts['cores']} cores; {versions}; {facts['date']}.",
        "The demo's model (LoRA, fp32), its peak resident memory as `autobatch probe` measures it. Unpacked cases "
        "are measured with batches of the longest example, the worst that training can meet.",
        "",
        *markdown_table(HEADER, [row(m) for m in measured]),
        "",
        f"`each row`: (peak at {BATCH_SIZE} - peak at 1) / {BATCH_SIZE - 1}.",
        "",
        f"The planning document expects Memory_packed = Memory_unpacked x density x {_DOCUMENT_FACTOR}. Here, "
        f"of the peak at batch_size {BATCH_SIZE} and of each row:",
        "",
        *markdown_table(_EXPECTED_HEADER, [_expected(measured, name) for name in _DATASETS]),
        "",
        *(["Bars that fail:", "", *failed] if failed else ["All bars hold."]),
    ]


def row(measured: Measured) -> list[str]:
    """The cells of a case."""
    case, density = measured.case, measured.density
    return [
        case.dataset,
        str(case.packed),
        str(case.max_seq_len),
        f"{density.examples_per_pack:.2f}",
        f"{100 * density.efficiency:.1f} %" if density.efficiency is not None else "-",
        str(density.longest_example),
        _mib(_peak(measured.one)),
        _mib(_peak(measured.more)),
        _mib(measured.row_bytes),
    ]


def _expected(measured: Sequence[Measured], dataset: str) -> list[str]:
    named = {m.case.name: m for m in measured}
    packed, unpacked = named[f"{dataset}-packed-512"], named[f"{dataset}-unpacked-512"]
    density = packed.density.examples_per_pack
    factor = density * _DOCUMENT_FACTOR
    return [
        dataset,
        f"{density:.2f}",
        *map(_mib, (_peak(unpacked.more), _peak(unpacked.more) * factor, _peak(packed.more))),
        *map(_mib, (unpacked.row_bytes, unpacked.row_bytes * factor, packed.row_bytes)),
    ]


def _by_length(examples: Sequence[Example]) -> list[Example]:
    return sorted(examples, key=lambda example: len(example.input) + len(example.output))


#: The demo's examples: the shortest, all, and the longest of them.
_DATASETS: dict[str, Callable[[], list[Example]]] = {
    "short": lambda: _by_length(make_examples(8000))[:1000],
    "mixed": lambda: make_examples(2000),
    "long": lambda: _by_length(make_examples(8000))[-100:],
}


def _peak(trial: Trial) -> int:
    assert trial.peak_bytes is not None
    return trial.peak_bytes


def _mib(size: float) -> str:
    return f"{size / MIB:.1f} MiB"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.packing_memory",
        description="Measure what packing, density and max_seq_len do to memory, on CPU.",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
