"""What the probe's Slurm job asks for: flags, then a profile, then the training job's header, then defaults."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from autobatch.runs.settings import OPTIONS, Profile, parse_minutes
from autobatch.world import World

#: Minutes for a probe's job, unless --time or a profile says otherwise.
DEFAULT_TIME_MIN = 20

#: Options that say the same in different ways: a higher source's word replaces a lower one's whole family.
_FAMILIES = (
    ("gres", "gpus", "gpus-per-node", "gpus-per-task"),
    ("mem", "mem-per-cpu", "mem-per-gpu"),
    ("cpus-per-task", "cpus-per-gpu"),
)


@dataclass(frozen=True)
class Resources:
    """What to ask Slurm for.

    Attributes:
        time_min: limit of the job.
        options: other sbatch options by their long name.
        sources: where each option came from, for people; jobs that ask for the same are equal wherever it is from.
        setup: shell lines before the probe; the job ends at the first that fails.
        nodes: that the job has; the probe runs on the first.
    """

    time_min: int
    options: Mapping[str, str]
    sources: Mapping[str, str] = field(compare=False)
    setup: tuple[str, ...]
    nodes: int = 1


def resolve_resources(
    flags: Mapping[str, str],
    profile: Profile,
    header: Mapping[str, str],
    *,
    device: str,
    world: World | None = None,
) -> Resources:
    """The resources of a probe's job.

    Args:
        flags: options of the command line, by sbatch's long names.
        profile: from `autobatch.yaml`; an empty one for none.
        header: `#SBATCH` options of the training job. Its `time` isn't taken: a probe is shorter.
        device: ``cuda`` asks for one card for each process of a node when nothing else does.
        world: the processes of a distributed training; the probe's job has one task on each of its nodes.

    Raises:
        UsageError: a time that can't be read.
    """
    options: dict[str, str] = {}
    sources: dict[str, str] = {}
    taken_over = header if world is None else _of_one_task(header, world)
    from_header = {name: value for name, value in taken_over.items() if name in OPTIONS and name != "time"}
    cards = {"gpus": "1"} if world is None else {"gpus-per-node": str(world.processes_per_node)}
    for values, source in (
        (flags, "command line"),
        (profile.options, f"profile {profile.name}"),
        (from_header, "finetune.slurm"),
        (cards if device == "cuda" else {}, "default"),
    ):
        taken = {name for given in options for name in _family(given)}
        for name, value in values.items():
            if name not in taken:
                options[name] = value
                sources[name] = source
    time = options.pop("time", None)
    sources.setdefault("time", "default")
    environment = [f"export {name}={shlex.quote(value)}" for name, value in profile.environment.items()]
    lines = [*environment, *profile.setup]
    return Resources(
        time_min=DEFAULT_TIME_MIN if time is None else parse_minutes(time),
        options=options,
        sources=sources,
        # submitit goes on after a setup line that failed, unless told not to.
        setup=("set -e", *lines, "set +e") if lines else (),
        nodes=1 if world is None else world.nodes,
    )


def _of_one_task(header: Mapping[str, str], world: World) -> dict[str, str]:
    """The header of a job with several tasks on a node, with as much for the one that starts all ranks there."""
    found = dict(header)
    tasks = header.get("ntasks-per-node", "")
    if tasks.isdigit() and header.get("cpus-per-task", "1").isdigit():
        found["cpus-per-task"] = str(int(tasks) * int(header.get("cpus-per-task", "1")))
    if found.pop("gpus-per-task", None) is not None:
        found["gpus-per-node"] = str(world.processes_per_node)
    return found


def _family(name: str) -> tuple[str, ...]:
    return next((family for family in _FAMILIES if name in family), (name,))
