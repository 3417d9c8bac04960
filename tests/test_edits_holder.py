"""Who holds a lock: a process as the name of a file, and whether it is still there."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from autobatch.edits.holder import NEW, Holder

HOLDER = Holder("node-7.example", 4711, 123456, "0123456789ab", 1_767_322_445, "00ff00ff00ff00ff")

#: Names itself as nothing that parses ``/proc/PID/stat`` by its brackets or its words expects.
NAMED = r"""
import sys, time
with open("/proc/self/comm", "wb") as file:
    file.write(b") Z 1 (\xff)")
print(flush=True)
time.sleep(60)
"""


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    """One with a name of brackets, a state and a byte that isn't UTF-8."""
    with subprocess.Popen([sys.executable, "-c", NAMED], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        yield child
        child.kill()


@pytest.mark.parametrize("end", ["", NEW])
def test_an_entry_is_read_as_it_was_written(end: str) -> None:
    assert Holder.parse(HOLDER.entry + end) == HOLDER
    assert Holder.parse(this := Holder.this().entry) == replace(Holder.this(), token=this.rpartition("~")[2])


@pytest.mark.parametrize(
    "name",
    [
        "",
        "runs_plan.md",
        f"{HOLDER.entry}{NEW}{NEW}",
        HOLDER.entry.replace("4711", "४७११"),
        "~".join("abcdef"),
    ],
)
def test_another_file_is_nobodys(name: str) -> None:
    assert Holder.parse(name) is None


@pytest.mark.parametrize(
    ("host", "named"),
    [
        pytest.param("node7", "node7", id="plain"),
        pytest.param("n" * 70, "n" * 64, id="long"),
        pytest.param("a/b~c d", "a_b_c_d", id="not for a file"),
        pytest.param("bücher", "b_cher", id="not ASCII"),
        pytest.param("", "unknown", id="none"),
    ],
)
def test_a_host_whatever_its_name(monkeypatch: pytest.MonkeyPatch, host: str, named: str) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)

    this = Holder.this()

    assert this.host == named
    assert Holder.parse(this.entry) == this


def test_a_holder_in_words() -> None:
    since = time.mktime((2026, 1, 2, 3, 4, 5, 0, 0, -1))

    assert str(replace(HOLDER, since=int(since))) == (
        "process 4711 on node-7.example since 2026-01-02 03:04:05"
    )


def test_a_process_whatever_it_calls_itself(process: subprocess.Popen[str]) -> None:
    this = Holder.this()
    stat = Path(f"/proc/{process.pid}/stat").read_bytes()
    start = int(stat.rpartition(b")")[2].split()[19])
    holder = replace(this, pid=process.pid, start=start)

    alive = not holder.is_dead
    process.kill()
    # Nobody has waited for it: it is a zombie.
    deadline = time.monotonic() + 10
    while not holder.is_dead and time.monotonic() < deadline:
        time.sleep(0.01)

    assert alive
    assert holder.is_dead
