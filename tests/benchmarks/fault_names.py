"""Names of runs that mean something to a shell, to Slurm, to Markdown or to YAML.

Each second run is probed by a job of a real Slurm, the others on this machine. A file called as the names say
must not appear anywhere.
"""

from __future__ import annotations

import os
from pathlib import Path

from markdown_it import MarkdownIt

from autobatch.edits.plan_values import one_line
from tests.benchmarks.fault_scene import ROOT, Ended, Scene, end_of
from tests.benchmarks.fault_verdict import Fault, Outcome

#: `SENTINEL` stands for a name that no other scene has.
NAMES = (
    "$(touch SENTINEL)", "`touch SENTINEL`", "a;touch SENTINEL", "a\ntouch SENTINEL\n", "a'\ntouch SENTINEL\n'",
    "a|touch SENTINEL", "a>SENTINEL", "a && touch SENTINEL #", "a'; touch SENTINEL; '", 'a"; touch SENTINEL; "',
    "a | b | c", "--output=SENTINEL", "-n", "a\\", "<!-- a", "**a**, b: c", "# a", "%j %x",
    "${SENTINEL:=a}", "a\tb 'c' \"d\"",
    "~", "*", "{a,b}", "é 漢 🙂", "a: {b: 1}", os.fsdecode(b"not UTF-8 \xff"),
)  # fmt: skip


def hostile_name(scene: Scene) -> Outcome:
    """Probe a run of such a name; exit code 2 only where it can't be had, with nothing written."""
    sentinel = f"sentinel-{scene.mark}"
    name = NAMES[scene.number % len(NAMES)].replace("SENTINEL", sentinel)
    scene.rename(name)
    before = _texts(scene)
    process = scene.start(
        "--max-batch-size", "1", *_where(scene), environment=scene.slurm if _is_on_slurm(scene) else None
    )
    ended = end_of(process)
    ran = _appeared(scene, sentinel)
    problem = f"a command of the name {name!r} ran" if ran else _problem(scene, name, ended, before)
    return Outcome(not problem, problem or str(ended.code), (), tuple(scene.orphans()))


def _is_on_slurm(scene: Scene) -> bool:
    return scene.slurm is not None and scene.number % 2 == 1


def _where(scene: Scene) -> tuple[str, ...]:
    return ("--cluster", "slurm", "--wait") if _is_on_slurm(scene) else ()


def _problem(scene: Scene, name: str, ended: Ended, before: tuple[str, str]) -> str:
    config, plan = _texts(scene)
    if ended.code == 2:
        clear = ended.is_clear and (config, plan) == before
        return "" if clear else f"refused, but {name!r}: {ended.err[-300:]}"
    if ended.code != 0:
        return f"{name!r}: exit code {ended.code}: {ended.err[-300:]}"
    if "batch_size: 1 " not in config:
        return f"{name!r}: no answer in finetune.yaml"
    cells = [
        token.content.strip()
        for token in MarkdownIt("commonmark").enable("table").parse(plan)
        if token.type == "inline"
    ]
    return "" if one_line(name) in cells else f"{name!r}: no row in runs_plan.md"


def _texts(scene: Scene) -> tuple[str, str]:
    config, plan = scene.run / "finetune.yaml", scene.experiment / "runs_plan.md"
    return tuple(path.read_bytes().decode("utf-8", "surrogateescape") for path in (config, plan))  # type: ignore[return-value]


def _appeared(scene: Scene, sentinel: str) -> bool:
    """Whether a file of that name is anywhere where a shell could have been."""
    places = {ROOT, Path.home(), Path("/"), Path("/tmp")}
    below = scene.experiment.parent.rglob("*")
    return any((place / sentinel).exists() for place in places) or any(
        path.name == sentinel for path in below
    )


FAULTS = (
    Fault(
        "run names for a shell, Slurm, Markdown",
        "the answer, and a row of that name; 2 and one message where it can't be had; nothing is executed",
        hostile_name,
        kinds=len(NAMES),
    ),
)
