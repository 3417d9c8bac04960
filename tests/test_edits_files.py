"""`files` changes a file whole or not at all, and never loses what somebody else wrote."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatch.edits.files import Change, edit_file, read_text, replace_file
from autobatch.edits.together import refuse_unwritable
from autobatch.errors import EditError


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def run_python(code: str, *arguments: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@given(content=st.binary(max_size=200))
def test_any_bytes_survive_reading_and_writing(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    directory = tmp_path_factory.mktemp("bytes")
    source, copy = directory / "source", directory / "copy"
    source.write_bytes(content)
    replace_file(copy, read_text(source), expected="")
    assert copy.read_bytes() == content


def test_reading_a_missing_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(EditError) as refusal:
        read_text(tmp_path / "finetune.yaml")
    assert str(refusal.value) == (
        f"{tmp_path}/finetune.yaml: can't be read (No such file or directory): check that it is there and readable"
    )


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o755], ids=oct)
def test_mode_is_kept(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "finetune.yaml"
    path.write_text("old")
    path.chmod(mode)
    replace_file(path, "new", expected="old")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o7777 == mode


def test_a_new_file_follows_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "runs_plan.md"
    before = os.umask(0o027)
    try:
        replace_file(path, "new", expected="")
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o7777 == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to somebody else")
def test_owner_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "finetune.yaml"
    path.write_text("old")
    os.chown(path, 1234, 4321)
    replace_file(path, "new", expected="old")
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_the_group_of_another_users_file_is_kept() -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "runs_plan.md")
        path.write_text("old")
        os.chown(path, 1234, 4321)
        path.chmod(0o660)
        os.chown(directory, 1234, 4321)
        Path(directory).chmod(0o770)
        child = os.fork()
        if child == 0:
            try:
                os.setgroups([4321])
                os.setgid(5678)
                os.setuid(5678)
                replace_file(path, "new", expected=None)
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        status = path.stat()
        assert path.read_text() == "new"
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (5678, 4321, 0o660)


def test_extended_attributes_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "finetune.yaml"
    path.write_text("old")
    try:
        os.setxattr(path, "user.note", b"kept")
    except OSError as error:
        pytest.skip(f"no extended attributes here: {error}")
    replace_file(path, "new", expected="old")
    assert os.getxattr(path, "user.note") == b"kept"


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    shared, run = tmp_path / "shared", tmp_path / "run1"
    shared.mkdir()
    run.mkdir()
    (shared / "base.yaml").write_text("old")
    (run / "finetune.yaml").symlink_to("../shared/base.yaml")
    change = edit_file(run / "finetune.yaml", lambda _: "new")
    assert change.changed
    assert (run / "finetune.yaml").readlink() == Path("../shared/base.yaml")
    assert (shared / "base.yaml").read_text() == "new"
    assert names(run) == ["finetune.yaml"]
    assert names(shared) == ["base.yaml"]


def test_content_of_an_editor_in_between_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "finetune.yaml"
    path.write_text("old")

    def change(text: str) -> str:
        path.write_text("from the editor")
        return text + " and new"

    with pytest.raises(EditError) as refusal:
        edit_file(path, change)
    assert str(refusal.value) == (
        f"{path}: changed while autobatch was running: it is left as it is now; run again to edit it"
    )
    assert path.read_text() == "from the editor"
    assert names(tmp_path) == ["finetune.yaml"]


def test_a_file_that_an_editor_made_in_between_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "runs_plan.md"

    def change(text: str) -> str:
        path.write_text("from the editor")
        return text + "new"

    with pytest.raises(EditError) as refusal:
        edit_file(path, change, create="")
    assert "changed while autobatch was running" in str(refusal.value)
    assert path.read_text() == "from the editor"


def test_without_expectation_whatever_is_there_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "runs_status.yaml"
    path.write_text("old")
    replace_file(path, "new", expected=None)
    assert path.read_text() == "new"


def test_an_error_in_the_change_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "finetune.yaml"
    path.write_text("old")

    def change(text: str) -> str:
        raise EditError(f"{path}:3: no")

    with pytest.raises(EditError, match=":3: no"):
        edit_file(path, change)
    assert path.read_text() == "old"


def test_nothing_is_written_when_nothing_changes(tmp_path: Path) -> None:
    path = tmp_path / "finetune.yaml"
    path.write_text("same\n")
    inode = path.stat().st_ino
    change = edit_file(path, lambda text: text)
    assert change == Change(path, "same\n", "same\n", changed=False)
    assert change.diff() == ""
    assert path.stat().st_ino == inode


def test_a_missing_file_is_created_only_on_demand(tmp_path: Path) -> None:
    path = tmp_path / "runs_plan.md"
    with pytest.raises(EditError) as refusal:
        edit_file(path, lambda text: text + "row\n")
    assert "can't be read" in str(refusal.value)
    assert not path.exists()
    change = edit_file(path, lambda text: text + "row\n", create="# Plan\n")
    assert change == Change(path, "", "# Plan\nrow\n", changed=True)
    assert path.read_text() == "# Plan\nrow\n"
    edit_file(path, lambda text: text + "another\n", create="# Plan\n")
    assert path.read_text() == "# Plan\nrow\nanother\n"


def test_diff() -> None:
    change = Change(
        Path("run1/finetune.yaml"), "a: 1\nb: \udce9\x85\nc: 3", "a: 2\nb: \udce9\x85\nc: 3", True
    )
    assert change.diff() == (
        "--- run1/finetune.yaml\n+++ run1/finetune.yaml\n@@ -1,3 +1,3 @@\n"
        "-a: 1\n+a: 2\n b: \ufffd\x85\n c: 3\n\\ No newline at end of file\n"
    )


def test_targets_that_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    messages = {}
    for name in ("directory", "pipe", "loop", "missing/finetune.yaml"):
        with pytest.raises(EditError) as refusal:
            replace_file(tmp_path / name, "new", expected=None)
        messages[name] = str(refusal.value).removeprefix(f"{tmp_path}/")
    as_it_was = "the file is as it was; make room and check the permissions of its directory, then run again"
    assert messages["directory"] == "directory: isn't a regular file: give the path of a file"
    assert messages["pipe"] == "pipe: isn't a regular file: give the path of a file"
    assert messages["missing/finetune.yaml"] == (
        f"missing/finetune.yaml: can't be written (No such file or directory): {as_it_was}"
    )
    # How Python words a loop of links depends on its version.
    assert re.fullmatch(
        rf"loop: can't be written \(.*(Symlink loop|Too many levels).*\): {as_it_was}", messages["loop"]
    )
    assert names(tmp_path) == ["directory", "loop", "pipe"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a directory where root can't write either")
def test_a_directory_that_cannot_be_written() -> None:
    with pytest.raises(EditError) as refusal:
        replace_file("/proc/self/finetune.yaml", "new", expected=None)
    assert str(refusal.value).startswith("/proc/self/finetune.yaml: can't be written")
    with pytest.raises(EditError) as refusal:
        edit_file("/proc/self/runs_plan.md", lambda text: "new", create="")
    assert str(refusal.value).startswith("/proc/self/runs_plan.md: can't be locked")


def refused_to_a_user(action: Callable[[], object]) -> str:
    """What the `EditError` says that `action` raises for a user who isn't root."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setresuid(65534, 65534, 65534)
            action()
        except EditError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading) as said:
        return said.read()


