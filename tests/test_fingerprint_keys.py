"""Which keys of a config share a measurement: what was measured, and a few of them measured again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.fingerprint_cases import CHANGES, Change, fingerprint_of, pair, prepare, write
from tests.benchmarks.fingerprint_keys import TOLERANCE

RESULTS = Path(__file__).parent / "benchmarks" / "results" / "fingerprint-keys-cpu.json"

#: One that moves the peak by 13 %, and one of the list.
MEASURED_AGAIN = ("lora:model.lora_dropout=0.1", "lora:optimizer.lr=1e-05")


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("fingerprint") / "experiment"
    prepare(directory)
    return directory


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.name)
def test_the_fingerprint_changes_with_what_counts_alone(change: Change, experiment: Path) -> None:
    fingerprints = []
    for name, config in zip(("before", "after"), pair(change, experiment), strict=True):
        write(config, change.base, experiment / name)
        fingerprints.append(fingerprint_of(experiment / name))
    assert (fingerprints[0] != fingerprints[1]) is change.counts


@pytest.mark.parametrize(("base", "is_kept"), [("lora", True), ("unpacked", False)])
def test_other_examples_in_the_same_file(base: str, is_kept: bool, experiment: Path) -> None:
    change = next(change for change in CHANGES if change.base == base)
    write(pair(change, experiment)[0], base, experiment / "before")
    data = experiment / "data" / "train.json"
    kept, before = data.read_bytes(), fingerprint_of(experiment / "before")
    try:
        data.write_bytes((experiment / "data" / "long.json").read_bytes())
        assert (fingerprint_of(experiment / "before") == before) is is_kept
    finally:
        data.write_bytes(kept)


def test_whatever_was_measured_to_move_the_peak_counts() -> None:
    measured: list[dict[str, Any]] = json.loads(RESULTS.read_text(encoding="utf-8"))["changes"]
    moved = {one["name"] for one in measured if one["moved"] is not None and abs(one["moved"]) > TOLERANCE}
    moved.remove("lora:batch_size=5")  # what a probe searches
    assert {change.name for change in CHANGES} == {one["name"] for one in measured}
    assert moved
    assert {change.name for change in CHANGES if not change.counts} & moved == set()


@pytest.mark.recipe
def test_measured_again(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    # In a process of its own: a peak that is no higher than that of whoever starts the training says nothing.
    subprocess.run(
        [
            *(sys.executable, "-m", "tests.benchmarks.fingerprint_keys", "--json", str(found)),
            *("--only", *MEASURED_AGAIN),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parent.parent,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    verdicts = {one["name"]: one["verdict"] for one in json.loads(found.read_text())["changes"]}
    assert verdicts == dict(zip(MEASURED_AGAIN, ("moves, counts", "neither"), strict=True))
