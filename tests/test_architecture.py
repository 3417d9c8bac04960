"""The rooms of autobatch/README.md: who imports whom, who prints, how long a module may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "autobatch"

#: Import nothing heavy and none of the rooms.
FOUNDATION = {"autobatch", "errors", "json_form", "records", "shipped", "units", "world"}

#: room or top-level module -> rooms and modules that it may import, besides itself and the foundation.
MAY_IMPORT = {
    "cli": {
        "api",
        "demo",
        "edits",
        "estimate",
        "launch",
        "metrics",
        "probing",
        "report",
        "runs",
        "scaffold",
        "simulated_gpu",
        "skills",
        "validation",
    },
    "api": {"launch", "probing", "runs"},
    "launch": {"edits", "estimate", "probing", "runs"},
    "estimate": {"edits", "probing", "runs", "simulated_gpu"},
    "validation": {"edits", "probing", "runs"},
    "probing": {"edits", "packing", "runs", "simulated_gpu"},
    "simulated_gpu": set(),
    "packing": set(),
    "metrics": {"edits", "runs"},
    "report": {"metrics", "probing", "runs"},
    "skills": {"edits"},
    "scaffold": {"edits", "runs"},
    "demo": set(),
    "edits": set(),
    "runs": set(),
    **{module: set() for module in FOUNDATION},
    # The lazy `autobatch.probe`.
    "autobatch": {"api"},
}

#: Top-level packages that a room may not import, even in a function.
NEVER = {
    "cli": {"torch", "torchtune", "submitit"},
    "api": {"torch", "torchtune", "submitit"},
    "runs": {"torch", "torchtune", "submitit"},
    "edits": {"torch", "torchtune", "submitit"},
    "estimate": {"submitit"},
    "simulated_gpu": {"torch", "torchtune", "submitit"},
    "probing": {"submitit"},
    "packing": {"submitit"},
    "validation": {"submitit"},
    "launch": {"torch", "torchtune"},
    "metrics": {"torch", "torchtune", "submitit"},
    "report": {"torch", "torchtune", "submitit"},
    "skills": {"torch", "torchtune", "submitit"},
    "scaffold": {"torch", "torchtune", "submitit"},
    "demo": {"submitit"},
}

#: No module of autobatch imports these where it is imported itself: whoever asks for help, or submits a
#: job, doesn't pay for them.
HEAVY = {"torch", "torchtune", "torchao", "submitit", "datasets", "matplotlib", "jinja2", "rich"}


#: Modules over 300 lines, with the reason.
LONG = {
    "records.py": "every record and its documentation, side by side",
    "probing/job.py": "the story on the node, from top to bottom",
}

#: Modules outside cli/ that end a process, with the reason.
MAY_EXIT = {
    "probing/forkserver.py": "ends the child that it forked",
    "probing/launcher.py": "ends itself and the ranks that it forked",
    "probing/node.py": "ends the launcher of a node with the job",
    "probing/served.py": "ends the fork server whose job is gone",
    "probing/worker.py": "ends the trial's process",
}


@dataclass(frozen=True)
class Import:
    """One imported module.

    Attributes:
        module: dotted, absolute.
        line: where.
        lazy: below a function.
        typing_only: below `if TYPE_CHECKING`.
    """

    module: str
    line: int
    lazy: bool
    typing_only: bool


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports_of(tree: ast.AST, lazy: bool = False, typing_only: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, lazy, typing_only)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import hides the room"
            assert node.module is not None
            for alias in node.names:
                yield Import(f"{node.module}.{alias.name}", node.lineno, lazy, typing_only)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for child in node.body:
                yield from imports_of(ast.Module([child], []), lazy, typing_only=True)
            for child in node.orelse:
                yield from imports_of(ast.Module([child], []), lazy, typing_only)
        else:
            below = lazy or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from imports_of(node, below, typing_only)


def room_of(module: str) -> str:
    """The room, or top-level module, of a dotted name in autobatch."""
    parts = module.split(".")
    known = len(parts) > 1 and any(path.exists() for path in (PACKAGE / parts[1], PACKAGE / f"{parts[1]}.py"))
    return parts[1] if known else "autobatch"


def room_of_file(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    if len(relative.parts) > 1:
        return relative.parts[0]
    return "autobatch" if relative.stem == "__init__" else relative.stem


EACH_MODULE = pytest.mark.parametrize("path", modules(), ids=name_of)


def test_every_room_is_in_the_table() -> None:
    assert {room_of_file(path) for path in modules()} == set(MAY_IMPORT)


@EACH_MODULE
def test_arrows_go_one_way(path: Path) -> None:
    room = room_of_file(path)
    allowed = MAY_IMPORT[room] | FOUNDATION | {room}

    found = [
        f"line {i.line}: {i.module}"
        for i in imports_of(tree_of(path))
        if i.module.split(".")[0] == "autobatch" and room_of(i.module) not in allowed
    ]

    assert found == []


def test_the_table_has_no_cycle() -> None:
    def reached(room: str) -> set[str]:
        below = MAY_IMPORT[room]
        return below.union(*(reached(other) for other in below)) if below else set()

    assert [room for room in MAY_IMPORT if room in reached(room)] == []


@EACH_MODULE
def test_what_a_room_never_imports(path: Path) -> None:
    room = room_of_file(path)
    third_party = {name.split(".")[0] for name in NEVER.get(room, set())}

    found = [
        f"line {i.line}: {i.module}"
        for i in imports_of(tree_of(path))
        if not i.typing_only and i.module.split(".")[0] in third_party
    ]

    assert found == []


@EACH_MODULE
def test_the_foundation_needs_the_standard_library_alone(path: Path) -> None:
    if room_of_file(path) not in FOUNDATION:
        return

    found = [
        i.module
        for i in imports_of(tree_of(path))
        if i.module.split(".")[0] not in {*sys.stdlib_module_names, "autobatch"}
    ]

    assert found == []


@EACH_MODULE
def test_nothing_heavy_is_imported_with_a_module(path: Path) -> None:
    found = [
        f"line {i.line}: {i.module}"
        for i in imports_of(tree_of(path))
        if not i.lazy and not i.typing_only and i.module.split(".")[0] in HEAVY
    ]

    assert found == []


@EACH_MODULE
def test_only_the_command_line_prints_and_exits(path: Path) -> None:
    if room_of_file(path) == "cli":
        return

    calls = {ast.unparse(node.func) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)}
    raised = {
        ast.unparse(node.exc).partition("(")[0]
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Raise) and node.exc is not None
    }

    assert calls.isdisjoint({"print", "sys.stdout.write", "sys.stderr.write", "input"})
    if name_of(path) not in MAY_EXIT:
        assert calls.isdisjoint({"sys.exit", "exit", "quit", "os._exit", "os.abort"})
        assert "SystemExit" not in raised


@EACH_MODULE
def test_a_module_is_about_one_noun(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())

    assert lines <= (400 if name_of(path) in LONG else 300)


@pytest.mark.parametrize("listed", [LONG, MAY_EXIT], ids=["long", "exiting"])
def test_exceptions_are_still_needed(listed: dict[str, str]) -> None:
    needed = {
        name_of(path)
        for path in modules()
        if len(path.read_text(encoding="utf-8").splitlines()) > 300
        or (room_of_file(path) != "cli" and {"sys.exit", "os._exit"} & _called(path))
    }

    assert set(listed) <= needed


def _called(path: Path) -> set[str]:
    return {ast.unparse(node.func) for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)}


@pytest.mark.parametrize(
    "statement",
    [
        "import autobatch",
        "import autobatch; autobatch.probe; autobatch.ProbeResult",
        "import autobatch.cli.main",
        "import autobatch.cli.probe",
        "import autobatch.cli.report, autobatch.report.figures",
        "import autobatch.cli.demo",
        "import autobatch.cli.init",
        "import autobatch.cli.compare, autobatch.cli.skills, autobatch.report.columns",
        "import autobatch.cli.validate, autobatch.cli.validating",
        "import autobatch.cli.estimate",
    ],
)
def test_importing_costs_nothing(statement: str) -> None:
    heavy = sorted(HEAVY | {"yaml", "omegaconf", "numpy", "filelock", "markdown_it"})
    code = f"import sys; {statement}; print([name for name in {heavy} if name in sys.modules])"

    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ended.stdout == "[]\n"


def test_importing_the_job_imports_no_torch() -> None:
    code = (
        "import sys, autobatch.launch.entry, autobatch.launch.submission, autobatch.probing.job, "
        "autobatch.estimate.on_file, autobatch.estimate.estimator, autobatch.estimate.subject; "
        "print([name for name in ('torch', 'torchtune', 'submitit') if name in sys.modules])"
    )

    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert ended.stdout == "[]\n"