@pytest.fixture
def for_all() -> Iterator[Path]:
    """A directory where every user may write; those of pytest are closed to others."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o777)
        yield Path(directory)


def test_a_protected_file_stays(for_all: Path) -> None:
    path = for_all / "finetune.yaml"
    path.write_text("old")
    path.chmod(0o444)
    protected = "is write-protected: make it writable (chmod u+w), then run again"
    assert refused_to_a_user(lambda: replace_file(path, "new", expected="old")) == f"{path}: {protected}"
    assert refused_to_a_user(lambda: refuse_unwritable(path)) == f"{path}: {protected}"
    for_all.chmod(0o755)
    assert refused_to_a_user(lambda: refuse_unwritable(for_all / "new")) == (
        f"{for_all}: {protected}" if os.geteuid() == 0 else ""
    )
    assert path.read_text() == "old"


FULL_DISK = """
import resource, sys
from autobatch.edits.files import replace_file
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
replace_file(sys.argv[1], "new" * 1000, expected="old")
"""


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "finetune.yaml"
    path.write_text("old")
    process = run_python(FULL_DISK, path)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"EditError: {path}: can't be written (File too large): the file is as it was" in errors
    assert path.read_text() == "old"
    assert names(tmp_path) == ["finetune.yaml"]


REPLACE_FOR_EVER = """
import sys
from autobatch.edits.files import replace_file
texts = [letter * 300_000 for letter in "ab"]
print("ready", flush=True)
while True:
    for text in texts:
        replace_file(sys.argv[1], text, expected=None)
