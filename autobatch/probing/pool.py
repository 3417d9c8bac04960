"""What several probes share: trials, by what they hold for, and packed datasets.

A trial of one run counts for another when the keys of their journals are equal (`journal.py`): fingerprint,
device, and on a CPU the size of the dataset, which lies in the same memory. A run then measures only what
its own cap or target still needs:

    run1 (cap 60)   4  9  8        8 fits, 9 doesn't
    run2 (cap 60)   -              the same answer
    run3 (cap 5)    5              smaller than any that is known to fit: measured, since only measured sizes
                                   are written
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from autobatch.probing.density_store import kept_key
from autobatch.probing.journal import JOURNAL, Journal, Origin, is_lasting, read_measured
from autobatch.probing.trial import can_be_judged, judge
from autobatch.records import Metric, SharedFrom, Trial, Verdict
from autobatch.units import format_seconds


@dataclass(frozen=True)
class PooledTrial:
    """A trial, and the run that it was measured for.

    Attributes:
        trial: its log is relative to that run.
        origin: with the run's path.
    """

    trial: Trial
    origin: Origin


class TrialPool:
    """Trials and packed datasets of several runs.

    Args:
        run_dirs: runs whose measurements on file count.

    Attributes:
        packed: the `probe/` in which a dataset lies packed, by the key of a density store.
    """

    def __init__(self, run_dirs: Sequence[Path] = ()) -> None:
        self._trials: dict[str, dict[int, PooledTrial]] = {}
        self.packed: dict[str, Path] = {}
        for run_dir in run_dirs:
            self._read(run_dir)

    def add(self, key: dict[str, Any], trial: Trial, run_dir: Path, measured: str) -> None:
        """A trial that was measured for `run_dir`; the first of a batch_size that wasn't cut short counts."""
        if is_lasting(trial):
            trials = self._trials.setdefault(_text(key), {})
            before = trials.get(trial.batch_size)
            if before is None or (before.trial.cut_short and not trial.cut_short):
                trials[trial.batch_size] = PooledTrial(trial, Origin(str(run_dir), measured))

    def trials_for(self, key: dict[str, Any], run_dir: Path) -> list[PooledTrial]:
        """The trials of other runs that hold for `run_dir`, as they were added; logs are relative to it."""
        return [
            replace(found, trial=replace(found.trial, log=_relative_log(found, run_dir)))
            for found in self._trials.get(_text(key), {}).values()
            if found.origin.run != str(run_dir)
        ]

    def _read(self, run_dir: Path) -> None:
        directory = run_dir / "probe"
        dataset = kept_key(directory)
        if dataset is not None:
            self.packed.setdefault(dataset, directory)
        on_file = read_measured(directory / JOURNAL)
        if on_file is None:
            return
        key, measured = on_file
        for trial, origin in measured:
            # What that run has from another comes from there, if that is still to be had.
            if not origin.run:
                self.add(key, trial, run_dir, origin.measured)


class KnownTrials:
    """The trials that a probe need not run: those of its journal, then those of the pool.

    Args:
        journal: of the run.
        pool: of the job.
        run_dir: the run.
        metric: the peak that counts.
        target_bytes: what it may reach.

    Attributes:
        resumed_seconds: that the run's own trials took when they were measured.
    """

    def __init__(
        self, journal: Journal, pool: TrialPool, run_dir: Path, metric: Metric, target_bytes: int
    ) -> None:
        self._journal = journal
        self._pool = pool
        self._run_dir = run_dir
        self._known = {
            trial.batch_size: judge(trial, metric, target_bytes)
            for trial in journal.trials
            if can_be_judged(trial, metric, target_bytes)
        }
        for batch_size, trial in self._known.items():
            if not journal.origins[batch_size].run:
                pool.add(journal.key, trial, run_dir, journal.origins[batch_size].measured)
        self._shared: dict[int, Origin] = {}
        for found in pool.trials_for(journal.key, run_dir):
            usable = can_be_judged(found.trial, metric, target_bytes)
            if usable and found.trial.batch_size not in self._known:
                self._known[found.trial.batch_size] = judge(found.trial, metric, target_bytes)
                self._shared[found.trial.batch_size] = found.origin
        self.resumed_seconds = 0.0

    def __bool__(self) -> bool:
        return bool(self._known)

    def guess(self, cap: int) -> int | None:
        """The size to begin with; None leaves it to whoever else may know.

        An interrupted probe goes the way that it went. Where a size above the cap is known to fit, nothing but
        the cap remains to be measured.
        """
        if self._is_only_mine:
            return self._journal.trials[0].batch_size if self._journal.trials else None
        fits = [trial.batch_size for trial in self._known.values() if trial.verdict is Verdict.FITS]
        return cap if max(fits, default=0) > cap else None

    def begin(self, cap: int) -> list[Trial]:
        """Trials to begin the search with: the other runs' as far as the cap, or none if the cap decides."""
        if self._is_only_mine or self.guess(cap) is not None:
            return []
        taken = [self.take(batch_size) for batch_size in self._known if batch_size <= cap]
        return [trial for trial in taken if trial is not None]

    def take(self, batch_size: int) -> Trial | None:
        """The trial of that size; None when it has to be run."""
        trial = self._known.get(batch_size)
        if trial is None:
            return None
        origin = self._shared.pop(batch_size, None)
        if origin is not None:
            self._journal.add_trial(trial, origin)
        elif not self._journal.origins[batch_size].run:
            self.resumed_seconds += trial.seconds
        return trial

    def add(self, trial: Trial) -> None:
        """A trial that was run now, for this run: into the journal, and for the runs that follow."""
        origin = self._journal.add_trial(trial)
        self._pool.add(self._journal.key, trial, self._run_dir, origin.measured)

    def shared_from(self, trials: Sequence[Trial]) -> tuple[SharedFrom, ...]:
        """Where those of `trials` come from that other runs measured, a run each."""
        found: dict[str, SharedFrom] = {}
        for trial in trials:
            origin = self._journal.origins.get(trial.batch_size)
            if origin is not None and origin.run:
                before = found.get(origin.run, SharedFrom(origin.run, origin.measured, ()))
                found[origin.run] = SharedFrom(
                    origin.run,
                    max(before.measured, origin.measured),
                    (*before.batch_sizes, trial.batch_size),
                )
        return tuple(found.values())

    @property
    def _is_only_mine(self) -> bool:
        return not self._shared and not any(origin.run for origin in self._journal.origins.values())


def describe(shared: SharedFrom, now: datetime | None = None) -> str:
    """``batch_size 8, 9: measured for run1, 3 min 05 s ago``."""
    sizes = ", ".join(map(str, shared.batch_sizes))
    now = now or datetime.now(timezone.utc)
    try:
        seconds = (now - datetime.fromisoformat(shared.measured)).total_seconds()
        age = f"{format_seconds(max(0.0, seconds))} ago"
    except (ValueError, TypeError):
        age = "before"
    return f"batch_size {sizes}: measured for {Path(shared.run).name}, {age}"


def _relative_log(found: PooledTrial, run_dir: Path) -> str:
    return os.path.relpath(Path(found.origin.run, found.trial.log), run_dir) if found.trial.log else ""


def _text(key: dict[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)
