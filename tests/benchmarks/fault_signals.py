"""Faults that end processes: at a random moment of a probe, each part of it in turn.

A probe that was hit ends with the answer, or with a documented exit code and one message and the next one goes on
from the journal to the same answer. Either way each file of the user's is as it was or as it should be.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable

from tests.benchmarks.fault_scene import Scene, end_of
from tests.benchmarks.fault_verdict import Fault, Outcome, ended_so_far, not_hit, resumed

#: Probes of one run that are hit in a row, each going on where the one before was; the next is let be.
_LINKS = 4

Hit = Callable[[Scene, "subprocess.Popen[str]", float], bool]


def _hit(what: str, number: signal.Signals) -> Hit:
    return lambda scene, process, after_s: scene.hit(process, what, number, after_s)


def _again_and_again(scene: Scene, hit: Hit, codes: tuple[int, ...], *options: str) -> list[Outcome]:
    """Hit probes of one run, until one has come to the answer."""
    outcomes: list[Outcome] = []
    while len(outcomes) < _LINKS:
        process = scene.start(*options)
        was_hit = hit(scene, process, scene.some_time(0.9))
        ended = end_of(process)
        if not was_hit:
            return [
                *outcomes,
                *([not_hit(scene, ended)] if ended.code != 0 or not scene.is_answered() else []),
            ]
        outcomes.append(ended_so_far(scene, ended, codes))
        if ended.code == 0:
            return outcomes
    return [*outcomes[:-1], resumed(scene, outcomes[-1])]


def kill_worker(scene: Scene) -> list[Outcome]:
    return _again_and_again(scene, _hit("workers", signal.SIGKILL), (3,))


def kill_server(scene: Scene) -> list[Outcome]:
    return _again_and_again(scene, _hit("server", signal.SIGKILL), (3,))


def kill_job(scene: Scene) -> list[Outcome]:
    return _again_and_again(scene, _hit("job", signal.SIGKILL), (3,))


def terminate(scene: Scene) -> list[Outcome]:
    """SIGTERM: the command itself, as `kill` does, and in each third scene the job behind its back."""
    if scene.number % 3 == 2:
        return _again_and_again(scene, _hit("job", signal.SIGTERM), (3,))

    def itself(scene: Scene, process: subprocess.Popen[str], after_s: float) -> bool:
        return scene.hit_itself(process, signal.SIGTERM, after_s)

    return _again_and_again(scene, itself, (143,))


def user_signal(scene: Scene) -> list[Outcome]:
    """SIGUSR2, with which Slurm warns of a job's end: a job that no Slurm runs, under submitit and without."""
    options = ("--cluster", "local") if scene.number % 2 else ()
    return _again_and_again(scene, _hit("job", signal.SIGUSR2), (3,), *options)


FAULTS = (
    Fault(
        "SIGKILL of a worker",
        "the answer: a trial is tried once more; else 3, and the next probe goes on",
        kill_worker,
    ),
    Fault(
        "SIGKILL of the fork server",
        "the answer, with another server; else 3, and the next probe goes on",
        kill_server,
    ),
    Fault("SIGKILL of the job", "3 and one message; the next probe goes on to the same answer", kill_job),
    Fault("SIGKILL of the job, torchtune's LoRA recipe", "the same", kill_job, base="torchtune"),
    Fault(
        "SIGTERM", "143 (of the command) or 3 (of its job) and one message; the next probe goes on", terminate
    ),
    Fault("SIGUSR2", "3 and one message, or the answer; the next probe goes on", user_signal),
)
