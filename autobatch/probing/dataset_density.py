"""The packing density of a run, counted from its dataset; no card, no model, no probe.

Kept in `RUN/probe/density/`, apart from what a probe keeps: on a CPU the probe also measures the memory that the
dataset takes, and so needs a process of its own kind. What a probe counted is taken from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from autobatch.errors import JobError
from autobatch.probing.density_store import COUNTS, DensityStore, kept_density, place_of_count
from autobatch.probing.events import Event, Said
from autobatch.probing.exported import exported
from autobatch.probing.forkserver import ForkServer
from autobatch.probing.lock import only_one
from autobatch.records import Density
from autobatch.runs.dataset import RunDataset, read_dataset
from autobatch.runs.fingerprint import data_signature


@dataclass(frozen=True)
class DatasetDensity:
    """How a run's dataset packs.

    Attributes:
        run: the run directory.
        packed: whether the run trains with packs.
        density: of the rows that it trains with: packs, or an example a row.
        if_packed: for a run that doesn't pack, how it would; None without a max_seq_len, or when the dataset
            can't be packed.
        kept: nothing was counted now: the dataset is as it was when it was.
    """

    run: str
    packed: bool
    density: Density
    if_packed: Density | None
    kept: bool


class DensityMeter:
    """Counts the density of one run after another, in processes of their own.

    The fork server serves all runs whose training scripts export the same variables as the first's; libraries
    read them when they are imported. Others start cold.
    """

    def __init__(self) -> None:
        self._served: Mapping[str, str] | None = None

    def measure(
        self, run_dir: Path, *, sample: int | None = None, tell: Callable[[Event], None] = lambda event: None
    ) -> DatasetDensity:
        """The density of one run.

        Args:
            run_dir: the run directory.
            sample: pack only about so many examples and extrapolate.
            tell: hears what happens.

        Raises:
            RunProblems: the run's dataset can't be read.
            UsageError: another count of this run is under way, or its directory can't be written.
            JobError: the dataset component failed, in its own words.
        """
        run = read_dataset(run_dir)
        for note in run.notes:
            tell(Said(note))
        with exported(run.exports), only_one(run.path / "probe" / COUNTS, "count"):
            density, kept, error = self._count(run, run.packed, sample, tell)
            if density is None:
                raise JobError(f"{run.path}: the dataset can't be read: {error}")
            if_packed = None
            if not run.packed and run.max_seq_len is not None:
                if_packed, kept_too, error = self._count(run, True, sample, tell)
                kept = kept and kept_too
                if if_packed is None:
                    tell(Said(f"{run.path}: it can't be packed: {error}"))
            return DatasetDensity(str(run_dir), run.packed, density, if_packed, kept)

    def _count(
        self, run: RunDataset, packed: bool, sample: int | None, tell: Callable[[Event], None]
    ) -> tuple[Density | None, bool, str]:
        """(density, whether it was on file, why there is none)."""
        place = place_of_count(run.path / "probe", packed=packed)
        store = DensityStore(run, place, packed=packed, sample=sample, in_memory=False, keep_rows=False)
        signature = data_signature(run.resolved(), run.working_dir)
        known = kept_density(run.path / "probe", signature, packed=packed)
        if known is not None and known.sampled_examples is None:
            return known, True, ""
        outcome = store.get(self._server(run.exports, place.parent / "server.log"), tell)
        if outcome.density is None:
            return None, False, f"{outcome.error}\nThe whole output: {place / 'packing.log'}"
        return outcome.density, outcome.density == known, ""

    def _server(self, exports: Mapping[str, str], log: Path) -> ForkServer:
        server = ForkServer({}, "cpu", cold=self._served not in (None, dict(exports)))
        if self._served is None:
            self._served = dict(exports)
            # Ctrl-C reaches it too, and ends it with a traceback while it imports.
            server.start(log)
        return server
