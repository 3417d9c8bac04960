"""Which runs one series of trials can answer for, as far as that is known before there is a card.

Runs are a group when all of this is equal:

- the memory fingerprint (`runs/fingerprint.py` lists the keys of a config that cannot matter), all of it but
  the device, which only the node knows. There each run's own fingerprint is made again, with the device; one
  that differs after all measures for itself;
- what their jobs ask Slurm for, and the shell lines before the probe;
- the variables that their training scripts export, but for those of experiment trackers: one fork server
  serves them all, and libraries read variables when they are imported;
- on `device: cpu`, the size of the dataset's files: it lies in the memory that is measured.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from autobatch.errors import AutobatchError, Problem, RunProblems, UsageError
from autobatch.launch.resources import Resources
from autobatch.probing.identity import run_fingerprint
from autobatch.records import ProbeRequest
from autobatch.runs.directory import RunDirectory, read_run
from autobatch.runs.fingerprint import data_bytes

#: Variables of experiment trackers. A trial's metric_logger is replaced, so nothing reads them there.
_TRACKERS = ("COMET_", "MLFLOW_", "TENSORBOARD_", "WANDB_")

_T = TypeVar("_T")


@dataclass(frozen=True)
class Member:
    """A run of a group.

    Attributes:
        request: what is asked of its probe; `run_dir` is absolute.
        run: the run, read.
        resources: what its job would ask Slurm for; None for a job on this machine.
    """

    request: ProbeRequest
    run: RunDirectory
    resources: Resources | None = None


@dataclass(frozen=True)
class Group:
    """Runs that one series of trials answers for.

    Attributes:
        members: the runs, in the order in which they were named.
    """

    members: tuple[Member, ...]

    @property
    def resources(self) -> Resources | None:
        """Of its job."""
        return self.members[0].resources

    @property
    def run_dirs(self) -> tuple[str, ...]:
        """Absolute paths of the runs."""
        return tuple(str(member.run.path) for member in self.members)


def read_members(
    run_dirs: Sequence[Path],
    request: ProbeRequest,
    resources_of: Callable[[RunDirectory], Resources | None] = lambda run: None,
) -> list[Member]:
    """Read and check all runs before anything is done with any.

    Args:
        run_dirs: the runs.
        request: what is asked of each; its `run_dir` isn't read.
        resources_of: what a run's job asks Slurm for.

    Raises:
        UsageError: everything that is wrong with any of them.
    """

    def one(run_dir: Path) -> Member:
        run = read_run(run_dir, request)
        return Member(replace(request, run_dir=str(run.path)), run, resources_of(run))

    return for_each(run_dirs, one)


def for_each(items: Sequence[Any], call: Callable[[Any], _T]) -> list[_T]:
    """Call for every item; what went wrong with some of them is raised as one error.

    Raises:
        RunProblems: nothing but problems of runs.
        UsageError: everything that was wrong.
    """
    done: list[_T] = []
    problems: list[Problem] = []
    others: list[str] = []
    for item in items:
        try:
            done.append(call(item))
        except RunProblems as error:
            problems += [problem for problem in error.problems if problem not in problems]
        except AutobatchError as error:
            others += [str(error)] if str(error) not in others else []
    if others:
        raise UsageError("\n".join([*map(str, problems), *others]))
    if problems:
        raise RunProblems(problems)
    return done


def group(members: Sequence[Member]) -> list[Group]:
    """The groups, in the order of their first runs."""
    found: list[tuple[object, list[Member]]] = []
    for member in members:
        key = _key(member)
        for known, others in found:
            if known == key:
                others.append(member)
                break
        else:
            found.append((key, [member]))
    return [Group(tuple(others)) for _, others in found]


def arrays(groups: Sequence[Group]) -> list[list[Group]]:
    """Groups whose jobs ask for the same: the tasks of one array must."""
    found: list[list[Group]] = []
    for one in groups:
        for others in found:
            if others[0].resources == one.resources:
                others.append(one)
                break
        else:
            found.append([one])
    return found


def _key(member: Member) -> object:
    run = member.run
    exports = run.script.exports if run.script is not None else {}
    return (
        run_fingerprint(run, member.request, None, {**os.environ, **exports}),
        member.resources,
        {name: value for name, value in exports.items() if not name.startswith(_TRACKERS)},
        data_bytes(run.resolved(), run.working_dir) if run.device == "cpu" else None,
    )
