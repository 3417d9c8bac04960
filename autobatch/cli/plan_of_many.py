"""What a probe of many runs would do: `--dry-run`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autobatch.records import to_json
from autobatch.units import format_bytes

if TYPE_CHECKING:
    from autobatch.launch.groups import Group
    from autobatch.launch.submission import Cluster


def plan_of(groups: Sequence[Group], cluster: Cluster, arguments: argparse.Namespace) -> dict[str, Any]:
    """What would be done, for programs."""
    request = to_json(groups[0].members[0].request)
    del request["run_dir"]
    plan: dict[str, Any] = {
        "cluster": cluster.value,
        "request": request,
        "groups": [
            [
                {
                    "run": str(member.run.path),
                    "recipe": member.run.recipe.note,
                    "notes": list(member.run.notes),
                    "would_write": [
                        str(member.run.config_path),
                        str(member.run.plan_path),
                        f"{member.run.path / 'probe'}/",
                    ],
                }
                for member in one.members
            ]
            for one in groups
        ],
    }
    if groups[0].resources is not None:
        from autobatch.launch.group_submission import array_scripts

        numbers = {one.run_dirs: number for number, one in enumerate(groups, 1)}
        plan["arrays"] = [
            {
                "groups": [numbers[one.run_dirs] for one in tasks],
                "sources": dict(tasks[0].resources.sources) if tasks[0].resources is not None else {},
                "sbatch": text,
            }
            for tasks, text in array_scripts(
                groups, after=arguments.after, max_parallel=arguments.max_parallel
            )
        ]
    return plan


def held_lines(request: dict[str, Any]) -> list[str]:
    """What an update keeps taking, if it is to keep that."""
    if not request["hold_effective_batch"]:
        return []
    size = request["effective_batch"]
    what = "the config's present one" if size is None else f"{size} {request['effective_batch_in']}"
    return [f"effective batch: held at {what}"]


def plan_lines(plan: dict[str, Any]) -> list[str]:
    """The same for people."""
    request = plan["request"]
    capacity = request["capacity_bytes"]
    size = format_bytes(capacity) if capacity else "the device's memory"
    lines = [f"cluster: {plan['cluster']}", f"target: {100 * request['target_fraction']:g} % of {size}"]
    lines += held_lines(request)
    for number, runs in enumerate(plan["groups"], 1):
        listed = ", ".join(Path(run["run"]).name for run in runs)
        lines.append(f"group {number}: {len(runs)} run{'s' if len(runs) > 1 else ''}, {listed}")
        lines.append(f"  {runs[0]['recipe']}")
        lines += [f"  {note}" for note in dict.fromkeys(note for run in runs for note in run["notes"])]
    for array in plan.get("arrays", []):
        sources = ", ".join(f"{name} from {source}" for name, source in array["sources"].items())
        tasks = ", ".join(map(str, array["groups"]))
        lines += ["", f"settings: {sources}", f"would submit, for group {tasks}:", "", array["sbatch"]]
    return lines
