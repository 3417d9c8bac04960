"""What `autobatch probe` has measured of a run, if it still holds for the run's config."""

from __future__ import annotations

from dataclasses import dataclass

from autobatch.errors import UsageError
from autobatch.probing.density_store import kept_density
from autobatch.probing.verification import holds_for_config
from autobatch.records import Density, PackingMode, ProbeResult, Status
from autobatch.runs.directory import read_run
from autobatch.runs.fingerprint import data_signature
from autobatch.runs.results import find_result
from autobatch.validation.subject import Subject


@dataclass(frozen=True)
class Measured:
    """What is on file.

    Attributes:
        result: of the last probe, if it found a batch_size and holds for this config; else None.
        stale: why a result that is on file doesn't count; empty when there is none, or it holds.
        density: of the dataset as it is now; None where it wasn't measured.
    """

    result: ProbeResult | None = None
    stale: str = ""
    density: Density | None = None


def measured_of(subject: Subject) -> Measured:
    """What holds of the probe's files in the subject's run directory."""
    if subject.run_dir is None:
        return Measured()
    density = _density(subject)
    path = subject.run_dir / "probe" / "result.json"
    try:
        result = find_result(path)
    except UsageError as error:
        return Measured(stale=str(error), density=density)
    if result is None or result.device is None:
        return Measured(density=density)
    if result.status is not Status.DONE:
        return Measured(stale=f"the last probe found no batch_size: {result.message}", density=density)
    rows = "unpacked" if result.request.packing is PackingMode.UNPACKED else "packed"
    if subject.packed != (rows == "packed"):
        return Measured(stale=f"the probe's result is for {rows} rows", density=density)
    try:
        run = read_run(subject.run_dir, result.request)
    except UsageError:  # the run's problems are findings of other checks
        return Measured(
            stale="the run has problems, so that it can't be told whether the probe's result holds",
            density=density,
        )
    if not holds_for_config(run, result):
        return Measured(
            stale="the probe's result is for another config, recipe, environment or other versions than these",
            density=density,
        )
    return Measured(result, density=density)


def _density(subject: Subject) -> Density | None:
    assert subject.run_dir is not None
    signature = data_signature(subject.config.values, subject.working_dir)
    return kept_density(subject.run_dir / "probe", signature, packed=subject.packed)
