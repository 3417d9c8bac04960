"""What counts as a right ending."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from tests.benchmarks.fault_scene import Ended, Scene


@dataclass(frozen=True)
class Outcome:
    """What came of one run of a fault.

    Attributes:
        right: whether it ended as it should.
        said: how it ended, in a word or two for the table; what was wrong where it isn't right.
        broken: files that are neither as they were nor as they should be.
        orphans: processes that were left.
        hit: whether the fault took place.
    """

    right: bool
    said: str
    broken: tuple[str, ...] = ()
    orphans: tuple[str, ...] = ()
    hit: bool = True


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes:
        name: for the table.
        ending: the right one, in words.
        of: makes it happen, once or several times in a row.
        base: which recipe is probed: ``misbehaving`` or ``torchtune``.
        probed: whether the run was probed before.
        needs_root: for mounts.
        kinds: it comes in so many kinds, each of which is tried once at least.
    """

    name: str
    ending: str
    of: Callable[[Scene], Outcome | list[Outcome]]
    base: str = "misbehaving"
    probed: bool = False
    needs_root: bool = False
    kinds: int = 1


def not_hit(scene: Scene, ended: Ended) -> Outcome:
    """The probe was over before its fault."""
    return Outcome(ended.code == 0, "not hit", (), tuple(scene.orphans()), hit=False)


def ended_so_far(
    scene: Scene, ended: Ended, codes: tuple[int, ...], *, words: str = "", unchanged: bool = False
) -> Outcome:
    """The answer, or one of these exit codes with one message.

    Args:
        scene: whose probe has ended.
        ended: how.
        codes: that are documented for it.
        words: a pattern that the message must match.
        unchanged: the files must be as they were unless there is the answer.
    """
    orphans = tuple(scene.orphans())
    broken = tuple(scene.broken())
    if ended.code == 0:
        right = scene.is_answered()
        return Outcome(right, "the answer" if right else "0 without the answer", broken, orphans)
    problem = ""
    if ended.code not in codes:
        problem = f"exit code {ended.code}: {ended.err[-300:]}"
    elif not ended.is_clear or not re.search(words, ended.err):
        problem = f"not one clear message: {ended.err[-600:]}"
    elif unchanged and not scene.is_before():
        problem = "the files have changed"
    return Outcome(not problem, problem or str(ended.code), broken, orphans)


def resumed(scene: Scene, outcome: Outcome) -> Outcome:
    """`outcome`, if the next probe comes to the answer, as it must."""
    again = scene.probe()
    broken = (*outcome.broken, *scene.broken())
    orphans = (*outcome.orphans, *scene.orphans())
    if again.code == 0 and scene.is_answered():
        return replace(outcome, broken=broken, orphans=orphans)
    said = f"the next probe ended with {again.code}: {again.err[-300:]}"
    return Outcome(False, said if outcome.right else outcome.said, broken, orphans)


def ended_or_resumed(
    scene: Scene, ended: Ended, codes: tuple[int, ...], *, words: str = "", unchanged: bool = False
) -> Outcome:
    """The answer, or one of these exit codes with one message, and the answer of the next probe."""
    outcome = ended_so_far(scene, ended, codes, words=words, unchanged=unchanged)
    return outcome if ended.code == 0 else resumed(scene, outcome)


def refused(scene: Scene, ended: Ended, words: str, *, unchanged: bool = True) -> Outcome:
    """Exit code 2 with one message that holds these words, and nothing was written."""
    problem = ""
    if ended.code != 2:
        problem = f"exit code {ended.code}: {ended.err[-300:]}"
    elif not ended.is_clear or not re.search(words, ended.err):
        problem = f"not one clear message: {ended.err[-300:]}"
    elif unchanged and not scene.is_before():
        problem = "the files have changed"
    return Outcome(not problem, problem or "2", tuple(scene.broken()), tuple(scene.orphans()))
