"""The probes of an experiment: what each run's `probe/result.json` says, or why there is nothing to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from autobatch.errors import UsageError
from autobatch.records import ProbeResult, Status, Trial
from autobatch.report.chart import Chart, chart_of, on_common_scales
from autobatch.report.table import printable, text_table
from autobatch.runs.directory import CONFIG_NAME
from autobatch.runs.experiment import find_runs
from autobatch.runs.results import RESULT, load_result
from autobatch.units import format_bytes, format_percent

HEADER = (
    "run",
    "batch_size",
    "peak",
    "of capacity",
    "tokens/s",
    "density",
    "effective batch",
    "limited by",
    "probe",
)

#: Which of these hold numbers.
NUMBERS = (False, True, True, True, True, True, True, False, False)

#: What the columns mean, where their names don't say it.
LEGEND = (
    "tokens/s: of the trial at batch_size. density: examples per pack. effective batch: sequences of an optimizer "
    "step, batch_size x gradient_accumulation_steps."
)


@dataclass(frozen=True)
class ProbedRun:
    """A run and its last probe.

    Attributes:
        name: of the run directory.
        result: of the probe; None when there is none to show.
        problem: why there is no batch_size, in a line; empty when there is one.
    """

    name: str
    result: ProbeResult | None
    problem: str

    @property
    def is_drawn(self) -> bool:
        """Whether there is a trial to draw."""
        return self.result is not None and bool(self.result.trials)


def is_run(path: Path) -> bool:
    """Whether `path` is a run directory, and not an experiment's."""
    return (path / CONFIG_NAME).is_file() or (path / "probe" / RESULT).is_file()


def probed_runs(path: Path) -> list[ProbedRun]:
    """Every run directly below `path`, probed or not, by name.

    Raises:
        UsageError: there is none.
    """
    found = {*find_runs(path), *(result.parent.parent for result in path.glob(f"*/probe/{RESULT}"))}
    if not found:
        missing = (
            f"no {CONFIG_NAME} here or one level below" if path.is_dir() else "no such file or directory"
        )
        raise UsageError(f"{path}: {missing}: name a run directory, or an experiment's, such as runs/")
    return [_probed(run) for run in sorted(found)]


def charts_of(runs: Sequence[ProbedRun]) -> tuple[tuple[Chart, ...], bool]:
    """What is drawn of `runs`, on common scales; and whether all share the x axis."""
    return on_common_scales([chart_of(run.result, run.name) for run in runs if run.result and run.is_drawn])


def not_drawn(runs: Sequence[ProbedRun]) -> list[str]:
    """A line for each run without a picture: which, and why."""
    return [f"{printable(run.name)}: {run.problem}" for run in runs if not run.is_drawn]


def row_of(run: ProbedRun) -> tuple[str, ...]:
    """The cells of one run, under `HEADER`."""
    result = run.result
    if result is None:
        return (run.name, *["-"] * 7, run.problem)
    density = result.density
    packed = f"{density.examples_per_pack:.2f}" if density is not None and density.packed else "-"
    if result.status is not Status.DONE or result.batch_size is None:
        return (run.name, *["-"] * 4, packed, *["-"] * 2, result.status.value)
    peak, share = "-", "-"
    if result.peak_bytes is not None:
        peak = format_bytes(result.peak_bytes)
        share = format_percent(result.peak_bytes, result.capacity_bytes) if result.capacity_bytes else "-"
    trial = at_answer(result)
    rate = trial.tokens_per_second if trial is not None else None
    return (
        run.name,
        str(result.batch_size),
        peak,
        share,
        "-" if rate is None else f"{rate:.0f}",
        packed,
        str(_effective_batch(result)),
        "-" if result.limit is None else result.limit.value,
        result.status.value,
    )


def at_answer(result: ProbeResult) -> Trial | None:
    """The trial at the answer."""
    return next((trial for trial in result.trials if trial.batch_size == result.batch_size), None)


def _effective_batch(result: ProbeResult) -> int:
    """Sequences of an optimizer step at the answer."""
    if result.after is not None:
        return result.after.sequences
    # A result of autobatch before it said so itself.
    return (result.batch_size or 0) * result.gradient_accumulation_steps


def experiment_lines(runs: Sequence[ProbedRun]) -> list[str]:
    """A table of the runs, and below it why some have no batch_size."""
    lines = text_table(HEADER, [row_of(run) for run in runs], numbers=NUMBERS)
    problems = [f"{printable(run.name)}: {run.problem}" for run in runs if run.result and run.problem]
    return [*lines, *(["", *problems] if problems else [])]


def summary(runs: Sequence[ProbedRun]) -> str:
    """``38 of 40 runs have a batch_size``."""
    answered = sum(not run.problem for run in runs)
    return f"{answered} of {len(runs)} runs {'has' if answered == 1 else 'have'} a batch_size"


def _probed(run: Path) -> ProbedRun:
    name = run.name
    path = run / "probe" / RESULT
    if not path.exists():
        return ProbedRun(name, None, "not probed")
    try:
        result = load_result(path)
    except UsageError as error:
        return ProbedRun(name, None, printable(str(error)))
    if result.status is Status.DONE:
        return ProbedRun(name, result, "")
    return ProbedRun(name, result, printable(result.message.partition("\n")[0]))
