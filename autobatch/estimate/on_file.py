"""Trials on a simulated GPU, kept in the run's `probe/`: for the next estimate, and for where a probe begins."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from autobatch.edits.files import replace_file
from autobatch.errors import AutobatchError
from autobatch.estimate.subject import Subject, subject_of
from autobatch.probing.forecast import Occasion
from autobatch.probing.identity import MEMORY_ENVIRONMENT
from autobatch.probing.search import bracket_of, fit_line
from autobatch.probing.trial import can_be_judged, judge
from autobatch.probing.versions import installed_versions
from autobatch.records import Metric, Trial, Verdict, from_json, to_json
from autobatch.runs.fingerprint import fingerprint
from autobatch.simulated_gpu.gpus import Gpu, gpu_of_product

#: Name of the file in `probe/`.
KEPT = "estimate.json"

#: Version of its form.
_FORM = 3


@dataclass(frozen=True)
class Kept:
    """The file.

    Attributes:
        key: of the config.
        product: the simulated GPU, as the driver calls it.
        capacity_bytes: its memory.
        trials: that were run.
        parts: by batch_size, what their allocated peaks consist of.
    """

    key: str
    product: str
    capacity_bytes: int
    trials: tuple[Trial, ...]
    parts: dict[str, dict[str, int]]


def config_key(subject: Subject, environ: Mapping[str, str]) -> str:
    """Hash of everything that decides the trials of `subject` on a given GPU."""
    extras = {
        "recipe": subject.recipe.identity,
        "packed": str(subject.packed),
        "world": str(subject.world and to_json(subject.world)),
        "form": str(_FORM),
        **{name: environ.get(name, "") for name in MEMORY_ENVIRONMENT},
        **installed_versions(),
    }
    return fingerprint(subject.resolved(), extras)


def keep(
    run_dir: Path, key: str, gpu: Gpu, trials: Sequence[Trial], parts: Mapping[int, dict[str, int]]
) -> None:
    """Keep trials, with those that are on file for the same config and GPU."""
    on_file = kept_for(run_dir, key, gpu)
    new = {trial.batch_size for trial in trials}
    old = [trial for trial in on_file.trials if trial.batch_size not in new]
    all_parts = on_file.parts | {str(batch_size): found for batch_size, found in parts.items()}
    kept = Kept(key, gpu.product, gpu.total_bytes, (*old, *trials), all_parts)
    path = run_dir / "probe" / KEPT
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, json.dumps(to_json(kept), indent=1) + "\n", expected=None)


def kept_for(run_dir: Path, key: str, gpu: Gpu) -> Kept:
    """What is on file for this config on this GPU."""
    kept = _read(run_dir)
    if kept is None or (kept.key, kept.product, kept.capacity_bytes) != (key, gpu.product, gpu.total_bytes):
        return Kept(key, gpu.product, gpu.total_bytes, (), {})
    return kept


def _read(run_dir: Path) -> Kept | None:
    try:
        return from_json(Kept, json.loads((run_dir / "probe" / KEPT).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError):
        return None


class TrialForecast:
    """Peaks that simulated trials had, and between and beyond them those of their line.

    Args:
        trials: at least one with a peak.
        metric: that the probe measures.
    """

    def __init__(self, trials: Sequence[Trial], metric: Metric) -> None:
        self._trials = trials
        # The context, which is on a real card besides, isn't in a simulated one's device memory.
        self._metric = Metric.RESERVED if metric is Metric.DEVICE else metric

    def peak_bytes(self, batch_size: int) -> int | None:
        """The peak at `batch_size`; None where there is no line to read it from."""
        judged = self._judged(2**62)
        exact = next((t for t in judged if t.batch_size == batch_size and not t.cut_short), None)
        if exact is not None and exact.peak_bytes is not None:
            return exact.peak_bytes
        fit = fit_line(judged)
        return None if fit is None else round(fit.fixed_bytes + fit.per_sequence_bytes * batch_size)

    def largest(self, target_bytes: int, at_most: int) -> int:
        """The largest batch_size whose peak is at most `target_bytes`; 0 when none is."""
        judged = self._judged(target_bytes)
        bracket = bracket_of(judged, at_most)
        fit = fit_line(judged)
        if bracket.width <= 1 or fit is None or fit.per_sequence_bytes <= 0:
            return bracket.fits
        # A size whose peak is the target to the byte fits, whichever way the division was rounded.
        on_line = int((target_bytes - fit.fixed_bytes) / fit.per_sequence_bytes + 1e-6)
        return max(bracket.fits, min(on_line, bracket.fails - 1))

    def _judged(self, target_bytes: int) -> list[Trial]:
        return [
            judge(trial, self._metric, target_bytes)
            for trial in self._trials
            if can_be_judged(trial, self._metric, target_bytes)
        ]


def forecast(occasion: Occasion) -> TrialForecast | None:
    """What the estimate on file says of a probe's trials; None where there is none for its run and GPU."""
    # Whatever is wrong with it, a probe does without.
    with suppress(AutobatchError):
        return _forecast(occasion)
    return None


def _forecast(occasion: Occasion) -> TrialForecast | None:
    kept = _read(occasion.run.path)
    here = gpu_of_product(occasion.device.name)
    if kept is None or here is None or occasion.run.device != "cuda":
        return None
    simulated = gpu_of_product(kept.product)
    # On another GPU of the same architecture the kernels are the same.
    if simulated is None or simulated.capability != here.capability:
        return None
    if kept.key != config_key(subject_of(occasion.run, packed=occasion.packed), os.environ):
        return None
    measured = [trial for trial in kept.trials if trial.verdict in (Verdict.FITS, Verdict.OVER_TARGET)]
    return TrialForecast(kept.trials, occasion.metric) if measured else None
