"""`autobatch skills [install DIR]`: the skills for an agent that works on the cluster."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

_DESCRIPTION = """\
Skills tell an agent that works in a shell on your cluster how to plan, set up, watch and compare runs
with autobatch's commands: which ones, what their output means, what to ask you, what to do on each
exit code. Each is a directory with a SKILL.md whose front matter says when to use it.

  autobatch skills               lists them
  autobatch skills install DIR   copies each to DIR/NAME/SKILL.md

A file in DIR that differs from the shipped one is never replaced without --force; others in DIR stay.
"""

_EPILOG = """\
exit codes:
  0  listed, or installed
  2  a file in DIR differs from the shipped one, or can't be written; nothing else was written

example:
  $ autobatch skills install .claude/skills
  .claude/skills/create-torchtune-config/SKILL.md  written
  .claude/skills/monitor-jobs/SKILL.md             written
  ...
"""

_DONE = {"missing": "written", "same": "unchanged", "differs": "replaced"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.add_argument(
        "action",
        nargs="?",
        choices=("list", "install"),
        default="list",
        metavar="ACTION",
        help="list (default) or install",
    )
    parser.add_argument(
        "directory",
        nargs="?",
        metavar="DIR",
        help="directory of skills, such as .claude/skills; made when missing",
    )
    parser.add_argument(
        "--force", action="store_true", help="replace files that differ from the shipped ones"
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="with install: say how each file stands (missing, same, differs), write nothing",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """List or install."""
    from autobatch.errors import UsageError
    from autobatch.skills.catalog import install, states

    if arguments.action == "list":
        if arguments.directory is not None or arguments.force:
            raise UsageError("list takes no DIR and no --force; autobatch skills install DIR installs")
        return _list(as_json=arguments.json)
    if arguments.directory is None:
        raise UsageError("install needs DIR, the directory of skills, such as .claude/skills")
    directory = Path(arguments.directory)
    if arguments.list:
        shown = [(str(found.path), found.state) for found in states(directory)]
    else:
        shown = [(str(found.path), _DONE[found.state]) for found in install(directory, force=arguments.force)]
    _print(shown, ("path", "state"), as_json=arguments.json)
    return 0


def _list(*, as_json: bool) -> int:
    from autobatch.skills.catalog import skills, summary_rows

    found = skills()
    if as_json:
        print(json.dumps([{"name": s.name, "description": s.description} for s in found], indent=2))
        return 0
    _print(summary_rows(found), ("name", "description"), as_json=False)
    print("install them: autobatch skills install DIR", file=sys.stderr)
    return 0


def _print(rows: list[tuple[str, str]], names: tuple[str, str], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps([dict(zip(names, row, strict=True)) for row in rows], indent=2))
        return
    width = max(len(first) for first, _ in rows)
    print("\n".join(f"{first.ljust(width)}  {second}" for first, second in rows))
