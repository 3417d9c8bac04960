"""What is known of a run's training, from every source that there is.

Where two sources tell the same, the first of these counts:

    config          printed by the recipe; finetune.yaml
    density         counted by the probe, if it packed this dataset; the log
    peak memory     torchtune's reserved; nvidia-smi's; torchtune's alloc, active
    training time   the log's progress bars; Slurm's elapsed time
    wall time       Slurm's; from nvidia-smi's first sample to its last; the training time
    GPUs            Slurm's allocation; cards sampled; what `tune run` starts
    start, end      Slurm's; nvidia-smi's first and last sample

Nothing is estimated but what an epoch took of the card's memory: a log has no clock, so that the epochs are laid
end to end before the last sample.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from autobatch.errors import UsageError
from autobatch.metrics.accounting import Ask, JobAccount, job_accounts, job_output
from autobatch.metrics.gpu_samples import GPU_METRICS, GpuSamples, read_gpu_samples
from autobatch.metrics.logs import find_logs, read_logs
from autobatch.metrics.memory import peak_memory
from autobatch.metrics.outcome import judge
from autobatch.metrics.records import EpochMetrics, LogMetrics, PackingMetrics, Source
from autobatch.metrics.run_metrics import RunMetrics
from autobatch.metrics.trained_config import TrainedConfig, read_trained_config
from autobatch.records import ProbeResult
from autobatch.runs.results import find_result
from autobatch.runs.slurm_client import ask as ask_slurm

#: The sampler starts before `tune run` and is stopped after it, a round of 30 s off at either end.
_SAMPLING_SLACK = timedelta(seconds=60)


@dataclass
class _Sources:
    """What lies in a run directory, read."""

    run: Path
    log: LogMetrics | None
    samples: GpuSamples
    result: ProbeResult | None
    job_id: str | None
    notes: list[str]


def collect(
    runs: Sequence[Path],
    *,
    logs: Sequence[Path] | None = None,
    job_id: str | None = None,
    exit_code: int | None = None,
    ask: Ask = ask_slurm,
) -> list[RunMetrics]:
    """What is known of the last training of each run.

    Args:
        runs: run directories.
        logs: read these instead of the files that `find_logs` finds.
        job_id: of the training job; None takes it from the name of Slurm's log.
        exit_code: of `tune run`, when it has just ended in this very job.
        ask: a Slurm client's answer.

    Raises:
        UsageError: one of `logs` can't be read.
    """
    output = job_output(job_id, ask=ask) if job_id is not None and logs is None else None
    read = [_read(run, logs, job_id, output) for run in runs]
    accounts = job_accounts([sources.job_id for sources in read if sources.job_id], ask=ask)
    if job_id is not None and job_id not in accounts:
        read[0].notes.append(f"Slurm says nothing of job {job_id}")
    return [_metrics(sources, accounts.get(sources.job_id or ""), exit_code) for sources in read]


def _read(run: Path, logs: Sequence[Path] | None, job_id: str | None, output: Path | None) -> _Sources:
    notes: list[str] = []
    log, samples, result = None, GpuSamples(), None
    if logs is not None:
        log = read_logs(logs)
    else:
        try:
            found = find_logs(run, output)
            log = read_logs(found) if found else None
        except UsageError as error:
            notes.append(str(error))
    try:
        samples = read_gpu_samples(run / GPU_METRICS)
    except UsageError as error:
        notes.append(str(error))
    try:
        result = find_result(run / "probe" / "result.json")
    except UsageError as error:
        notes.append(str(error))
    job_id = job_id or _job_id(log)
    if log is not None and log == LogMetrics(files=log.files):
        notes.append(f"{', '.join(log.files)}: says nothing of a training")
        log = None
    return _Sources(run, log, samples, result, job_id, notes)


def _job_id(log: LogMetrics | None) -> str | None:
    """Of a log called ``slurm-123.out``, ``slurm-123_4.out`` or, by the user's pattern, ``train-123.out``."""
    for file in log.files if log is not None else ():
        found = re.search(r"(?:^|[-_.])(\d+(?:_\d+)?)\.\w+$", Path(file).name)
        # DiskLogger's files are called by the time, log_1760971800.txt.
        if found and not re.fullmatch(r"log_\d{10,}\.txt", Path(file).name):
            return found.group(1)
    return None


def _metrics(sources: _Sources, account: JobAccount | None, exit_code: int | None) -> RunMetrics:
    log = sources.log or LogMetrics()
    notes = sources.notes
    config = read_trained_config(sources.run, log.config, log.recipe)
    notes += config.notes
    samples = _samples_of(sources.samples, account, notes)
    result = _result_for(sources.result, config, notes)
    packing = _packing(log.packing, result, config, notes)
    outcome = judge(sources.log, account, exit_code, _all_steps(packing, config))
    if sources.log is not None and not log.steps and outcome.status == "completed":
        notes.append("its log tells of no optimizer step: a batch larger than the dataset trains nothing")
    if log.loss is not None and not math.isfinite(log.loss):
        notes.append(f"the loss of the last step is {log.loss}")
    training_seconds = log.training_seconds
    if training_seconds is None and account is not None:
        training_seconds = account.elapsed_s
    ended = account.end if account is not None else None
    if ended is None and outcome.status not in (None, "running", "planned"):
        ended = datetime.now() if exit_code is not None else samples.end
    return RunMetrics(
        run=sources.run,
        sources=_names(sources, samples, account, exit_code),
        last_written=_last_written(log),
        config=config,
        outcome=outcome,
        job_id=sources.job_id,
        started=(account.start if account is not None else None) or samples.start,
        completed=ended,
        packing=packing,
        memory=peak_memory(log.peak_memory_gib, samples, result, config.integer("batch_size")),
        avg_memory_gib=samples.mean_memory_gib,
        utilization_pct=samples.mean_utilization_pct,
        training_seconds=training_seconds,
        gpu_hours=_gpu_hours(account, samples, config, log.training_seconds),
        tokens_per_second=log.tokens_per_second,
        examples_per_second=_examples_per_second(log, packing, config),
        steps=log.steps if sources.log is not None else None,
        final_loss=log.loss,
        epochs=_with_memory(log.epochs, samples),
        notes=tuple(notes),
    )


