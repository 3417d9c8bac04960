"""What the tools' answers say: exact or not, at what cost, and the bars for autobatch. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from tests.benchmarks.judging import markdown_table

#: Trials that a search without an estimate may take where the answer is `_LARGE`.
MAX_TRIALS = 6
_LARGE = 200
#: And in the median over all cases with one.
MAX_SEEDED_TRIALS = 3
#: A peer whose answer is within this fraction of the true one must have taken more training steps.
NEAR = 0.10

#: autobatch's rows.
PLAIN, SEEDED = "autobatch, no estimate", "autobatch"
OURS = (SEEDED, PLAIN)

HEADER = (
    "case", "tool", "answer", "exact?", "of its own largest", "trials", "OOMs", "steps", "seconds",
    "peak at the answer", "tried",
)  # fmt: skip


@dataclass(frozen=True)
class Attempt:
    """A size that a tool tried.

    Attributes:
        batch_size: the size.
        steps: optimizer steps that it began there.
        out_of_memory: whether it ended so.
    """

    batch_size: int
    steps: int
    out_of_memory: bool


@dataclass(frozen=True)
class Found:
    """What a tool found in one case.

    Attributes:
        case: what it searched.
        tool: who.
        answer: its batch_size; None for none.
        true: the largest that fits 70 % of the card, which is what was wanted.
        own: the largest by the tool's own rule: for a peer, what runs on the whole card.
        attempts: in their order.
        seconds: from the call to its answer.
        peak: at the answer, as a fraction of the card.
    """

    case: str
    tool: str
    answer: int | None
    true: int
    own: int
    attempts: tuple[Attempt, ...]
    seconds: float
    peak: float | None

    @property
    def steps(self) -> int:
        return sum(attempt.steps for attempt in self.attempts)

    @property
    def out_of_memory(self) -> int:
        return sum(attempt.out_of_memory for attempt in self.attempts)

    @property
    def exact(self) -> bool:
        return self.answer == self.true

    def near(self, largest: int) -> bool:
        """Whether the answer is within `NEAR` of another."""
        return self.answer is not None and abs(self.answer - largest) <= NEAR * largest

    @property
    def tried_its_answer(self) -> bool:
        """Whether it has trained with its answer at all."""
        return any(a.batch_size == self.answer and not a.out_of_memory for a in self.attempts)


def failed_bars(found: Sequence[Found]) -> list[str]:
    """What falls short of autobatch, in words; empty when all is as it should be."""
    ours = [one for one in found if one.tool in OURS]
    failed = []
    for one in ours:
        if not one.exact:
            failed.append(f"{one.case}: {one.tool} says {one.answer}, and {one.true} is right")
        if one.out_of_memory:
            failed.append(f"{one.case}: {one.tool} ran out of memory {one.out_of_memory} times (limit 0)")
        if one.tool == PLAIN and one.true == _LARGE and len(one.attempts) > MAX_TRIALS:
            failed.append(f"{one.case}: {one.tool} took {len(one.attempts)} trials (limit {MAX_TRIALS})")
        failed += [
            f"{one.case}: {one.tool} took {one.steps} steps, and {peer.tool}, whose answer "
            f"{peer.answer} is within {100 * NEAR:g} % of {one.true}, {peer.steps}{_untried(peer)}"
            for peer in found
            if peer.case == one.case and peer.tool not in OURS and peer.near(one.true)
            if peer.steps <= one.steps
        ]
    seeded = [len(one.attempts) for one in ours if one.tool == SEEDED]
    if seeded and median(seeded) > MAX_SEEDED_TRIALS:
        failed.append(f"median of {median(seeded):g} trials with an estimate (limit {MAX_SEEDED_TRIALS})")
    return failed


def cheaper_by_their_rule(found: Sequence[Found]) -> list[str]:
    """Peers that came near the largest by their own rule in no more steps than autobatch took; not a bar."""
    return [
        f"{peer.case}: {peer.tool} came to {peer.answer} of {peer.own} in {peer.steps} steps and "
        f"{peer.out_of_memory} OOMs{_untried(peer)}; {one.tool} took {one.steps} and 0"
        for one in found
        if one.tool in OURS
        for peer in found
        if peer.case == one.case and peer.tool not in OURS and peer.near(peer.own)
        if peer.steps <= one.steps
    ]


def row(found: Found) -> tuple[str, ...]:
    """The cells of one case and tool, under `HEADER`."""
    return (
        found.case,
        found.tool,
        "-" if found.answer is None else str(found.answer),
        "yes" if found.exact else f"no, {found.true}",
        "-" if found.answer is None else f"{100 * found.answer / found.own:.0f} % of {found.own}",
        str(len(found.attempts)),
        str(found.out_of_memory),
        str(found.steps),
        f"{found.seconds:.1f}",
        "-" if found.peak is None else f"{100 * found.peak:.1f} %",
        _sizes(found.attempts),
    )


def table(found: Sequence[Found]) -> list[str]:
    """All of it as Markdown."""
    return markdown_table(HEADER, [row(one) for one in found])


def _untried(peer: Found) -> str:
    return "" if peer.tried_its_answer else " (without a trial at that size)"


def _sizes(attempts: Sequence[Attempt], most: int = 8) -> str:
    """The sizes, those out of memory in brackets; of many, the first and the last."""
    sizes = [f"({a.batch_size})" if a.out_of_memory else str(a.batch_size) for a in attempts]
    if len(sizes) > most:
        sizes = [*sizes[: most - 3], "…", *sizes[-2:]]
    return " ".join(sizes)