"""


def test_killed_at_any_moment_the_file_is_old_or_new(tmp_path: Path) -> None:
    path = tmp_path / "finetune.yaml"
    whole = {"a" * 300_000, "b" * 300_000}
    path.write_text("a" * 300_000)
    path.chmod(0o600)
    moments = random.Random(0)
    modes_left_behind: set[int] = set()
    for _ in range(25):
        process = run_python(REPLACE_FOR_EVER, path)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(moments.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert path.read_text() in whole
        modes_left_behind |= {left.stat().st_mode & 0o777 for left in tmp_path.iterdir() if left != path}
    assert modes_left_behind == {0o600}, "some were killed while writing what nobody else may read"
    replace_file(path, "end", expected=None)
    assert names(tmp_path) == ["finetune.yaml"]


def test_only_stale_temporary_files_are_removed(tmp_path: Path) -> None:
    here = socket.gethostname()
    dead = run_python("")
    dead.communicate()
    of_dead = f".plan.md.autobatch-{here}-{dead.pid}-00000000"
    of_living = f".plan.md.autobatch-{here}-{os.getpid()}-00000000"
    of_other_host = f".plan.md.autobatch-other-host-{dead.pid}-00000000"
    old = f".plan.md.autobatch-other-host-{dead.pid}-11111111"
    of_other_file = f".plan.md.md.autobatch-{here}-{dead.pid}-00000000"
    users = ".plan.md.autobatch-notes"
    for name in (of_dead, of_living, of_other_host, old, of_other_file, users):
        (tmp_path / name).touch()
    os.utime(tmp_path / old, (0, 0))
    os.utime(tmp_path / users, (0, 0))
    replace_file(tmp_path / "plan.md", "new", expected=None)
    assert names(tmp_path) == sorted([of_living, of_other_host, of_other_file, users, "plan.md"])


APPEND_ROWS = """
import sys
from autobatch.edits.files import edit_file
for i in range(20):
    edit_file(sys.argv[1], lambda text: f"{text}{sys.argv[2]} {i}\\n", create="# Plan\\n")
"""


def test_no_row_of_many_writers_is_lost(tmp_path: Path) -> None:
    plan = tmp_path / "runs_plan.md"
    (tmp_path / "link").symlink_to("runs_plan.md")
    writers = [
        run_python(APPEND_ROWS, plan if writer % 2 else tmp_path / "link", str(writer)) for writer in range(8)
    ]
    outputs = [writer.communicate(timeout=120) for writer in writers]
    assert [(writer.returncode, output) for writer, output in zip(writers, outputs, strict=True)] == [
        (0, ("", ""))
    ] * 8
    head, *rows = plan.read_text().splitlines()
    assert head == "# Plan"
    assert sorted(rows) == sorted(f"{writer} {i}" for writer in range(8) for i in range(20))
    assert [row for row in rows if row[0] == "3"] == [f"3 {i}" for i in range(20)]
