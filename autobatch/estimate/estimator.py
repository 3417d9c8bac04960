"""The answers: what a run takes, what fits on a card, and which setting would change that."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from autobatch.errors import UsageError
from autobatch.estimate.cards import CARDS, Card
from autobatch.estimate.recording import Recorded, recorded
from autobatch.estimate.records import Estimate, Fitting, NoEstimate, Variant
from autobatch.estimate.subject import Subject, with_settings
from autobatch.estimate.trace import Curve, Kind, Peak
from autobatch.probing.forkserver import ForkServer
from autobatch.runs.results import find_result

#: Name of the file in `probe/` that keeps the traces.
KEPT = "estimate.json"

#: The interval around an answer: what it would be if the prediction were wrong by so much. The bar that the
#: benchmark on a card holds the median error to is 3 %, the worst to 10 %.
MARGIN = 0.05


@dataclass(frozen=True)
class Question:
    """What is asked about a subject.

    Attributes:
        card: the card to plan for.
        target_fraction: of its memory that the reserved peak may reach.
        batch_size: of the figures; None takes the largest that fits, or the config's when none does.
        what_if: settings, ``key=value``, one a variant.
        timeout_s: for each curve.
        fresh: estimate again though it is on file.
        keep: put it on file in the run's `probe/`, or take it from there; for the config as it is alone.
    """

    card: Card
    target_fraction: float = 0.70
    batch_size: int | None = None
    what_if: Sequence[str] = ()
    timeout_s: float = 600.0
    fresh: bool = False
    keep: bool = True


def estimate(subject: Subject, question: Question, server: ForkServer) -> Estimate:
    """Predict the memory of `subject`.

    Raises:
        UsageError: a setting can't be used.
        NoEstimate: it can't be estimated; a variant that can't says so in its row.
    """
    for setting in question.what_if:
        # What can't be set is said before anything takes time.
        with suppress(NoEstimate):
            with_settings(subject, [setting])
    result = _recorded(subject, question, server)
    fitting = fit(result.curve, question.card, question.target_fraction)
    batch_size = question.batch_size or fitting.batch_size or subject.batch_size
    peak = result.curve.at(batch_size)
    variants = []
    if question.what_if:
        variants = [_variant(subject, "", result, question)]
        variants += [_try(subject, setting, question, server) for setting in question.what_if]
    return Estimate(
        config=str(subject.path),
        recipe=subject.recipe.note,
        device=subject.device,
        max_seq_len=subject.max_seq_len,
        packed=subject.packed,
        world=subject.world,
        batch_size=batch_size,
        allocated_bytes=peak.allocated_bytes,
        reserved_bytes=peak.reserved_bytes + question.card.workspace_bytes,
        by_kind={
            kind.value: size
            for kind, size in peak.by_kind.items()
            if kind is not Kind.COLLECTIVES or subject.world is not None
        },
        before_bytes=peak.before_bytes,
        workspace_bytes=question.card.workspace_bytes,
        target_fraction=question.target_fraction,
        margin_fraction=MARGIN,
        fitting=fitting,
        cards=tuple(fit(result.curve, card, question.target_fraction) for card in CARDS.values()),
        what_if=tuple(variants),
        off_line_fraction=result.off_line_fraction,
        density=_density(subject),
        notes=notes_on(subject),
        seconds=result.seconds,
    )


def fit(curve: Curve, card: Card, target_fraction: float) -> Fitting:
    """The largest batch_size on `card`."""
    target = card.total_bytes * target_fraction - card.workspace_bytes

    def within(factor: float) -> int:
        return curve.largest(lambda peak: peak.reserved_bytes * factor <= target)

    largest = within(1.0)
    return Fitting(
        card=card.name,
        capacity_bytes=card.total_bytes,
        batch_size=largest,
        lowest=within(1 + MARGIN),
        highest=within(1 - MARGIN),
        reserved_bytes=curve.at(max(1, largest)).reserved_bytes + card.workspace_bytes,
    )


def notes_on(subject: Subject) -> tuple[str, ...]:
    """What is assumed about `subject`."""
    notes = list(subject.notes)
    config = subject.resolved()
    if not subject.packed:
        notes.append(f"rows aren't packed: each is taken to have max_seq_len ({subject.max_seq_len}) tokens")
    if config.get("compile"):
        notes.append("compile is on: the figures are those without it, and compiling usually saves memory")
    component = str((config.get("optimizer") or {}).get("_component_"))
    if "Paged" in component:
        notes.append(f"{component} keeps its state in unified memory, outside of these figures")
    return tuple(notes)


def _density(subject: Subject) -> float | None:
    """Examples per pack, from the run's last probe, if its packs were as long; None where rows are examples."""
    if subject.run_dir is None or not subject.packed:
        return None
    probed = None
    # The estimate stands without it.
    with suppress(UsageError):
        probed = find_result(subject.run_dir / "probe" / "result.json")
    density = probed.density if probed is not None else None
    if density is None or not density.packed or density.max_seq_len != subject.max_seq_len:
        return None
    return density.examples_per_pack


def _recorded(subject: Subject, question: Question, server: ForkServer) -> Recorded:
    keep = subject.run_dir / "probe" / KEPT if subject.run_dir is not None and question.keep else None
    return recorded(subject, server, timeout_s=question.timeout_s, keep=keep, fresh=question.fresh)


def _try(subject: Subject, setting: str, question: Question, server: ForkServer) -> Variant:
    try:
        changed = with_settings(subject, [setting])
        # Not kept: the file is for the config as it is.
        result = recorded(changed, server, timeout_s=question.timeout_s, keep=None)
    except NoEstimate as error:
        return Variant(setting, question.batch_size or subject.batch_size, None, None, error.why)
    return _variant(changed, setting, result, question)


def _variant(subject: Subject, setting: str, result: Recorded, question: Question) -> Variant:
    batch_size = question.batch_size or subject.batch_size
    peak: Peak = result.curve.at(batch_size)
    fitting = fit(result.curve, question.card, question.target_fraction)
    return Variant(setting, batch_size, peak.reserved_bytes + question.card.workspace_bytes, fitting)
