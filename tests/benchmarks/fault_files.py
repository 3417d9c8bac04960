"""Faults of files and of the clock: what a probe reads is odd, or changes, or can't be written."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

from autobatch.records import SCHEMA_VERSION
from tests.benchmarks.fault_scene import Scene, end_of, mounted, names_in, until
from tests.benchmarks.fault_verdict import Fault, Outcome, ended_or_resumed, not_hit, refused

_YEAR_S = 365 * 86400

#: What a probe with this on its PYTHONPATH takes for the time, once the file is there.
_JUMPING_CLOCK = """\
import os, time
_time, _time_ns = time.time, time.time_ns
def _jump():
    try:
        with open({file!r}) as file:
            return float(file.read() or 0)
    except OSError:
        return 0.0
time.time = lambda: _time() + _jump()
time.time_ns = lambda: _time_ns() + int(_jump() * 10**9)
"""


def disk_full(scene: Scene) -> Outcome:
    """A small tmpfs: with room for a random part of what a probe writes, or filled at a random moment."""
    disk = scene.experiment.with_name("disk")
    disk.mkdir()
    room = scene.random.randrange(4096, _bytes_of(scene.base.probed / "run1" / "probe") + 2**17)
    size = _bytes_of(scene.experiment) + (room if scene.number % 2 else 2**24)
    with mounted("-t", "tmpfs", "-o", f"size={size}", "none", at=disk):
        scene.move_to(disk / "experiment")
        process = scene.start()
        if scene.number % 2 == 0:
            time.sleep(scene.some_time(0.9))
            _fill(disk / "filling")
        ended = end_of(process)
        (disk / "filling").unlink(missing_ok=True)
        subprocess.run(["mount", "-o", f"remount,size={2**28}", str(disk)], check=True, capture_output=True)
        return ended_or_resumed(scene, ended, (2, 3), words="No space left", unchanged=True)


def read_only(scene: Scene) -> Outcome:
    """The run's directory, or the experiment's, becomes a read-only mount: before the start, or at some moment."""
    place = scene.run if scene.number % 2 else scene.experiment
    process = scene.start() if scene.number % 4 > 1 else None
    if process is not None:
        time.sleep(scene.some_time(0.9))
    with mounted("--bind", str(place), at=place):
        remount = ["mount", "-o", "remount,bind,ro", str(place)]
        # Refused while a file is open for writing.
        while subprocess.run(remount, check=False, capture_output=True).returncode != 0:
            time.sleep(0.01)
        # A process that was there before the mount still has the directory below it.
        process = process or scene.start()
        ended = end_of(process)
    return ended_or_resumed(scene, ended, (2, 3), words="[Rr]ead-only|write-protected", unchanged=True)


def replaced(scene: Scene) -> Outcome:
    """An editor saves finetune.yaml by a rename: at a random moment, or as soon as autobatch begins to edit it."""
    config = scene.run / "finetune.yaml"
    edited = config.read_text() + "# a line of the user's\n"
    beside = config.with_name("finetune.yaml~")
    process = scene.start()
    if scene.number % 2:
        time.sleep(scene.some_time(0.8))
    else:
        lock = config.with_name(".finetune.yaml.editing")
        until(lambda: any(lock.glob("*.new")), process)
        time.sleep(scene.random.choice([0.0, 0.0, 0.0002, 0.0005]))
    if process.poll() is not None:
        return not_hit(scene, end_of(process))
    beside.write_text(edited)
    beside.replace(config)
    ended = end_of(process)
    now = config.read_text()
    answered = edited.replace("batch_size: 4 ", f"batch_size: {scene.base.batch_size} ")
    plan_kept = scene.files()["runs_plan.md"] == scene.base.before["runs_plan.md"]
    problem = ""
    if now not in (edited, answered):
        problem = f"a side is lost: {now[-60:]!r}"
    elif ended.code == 0:
        # Saved before the probe read the file, or after it had written it: the editor comes last.
        problem = "" if not plan_kept else "0 without the answer"
    elif ended.code != 2 or not ended.is_clear or "changed while" not in ended.err:
        problem = f"exit code {ended.code}: {ended.err[-300:]}"
    elif now != edited or not plan_kept:
        problem = "refused, but a file has changed"
    broken = () if now in (edited, answered) else ("run1/finetune.yaml",)
    return Outcome(not problem, problem or str(ended.code), broken, tuple(scene.orphans()))


def clock(scene: Scene) -> Outcome:
    """The time jumps at a random moment; or the files are from another time; or the node has just been started."""
    kind = scene.number % 3
    if kind == 0:
        jump = scene.experiment.with_name("jump")
        folder = scene.experiment.with_name("clock")
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(_JUMPING_CLOCK.format(file=str(jump)))
        path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        process = scene.start(environment={"PYTHONPATH": path})
        time.sleep(scene.some_time(0.9))
        jump.write_text(str(scene.random.choice([-20, -1, -0.001, 0.001, 1, 20]) * _YEAR_S))
    elif kind == 1:
        when = time.time() + scene.random.choice([-50, -1, 1, 50]) * _YEAR_S
        for path_below in scene.experiment.rglob("*"):
            os.utime(path_below, (when, when))
        process = scene.start()
    else:
        offset = scene.random.choice([-int(time.monotonic()) + 1, 10 * _YEAR_S])
        prefix = ("unshare", "--time", "--monotonic", str(offset), "--boottime", str(offset))
        process = scene.start(prefix=prefix)
    return ended_or_resumed(scene, end_of(process), ())


def journal(scene: Scene) -> Outcome:
    """A line of the journal is damaged, and the result is gone: the answer must come out again."""
    path = scene.run / "probe" / "trials.jsonl"
    (scene.run / "probe" / "result.json").unlink()
    scene.undo()
    content = path.read_bytes()
    at = scene.random.randrange(len(content))
    end = min(len(content), at + scene.random.randrange(1, 200))
    junk = scene.random.randbytes(end - at)
    lines = content.splitlines(keepends=True)
    scene.random.shuffle(lines)
    damages = (
        content[:at],
        content[:at] + b"\0" * (end - at) + content[end:],
        content[:at] + junk + content[end:],
        content[:at] + content[end:],
        content[:at] + junk + content[at:],
        content[:at] + b"\n" + content[at:],
        b"".join(lines),
        content.replace(b"\n", b"", 2),
        content + content[: at + 1],
        content.replace(b'"peak_bytes": ', b'"peak_bytes": "', 1),
    )
    path.write_bytes(damages[scene.number % len(damages)])
    return ended_or_resumed(scene, scene.probe(), ())


def newer_schema(scene: Scene) -> Outcome:
    """A result of a newer autobatch: it is left alone, and so is everything else."""
    path = scene.run / "probe" / "result.json"
    data = json.loads(path.read_text()) if scene.number % 2 else {"is": "laid out quite differently"}
    newer = json.dumps(data | {"schema_version": SCHEMA_VERSION + scene.random.randrange(1, 100)})
    path.write_text(newer)
    scene.undo()
    outcome = refused(scene, scene.probe(), "newer autobatch")
    kept = path.read_text() == newer
    return outcome if kept else Outcome(False, "overwritten", ("run1/probe/result.json",), outcome.orphans)


def symlink(scene: Scene) -> Outcome:
    """finetune.yaml is a link (relative, absolute, of a link): it stays, its target gets the answer."""
    config = scene.run / "finetune.yaml"
    elsewhere = scene.experiment.with_name("elsewhere")
    elsewhere.mkdir()
    target = elsewhere / "config of mine.yaml"
    shutil.move(config, target)
    kind = scene.number % 3
    if kind == 2:
        link = elsewhere / "link"
        link.symlink_to(target.name)
        target_of_ours: Path | str = link
    else:
        target_of_ours = os.path.relpath(target, scene.run) if kind else target
    config.symlink_to(target_of_ours)
    beside = sorted(elsewhere.iterdir())
    outcome = ended_or_resumed(scene, scene.probe(), ())
    if not config.is_symlink() or str(config.readlink()) != str(target_of_ours):
        return Outcome(
            False, "the link has changed", (*outcome.broken, "run1/finetune.yaml"), outcome.orphans
        )
    if sorted(elsewhere.iterdir()) != beside:
        return Outcome(False, "something is left beside the target", outcome.broken, outcome.orphans)
    return outcome


def large(scene: Scene) -> Outcome:
    """finetune.yaml of 5 MB: refused at once, with the limit."""
    config = scene.run / "finetune.yaml"
    text = config.read_text()
    lines = {
        0: "# a comment that is as long as a line of a comment may well be\n",
        1: "",
        2: "\n",
    }
    filling = lines[scene.number % 3] * (5_000_000 // max(1, len(lines[scene.number % 3])))
    if scene.number % 3 == 1:
        filling = "".join(f"key_{i}: {{a: [1, 2, 3], b: 'text'}}\n" for i in range(140_000))
    return _refused_at_once(scene, text + filling, "limit 500,000")


def bombs(scene: Scene) -> Outcome:
    """Aliases of aliases, nesting without end, and tags that would run something: refused at once."""
    sentinel = scene.experiment.with_name("sentinel")
    call = f"!!python/object/apply:os.system ['touch {sentinel}']"
    laughs = "".join(f"l{i + 1}: &l{i + 1} [{', '.join([f'*l{i}'] * 10)}]\n" for i in range(30))
    merges = "".join(f"m{i + 1}: &m{i + 1}\n  <<: [{', '.join([f'*m{i}'] * 10)}]\n" for i in range(20))
    texts = (
        (f"l0: &l0 ha\n{laughs}", "aliases expanded"),
        (f"m0: &m0 {{k: ha}}\n{merges}", "aliases expanded"),
        ("x: &x [*x]\n", "contains itself"),
        ("deep: " + "[" * 20_000 + "]" * 20_000 + "\n", "levels deep"),
        (f"x: {call}\n", "makes Python objects"),
        (f"x: &x\n  <<: {{y: {call}}}\n", "makes Python objects"),
        ("x: !!python/name:os.system\n", "makes Python objects"),
        ("x: !!python/module:antigravity\n", "makes Python objects"),
        (f"? {call}\n: 1\n", "makes Python objects"),
        (
            f"%TAG !p! tag:yaml.org,2002:python/\n---\nx: !p!object/apply:os.system ['touch {sentinel}']\n",
            "makes Python objects",
        ),
    )
    text, words = texts[scene.number % len(texts)]
    config = (scene.run / "finetune.yaml").read_text()
    outcome = _refused_at_once(scene, text if text.startswith("%") else config + text, words)
    return Outcome(False, "it ran") if sentinel.exists() else outcome


def _refused_at_once(scene: Scene, config: str, words: str, within_s: float = 60.0) -> Outcome:
    path = scene.run / "finetune.yaml"
    path.write_text(config)
    began = time.monotonic()
    ended = scene.probe()
    seconds = time.monotonic() - began
    outcome = refused(scene, ended, words, unchanged=False)
    broken = (
        ()
        if path.read_text() == config and names_in(scene.experiment) == _named(scene)
        else ("run1/finetune.yaml",)
    )
    if seconds > within_s:
        return Outcome(False, f"{seconds:.1f} s", broken, outcome.orphans)
    return Outcome(outcome.right and not broken, outcome.said, broken, outcome.orphans)


def _named(scene: Scene) -> tuple[str, ...]:
    return names_in(scene.base.experiment)


def _bytes_of(directory: Path) -> int:
    """Room that a directory takes on a tmpfs, in pages of 4 KiB."""
    return sum(4096 + -(-path.lstat().st_size // 4096) * 4096 for path in directory.rglob("*"))


def _fill(path: Path) -> None:
    try:
        with path.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
    except OSError:
        return


FAULTS = (
    Fault(
        "disk full",
        "2 or 3 and one message that says so, nothing written; the next probe, with room, goes on",
        disk_full,
        needs_root=True,
    ),
    Fault(
        "read-only run directory",
        "2 or 3 and one message, nothing written; the next probe goes on",
        read_only,
        needs_root=True,
    ),
    Fault(
        "finetune.yaml saved by an editor meanwhile",
        "2 and one message, both files as the user left them; 0 if it came before or after",
        replaced,
    ),
    Fault("clock jump", "the answer", clock, needs_root=True),
    Fault("corrupted journal line", "the answer: what it measured is measured again", journal, probed=True),
    Fault(
        "result.json from a newer schema",
        "2 and one message, the result left alone",
        newer_schema,
        probed=True,
    ),
    Fault("symlinked finetune.yaml", "the answer; the link stays, its target changes", symlink),
    Fault("finetune.yaml of 5 MB", "2 and one message within a minute", large),
    Fault("YAML bombs and Python tags", "2 and one message within a minute; nothing is executed", bombs),
)
