"""Distributed trials on several nodes: a launcher on each of them, as a step of the Slurm job.

    job, on the first node ── srun ──> python -m autobatch.probing.node   on each node, which forks its ranks

The launchers hold on to the job by their standard input: it ends when the job does, whatever ends it, and they end
with it.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from autobatch.errors import UsageError
from autobatch.json_form import from_json, to_json
from autobatch.probing.forkserver import FOR_THE_SERVER_ALONE, Exit, die_with_parent, preloaded
from autobatch.probing.launcher import RANK_FAILED, RanksSpec, launch_ranks
from autobatch.probing.slurm_warning import ignore_warning
from autobatch.world import World

#: Slurm ends a step after its KillWait (30 s unless a site says otherwise).
_STEP_ENDS_S = 45.0

_POLL_S = 0.1

#: What srun may know of the job. The rest of SLURM_* tells of the step in which this process is, and srun would
#: take it for its own options.
_OF_THE_JOB = ("SLURM_CONF", "SLURM_CLUSTER_NAME", "SLURM_JOB")


def launch_on_nodes(
    spec: RanksSpec, spec_path: Path, log: Path, on_wait: Callable[[], None] = lambda: None
) -> Exit:
    """Start a launcher on each node of the Slurm job that this process is in, and wait for them.

    Args:
        spec: for the launchers; `node`, `address` and `port` are filled in.
        spec_path: where to put it for them to read, on a file system that the nodes share.
        log: output of srun and of the launchers.
        on_wait: called several times a second meanwhile.
    """
    began = time.monotonic()
    spec = replace(spec, address=socket.gethostname(), port=_free_port())
    spec_path.write_text(json.dumps(to_json(spec)), encoding="utf-8")
    with log.open("ab") as output:
        try:
            step = subprocess.Popen(
                [*_srun(spec.nodes), sys.executable, "-m", "autobatch.probing.node", str(spec_path)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(os.environ),
                preexec_fn=lambda: die_with_parent(signal.SIGKILL),
            )
        except OSError as error:
            output.write(f"srun can't be started: {error}\n".encode())
            return Exit(RANK_FAILED, False, time.monotonic() - began)
    timed_out = False
    try:
        while step.poll() is None and not timed_out:
            time.sleep(_POLL_S)
            on_wait()
            timed_out = time.time() > spec.deadline + _STEP_ENDS_S
    finally:
        assert step.stdin is not None
        with suppress(OSError):
            step.stdin.close()
        try:
            code = step.wait(_STEP_ENDS_S)
        except subprocess.TimeoutExpired:
            step.terminate()
            with suppress(subprocess.TimeoutExpired):
                step.wait(_STEP_ENDS_S)
            step.kill()
            code = step.wait()
    return Exit(code, timed_out, time.monotonic() - began)


def check_allocation(world: World, environ: Mapping[str, str] | None = None) -> None:
    """Refuse to start what needs more nodes than there are here; outside of a job, srun would ask for some.

    Raises:
        UsageError: this process isn't in a Slurm job of as many nodes.
    """
    environ = os.environ if environ is None else environ
    if world.nodes == 1:
        return
    remedy = "probe as a job of its own (--cluster slurm), or inside one of that many (--cluster inline)"
    if "SLURM_JOB_ID" not in environ:
        raise UsageError(f"the training has {world.nodes} nodes, and this isn't a Slurm job: {remedy}")
    here = environ.get("SLURM_JOB_NUM_NODES", "1")
    if here.isdigit() and int(here) < world.nodes:
        raise UsageError(f"the training has {world.nodes} nodes, and this Slurm job has {here}: {remedy}")


def _srun(nodes: int) -> list[str]:
    cpus = os.environ.get("SLURM_CPUS_PER_TASK")
    return [
        "srun",
        f"--nodes={nodes}",
        f"--ntasks={nodes}",
        "--ntasks-per-node=1",
        # The job itself is a step that holds everything on the first node.
        "--overlap",
        # Since Slurm 22.05 a step doesn't take it over from the job.
        *([f"--cpus-per-task={cpus}"] if cpus else []),
        "--kill-on-bad-exit=1",
        "--job-name=autobatch-trial",
    ]


def _environment(environ: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith("SLURM_") or name.startswith(_OF_THE_JOB)
    }


def _free_port() -> int:
    """A port that nothing listens on, here where node 0 is; torchrun chooses its own so too."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def _die_with_job() -> None:
    """End when standard input does: the ranks end with this process."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os._exit(RANK_FAILED)

    threading.Thread(target=watch, daemon=True, name="die with job").start()


def main(spec_path: str) -> None:
    """The launcher of this node."""
    # The ranks inherit it.
    ignore_warning()
    _die_with_job()
    spec = from_json(RanksSpec, json.loads(Path(spec_path).read_text(encoding="utf-8")))
    for name in preloaded(spec.trial.device, ranks=True) if spec.processes > 1 else ():
        # Once, for all ranks of this node; what isn't there, the recipe doesn't need or will say so.
        with suppress(ImportError):
            importlib.import_module(name)
    for name in FOR_THE_SERVER_ALONE:
        os.environ.pop(name, None)
    launch_ranks(replace(spec, node=int(os.environ["SLURM_NODEID"])))


if __name__ == "__main__":
    main(sys.argv[1])
