"""What a probe says at its end: status and message for each way it can go. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from autobatch.probing.choice import Choice, throughput_remark
from autobatch.probing.effective_batch import Hold, effective_batch
from autobatch.probing.search import Bracket, fit_line
from autobatch.probing.wish import Wish, examples_per_row
from autobatch.records import Density, Limit, Prediction, Preference, ProbeResult, Status, Trial, Verdict
from autobatch.units import format_bytes, format_percent

if TYPE_CHECKING:
    from autobatch.runs.directory import RunDirectory

#: Verdicts that aren't about batch_size: no further trial would help.
ENDS_THE_PROBE = (Verdict.TIMED_OUT, Verdict.CRASHED, Verdict.UNSTABLE)


def predicted(prediction: Prediction) -> str:
    """What an estimate says before anything was measured."""
    peak = f" ({format_bytes(prediction.peak_bytes)})" if prediction.peak_bytes is not None else ""
    return f"estimate on a simulated GPU: batch_size {prediction.batch_size}{peak}; the search begins there"


def holding(held: Hold, density: Density) -> str:
    """The effective batch that will be held, before anything is measured."""
    return "; ".join((f"holding the effective batch at {_sequences(held.sequences, density)}", *held.remarks))


def done(result: ProbeResult, choice: Choice) -> ProbeResult:
    """The batch_size that was chosen, and what keeps it from being larger."""
    at_choice = next(t for t in result.trials if t.batch_size == choice.batch_size)
    assert at_choice.peak_bytes is not None
    assert result.capacity_bytes is not None
    assert result.density is not None
    peak = (
        f"peak {format_bytes(at_choice.peak_bytes)}, "
        f"{format_percent(at_choice.peak_bytes, result.capacity_bytes)} of {format_bytes(result.capacity_bytes)}"
    )
    after = effective_batch(
        choice.batch_size,
        choice.gradient_accumulation_steps,
        examples_per_row(result.density),
        result.world.data_parallel if result.world else 1,
    )
    answer = f"batch_size {choice.batch_size}"
    if result.request.hold_effective_batch:
        product = _sequences(after.sequences, result.density)
        answer += f" x gradient_accumulation_steps {choice.gradient_accumulation_steps} = {product}"
    return replace(
        result,
        status=Status.DONE,
        message=f"{answer} ({peak}); {choice.why or _why_not_larger(result, choice)}",
        batch_size=choice.batch_size,
        gradient_accumulation_steps=choice.gradient_accumulation_steps,
        largest_batch_size=choice.largest,
        limit=choice.limit,
        peak_bytes=at_choice.peak_bytes,
        fit=fit_line(result.trials),
        after=after,
        remarks=(*result.remarks, *_on_throughput(result, choice), *_on_simulation(result)),
    )


def _why_not_larger(result: ProbeResult, choice: Choice) -> str:
    """What keeps the largest size that was found to fit from being larger."""
    if choice.limit is Limit.MEMORY:
        return _what_the_next_did(result, choice)
    if choice.limit is Limit.DATASET:
        return _dataset_is_the_limit(result)
    if choice.limit is Limit.TIME:
        return "the job's time limit ended the search: a larger one may fit (--accept-partial)"
    return f"{choice.limit.value} is the limit, not the memory"


def _on_throughput(result: ProbeResult, choice: Choice) -> tuple[str, ...]:
    """Whether a smaller size would be as fast, unless that is what was asked for."""
    if result.request.prefer is not Preference.THROUGHPUT:
        remark = throughput_remark(result.trials, choice.batch_size)
        return (remark,) if remark else ()
    if choice.limit is Limit.THROUGHPUT:
        return ()
    return (f"no smaller size that was measured comes within 3 % of the tokens/s of {choice.batch_size}",)


def _on_simulation(result: ProbeResult) -> tuple[str, ...]:
    if result.device is None or not result.device.simulated:
        return ()
    return ("on a simulated GPU: nothing was written to finetune.yaml and runs_plan.md",)


def _sequences(count: int, density: Density) -> str:
    if not density.packed:
        return f"{count} examples"
    return f"{count} sequences, about {count * density.examples_per_pack:.0f} examples"


def nothing_fits(result: ProbeResult) -> ProbeResult:
    """Not even batch_size 1: what it took, and what would help."""
    assert result.capacity_bytes is not None
    assert result.target_bytes is not None
    one = next(t for t in result.trials if t.batch_size == 1)
    took = "ran out of memory" if one.peak_bytes is None else f"peaks at {format_bytes(one.peak_bytes)}"
    share = format_percent(result.target_bytes, result.capacity_bytes)
    limit = f"{format_bytes(result.target_bytes)} ({share} of {format_bytes(result.capacity_bytes)})"
    lines = [f"nothing fits: batch_size 1 {took}, and the target is {limit}."]
    if one.before_bytes is not None:
        lines.append(f"{format_bytes(one.before_bytes)} were in use before the first batch.")
        if one.before_bytes > result.target_bytes:
            lines.append(
                "That is over the target by itself: QLoRA, a smaller model or a larger card would help."
            )
        else:
            lines.append(
                "The rest is activations, gradients and optimizer state: "
                "enable_activation_checkpointing: True, a smaller tokenizer.max_seq_len, LoRA or QLoRA, "
                "or a larger card would help."
            )
    return replace(
        result,
        status=Status.NOTHING_FITS,
        message=" ".join(lines),
        limit=Limit.MEMORY,
        fit=fit_line(result.trials),
    )


def too_few_packs(result: ProbeResult) -> ProbeResult:
    """Fewer rows than one optimizer step takes: torchtune would train nothing and exit 0."""
    density = result.density
    assert density is not None
    rows = "packs" if density.packed else "examples"
    each = f" for each of {result.world.data_parallel} ranks" if result.world else ""
    has = density.packs_of_a_rank(result.world.data_parallel) if result.world else density.packs
    message = (
        f"the dataset has {has} {rows}{each}, fewer than the gradient_accumulation_steps of "
        f"{result.gradient_accumulation_steps}: torchtune would train zero steps and save an untrained "
        "model. Lower gradient_accumulation_steps, or use more data or a smaller tokenizer.max_seq_len."
    )
    return replace(result, status=Status.NOTHING_FITS, message=message, limit=Limit.DATASET)


def cannot_hold(result: ProbeResult, wish: Wish) -> ProbeResult:
    """The one batch_size that could be the whole effective batch doesn't fit, and the recipe can't accumulate."""
    held = wish.hold
    assert held is not None
    fits = max(t.batch_size for t in result.trials if t.verdict is Verdict.FITS)
    message = (
        f"the effective batch of {held.sequences} can't be held: optimizer_in_bwd: True forbids gradient "
        f"accumulation, so batch_size would have to be {held.per_device}, and the largest measured to fit is "
        f"{fits}. Set optimizer_in_bwd: False, or hold at most {fits} (--hold-effective-batch {fits})"
    )
    return replace(
        result,
        status=Status.NOTHING_FITS,
        message=message,
        limit=Limit.HOLD,
        largest_batch_size=fits,
        fit=fit_line(result.trials),
    )


def out_of_time(result: ProbeResult, bracket: Bracket) -> ProbeResult:
    """The job's time limit ended the search with the bracket open."""
    fits = f"batch_size {bracket.fits} fits" if bracket.fits else "nothing was measured to fit"
    tried = any(trial.batch_size == bracket.fails for trial in result.trials)
    fails = f", {bracket.fails} doesn't" if tried else ""
    message = (
        f"the job's time limit ended the search after {len(result.trials)} trials: {fits}{fails}. Give it more "
        "time (--time): it goes on from here and measures nothing twice. --accept-partial takes the largest "
        "size measured to fit"
    )
    return replace(result, status=Status.OUT_OF_TIME, message=message, fit=fit_line(result.trials))


