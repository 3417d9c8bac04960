"""The packed dataset of a run: packed once, kept in `probe/` for the trials and for a resumed probe."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from autobatch.packing.build import PackSpec
from autobatch.packing.logs import packing_progress
from autobatch.probing.events import Event, Packing, Said
from autobatch.probing.forkserver import ForkServer
from autobatch.probing.worker import pack_dataset, read_dataset_once
from autobatch.records import Density, from_json, to_json
from autobatch.runs.fingerprint import data_signature
from autobatch.runs.results import load_json

#: In `probe/`: what is counted without a probe.
COUNTS = "density"


class HasDataset(Protocol):
    """What a run must tell for its dataset to be packed."""

    @property
    def working_dir(self) -> Path:
        """To which relative paths in the config are relative."""

    def resolved(self) -> dict[str, Any]:
        """The config, resolved, as plain containers."""


@dataclass(frozen=True)
class PackingOutcome:
    """The density, or why there is none.

    Attributes:
        density: how the dataset packs.
        held_bytes: resident memory that the dataset takes in the process that trains with it.
        error: why there is no density.
    """

    density: Density | None
    held_bytes: int = 0
    error: str = ""


class DensityStore:
    """Packs a run's dataset, or finds it packed.

    Args:
        run: the run.
        directory: its `probe/`.
        packed: pack, or look for the longest example.
        sample: pack only about so many examples.
        in_memory: the dataset will be in the memory that is measured, so `held_bytes` must be right.
        keep_rows: trials will read rows; without, only the density is counted.
    """

    def __init__(
        self,
        run: HasDataset,
        directory: Path,
        *,
        packed: bool,
        sample: int | None,
        in_memory: bool,
        keep_rows: bool = True,
    ) -> None:
        self._run = run
        self._directory = directory
        self._packed = packed
        self._sample = sample
        self._in_memory = in_memory
        self._keep_rows = keep_rows
        self.rows = directory / "rows.pt"
        self._kept = directory / "density.json"

    def get(
        self,
        server: ForkServer,
        tell: Callable[[Event], None],
        *,
        fresh: bool = False,
        attempt: str = "",
        packed_by: dict[str, Path] | None = None,
    ) -> PackingOutcome:
        """The density; `rows` holds rows for the trials afterwards.

        Args:
            server: gives the process that packs.
            tell: hears the progress.
            fresh: pack again though nothing changed, unless the same attempt has done so.
            attempt: of the job; empty where there is none to go on with.
            packed_by: directories of other runs in which this dataset, by its key, may lie packed; this one's
                is added.
        """
        from omegaconf import OmegaConf

        from autobatch import __version__

        resolved = self._run.resolved()
        signature = data_signature(resolved, self._run.working_dir)
        key = json.dumps([__version__, signature, self._packed, self._sample])
        kept = _read_kept(self._kept)
        packed_by = {} if packed_by is None else packed_by
        forced = attempt if fresh else ""
        counts = not fresh or (kept is not None and bool(attempt) and kept.forced == attempt)
        if counts and kept is not None and kept.key == key and kept.rows_bytes == _size(self.rows):
            packed_by.setdefault(key, self._directory)
            return PackingOutcome(kept.density, kept.held_bytes)
        taken = self._take_over(packed_by.get(key), key, forced)
        if taken is not None:
            tell(Said(f"the dataset is packed already, for {packed_by[key].parent.name}"))
            return PackingOutcome(taken.density, taken.held_bytes)
        self._directory.mkdir(parents=True, exist_ok=True)
        # The rows may be another run's, too, under this name.
        for old in (self._kept, self.rows):
            old.unlink(missing_ok=True)
        config, log, answer = (self._directory / f"packing.{ext}" for ext in ("yaml", "log", "json"))
        for left_over in (log, answer):
            left_over.unlink(missing_ok=True)
        config.write_text(OmegaConf.to_yaml(OmegaConf.create(resolved)), encoding="utf-8")
        rows = str(self.rows) if self._keep_rows else None
        spec = PackSpec(str(config), self._packed, self._sample, rows, str(answer))
        working_dir = str(self._run.working_dir)
        if self._in_memory:
            first = self._directory / "reading.log"
            first.unlink(missing_ok=True)
            server.run(read_dataset_once, spec, working_dir, log=first, timeout_s=float("inf"))
        last: tuple[int, int] | None = None

        def on_wait() -> None:
            nonlocal last
            progress = packing_progress(log)
            if progress is not None and progress != last:
                last = progress
                tell(Packing(*progress))

        ended = server.run(
            pack_dataset,
            spec,
            working_dir,
            log=log,
            timeout_s=float("inf"),
            on_wait=on_wait,
        )
        try:
            said = json.loads(answer.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return PackingOutcome(None, error=f"the process that packs it ended with status {ended.code}")
        if "error" in said:
            return PackingOutcome(None, error=said["error"])
        found = _Kept(key, from_json(Density, said["density"]), said["held_bytes"], _size(self.rows), forced)
        self._kept.write_text(json.dumps(to_json(found)), encoding="utf-8")
        packed_by[key] = self._directory
        return PackingOutcome(found.density, found.held_bytes)

    def _take_over(self, other: Path | None, key: str, forced: str) -> _Kept | None:
        """What another run's store holds, now this one's too; None when it doesn't hold `key` any more."""
        kept = _read_kept(other / self._kept.name) if other is not None else None
        if other is None or other == self._directory or kept is None or kept.key != key:
            return None
        rows = other / self.rows.name
        self._directory.mkdir(parents=True, exist_ok=True)
        for old in (self._kept, self.rows):
            old.unlink(missing_ok=True)
        try:
            # A second name, where the file system has such, instead of up to 64 MiB for each run.
            os.link(rows, self.rows)
        except OSError:
            with suppress(OSError):
                shutil.copyfile(rows, self.rows)
        if _size(self.rows) != kept.rows_bytes:
            return None
        kept = replace(kept, forced=forced)
        self._kept.write_text(json.dumps(to_json(kept)), encoding="utf-8")
        return kept


