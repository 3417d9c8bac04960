"""The answers: what a run takes on a simulated GPU, what fits there, and which setting would change that.

A process sees a simulated GPU from its beginning or not at all, so an estimate is made in one of its own:

    autobatch estimate  --question-->  worker (simulated GPU)  --> fork server --> trial b, trial b + 1, ...
                        <--trials, estimate--
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from autobatch.errors import AutobatchError, UsageError
from autobatch.estimate.on_file import Kept, TrialForecast, config_key, keep, kept_for
from autobatch.estimate.records import Estimate, Fitting, NoEstimate, Question, Variant
from autobatch.estimate.subject import Subject, read_subject, with_settings
from autobatch.estimate.trials import CAP, SimulatedTrials
from autobatch.probing.forkserver import ForkServer
from autobatch.probing.search import fit_line
from autobatch.records import Metric, Trial, Verdict, from_json, to_json
from autobatch.runs.results import find_result
from autobatch.simulated_gpu.environment import simulated_environment
from autobatch.simulated_gpu.gpus import GPUS, Gpu, gpu_named, gpu_of_capacity
from autobatch.simulated_gpu.kernels import KERNELS, forget_timings, kernel_cache

#: From this compute capability on, PyTorch has flash attention and flex attention: a training makes the same
#: allocations on all of them, but for cuBLAS's workspaces (2 x 32 MiB from 9.0 on, 2 x 8.125 MiB before).
_SAME_KERNELS = (8, 0)


def estimate(question: Question, tell: Callable[[Trial, bool], None] = lambda trial, known: None) -> Estimate:
    """Answer a question, in a process of its own.

    Args:
        question: what is asked.
        tell: hears of each trial of the config as it is, and whether it was on file.

    Raises:
        RunProblems, UsageError: the run, the config or a setting can't be used.
        NoEstimate: it can't be estimated; a variant that can't says so in its row.
        NoSimulation: this environment has no CUDA build of PyTorch or no C compiler.
    """
    # What is wrong with the question is said before anything takes time.
    subject = subject_of_question(question)
    for setting in question.what_if:
        with suppress(NoEstimate):
            with_settings(subject, [setting])
    cards = subject.world.processes_per_node if subject.world is not None else 1
    # The training's own environment, but that it sees simulated cards and all of them.
    environment = simulated_environment(
        _gpu(question), count=cards, environ={**os.environ, **subject.exports}
    )
    environment |= {"PYTHONWARNINGS": "ignore", "PYTHONSAFEPATH": "1"}
    kernels = subject.run_dir / "probe" / KERNELS if subject.run_dir is not None else None
    if kernels is not None:
        environment |= kernel_cache(kernels)
    command = [sys.executable, "-m", "autobatch.estimate.worker"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        return _talk(process, question, tell)
    finally:
        process.terminate()
        process.wait()
        if kernels is not None:
            forget_timings(kernels)


def _talk(
    process: subprocess.Popen[str], question: Question, tell: Callable[[Trial, bool], None]
) -> Estimate:
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin:
        process.stdin.write(json.dumps(to_json(question)))
    for line in process.stdout:
        said: dict[str, Any] = json.loads(line)
        if "trial" in said:
            tell(from_json(Trial, said["trial"]), said["known"])
        elif "error" in said:
            kinds = {kind.exit_code: kind for kind in (UsageError, NoEstimate)}
            raise kinds.get(said["exit_code"], AutobatchError)(said["error"])
        else:
            return from_json(Estimate, said["estimate"])
    raise AutobatchError(f"the process that simulates a GPU ended with status {process.wait()}")


def answer(question: Question, tell: Callable[[Trial, bool], None]) -> Estimate:
    """Answer a question; this process sees the simulated GPU.

    Raises:
        UsageError, NoEstimate: as `estimate`.
    """
    began = time.monotonic()
    subject = subject_of_question(question)
    gpu = _gpu(question)
    target = int(gpu.total_bytes * question.target_fraction)
    server = ForkServer({}, "cuda", ranks=subject.world is not None)
    # It imports while this process does.
    server.start()
    _check_architecture(gpu)
    key = config_key(subject, os.environ)
    kept_in = subject.run_dir if not question.settings else None
    on_file = Kept(key, "", 0, (), {})
    if kept_in is not None and not question.fresh:
        on_file = kept_for(kept_in, key, gpu)
    with tempfile.TemporaryDirectory(prefix="autobatch-estimate-") as scratch:
        trials = SimulatedTrials(
            subject,
            server,
            Path(scratch) / "as-it-is",
            target_bytes=target,
            timeout_s=question.timeout_s,
            known=on_file.trials,
            known_parts={int(batch_size): parts for batch_size, parts in on_file.parts.items()},
            tell=tell,
        )
        largest = trials.search()
        at = question.batch_size or largest or 1
        shown = trials.at(at)
        if kept_in is not None and trials.reused < len(trials.trials):
            keep(kept_in, key, gpu, trials.trials, trials.parts)
        fitting = _fitting(trials.trials, largest, gpu)
        variants = []
        if question.what_if:
            variants = [Variant("", at, shown.peak_bytes, fitting)]
            for number, setting in enumerate(question.what_if):
                variants.append(_variant(subject, setting, at, question, server, Path(scratch) / str(number)))
    fit = fit_line(trials.trials)
    return Estimate(
        config=str(subject.path),
        recipe=subject.recipe.note,
        simulated=gpu.product,
        max_seq_len=subject.max_seq_len,
        packed=subject.packed,
        world=subject.world,
        target_fraction=question.target_fraction,
        fitting=fitting,
        batch_size=at,
        reserved_bytes=shown.peak_bytes,
        allocated_bytes=shown.peaks_bytes.get(Metric.ALLOCATED.value),
        parts=trials.parts.get(at, {}),
        trials=tuple(sorted(trials.trials, key=lambda trial: trial.batch_size)),
        fit=fit,
        gpus=tuple(
            _on_line(trials.trials, other, gpu, question.target_fraction)
            for other in GPUS.values()
            if other.name != gpu.name
        ),
        what_if=tuple(variants),
        density=_density(subject),
        notes=_notes(subject),
        seconds=time.monotonic() - began,
        reused=trials.reused,
    )


def subject_of_question(question: Question) -> Subject:
    """The config that is asked about, on CUDA.

    Raises:
        RunProblems, UsageError: it can't be used.
        NoEstimate: its rows have no length.
    """
    subject = read_subject(
        Path(question.path),
        question.recipe,
        question.settings,
        processes_per_node=question.processes_per_node,
        nodes=question.nodes,
    )
    if subject.device == "cpu":
        note = "device is cpu; the figures are for a GPU, as with device: cuda"
        # Not kept: what is on file is the run as it is.
        subject = replace(with_settings(subject, ["device=cuda"]), run_dir=None, notes=(note, *subject.notes))
    return subject


def _gpu(question: Question) -> Gpu:
    gpu = gpu_named(question.gpu)
    return gpu if question.capacity_bytes is None else gpu_of_capacity(gpu, question.capacity_bytes)


def _check_architecture(gpu: Gpu) -> None:
    """Whether this PyTorch has kernels for `gpu`: code for an earlier minor version of its architecture runs too.

    Raises:
        NoEstimate: it has none; a simulated GPU would run them all the same.
    """
    import torch

    flags = torch._C._cuda_getArchFlags() or ""
    major, minor = gpu.capability
    versions = [divmod(int(number), 10) for number in re.findall(r"\bsm_(\d+)\b", flags)]
    if not any(built[0] == major and built[1] <= minor for built in versions):
        raise NoEstimate(
            f"torch {torch.__version__} has no kernels for {gpu.product} (sm_{major}{minor}); it was built for "
            f"{', '.join(sorted(set(flags.split())))}"
        )


def _fitting(trials: Sequence[Trial], largest: int, gpu: Gpu) -> Fitting:
    at = next((trial for trial in trials if trial.batch_size == max(1, largest)), None)
    reserved = at.peak_bytes if at is not None else None
    return Fitting(gpu.name, gpu.total_bytes, largest, reserved, simulated=True)


def _on_line(trials: Sequence[Trial], gpu: Gpu, simulated: Gpu, target_fraction: float) -> Fitting:
    """The largest on another GPU, from the trials on this one."""
    if (gpu.capability >= _SAME_KERNELS) != (simulated.capability >= _SAME_KERNELS) or (
        gpu.capability < _SAME_KERNELS and gpu.capability != simulated.capability
    ):
        return Fitting(
            gpu.name, gpu.total_bytes, None, None, why=f"other kernels: --gpu {gpu.name} runs them"
        )
    forecast = TrialForecast(trials, Metric.RESERVED)
    largest = forecast.largest(int(gpu.total_bytes * target_fraction), CAP.batch_size)
    return Fitting(gpu.name, gpu.total_bytes, largest, forecast.peak_bytes(max(1, largest)))


def _variant(
    subject: Subject, setting: str, batch_size: int, question: Question, server: ForkServer, scratch: Path
) -> Variant:
    gpu = _gpu(question)
    try:
        trials = SimulatedTrials(
            with_settings(subject, [setting]),
            server,
            scratch,
            target_bytes=int(gpu.total_bytes * question.target_fraction),
            timeout_s=question.timeout_s,
        )
        at = trials.at(batch_size)
        largest = trials.search()
    except NoEstimate as error:
        return Variant(setting, batch_size, None, None, error.why)
    peak = None if at.verdict is Verdict.OUT_OF_MEMORY else at.peak_bytes
    return Variant(setting, batch_size, peak, _fitting(trials.trials, largest, gpu))


def _notes(subject: Subject) -> tuple[str, ...]:
    """What is assumed about `subject`."""
    notes = list(subject.notes)
    if not subject.packed:
        notes.append(f"rows aren't packed: each is taken to have max_seq_len ({subject.max_seq_len}) tokens")
    component = str((subject.resolved().get("optimizer") or {}).get("_component_"))
    if "Paged" in component:
        notes.append(f"{component} keeps its state in unified memory, outside of these figures")
    return tuple(notes)


def _density(subject: Subject) -> float | None:
    """Examples per pack, from the run's last probe, if its packs were as long; None where rows are examples."""
    if subject.run_dir is None or not subject.packed:
        return None
    probed = None
    # The estimate stands without it.
    with suppress(UsageError):
        probed = find_result(subject.run_dir / "probe" / "result.json")
    density = probed.density if probed is not None else None
    if density is None or not density.packed or density.max_seq_len != subject.max_seq_len:
        return None
    return density.examples_per_pack


def message(said: Mapping[str, Any]) -> str:
    """A line of the worker's answer."""
    return json.dumps(to_json(said))
