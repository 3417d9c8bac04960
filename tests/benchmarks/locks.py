"""Many writers of one file on several mount points of its directory, killed again and again: is a row lost?

    python -m tests.benchmarks.locks --markdown tests/benchmarks/results/locks.md

Storms (`tests.benchmarks.lock_storm`) of 32 processes, 8 of which are killed with SIGKILL in each round. In the
end each row that its writer reported as written must be in the file, once, and nothing else but whole rows; the
file must never have been read torn; and the lock must be free.

Half of the processes see the directory through another mount point. As root on Linux with bindfs, each half is a
host of its own, too: a PID and a UTS namespace, so that no half can tell whether a process of the other one lives,
and a FUSE mount, on which flock(2) doesn't reach the other mount. What that means is shown by the control: the
same writers with flock, and nobody killed, lose rows. Exit status 1 when a bar fails, else 0. A few minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from autobatch.edits.files import edit_file
from autobatch.edits.lock import LEASE_S, locked
from tests.benchmarks.judging import markdown_table
from tests.benchmarks.lock_storm import HEAD, PLAN, Storm, bind_mounts, dead_host_seconds, fuse_mounts, storm
from tests.benchmarks.machine import machine_facts

HEADER = ("writers", "at a time", "kills", "rows reported", "lost", "twice", "torn", "left")


def costs(directory: Path, times: int = 200) -> dict[str, list[float]]:
    """Seconds of locking alone, of flock alone, and of an edit, one writer at a time."""
    plan = directory / PLAN
    plan.write_text(HEAD, encoding="utf-8")

    def ours() -> None:
        with locked(plan):
            pass

    def flock() -> None:
        descriptor = os.open(directory / "flock", os.O_RDWR | os.O_CREAT)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.close(descriptor)

    def edit() -> None:
        edit_file(plan, lambda text: f"{text}x\n")

    seconds: dict[str, list[float]] = {}
    for name, action in {"flock": flock, "lock": ours, "edit": edit}.items():
        for _ in range(times):
            began = time.perf_counter()
            action()
            seconds.setdefault(name, []).append(time.perf_counter() - began)
    return seconds


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the storms, print the tables; 1 when a bar fails."""
    options = _parser().parse_args(arguments)
    is_root = os.geteuid() == 0
    has_hosts = is_root and shutil.which("bindfs") is not None
    storms, control, waited, cost_rows = [], None, None, []
    size = {"writers": 32, "rounds": options.rounds, "kills": 8, "round_s": 2.0}
    with tempfile.TemporaryDirectory(prefix="locks-", dir=options.directory) as scratch:

        def fresh(name: str) -> Path:
            path = Path(scratch) / name
            path.mkdir()
            return path

        if is_root:
            directory = fresh("bind")
            with bind_mounts(directory, 2) as views:
                storms.append(storm("2 bind mounts, 1 host", directory, views, **size))
                print(storms[-1], flush=True)
        if has_hosts:
            directory = fresh("fuse")
            with fuse_mounts(directory, 2) as views:
                storms.append(storm("2 FUSE mounts, 2 hosts", directory, views, hosts=True, **size))
                print(storms[-1], flush=True)
                waited = dead_host_seconds(views)
                print(f"dead host: {waited:.1f} s", flush=True)
            directory = fresh("control")
            with fuse_mounts(directory, 2) as views:
                few = {**size, "rounds": 3, "kills": 0}
                control = storm("the same with flock", directory, views, hosts=True, lock="flock", **few)
                print(control, flush=True)
        places: dict[str, contextlib.AbstractContextManager[list[Path]]] = {
            "local disk": contextlib.nullcontext([fresh("costs")])
        }
        if has_hosts:
            places["FUSE mount"] = fuse_mounts(fresh("costs-fuse"), 1)
        for name, place in places.items():
            with place as views:
                cost_rows.append([name, *map(_milliseconds, costs(views[0]).values())])
    lines = _report(storms, control, waited, cost_rows)
    print("\n".join(lines))
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 0 if storms and all(one.holds for one in storms) else 1


def _report(
    storms: Sequence[Storm], control: Storm | None, waited: float | None, cost_rows: list[list[str]]
) -> list[str]:
    facts = machine_facts()
    failed = [f"- {one.name}: {', '.join(one.failed) or 'see the table'}" for one in storms if not one.holds]
    lines = [
        "# Writers of one file, killed again and again",
        "",
        f"{facts['cpu']}, {facts['cores']} cores, Linux {facts['kernel']}; "
        f"{datetime.now(timezone.utc).date().isoformat()}.",
        "",
        "Half of the writers see the directory through one mount point, half through another. `1 host`: a holder "
        "that was killed is known to be dead at once. `2 hosts`: each half in PID and UTS namespaces of its own "
        "and on a FUSE mount of its own; a holder of the other half is dead when it has given no sign of life for "
        f"{LEASE_S:g} s. `lost`: reported as written, and not in the file. `left`: names beside the file after an "
        "hour and one more edit.",
        "",
        *markdown_table(HEADER, [_row(one) for one in [*storms, *([control] if control else [])]]),
        "",
    ]
    if control:
        lines += [
            "The last line is the control: flock(2) reaches one mount only, as on NFS mounted `local_lock=flock`; "
            "nobody is killed.",
            "",
        ]
    if storms:
        slowest = max(one.next_s for one in storms)
        lines += [
            f"The edit after a storm, all of whose writers were killed at once, took {slowest:.2f} s at most."
        ]
    if waited is not None:
        lines += [f"A host that died with the lock kept a writer on another one waiting for {waited:.1f} s."]
    return [
        *lines,
        "",
        "One writer alone, median (95th percentile) of 200; an edit syncs the file and its directory to disk:",
        "",
        *markdown_table(("on", "flock alone", "lock alone", "edit"), cost_rows),
        "",
        *(["Bars that fail:", "", *failed] if failed else ["All bars hold."]),
    ]


def _row(one: Storm) -> list[str]:
    counts = (one.writers, one.kills, one.reported, one.lost, one.twice, one.torn, len(one.left))
    return [one.name, *map(str, counts)]


def _milliseconds(seconds: Sequence[float]) -> str:
    return (
        f"{1e3 * statistics.median(seconds):.2f} ({1e3 * sorted(seconds)[int(0.95 * len(seconds))]:.2f}) ms"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.locks",
        description="Kill writers of one file on several mount points, and count what is lost.",
    )
    parser.add_argument("--rounds", type=int, default=20, help="of kills, in each storm (default: 20)")
    parser.add_argument("--directory", type=Path, help="where to make the file (default: temporary files)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
