"""batch_size against what was measured, or else against the rule of thumb.

A rule of thumb is no fact. Above it is an error only where the planning document has one and it can hold: a
packed run on one card. Unpacked it is a warning (the memory of a row depends on the examples), with several
devices an info (each holds a part of the model). What was measured replaces the rule.
"""

from __future__ import annotations

from autobatch.records import Limit, ProbeResult, Trial, Verdict
from autobatch.units import format_bytes, format_percent
from autobatch.validation.findings import Collector
from autobatch.validation.limits import SizeLimit
from autobatch.validation.measured import Measured
from autobatch.validation.subject import Subject

_CHECK = "batch-size-limit"
_MEASURED = "batch-size-measured"
#: Words in the names of recipes for which the rule wasn't made: pairs of answers, a second model.
_OTHERWISE = frozenset({"dpo", "distillation"})


def check_batch_size(subject: Subject, limit: SizeLimit | None, measured: Measured, c: Collector) -> None:
    """batch_size fits, as far as anything says so.

    Args:
        subject: the config.
        limit: its model's row in the rule of thumb; None when there is none.
        measured: what the probe's files say.
        c: gets the findings.
    """
    size = subject.integer("batch_size")
    where = subject.config.where("batch_size")
    if size is None:
        return
    if measured.result is not None:
        _hold_against_measurement(size, measured.result, where, c)
        return
    if measured.stale:
        c.info(
            _MEASURED, measured.stale, where, "autobatch probe measures again; until then, the rule of thumb"
        )
    if limit is None or subject.config.get("device") == "cpu":
        return
    if subject.recipe is not None and _OTHERWISE & set(subject.recipe.name.split("_")):
        return
    _hold_against_rule(subject, size, limit, where, c)


def _hold_against_measurement(size: int, result: ProbeResult, where: str, c: Collector) -> None:
    trial = next((t for t in reversed(result.trials) if t.batch_size == size), None)
    peak = _peak(trial, result)
    best = result.largest_batch_size or result.batch_size
    assert best is not None
    if size == best or (trial is not None and trial.verdict is Verdict.FITS):
        more = "" if size == best else f"; {best} fits too"
        c.info(_MEASURED, f"batch_size {size} is measured{peak}{more}", where)
    elif size < best:
        c.info(_MEASURED, f"batch_size {size} is below {best}, which was measured to fit", where)
    elif trial is not None or result.limit is Limit.MEMORY or _next_was_measured(result, best):
        ended = f"; {size} was measured: {trial.verdict.value}{peak}" if trial else ""
        c.error(
            _MEASURED,
            f"batch_size {size} is above {best}, the largest that was measured to fit{ended}",
            where,
            f"set batch_size: {result.batch_size}, or probe again with another --target or --capacity",
        )
    else:
        limit = result.limit.value if result.limit else "the probe"
        c.warning(
            _MEASURED,
            f"batch_size {size} is above {best}; larger sizes weren't measured, because of {limit}",
            where,
            f"set batch_size: {result.batch_size}, or probe again",
        )


def _next_was_measured(result: ProbeResult, best: int) -> bool:
    """Whether the search went on until a size didn't fit, though something else than memory chose the answer."""
    chosen = result.limit in (Limit.HOLD, Limit.THROUGHPUT)
    return chosen and any(trial.batch_size == best + 1 for trial in result.trials)


def _peak(trial: Trial | None, result: ProbeResult) -> str:
    if trial is None or trial.peak_bytes is None or not result.capacity_bytes:
        return ""
    share = format_percent(trial.peak_bytes, result.capacity_bytes)
    least = "at least " if trial.cut_short else ""
    return f", peak {least}{format_bytes(trial.peak_bytes)}, {share} of {format_bytes(result.capacity_bytes)}"


def _hold_against_rule(subject: Subject, size: int, limit: SizeLimit, where: str, c: Collector) -> None:
    packed = subject.packed
    most = limit.packed if packed else limit.unpacked
    rule = f"the rule of thumb for {limit.label}, {'packed' if packed else 'unpacked'}, on one 80 GB card"
    measure = "measure it: autobatch probe RUN; until then"
    if size > most and subject.several_devices:
        c.info(
            _CHECK,
            f"batch_size {size} is above {most}, {rule}; it says little of several, each with a part of the model",
            where,
        )
    elif size > most and packed:
        c.error(
            _CHECK,
            f"batch_size {size} is above {most}, {rule}",
            where,
            f"{measure} batch_size: {most}, or packed: False, with which the rule allows {limit.unpacked}",
        )
    elif size > most:
        c.warning(
            _CHECK, f"batch_size {size} is above {most}, {rule}", where, f"{measure} batch_size: {most}"
        )
    elif packed and size == most > 1 and not subject.several_devices:
        c.warning(
            _CHECK,
            f"batch_size {size} is all that {rule}, allows; a smaller card may run out of memory",
            where,
            f"{measure} batch_size: {most // 2} is safer",
        )