def packing_failed(result: ProbeResult, run: RunDirectory, error: str) -> ProbeResult:
    """The recipe's own dataset couldn't be made."""
    message = f"{run.config_path}: the dataset can't be packed: {error}\nThe whole output: probe/packing.log"
    return replace(result, status=Status.CRASHED, message=message)


def trial_failed(result: ProbeResult, trial: Trial) -> ProbeResult:
    """A trial that ended for a reason that isn't memory."""
    status, what = {
        Verdict.CRASHED: (Status.CRASHED, "the recipe failed"),
        Verdict.TIMED_OUT: (
            Status.TIMED_OUT,
            f"the trial didn't end within {result.request.trial_timeout_s:g} s (--trial-timeout)",
        ),
        Verdict.UNSTABLE: (Status.UNSTABLE, "no peak to measure"),
    }[trial.verdict]
    message = f"batch_size {trial.batch_size}: {what}: {trial.detail}\nThe trial's whole output: {trial.log}"
    return replace(result, status=status, message=message, fit=fit_line(result.trials))


def _what_the_next_did(result: ProbeResult, choice: Choice) -> str:
    assert result.capacity_bytes is not None
    following = next(t for t in result.trials if t.batch_size == choice.batch_size + 1)
    name = f"batch_size {following.batch_size}"
    if following.verdict is Verdict.OUT_OF_MEMORY:
        return f"{name} ran out of memory"
    assert following.peak_bytes is not None
    if following.alloc_retries:
        return f"at {name} the allocator ran out and had to free its cache"
    least = "at least " if following.cut_short else ""
    return f"{name} would take {least}{format_percent(following.peak_bytes, result.capacity_bytes)}"


def _dataset_is_the_limit(result: ProbeResult) -> str:
    density = result.density
    assert density is not None
    rows = "packs" if density.packed else "examples"
    sampled = "by the sample, at least " if density.packs_at_least < density.packs else ""
    ranks = f" // {result.world.data_parallel} ranks" if result.world else ""
    limit = f"the dataset is the limit, not the memory: {sampled}{density.packs_at_least} {rows}{ranks}"
    if result.request.hold_effective_batch:
        return limit
    return f"{limit} // {result.gradient_accumulation_steps} gradient_accumulation_steps"
