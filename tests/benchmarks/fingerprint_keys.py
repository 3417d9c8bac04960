"""Does the fingerprint change with every key of a config that changes the peak, and with none on its list?

    python -m tests.benchmarks.fingerprint_keys --json figures.json --markdown table.md

Each change of `tests.benchmarks.fingerprint_cases` is trained before and after by plain `tune run`, with nothing
of autobatch inside, on the CPU; what counts is the kernel's peak for the process when its last step was logged.
Exit status 1 when a key moves the peak by more than 0.2 % and not the fingerprint, or when a fingerprint isn't
what the case says, else 0. About half an hour on two cores; with `--json`, what is on file isn't measured again.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from autobatch.demo import lay_out
from tests.benchmarks.fingerprint_cases import (
    BASES,
    CHANGES,
    MISSING,
    Change,
    fingerprint_of,
    pair,
    prepare,
    shaped,
    value_of,
    write,
)
from tests.benchmarks.judging import markdown_table
from tests.benchmarks.machine import machine_facts, write_json
from tests.benchmarks.plain import PlainRunFailed, run_plain

#: A smaller difference of two peaks counts as none: successive steps of a trial may differ by as much.
TOLERANCE = 0.002

#: Optimizer steps of a training.
STEPS = 4

#: Both sides of a change are measured thrice when the difference lies between these, or says too coarse.
_REPEATS = 3
_DOUBTFUL = (0.001, 0.005)

#: What a probe changes itself.
_SEARCHED = "lora:batch_size="

_EXPORTS = {"HF_HUB_OFFLINE": "1"}

_MIB = 2**20

HEADER = ("config", "key", "from", "to", "peak before", "peak after", "moved", "fingerprint", "verdict")


@dataclass(frozen=True)
class Measured:
    """A change and what it did.

    Attributes:
        name: of the change.
        before: value of the key; after: the same.
        peaks_before_bytes: of each training with the value before; peaks_after_bytes: with the value after.
        changes: whether the fingerprint changes.
        why_not: why it wasn't measured; empty when it was.
    """

    name: str
    before: str
    after: str
    peaks_before_bytes: tuple[int, ...]
    peaks_after_bytes: tuple[int, ...]
    changes: bool
    why_not: str = ""

    @property
    def moved(self) -> float | None:
        """How much the median peak moved, as a fraction; None when it wasn't measured."""
        if self.why_not:
            return None
        return statistics.median(self.peaks_after_bytes) / statistics.median(self.peaks_before_bytes) - 1

    @property
    def verdict(self) -> str:
        """What that says of the fingerprint."""
        if self.moved is None:
            return "not measured"
        moves = abs(self.moved) > TOLERANCE
        if moves and self.name.startswith(_SEARCHED):
            return "moves, searched"
        if moves:
            return "moves, counts" if self.changes else "TOO COARSE"
        return "too fine here" if self.changes else "neither"


