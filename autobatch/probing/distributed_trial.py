"""One distributed trial from the job's side: start its ranks, say what came of all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from autobatch.probing.components import EventFile
from autobatch.probing.forkserver import Exit, ForkServer
from autobatch.probing.launcher import RanksSpec, launch_ranks, launcher_events
from autobatch.probing.node import launch_on_nodes
from autobatch.probing.rank_components import rank_file
from autobatch.probing.trial import (
    TrialRunner,
    describe_exit,
    judge,
    read_trial,
    step_tokens,
    tail,
    was_killed,
)
from autobatch.probing.trial_config import TrialSetup, trial_config
from autobatch.probing.worker import TrialSpec
from autobatch.records import Metric, Trial, Verdict
from autobatch.world import World

#: The launcher ends its ranks when the time is over; should it hang itself, it is ended so much later.
_LAUNCHER_ENDS_S = 15.0

_LOOPBACK = "127.0.0.1"

#: What a rank says when it leaves with the others.
_LAST_WORDS = ("finished", "over", "unstable")

#: Verdicts of a rank that left with the others as it should; which of the two holds, the largest peak says.
_MEASURED = (Verdict.FITS, Verdict.OVER_TARGET)

#: NFS clients look at a directory again after 60 s at most, unless they are told otherwise (nfs(5), acdirmax).
_VISIBLE_S = 75.0
_VISIBLE_POLL_S = 0.5

#: Innermost calls of a rank that hangs, or that waits for one.
_CALLS = 8

#: The head of what faulthandler writes.
_STACK = "(most recent call first):"


class DistributedTrialRunner:
    """Runs trials of as many processes as training will have.

    Args:
        server: gives the launcher's process on a single node.
        setup: what all trials share; has a `world`.
    """

    def __init__(self, server: ForkServer, setup: TrialSetup) -> None:
        assert setup.world is not None
        self._server = server
        self._setup = setup
        self._world = setup.world

    def run(
        self,
        batch_size: int,
        on_step: Callable[[int], None] = lambda steps: None,
        *,
        at_most_s: float = float("inf"),
        end_when_over: bool = False,
    ) -> Trial:
        """Measure one batch size, as `TrialRunner.run` does for one process."""
        setup, world = self._setup, self._world
        timeout_s = min(setup.timeout_s, at_most_s)
        name = f"batch_size_{batch_size}"
        log, events, config = (
            setup.directory / "trials" / f"{name}.{ext}" for ext in ("log", "events", "yaml")
        )
        log.parent.mkdir(parents=True, exist_ok=True)
        for pattern in (f"{name}.log", f"{name}.*.log", f"{name}.*.events"):
            for left_over in log.parent.glob(pattern):
                left_over.unlink()
        text = trial_config(setup, batch_size, events, end_when_over=end_when_over)
        config.write_text(text, encoding="utf-8")
        spec = RanksSpec(
            trial=TrialSpec(
                recipe=str(setup.recipe),
                config=str(config),
                working_dir=str(setup.working_dir),
                events=str(events),
                device=setup.device,
                skip_init=setup.device == "cpu" and not setup.load_weights,
            ),
            log=str(log),
            processes=world.processes_per_node,
            nodes=world.nodes,
            node=0,
            address=_LOOPBACK,
            port=0,
            deadline=time.time() + timeout_s,
        )
        first = EventFile(rank_file(events, 0))
        asked = time.monotonic()
        ended = self._launch(
            spec,
            log,
            timeout_s + _LAUNCHER_ENDS_S,
            lambda: on_step(sum(event["event"] == "step" for event in first.read())),
        )
        tokens = step_tokens(setup, batch_size)
        trial = read_ranks(batch_size, events, log, world, ended, setup.metric, tokens)
        started = next((event["time"] for event in first.read() if event["event"] == "started"), None)
        trial = replace(trial, start_seconds=None if started is None else started - asked)
        return judge(trial, setup.metric, setup.target_bytes)

    def _launch(self, spec: RanksSpec, log: Path, timeout_s: float, on_wait: Callable[[], None]) -> Exit:
        if self._world.nodes == 1:
            return self._server.run(launch_ranks, spec, log=log, timeout_s=timeout_s, on_wait=on_wait)
        ended = launch_on_nodes(spec, log.with_suffix(".json"), log, on_wait)
        if ended.code == 0:
            _await_last_words(Path(spec.trial.events), self._world)
        return ended


def _await_last_words(events: Path, world: World) -> None:
    """Wait until what the ranks wrote on other nodes is to be seen here: network file systems take their time."""
    deadline = time.monotonic() + _VISIBLE_S
    while time.monotonic() < deadline:
        # Listing a directory has NFS ask for it anew; a name that wasn't there is otherwise remembered.
        list(events.parent.iterdir())
        said = [EventFile(rank_file(events, rank)).read() for rank in range(world.size)]
        if all(any(event["event"] in _LAST_WORDS for event in each) for each in said):
            return
        time.sleep(_VISIBLE_POLL_S)


TrialRuns: TypeAlias = TrialRunner | DistributedTrialRunner


def runner_for(server: ForkServer, setup: TrialSetup) -> TrialRuns:
    """What runs the trials of a probe."""
    return TrialRunner(server, setup) if setup.world is None else DistributedTrialRunner(server, setup)


def read_ranks(
    batch_size: int,
    events: Path,
    log: Path,
    world: World,
    ended: Exit,
    metric: Metric,
    tokens: int | None,
) -> Trial:
    """What the ranks' events and those of their launchers say, as one trial.

    Args:
        batch_size: sequences per micro-batch of each rank.
        events: name of the event files; each rank and each launcher has its own beside it.
        log: as that, of the output.
        world: the processes.
        ended: how the launcher, or what started the launchers, ended.
        metric: the peak that counts.
        tokens: positions of all rows of an optimizer step, of all ranks; None where its time says nothing.
    """
    launchers = [EventFile(launcher_events(str(events), node)).read() for node in range(world.nodes)]
    own_end = {event["rank"]: event for said in launchers for event in said if event["event"] == "rank_ended"}
    timed_out = ended.timed_out or any(event["event"] == "timed_out" for said in launchers for event in said)
    trials = []
    for rank in range(world.size):
        end = own_end.get(rank, {"code": 0, "oom_killed": False})
        trial = read_trial(
            batch_size,
            EventFile(rank_file(events, rank)).read(),
            Exit(end["code"], timed_out, ended.seconds),
            metric=metric,
            step_tokens=tokens,
            oom_killed=end["oom_killed"],
            output=tail(rank_file(log, rank)),
        )
        trials.append(replace(trial, log=f"probe/trials/{rank_file(log, rank).name}"))
    failed = [rank for rank, trial in enumerate(trials) if trial.verdict not in _MEASURED]
    if not failed:
        return _largest(trials, metric)
    if not own_end and not timed_out:
        # Nothing came of any rank: what started them says why.
        said = f"{describe_exit(ended)} before any rank had ended: what starts them\n{tail(log)}".rstrip()
        return replace(trials[0], verdict=Verdict.CRASHED, detail=said, log=f"probe/trials/{log.name}")
    if all(trials[rank].verdict is Verdict.TIMED_OUT for rank in failed):
        return _hung(trials, log, events)
    blamed = min(failed, key=lambda rank: _blame(trials[rank], own_end.get(rank), events, rank))
    first, _, rest = trials[blamed].detail.partition("\n")
    return replace(trials[blamed], detail=f"{first} (rank {blamed} of {world.size})\n{rest}".rstrip())


def _blame(trial: Trial, end: Mapping[str, Any] | None, events: Path, rank: int) -> tuple[int, float, int]:
    """Sorts the rank to which the end of a trial is due first: others fail for want of it."""
    said = EventFile(rank_file(events, rank)).read()
    error = next((event["time"] for event in said if event["event"] == "error"), None)
    if trial.verdict is Verdict.OUT_OF_MEMORY:
        order = 0
    elif was_killed(trial) and trial.detail.startswith("killed by signal 9 "):
        # No rank is killed so because another one failed.
        order = 1
    elif trial.verdict is Verdict.UNSTABLE:
        # All stopped together; the one whose peak grew most is meant.
        return 2, float(trial.step_peaks_bytes[1] - trial.step_peaks_bytes[-1]), rank
    elif error is not None:
        order = 3
    else:
        # One that was ended with the others did nothing wrong.
        order = 4 if end is not None else 5
    return order, error if error is not None else float("inf"), rank


def _largest(trials: Sequence[Trial], metric: Metric) -> Trial:
    """A trial of which every rank finished: its peaks are the largest over the ranks."""
    top = max(trials, key=lambda trial: trial.peaks_bytes[metric.value])
    return replace(
        trials[0],
        peak_bytes=top.peak_bytes,
        peaks_bytes={name: max(t.peaks_bytes[name] for t in trials) for name in top.peaks_bytes},
        before_bytes=top.before_bytes,
        step_peaks_bytes=top.step_peaks_bytes,
        alloc_retries=max(trial.alloc_retries for trial in trials),
        peaks_by_rank=tuple(trial.peaks_bytes for trial in trials),
    )


def _hung(trials: Sequence[Trial], log: Path, events: Path) -> Trial:
    """A trial that ran out of time, with where each rank was: most wait for one of them."""
    lines = ["where the ranks were:"]
    for rank, trial in enumerate(trials):
        said = [event["event"] for event in EventFile(rank_file(events, rank)).read()]
        if trial.verdict is not Verdict.TIMED_OUT:
            lines.append(f"rank {rank}: had ended")
            continue
        state = f"after {said.count('step')} optimizer steps" if "started" in said else "not started"
        lines += [f"rank {rank}, {state}:", *_stack(rank_file(log, rank))]
    return replace(trials[0], verdict=Verdict.TIMED_OUT, detail="\n".join(lines))


def _stack(log: Path) -> list[str]:
    """The innermost calls of the stack that a rank has written to its log, else the log's end."""
    lines = tail(log, 500).splitlines()
    heads = [number for number, line in enumerate(lines) if line.endswith(_STACK)]
    return lines[heads[-1] + 1 :][:_CALLS] if heads else lines[-_CALLS:]
