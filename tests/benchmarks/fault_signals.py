"""Faults that end processes: at a random moment of a probe, each part of it in turn.

A probe that was hit ends with the answer, or with a documented exit code and one message and the next one goes on
from the journal to the same answer. Either way each file of the user's is as it was or as it should be.
"""

from __future__ import annotations

import signal

from tests.benchmarks.fault_scene import Scene, end_of
from tests.benchmarks.fault_verdict import Fault, Outcome, ended_or_resumed, not_hit


def _signal(
    scene: Scene, what: str, number: signal.Signals, codes: tuple[int, ...], *options: str
) -> Outcome:
    process = scene.start(*options)
    hit = scene.hit(process, what, number, scene.some_time(0.9))
    ended = end_of(process)
    return ended_or_resumed(scene, ended, codes) if hit else not_hit(scene, ended)


def kill_worker(scene: Scene) -> Outcome:
    return _signal(scene, "workers", signal.SIGKILL, (3,))


def kill_server(scene: Scene) -> Outcome:
    return _signal(scene, "server", signal.SIGKILL, (3,))


def kill_job(scene: Scene) -> Outcome:
    return _signal(scene, "job", signal.SIGKILL, (3,))


def terminate(scene: Scene) -> Outcome:
    """SIGTERM: the command itself, as `kill` does, and in each third run the job behind its back."""
    if scene.number % 3 == 2:
        return _signal(scene, "job", signal.SIGTERM, (3,))
    process = scene.start()
    hit = scene.hit_itself(process, signal.SIGTERM, scene.some_time(0.9))
    ended = end_of(process)
    return ended_or_resumed(scene, ended, (143,)) if hit else not_hit(scene, ended)


def user_signal(scene: Scene) -> Outcome:
    """SIGUSR2, with which Slurm warns of a job's end: a job that no Slurm runs, under submitit and without."""
    options = ("--cluster", "local") if scene.number % 2 else ()
    return _signal(scene, "job", signal.SIGUSR2, (3,), *options)


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
