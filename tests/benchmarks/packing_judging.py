"""What the packing benchmark's measurements say: the bars, the tables. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from autobatch.units import format_bytes
from tests.benchmarks.judging import markdown_table

#: Times as fast as torchtune, at least.
MIN_SPEEDUP = 50.0
#: Ten times as many examples may take so many times ten as long, and such a part of ten times the memory.
LINEAR = 1.3

SPEED_HEADER = ("split_across_pack", "packs", "identical", "arithmetic", "PackedDataset", "times as fast")
SCALE_HEADER = (
    "examples", "packs", "counting", "an example", "whole command", "peak of a process", "lines of progress",
)  # fmt: skip


@dataclass(frozen=True)
class Counts:
    """What density is made of.

    Attributes:
        packs: how many.
        examples: that begin in them.
        tokens: without padding.
    """

    packs: int
    examples: int
    tokens: int


@dataclass(frozen=True)
class Packed:
    """The long list of lengths, packed or counted.

    Attributes:
        split: whether examples are split.
        counts: the result.
        cpu_seconds: of the processor.
        seconds: on the clock.
    """

    split: bool
    counts: Counts
    cpu_seconds: float
    seconds: float


@dataclass(frozen=True)
class Scaled:
    """One call of `autobatch density`.

    Attributes:
        examples, packs: of the dataset.
        counting_seconds: reading, tokenizing and counting, as the density says.
        seconds: of the whole command.
        peak_bytes: of the largest of its processes.
        progress_lines: that it printed meanwhile.
    """

    examples: int
    packs: int
    counting_seconds: float
    seconds: float
    peak_bytes: int
    progress_lines: int


@dataclass(frozen=True)
class Measured:
    """Everything.

    Attributes:
        cases: random cases that were compared.
        different: those that differ, in words.
        arithmetic, torchtune: whole examples, then split ones.
        scaled: ascending.
    """

    cases: int
    different: list[str]
    arithmetic: tuple[Packed, ...]
    torchtune: tuple[Packed, ...]
    scaled: tuple[Scaled, ...]


def failed_bars(measured: Measured) -> list[str]:
    """What falls short, in words; empty when all is as it should be."""
    failed = [f"differs: {case}" for case in measured.different[:3]]
    for ours, theirs in zip(measured.arithmetic, measured.torchtune, strict=True):
        name = f"split_across_pack {ours.split}"
        if ours.counts != theirs.counts:
            failed.append(f"{name}: {ours.counts}, and torchtune has {theirs.counts}")
        if _speedup(ours, theirs) < MIN_SPEEDUP:
            failed.append(f"{name}: {_speedup(ours, theirs):.0f} times as fast (limit {MIN_SPEEDUP:g})")
    for less, more in pairwise(measured.scaled):
        times = more.examples / less.examples
        for what, one, other in (
            ("time", less.counting_seconds, more.counting_seconds),
            ("memory", less.peak_bytes, more.peak_bytes),
        ):
            if other > LINEAR * times * one:
                failed.append(
                    f"{more.examples} examples: {other / one:.1f} times the {what} of {less.examples} "
                    f"(limit {LINEAR * times:g})"
                )
    failed += [
        f"{one.examples} examples: no progress was shown" for one in measured.scaled if not one.progress_lines
    ]
    return failed


def report(facts: dict[str, Any], measured: Measured) -> list[str]:
    """The tables as Markdown, with what they were measured on."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    failed = failed_bars(measured)
    same = measured.cases - len(measured.different)
    return [
        "# Counting packs, and making them",
        "",
        f"{facts['cpu']}, {facts['cores']} cores; {versions}; {facts['date']}.",
        "",
        f"Random cases in which packs, examples and tokens are those of torchtune's PackedDataset: {same} of "
        f"{measured.cases} (split_across_pack, max_packs and too long examples among them).",
        "",
        f"{_thousands(measured.arithmetic[0].counts.examples)} examples whose tokens lie ready, processor time:",
        "",
        *markdown_table(
            SPEED_HEADER,
            [_speed_row(*pair) for pair in zip(measured.arithmetic, measured.torchtune, strict=True)],
        ),
        "",
        "`autobatch density` on the demo's dataset, which reads and tokenizes each example too:",
        "",
        *markdown_table(SCALE_HEADER, [_scale_row(one) for one in measured.scaled]),
        "",
        *(["Bars that fail:", "", *(f"- {bar}" for bar in failed)] if failed else ["All bars hold."]),
    ]


def _speedup(ours: Packed, theirs: Packed) -> float:
    return theirs.cpu_seconds / ours.cpu_seconds


def _speed_row(ours: Packed, theirs: Packed) -> list[str]:
    return [
        str(ours.split),
        _thousands(ours.counts.packs),
        "yes" if ours.counts == theirs.counts else "NO",
        f"{ours.cpu_seconds:.2f} s",
        f"{theirs.cpu_seconds:.1f} s",
        f"{_speedup(ours, theirs):.0f}",
    ]


def _scale_row(one: Scaled) -> list[str]:
    return [
        _thousands(one.examples),
        _thousands(one.packs),
        f"{one.counting_seconds:.1f} s",
        f"{1e6 * one.counting_seconds / one.examples:.0f} µs",
        f"{one.seconds:.1f} s",
        format_bytes(one.peak_bytes),
        str(one.progress_lines),
    ]


def _thousands(count: int) -> str:
    return f"{count:,}"
