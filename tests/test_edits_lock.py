"""The lock of a file: one holder, dead ones broken, and nothing written by one that lost it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from autobatch.edits.files import edit_file, read_text, replace_file
from autobatch.edits.holder import Holder
from autobatch.edits.lock import Lock, locked
from autobatch.edits.together import Edit, edit_together
from autobatch.errors import EditError
from tests.benchmarks.lock_storm import bind_mounts, storm


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    path = tmp_path / "runs_plan.md"
    path.write_text("")
    return path


def elsewhere() -> Holder:
    """A process of another host, of which nobody here can tell whether it lives."""
    return replace(Holder.this(), host="node7", system="elsewhere")


def held_by(holder: Holder, path: Path) -> Path:
    """What a holder leaves that was killed."""
    directory = path.with_name(f".{path.name}.editing")
    directory.mkdir()
    (directory / holder.entry).touch()
    return directory


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def append(path: Path, row: str, lease_s: float) -> None:
    with locked(path, lease_s=lease_s) as lock:
        before = read_text(path)
        replace_file(path, f"{before}{row}\n", expected=before, lock=lock)


HOLD = """
import sys, time
from autobatch.edits.lock import locked
with locked(sys.argv[1]) as lock:
    lock.temporary.write_text("half of")
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_that_is_held_names_its_holder_and_ends_with_it(plan: Path) -> None:
    began = int(time.time())
    holder = subprocess.Popen([sys.executable, "-c", HOLD, plan], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(EditError) as refusal:
        edit_file(plan, lambda text: "new", timeout_s=0.1)
    found = re.match(
        rf"{re.escape(str(plan.parent))}/\.runs_plan\.md\.editing: held by process {holder.pid} on "
        rf"{re.escape(socket.gethostname())} since (.+), for more than 0\.1 s: wait until",
        str(refusal.value),
    )
    assert found is not None, refusal.value
    assert began <= time.mktime(time.strptime(found.group(1), "%Y-%m-%d %H:%M:%S")) <= time.time()
    assert plan.read_text() == ""

    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    assert edit_file(plan, lambda text: "new", timeout_s=10).changed
    assert names(plan.parent) == ["runs_plan.md"]


def test_a_number_that_another_process_has_now_is_no_holder(plan: Path) -> None:
    this = Holder.this()
    held_by(replace(this, start=this.start - 1), plan)
    assert edit_file(plan, lambda text: "new", timeout_s=10).changed


def test_a_killed_process_that_nobody_waited_for_is_no_holder(plan: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, plan], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    holder.send_signal(signal.SIGKILL)
    assert edit_file(plan, lambda text: "new", timeout_s=10).changed
    holder.communicate()


def test_a_holder_of_another_host_is_dead_after_its_lease(plan: Path) -> None:
    directory = held_by(elsewhere(), plan)
    with (
        pytest.raises(EditError, match=r"held by process \d+ on node7 since"),
        locked(plan, 0.1, lease_s=0.5),
    ):
        pass
    assert directory.is_dir()
    began = time.monotonic()
    append(plan, "mine", lease_s=0.5)
    assert time.monotonic() - began >= 0.5
    assert plan.read_text() == "mine\n"
    assert names(plan.parent) == ["runs_plan.md"]


def test_a_holder_of_another_host_that_lives_keeps_its_lock(plan: Path) -> None:
    # Ten signs of life in a lease, to be sure of one on a busy machine.
    with locked(plan, lease_s=0.6, holder=elsewhere()) as lock:
        with pytest.raises(EditError, match="on node7"), locked(plan, 4, lease_s=2):
            pass
        replace_file(plan, "its", expected="", lock=lock)
    assert plan.read_text() == "its"


def test_of_many_that_break_one_lock_each_gets_it_in_turn(plan: Path) -> None:
    held_by(elsewhere(), plan)
    threads = [threading.Thread(target=append, args=(plan, str(n), 0.2)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(map(int, plan.read_text().split())) == list(range(12))
    assert names(plan.parent) == ["runs_plan.md"]


class TestAHolderThatWasOnlySlow:
    """Its lock is broken while it does nothing; `lease_s` is its own here, so that it gives no sign of life."""

    def test_writes_nothing(self, plan: Path) -> None:
        with locked(plan, lease_s=60, holder=elsewhere()) as lost:
            append(plan, "other", lease_s=0.1)
            with pytest.raises(EditError) as refusal:
                replace_file(plan, "slow", expected=None, lock=lost)
        assert str(refusal.value).startswith(f"{plan}: is left as it is: this process gave no sign of life")
        assert plan.read_text() == "other\n"
        assert names(plan.parent) == ["runs_plan.md"]

    def test_not_even_what_it_was_about_to_rename(self, plan: Path) -> None:
        with locked(plan, lease_s=60, holder=elsewhere()) as lost:
            lost.temporary.write_text("slow")
            lost.confirm()
            append(plan, "other", lease_s=0.1)
            # What `put_in_place` does when it has confirmed.
            with pytest.raises(FileNotFoundError):
                lost.temporary.replace(plan)
        assert plan.read_text() == "other\n"

    def test_takes_nothing_from_the_next_holder(self, plan: Path) -> None:
        with contextlib.ExitStack() as slow:
            slow.enter_context(locked(plan, lease_s=60, holder=elsewhere()))
            with locked(plan, lease_s=0.1) as next_one:
                slow.close()
                with pytest.raises(EditError, match=f"held by process {os.getpid()} on"), locked(plan, 0.1):
                    pass
                replace_file(plan, "next", expected="", lock=next_one)
        assert plan.read_text() == "next"

    def test_of_several_files_none_stays_edited(self, plan: Path) -> None:
        status = plan.with_name("runs_status.yaml")
        status.write_text("before")

        def while_the_lock_is_broken(text: str) -> str:
            for path in plan.parent.glob(".runs_plan.md.editing/*"):
                path.unlink()
            return "mine"

        with pytest.raises(EditError, match=r"runs_plan\.md: is left as it is"):
            edit_together([Edit(status, lambda text: "mine"), Edit(plan, while_the_lock_is_broken)])
        assert (status.read_text(), plan.read_text()) == ("before", "")


def test_the_lock_holds_among_threads(plan: Path) -> None:
    def append_often() -> None:
        for _ in range(10):
            edit_file(plan, lambda text: text + "x")

    threads = [threading.Thread(target=append_often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert plan.read_text() == "x" * 40


def test_it_is_not_reentrant(plan: Path) -> None:
    with locked(plan), pytest.raises(EditError, match=f"held by process {os.getpid()} on"):
        edit_file(plan, lambda text: "new", timeout_s=0.1)


@pytest.mark.parametrize("raised", [KeyboardInterrupt, EditError("no")], ids=["interrupt", "error"])
def test_it_is_given_back_whatever_happens(plan: Path, raised: BaseException) -> None:
    with pytest.raises((KeyboardInterrupt, EditError)), locked(plan):
        raise raised
    assert names(plan.parent) == ["runs_plan.md"]


def test_an_empty_directory_is_no_lock(plan: Path) -> None:
    plan.with_name(".runs_plan.md.editing").mkdir()
    with locked(plan, 5) as lock:
        assert isinstance(lock, Lock)


def test_what_a_file_server_left_in_it_goes_after_the_lease(plan: Path) -> None:
    directory = plan.with_name(".runs_plan.md.editing")
    directory.mkdir()
    (directory / ".nfs00000001").touch()
    append(plan, "mine", lease_s=0.3)
    assert names(plan.parent) == ["runs_plan.md"]


def test_what_is_in_its_place_is_named(plan: Path) -> None:
    in_the_way = plan.with_name(".runs_plan.md.editing")
    in_the_way.write_text("mine")
    with pytest.raises(EditError) as refusal:
        edit_file(plan, lambda text: "new")
    assert str(refusal.value).startswith(f"{plan}: can't be locked ({in_the_way}: Not a directory)")
    assert names(plan.parent) == [".runs_plan.md.editing", "runs_plan.md"]


def test_only_what_killed_processes_left_is_removed(plan: Path) -> None:
    this = Holder.this()
    left = {
        "dead": replace(this, start=1, token="a"),
        "living": replace(this, token="b"),
        "elsewhere": replace(elsewhere(), token="c"),
        "old": replace(elsewhere(), token="d"),
    }
    for holder in left.values():
        waits = plan.with_name(f".runs_plan.md.editing-{holder.token}")
        waits.mkdir()
        (waits / holder.entry).touch()
    os.utime(plan.with_name(".runs_plan.md.editing-d"), (0, 0))
    edit_file(plan, lambda text: "new")
    assert names(plan.parent) == [".runs_plan.md.editing-b", ".runs_plan.md.editing-c", "runs_plan.md"]


@pytest.mark.parametrize(
    ("parent", "umask", "mode"),
    [
        pytest.param(0o770, 0o022, 0o775, id="group"),
        pytest.param(0o770, 0o077, 0o770, id="group, umask 077"),
        pytest.param(0o777, 0o022, 0o777, id="all"),
        pytest.param(0o755, 0o022, 0o755, id="owner"),
        pytest.param(0o1777, 0o022, 0o755, id="sticky"),
        pytest.param(0o1777, 0o077, 0o700, id="sticky, umask 077"),
    ],
)
def test_who_may_edit_may_break_the_lock(tmp_path: Path, parent: int, umask: int, mode: int) -> None:
    experiment = tmp_path / "experiment"
    experiment.mkdir()
    experiment.chmod(parent)
    before = os.umask(umask)
    try:
        with locked(experiment / "runs_plan.md") as lock:
            found = lock.directory.stat().st_mode & 0o777
    finally:
        os.umask(before)
    assert found == mode


def test_a_lock_that_cannot_be_kept_is_named_with_the_reason(plan: Path) -> None:
    with locked(plan) as lock:
        lock.directory.joinpath(lock.entry).unlink()
        lock.directory.rmdir()
        lock.directory.touch()
        with pytest.raises(EditError) as refusal:
            lock.confirm()
        lock.directory.unlink()
    assert str(refusal.value) == f"{plan}: its lock can't be kept ({lock.directory}: Not a directory)"


def test_no_row_is_lost_however_often_writers_are_killed(tmp_path: Path) -> None:
    experiment, link = tmp_path / "experiment", tmp_path / "link"
    experiment.mkdir()
    link.symlink_to("experiment")
    can_mount = (
        subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0
    )
    seen = bind_mounts(experiment, 2) if can_mount else contextlib.nullcontext([experiment, link])
    with seen as views:
        came_of_it = storm("", experiment, views, writers=8, rounds=4, kills=4, round_s=0.8)
    assert came_of_it.reported > 0
    assert came_of_it.holds, came_of_it