def _names(
    sources: _Sources, samples: GpuSamples, account: JobAccount | None, exit_code: int | None
) -> tuple[str, ...]:
    names = list(sources.log.files) if sources.log is not None else []
    if samples.samples:
        names.append(str(sources.run / GPU_METRICS))
    if account is not None:
        names.append(f"Slurm's job {account.job_id}")
    if exit_code is not None:
        names.append(f"exit code {exit_code} of tune run")
    return tuple(names)


def _last_written(log: LogMetrics) -> datetime | None:
    times = [Path(file).stat().st_mtime for file in log.files if Path(file).exists()]
    return datetime.fromtimestamp(max(times)) if times else None


def _samples_of(samples: GpuSamples, account: JobAccount | None, notes: list[str]) -> GpuSamples:
    """The samples, unless they are of another job, or of cards that weren't this job's."""
    if account is None or not samples.samples:
        return samples
    assert samples.end is not None
    if account.start is not None and samples.end < account.start:
        notes.append(f"{GPU_METRICS} ends before job {account.job_id} began: left out")
        return GpuSamples()
    if account.gpus is not None and samples.gpus > account.gpus:
        notes.append(
            f"{GPU_METRICS} has {samples.gpus} cards, and the job had {account.gpus}: it can't be told which "
            "are its own: left out"
        )
        return GpuSamples()
    return samples


def _result_for(result: ProbeResult | None, config: TrainedConfig, notes: list[str]) -> ProbeResult | None:
    """The probe's result, if it measured rows like those that were trained on."""
    if result is None or result.density is None or not config.values:
        return result
    density = result.density
    length = config.integer("tokenizer.max_seq_len")
    if config.packed is not None and config.packed != density.packed:
        notes.append(
            f"the probe measured packed: {density.packed}, and training had {config.packed}: left out"
        )
        return None
    if density.packed and density.max_seq_len != length:
        notes.append(
            f"the probe measured max_seq_len {density.max_seq_len}, and training had {length}: left out"
        )
        return None
    return result


def _packing(
    logged: PackingMetrics, result: ProbeResult | None, config: TrainedConfig, notes: list[str]
) -> PackingMetrics:
    density = result.density if result is not None else None
    if density is None or not density.packs:
        return logged
    certain = logged.source in (Source.STATED, Source.COUNTED)
    if certain and logged.total_examples not in (None, density.examples):
        notes.append(
            f"the probe packed {density.examples} examples, and training {logged.total_examples}: the log counts"
        )
        return logged
    if certain and density.sampled_examples is not None:
        return logged
    efficiency = density.efficiency
    return PackingMetrics(
        total_examples=density.examples,
        total_sequences=density.packs,
        packing_density=density.examples_per_pack,
        packing_efficiency=100 * efficiency if efficiency is not None else None,
        source=Source.PROBE,
    )


def _all_steps(packing: PackingMetrics, config: TrainedConfig) -> int | None:
    """Optimizer steps of the whole training, as torchtune counts them: what doesn't fill a step is dropped."""
    limit, sequences = config.integer("max_steps_per_epoch"), packing.total_sequences
    steps = limit
    if sequences and packing.source is not Source.ESTIMATE and config.effective_batch_size:
        whole = sequences // config.effective_batch_size
        steps = min(whole, limit or whole)
    epochs = config.integer("epochs")
    return epochs * steps if epochs and steps else None


def _gpu_hours(
    account: JobAccount | None, samples: GpuSamples, config: TrainedConfig, training_seconds: float | None
) -> float | None:
    gpus = account.gpus if account is not None else None
    if gpus is None and str(config.get("device") or "").startswith("cuda"):
        gpus = samples.gpus or config.processes
    elapsed = account.elapsed_s if account is not None else None
    seconds = next((s for s in (elapsed, samples.seconds, training_seconds) if s), None)
    return gpus * seconds / 3600 if gpus and seconds else None


def _examples_per_second(log: LogMetrics, packing: PackingMetrics, config: TrainedConfig) -> float | None:
    """From steps and their time: the tokens that torchtune counts leave prompts out, so they won't do."""
    density = packing.packing_density if config.packed else 1.0
    sequences = config.effective_batch_size
    timed = [(e.steps, e.training_time_minutes) for e in log.epochs if e.training_time_minutes]
    seconds = 60 * sum(minutes for _, minutes in timed)
    if not density or not sequences or not seconds:
        return None
    return sum(steps for steps, _ in timed) * sequences * density / seconds


def _with_memory(epochs: Sequence[EpochMetrics], samples: GpuSamples) -> tuple[EpochMetrics, ...]:
    """The epochs, each with the mean of the samples in it."""
    end, start = samples.end, samples.start
    minutes = [epoch.training_time_minutes for epoch in epochs]
    if end is None or start is None or None in minutes:
        return tuple(epochs)
    total = timedelta(minutes=sum(m for m in minutes if m is not None))
    if total > end - start + _SAMPLING_SLACK:
        return tuple(epochs)
    found: list[EpochMetrics] = []
    for epoch in reversed(epochs):
        begin = end - timedelta(minutes=epoch.training_time_minutes or 0)
        found.append(replace(epoch, avg_gpu_memory_gb=samples.between(begin, end).mean_memory_gib))
        end = begin
    return tuple(reversed(found))
