"""What is said of a job that ended without a last word."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autobatch.launch.group_wait import without_result
from tests.benchmarks.fault_scene import mounted


def test_the_jobs_own_message_stands_without_what_libraries_wrote(tmp_path: Path) -> None:
    log = tmp_path / "inline.log"
    log.write_text(
        "Skipping import of x\nautobatch: /run1: No space left on device: make room,\n    run again\n"
    )

    said = without_result("28", log)

    assert said.splitlines() == [
        f"the probe's job 28 ended without a result; its log: {log}",
        "    autobatch: /run1: No space left on device: make room,",
        "        run again",
    ]


def test_without_such_a_message_the_end_of_the_log_is_shown(tmp_path: Path) -> None:
    log = tmp_path / "inline.log"
    log.write_text("".join(f"line {number}\n" for number in range(30)))

    said = without_result("28", log).splitlines()

    assert (len(said), said[-1]) == (16, "    line 29")


def test_a_log_that_is_gone_is_named(tmp_path: Path) -> None:
    said = without_result("28", tmp_path / "none.log")

    assert said == f"the probe's job 28 ended without a result; its log: {tmp_path / 'none.log'}"


@pytest.mark.skipif(os.geteuid() != 0, reason="NOT TESTED without root: a disk that is full")
def test_a_job_that_could_not_even_say_that_the_disk_is_full(tmp_path: Path) -> None:
    with mounted("-t", "tmpfs", "-o", "size=1m", "none", at=tmp_path):
        log = tmp_path / "inline.log"
        log.touch()
        with_room = without_result("28", log)
        (tmp_path / "filling").write_bytes(bytes(2**20 - 4096))

        said = without_result("28", log)

    assert said.splitlines() == [with_room, "    No space left on device: make room, then run again"]