class Bench:
    """Trains configs in one laid-out experiment, each once or thrice.

    Args:
        directory: of the experiment.
        known: peaks in bytes that were measured before, by config.
        trains: whether to measure what isn't known.
    """

    def __init__(
        self, directory: Path, known: Mapping[str, Sequence[int]] | None = None, *, trains: bool = True
    ) -> None:
        known = known or {}
        self._directory = directory
        self._trains = trains
        self.peaks: dict[str, list[int]] = {key: list(peaks) for key, peaks in known.items()}
        self._warm: set[str] = set()

    def peaks_of(self, config: Mapping[str, Any], change: Change, times: int, *, after: bool) -> list[int]:
        """Peaks of so many trainings with a config, measured now or before."""
        key = hashlib.sha256(json.dumps([config, change.overrides if after else ()]).encode()).hexdigest()[
            :16
        ]
        peaks = self.peaks.setdefault(key, [])
        if not self._trains:
            if not peaks:
                raise PlainRunFailed("not on file")
            return peaks
        while len(peaks) < times:
            run = self._directory / "run"
            write(config, change.base, run)
            dataset = json.dumps(config["dataset"])
            if dataset not in self._warm:
                # The first to read a dataset builds its cache, which adds 7 MiB to the peak. The cache goes by the
                # path of the file as it is written, `run/../data/train.json`: all configs train in one directory.
                self._train(run, change, after)
                self._warm.add(dataset)
            peaks.append(self._train(run, change, after))
        return peaks

    def _train(self, run: Path, change: Change, after: bool) -> int:
        base = BASES[change.base]
        special = change.overrides if after else ()
        if not base.packed and not special:
            special = (f"epochs={STEPS}", "max_steps_per_epoch=1")
        with tempfile.TemporaryDirectory(dir=self._directory) as output:
            batch_size = change.value if after and change.key == "batch_size" else base.batch_size
            plain = run_plain(
                run,
                base.recipe_name,
                batch_size,
                steps=STEPS,
                output_dir=Path(output),
                device="cpu",
                environment=_EXPORTS,
                overrides=special,
                logged_steps=change.logged_steps if after else None,
            )
        return plain.trained_bytes or plain.peaks_bytes["resident"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the changes, print the table, write the figures."""
    options = _parser().parse_args(arguments)
    # One thread: the peak then doesn't depend on who runs beside it, nor do steps wait for each other.
    os.environ.update(OMP_WAIT_POLICY="PASSIVE", OMP_NUM_THREADS="1")
    facts = {**machine_facts(), "date": datetime.now(timezone.utc).date().isoformat()}
    known, failures = _on_file(options.json, facts) if options.json else ({}, {})
    measured = []
    chosen = [change for change in CHANGES if any(text in change.name for text in options.only)]
    with tempfile.TemporaryDirectory(prefix="fingerprint-keys-") as scratch:
        directory = Path(scratch)
        prepare(directory)
        bench = Bench(directory, known, trains=not options.on_file)
        for change in chosen:
            figures = measure(change, bench, directory)
            if options.on_file and figures.why_not:
                figures = dataclasses.replace(figures, why_not=failures.get(change.name, figures.why_not))
            measured.append(figures)
            print("  ".join(row(change, measured[-1])), flush=True)
            if options.json:
                write_json(_figures(facts, measured, bench), options.json)
    lines = report(facts, chosen, measured)
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    failed = failed_bars(chosen, measured)
    print("\n".join(failed or ["All bars hold."]))
    return 1 if failed else 0


def measure(change: Change, bench: Bench, directory: Path) -> Measured:
    """Train with the value before and after, and compare the fingerprints."""
    before, after = pair(change, directory)
    for name, config in {"before": before, "after": after}.items():
        write(config, change.base, directory / name)
    changes = fingerprint_of(directory / "before") != fingerprint_of(directory / "after")
    what = (change.name, _said(value_of(before, change.key)), _said(change.value))
    if change.unmeasured:
        return Measured(*what, (), (), changes, change.unmeasured)
    model = directory / "model"
    try:
        peaks_before = bench.peaks_of(before, change, 1, after=False)
        if change.shape:
            # Weights of these shapes, in the place of the others.
            model.rename(directory / "model.kept")
            lay_out(directory / "shaped", shaped(change), force=True)
            (directory / "shaped" / "model").rename(model)
        try:
            peaks_after = bench.peaks_of(after, change, 1, after=True)
            doubtful = False
            moved = abs(statistics.median(peaks_after) / statistics.median(peaks_before) - 1)
            if _DOUBTFUL[0] < moved < _DOUBTFUL[1] or (moved > TOLERANCE and not changes):
                peaks_after = bench.peaks_of(after, change, _REPEATS, after=True)
                doubtful = True
        finally:
            if change.shape:
                _remove(model)
                (directory / "model.kept").rename(model)
        if doubtful:
            peaks_before = bench.peaks_of(before, change, _REPEATS, after=False)
    except PlainRunFailed as error:
        lines = str(error).strip().splitlines()
        why = next((line for line in reversed(lines) if "Error" in line), lines[-1])
        return Measured(*what, (), (), changes, why[:160])
    return Measured(*what, tuple(peaks_before), tuple(peaks_after), changes)


def failed_bars(changes: Sequence[Change], measured: Sequence[Measured]) -> list[str]:
    """What must hold and doesn't."""
    failed = []
    for change, figures in zip(changes, measured, strict=True):
        if figures.verdict == "TOO COARSE":
            failed.append(
                f"{change.name} moves the peak by {100 * (figures.moved or 0):+.2f} % and not the fingerprint"
            )
        if figures.changes != change.counts:
            failed.append(f"{change.name} {'changes' if figures.changes else 'keeps'} the fingerprint")
    return failed


def report(facts: dict[str, Any], changes: Sequence[Change], measured: Sequence[Measured]) -> list[str]:
    """The table as Markdown, with what it was measured on and how."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    verdicts = [m.verdict for m in measured]
    count = ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in sorted(set(verdicts)))
    spread = max(
        (
            max(p) / min(p) - 1
            for m in measured
            for p in (m.peaks_before_bytes, m.peaks_after_bytes)
            if len(p) > 1
        ),
        default=0.0,
    )
    failed = [f"- {bar}" for bar in failed_bars(changes, measured)]
    unmeasured = [f"- {m.name}: {m.why_not}" for m in measured if m.why_not]
    return [
        "# Config keys, the peak and the fingerprint",
        "",
        f"{facts['cpu']}, {facts['cores']} cores; {versions}; {facts['date']}.",
        "",
        f"Plain `tune run` of small configs on the CPU, {STEPS} optimizer steps, one thread: the process's peak "
        f"resident memory when the last step had been logged, the median where it was measured more than once "
        f"(the widest spread of those: {100 * spread:.2f} %). A key moves the peak when it moves by more than "
        f"{100 * TOLERANCE:g} %.",
        "",
        f"{len(measured)} changes: {count}. `too fine here`: the peak stays and the fingerprint changes, which "
        "costs a probe and is never wrong; on another device or with other models such a key may well count.",
        "",
        *markdown_table(HEADER, [row(c, m) for c, m in zip(changes, measured, strict=True)]),
        "",
        *(["Not measured:", "", *unmeasured, ""] if unmeasured else []),
        *(["Bars that fail:", "", *failed] if failed else ["All bars hold."]),
    ]


def row(change: Change, measured: Measured) -> list[str]:
    """The cells of a change."""
    moved = measured.moved
    peaks = [measured.peaks_before_bytes, measured.peaks_after_bytes]
    given = "".join(f", {key} {_said(value)}" for key, value in change.given.items())
    return [
        f"{change.base}{given}",
        change.key,
        measured.before,
        measured.after,
        *(f"{statistics.median(p) / _MIB:.1f} MiB" if p else "-" for p in peaks),
        "-" if moved is None else f"{100 * moved:+.2f} %",
        "changes" if measured.changes else "stays",
        measured.verdict,
    ]


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return str(value.get("_component_", value)).rpartition(".")[2]
    if value is None or value == MISSING:
        return "null" if value is None else MISSING
    return str(value).replace("|", "\\|")


def _remove(directory: Path) -> None:
    for path in directory.iterdir():
        path.unlink()
    directory.rmdir()


def _figures(facts: dict[str, Any], measured: Sequence[Measured], bench: Bench) -> dict[str, Any]:
    cases = [{**dataclasses.asdict(m), "moved": m.moved, "verdict": m.verdict} for m in measured]
    return {**facts, "steps": STEPS, "peaks_bytes": bench.peaks, "changes": cases}


def _on_file(path: Path, facts: dict[str, Any]) -> tuple[dict[str, list[int]], dict[str, str]]:
    """Peaks by config, and why changes weren't measured, of earlier calls with the same versions."""
    if not path.exists():
        return {}, {}
    content = json.loads(path.read_text(encoding="utf-8"))
    if content["versions"] != facts["versions"]:
        return {}, {}
    failures = {change["name"]: change["why_not"] for change in content["changes"] if change["why_not"]}
    return content["peaks_bytes"], failures


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.fingerprint_keys",
        description="Change the keys of small configs one at a time: the peak against the fingerprint, on CPU.",
    )
    parser.add_argument(
        "--on-file", action="store_true", help="measure nothing that the file of --json lacks"
    )
    parser.add_argument(
        "--only", metavar="TEXT", nargs="+", default=[""], help="only changes whose name holds one of these"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the figures there, after each change"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
