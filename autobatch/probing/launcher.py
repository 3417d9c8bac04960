"""The ranks of a distributed trial on one node: started together, watched, ended together.

Takes torchrun's place in a trial, with the same environment for the recipe. torchrun's own agent isn't used: it
expects ranks to come back through Python's shutdown, where a recipe's destructors may hang, and it asks for
cards in the process from which the ranks are forked, which could then not use them.

    launcher ── forks ──> rank 0, rank 1, ...     they share the imports, and start in tenths of a second

On one node the launcher is a child of the fork server; on several, one on each is started by `srun` (see
`node.py`). It never uses CUDA itself. Ranks die with it, and it dies with the job.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

from autobatch.probing.components import EventFile
from autobatch.probing.forkserver import die_with_parent
from autobatch.probing.meter import oom_kills
from autobatch.probing.rank_components import rank_file
from autobatch.probing.residence import touch_inherited_files
from autobatch.probing.worker import TrialSpec, enter_run, run_to_its_end

#: Status of a launcher of which a rank failed or hung; which one stands in its event file.
RANK_FAILED = 1

_POLL_S = 0.05

#: For a rank to write down where it is, when it is asked to.
_STACK_S = 0.5

#: Until every rank has connected to the store.
_MEETING = timedelta(minutes=5)


@dataclass(frozen=True)
class RanksSpec:
    """What the launcher of one node needs to know.

    Attributes:
        trial: of all ranks; its `events` is a name of which each rank has its own, beside it.
        log: as that, for a rank's output.
        processes: ranks on this node.
        nodes: that take part.
        node: which of them this is, from 0.
        address: of node 0.
        port: at which the ranks meet there; 0 on a single node takes any that is free.
        deadline: Unix time at which the ranks are ended.
    """

    trial: TrialSpec
    log: str
    processes: int
    nodes: int
    node: int
    address: str
    port: int
    deadline: float


def launch_ranks(spec: RanksSpec) -> None:
    """Start the ranks of this node and wait for them; doesn't return.

    Ends with status 0 when every rank did, else with `RANK_FAILED`. Writes ``rank_ended`` with the exit code
    of each rank that ended by itself, and ``timed_out`` if the time was over, to the event file
    `launcher_events`.
    """
    import torch
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # not in its stubs

    if spec.trial.device == "cpu":
        touch_inherited_files(os.getppid())
    store = None
    if spec.node == 0:
        # Kept here, not by rank 0: it must outlive every rank.
        store = TCPStore(spec.address, spec.port, is_master=True, wait_for_workers=False, timeout=_MEETING)
        spec = replace(spec, port=store.port)
    if spec.processes > 1 and "OMP_NUM_THREADS" not in os.environ:
        # As torchrun does; this process has read the variable already.
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
    watch = _Watch(spec)
    os._exit(watch.run(lambda rank, local_rank: _rank(spec, rank, local_rank)))


def launcher_events(events: str, node: int) -> Path:
    """The event file of the launcher on a node."""
    path = Path(events)
    return path.with_name(f"{path.stem}.node{node}{path.suffix}")


class _Watch:
    """The ranks of this node, from their start to their end."""

    def __init__(self, spec: RanksSpec) -> None:
        self._spec = spec
        self._events = EventFile(launcher_events(spec.trial.events, spec.node))
        self._running: dict[int, int] = {}
        self._oom_kills = oom_kills()

    def run(self, body: Callable[[int, int], None]) -> int:
        """Fork the ranks, each of which calls `body`, and return the status to end with."""
        sys.stdout.flush()
        sys.stderr.flush()
        for local_rank in range(self._spec.processes):
            rank = self._spec.node * self._spec.processes + local_rank
            pid = os.fork()
            if pid == 0:
                try:
                    body(rank, local_rank)
                finally:
                    os._exit(RANK_FAILED)
            self._running[pid] = rank
        while self._running:
            if not self._reap():
                # What is left waits for it, in a collective that will never end.
                self._kill()
                return RANK_FAILED
            if time.time() > self._spec.deadline:
                self._say_where_they_are()
                self._events.append("timed_out")
                self._kill()
                return RANK_FAILED
            time.sleep(_POLL_S)
        return 0

    def _reap(self) -> bool:
        """Note the ranks that have ended; False if one of them failed."""
        well = True
        for pid in list(self._running):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                code = os.waitstatus_to_exitcode(status)
                oom_killed = code == -signal.SIGKILL and oom_kills() > self._oom_kills
                self._events.append(
                    "rank_ended", rank=self._running.pop(pid), code=code, oom_killed=oom_killed
                )
                well = well and code == 0
        return well

    def _say_where_they_are(self) -> None:
        """Each rank writes its stack to its log: of ranks that wait for one another, one tells why."""
        for pid in self._running:
            os.kill(pid, signal.SIGUSR1)
        time.sleep(_STACK_S)

    def _kill(self) -> None:
        for pid in self._running:
            os.kill(pid, signal.SIGKILL)
        for pid in self._running:
            os.waitpid(pid, 0)


def _rank(spec: RanksSpec, rank: int, local_rank: int) -> None:
    """First lines of a rank: the environment that torchrun gives it, and a log of its own."""
    die_with_parent(signal.SIGKILL)
    descriptor = os.open(rank_file(spec.log, rank), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    faulthandler.register(signal.SIGUSR1, all_threads=False)
    # Source: torch/distributed/elastic/agent/server/local_elastic_agent.py, _start_workers (torch 2.13).
    os.environ.update(
        {
            "RANK": str(rank),
            "LOCAL_RANK": str(local_rank),
            "GROUP_RANK": str(spec.node),
            "ROLE_RANK": str(rank),
            "ROLE_NAME": "default",
            "WORLD_SIZE": str(spec.nodes * spec.processes),
            "LOCAL_WORLD_SIZE": str(spec.processes),
            "GROUP_WORLD_SIZE": str(spec.nodes),
            "ROLE_WORLD_SIZE": str(spec.nodes * spec.processes),
            "MASTER_ADDR": spec.address,
            "MASTER_PORT": str(spec.port),
            "TORCHELASTIC_RESTART_COUNT": "0",
            "TORCHELASTIC_MAX_RESTARTS": "0",
            "TORCHELASTIC_RUN_ID": "autobatch",
            # The store is there already; rank 0 is to join it, not to make one.
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCH_NCCL_ASYNC_ERROR_HANDLING": os.environ.get("TORCH_NCCL_ASYNC_ERROR_HANDLING", "1"),
        }
    )
    events = EventFile(rank_file(spec.trial.events, rank))
    enter_run(spec.trial.working_dir, spec.trial.device, as_command=False)
    run_to_its_end(spec.trial, events)
