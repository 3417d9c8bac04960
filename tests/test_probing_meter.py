"""The CPU meter, the capacity of this machine, and forks that are as resident as a cold start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autobatch.probing.meter import (
    MALLOC_ENVIRONMENT,
    CpuMeter,
    cpu_capacity_bytes,
    find_device,
    meter_for,
    oom_kills,
)
from autobatch.records import Device

MIB = 2**20
REPOSITORY = Path(__file__).parent.parent


def python(code: str, *arguments: object, **environment: str) -> dict[str, Any]:
    """What a fresh Python prints as JSON; under the malloc settings of a trial."""
    ended = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | MALLOC_ENVIRONMENT | environment,
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    answer: dict[str, Any] = json.loads(ended.stdout)
    return answer


ALLOCATE = """
import json
from autobatch.probing.meter import CpuMeter
meter = CpuMeter()
before = meter.read()
block = b"x" * (200 * 2**20)
held = meter.read()
del block
freed = meter.read()
print(json.dumps({
    "before": before.current_bytes["resident"],
    "held": held.current_bytes["resident"],
    "held_peak": held.peaks_bytes["resident"],
    "freed": freed.current_bytes["resident"],
    "freed_peak": freed.peaks_bytes["resident"],
}))
"""


def test_an_allocation_of_200_mib_raises_the_peak_by_as_much() -> None:
    seen = python(ALLOCATE)

    assert seen["held_peak"] - seen["before"] == pytest.approx(200 * MIB, rel=0.01)
    assert seen["held"] == pytest.approx(seen["held_peak"], rel=0.01)
    # The kernel counts in batches of pages for each thread: the mark may be off by some.
    assert seen["freed_peak"] == pytest.approx(seen["held_peak"], rel=0.001)
    assert seen["freed"] == pytest.approx(seen["before"], abs=2 * MIB)


def test_many_small_allocations_are_given_back() -> None:
    code = """
import json
from autobatch.probing.meter import CpuMeter
meter = CpuMeter()
before = meter.read().current_bytes["resident"]
blocks = [b"x" * 100_000 for _ in range(1000)]
held = meter.read().current_bytes["resident"]
# Every other one, so that a heap would be left full of holes.
del blocks[::2]
half = meter.read().current_bytes["resident"]
print(json.dumps({"held": held - before, "half": half - before}))
"""

    seen = python(code)

    assert seen["held"] == pytest.approx(1000 * 102_400, rel=0.03)
    assert seen["half"] == pytest.approx(seen["held"] / 2, rel=0.03)


def test_a_reading_has_one_metric_and_no_retries() -> None:
    reading = meter_for("cpu").read()

    assert isinstance(meter_for("cpu"), CpuMeter)
    assert list(reading.peaks_bytes) == list(reading.current_bytes) == ["resident"]
    assert reading.peaks_bytes["resident"] >= reading.current_bytes["resident"] > 0
    assert reading.alloc_retries == 0


class TestCapacity:
    @pytest.fixture(autouse=True)
    def outside_slurm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("SLURM_MEM_PER_NODE", raising=False)

    def test_at_most_the_machine(self) -> None:
        machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")

        assert 0 < cpu_capacity_bytes() <= machine

    @pytest.mark.parametrize(
        ("allocation", "capacity"),
        [
            pytest.param("100", 100 * MIB, id="MiB"),
            pytest.param("0", None, id="0 is all of the node's"),
            pytest.param("", None, id="empty"),
            pytest.param("4G", None, id="not a number"),
            pytest.param("999999999", None, id="more than there is"),
        ],
    )
    def test_slurm_allocation(
        self, monkeypatch: pytest.MonkeyPatch, allocation: str, capacity: int | None
    ) -> None:
        without = cpu_capacity_bytes()
        monkeypatch.setenv("SLURM_MEM_PER_NODE", allocation)

        assert cpu_capacity_bytes() == (capacity or without)

    def test_the_cpu_as_a_device(self) -> None:
        device = find_device("cpu", 0)

        assert device is not None
        assert (device.kind, device.total_bytes) == ("cpu", cpu_capacity_bytes())
        assert device.name


def test_no_such_card() -> None:
    # In a process of its own: asking initialises CUDA where there is some.
    code = """
import json
from autobatch.probing.meter import find_device
print(json.dumps({"0": find_device("cuda", 0), "3": find_device("cuda", 3)}))
"""

    assert python(code, CUDA_VISIBLE_DEVICES="") == {"0": None, "3": None}


def test_a_device_of_another_kind_is_equal_only_to_itself() -> None:
    assert find_device("cpu", 0) == find_device("cpu", 7)
    assert find_device("cpu", 0) != Device("cuda", "a card", 1)


def test_oom_kills_only_grow() -> None:
    before = oom_kills()

    assert 0 <= before <= oom_kills()


FORK = """
import json, mmap, os, sys
from importlib import import_module

def file_bytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssFile:"))

module, _, name = sys.argv[2].rpartition(".")
adopt = getattr(import_module(module), name)
with open(sys.argv[1], "rb") as file:
    mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
half = len(mapped) // 2
for position in range(0, half, 4096):
    mapped[position]
reading, writing = os.pipe()
seen = {"parent": file_bytes()}
child = os.fork()
if child == 0:
    before = file_bytes()
    adopt(os.getppid())
    os.write(writing, json.dumps({"before": before, "after": file_bytes()}).encode())
    os._exit(0)
os.waitpid(child, 0)
print(json.dumps(seen | json.loads(os.read(reading, 1000))))
"""

ADOPT = [
    pytest.param("autobatch.probing.residence.touch_inherited_files", id="reading"),
]


class TestFileMappingsOfAFork:
    @pytest.mark.parametrize("adopt", ADOPT)
    def test_it_gets_those_pages_that_its_parent_has(self, tmp_path: Path, adopt: str) -> None:
        library = tmp_path / "library"
        library.write_bytes(os.urandom(MIB) * 64)

        seen = python(FORK, library, adopt)

        assert seen["before"] < seen["parent"] - 30 * MIB
        # The untouched half stays out, but for what the kernel reads ahead.
        assert seen["after"] == pytest.approx(seen["parent"], rel=0.02)

    @pytest.mark.parametrize("adopt", ADOPT)
    def test_a_parent_that_is_gone_changes_nothing(self, adopt: str) -> None:
        code = """
import json, os, sys
from importlib import import_module
module, _, name = sys.argv[1].rpartition(".")
child = os.fork()
if child == 0:
    os._exit(0)
os.waitpid(child, 0)
getattr(import_module(module), name)(child)
print(json.dumps({"ended": child}))
"""

        assert python(code, adopt)["ended"] > 0