def kept_key(directory: Path) -> str | None:
    """Of which dataset, packed how, a run's `probe/` holds the density; None when it holds none."""
    kept = _read_kept(directory / "density.json")
    return None if kept is None else kept.key


def place_of_count(probe_dir: Path, *, packed: bool) -> Path:
    """Where a count without a probe is kept, apart from what the probe keeps."""
    return probe_dir / COUNTS / ("packed" if packed else "unpacked")


def kept_density(probe_dir: Path, signature: str, *, packed: bool) -> Density | None:
    """The density on file for a dataset, of a probe or of a count without one; None when there is none.

    A count of every example comes before an extrapolation.

    Args:
        probe_dir: the run's `probe/`.
        signature: `runs.fingerprint.data_signature` of the dataset as it is now.
        packed: of its packs, or of its examples.
    """
    places = (place_of_count(probe_dir, packed=packed), probe_dir)
    found = [_density_in(place, signature, packed) for place in places]
    known = [density for density in found if density is not None]
    return min(known, key=lambda density: density.sampled_examples is not None, default=None)


def _density_in(directory: Path, signature: str, packed: bool) -> Density | None:
    kept = _read_kept(directory / "density.json")
    try:
        if kept is None or json.loads(kept.key)[1:3] != [signature, packed]:
            return None
    except (TypeError, ValueError):
        return None
    return kept.density


def _read_kept(file: Path) -> _Kept | None:
    try:
        return from_json(_Kept, load_json(file))
    except (OSError, ValueError):
        return None


@dataclass(frozen=True)
class _Kept:
    """`density.json`.

    Attributes:
        key: what it holds for.
        density: how the dataset packs.
        held_bytes: resident memory that the dataset takes.
        rows_bytes: size of the file of stored rows; with another they were damaged, and each trial would fail.
        forced: attempt of a job that was to pack though nothing had changed; empty for any other.
    """

    key: str
    density: Density
    held_bytes: int
    rows_bytes: int | None
    forced: str = ""


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None
