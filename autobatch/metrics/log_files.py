"""Which files tell of a run's last training."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from autobatch.errors import UsageError
from autobatch.metrics.log_text import blocks
from autobatch.runs.config import read_config
from autobatch.runs.directory import CONFIG_NAME, SCRIPT_NAME
from autobatch.runs.findings import Findings
from autobatch.runs.slurm_script import SlurmScript, read_script

#: sbatch's own, without and with --array.
_DEFAULT_PATTERNS = ("slurm-%j.out", "slurm-%A_%a.out")
_PLACEHOLDER = re.compile(r"%\d*([A-Za-z%])")

#: A log that has none of these isn't of a training: a job that only evaluates has no optimizer.
_TRAINING_MARKS = (b"optimizer:", b"|Loss: ", b" | loss:")

_WRITES_TO = re.compile(rb"Writing logs to ([^\r\n]{1,4096})[\r\n]")
_BAR = re.compile(rb"\|(\d{1,15})\|Loss: ([^:|\s]+): ")
_TAIL_BYTES = 2**16

Job = tuple[int, int]


def find_logs(run_dir: Path, output: Path | None = None) -> list[Path]:
    """The files of a run's last training, for `read_logs`: Slurm's of that job, then DiskLogger's.

    Slurm's files are found by ``--output`` and ``--error`` of finetune.slurm, and as ``slurm-*.out``. The last
    job is the one with the highest id whose log tells of a training; when none does, the one with the
    highest id. A requeued job keeps its id and its file.

    DiskLogger's file is the one that Slurm's log names. A killed job may have lost that line: then it is the
    one with the same loss at the same step. Without any log of Slurm's, it is the newest.

    Args:
        run_dir: the run directory; what is wrong with its files isn't said here.
        output: Slurm's file of the training job, wherever it is; None looks for it.
    """
    script = _script(run_dir)
    files = _of_last_job(run_dir) if output is None else [output]
    disk = _disk_log(run_dir, script, files)
    return [*files, *([disk] if disk is not None and disk not in files else [])]


def _of_last_job(run_dir: Path) -> list[Path]:
    jobs = job_logs(run_dir)
    newest_first = sorted(jobs, reverse=True)
    chosen = next((job for job in newest_first if any(map(_tells_of_training, jobs[job]))), None)
    if chosen is None and newest_first:
        chosen = newest_first[0]
    return jobs[chosen] if chosen is not None else []


def job_logs(run_dir: Path) -> dict[Job, list[Path]]:
    """Slurm's files of each job of a run: (job id, array task; -1 when it is no array) -> output, error.

    A file whose name has no job id, for the pattern has none, counts as of job -1.
    """
    script = _script(run_dir)
    header = script.header if script is not None else {}
    # No path holds a NUL byte; a damaged script may.
    header = {name: value for name, value in header.items() if "\0" not in value}
    found: dict[Job, list[Path]] = {}
    for pattern in (*_DEFAULT_PATTERNS, header.get("output", ""), header.get("error", "")):
        for job, path in _matching(run_dir, pattern, header):
            if path not in found.setdefault(job, []):
                found[job].append(path)
    return found


def _script(run_dir: Path) -> SlurmScript | None:
    try:
        return read_script(run_dir / SCRIPT_NAME, {})
    except OSError:
        return None


def _matching(run_dir: Path, pattern: str, header: Mapping[str, str]) -> Iterator[tuple[Job, Path]]:
    """Files by one of sbatch's filename patterns, below the run directory or with the job's name in the path."""
    if not pattern:
        return
    name = header.get("job-name")
    pattern = re.sub(r"%x", lambda match: name or match.group(), pattern)
    expression, wildcard, last = "", "", 0
    for placeholder in _PLACEHOLDER.finditer(pattern):
        literal = pattern[last : placeholder.start()]
        letter = placeholder.group(1)
        group = {"j": r"(?P<job>\d+)", "A": r"(?P<job>\d+)", "a": r"(?P<task>\d+)", "%": "%"}.get(letter)
        if group is None or (group.startswith("(") and group in expression):
            group = r"\d+" if letter in "jAa" else "[^/]*"
        expression += re.escape(literal) + group
        wildcard += glob.escape(literal) + ("%" if letter == "%" else "*")
        last = placeholder.end()
    expression += re.escape(pattern[last:])
    wildcard += glob.escape(pattern[last:])
    for base in dict.fromkeys((run_dir, run_dir / header.get("chdir", "."))):
        whole = re.compile(re.escape(_before(base, pattern)) + expression)
        for found in sorted(glob.glob(glob.escape(_before(base, pattern)) + wildcard)):  # noqa: PTH207  # absolute patterns
            match = whole.fullmatch(found)
            if match is None or not Path(found).is_file() or not _is_of_run(Path(found), run_dir, name):
                continue
            groups = match.groupdict()
            yield (int(groups.get("job") or -1), int(groups.get("task") or -1)), Path(found)


def _before(base: Path, pattern: str) -> str:
    """What stands before a pattern: nothing where it is absolute."""
    return "" if pattern.startswith("/") else f"{base}/"


def _is_of_run(path: Path, run_dir: Path, job_name: str | None) -> bool:
    """A directory of logs may be shared by the runs of an experiment."""
    directory = run_dir.resolve()
    return path.resolve().is_relative_to(directory) or any(
        name and name in str(path) for name in (job_name, directory.name)
    )


def _tells_of_training(path: Path) -> bool:
    try:
        return any(mark in block for block in blocks(path) for mark in _TRAINING_MARKS)
    except UsageError:
        return False


def _disk_log(run_dir: Path, script: SlurmScript | None, slurm_logs: Iterable[Path]) -> Path | None:
    """DiskLogger's file of the training that `slurm_logs` tell of."""
    bases = [run_dir]
    for below in (script.header.get("chdir"), script.directory) if script is not None else ():
        bases.append(run_dir / (below or "."))
    named, losses, any_log = None, [], False
    for log in slurm_logs:
        any_log = True
        for block in _readable(log):
            for match in _WRITES_TO.finditer(block):
                named = match.group(1).strip().decode("utf-8", "replace")
        losses += _last_losses(log)
    if named is not None:
        return next((base / named for base in bases if _is_file(base / named)), None)
    candidates = _by_config(run_dir, script, bases)
    if not any_log:
        return next(iter(candidates), None)
    return next((path for path in candidates if losses and _has_any(path, losses)), None)


def _is_file(path: Path) -> bool:
    """Whether there is such a file; a log may name what no file can be called."""
    try:
        return path.is_file()
    except OSError:
        return False


def _by_config(run_dir: Path, script: SlurmScript | None, bases: Iterable[Path]) -> list[Path]:
    """Files where the config has DiskLogger write, newest first: their names tell when they were begun."""
    if not (run_dir / CONFIG_NAME).is_file():
        return []
    config = read_config(run_dir / CONFIG_NAME, script, Findings())
    section: Any = config.get("metric_logger") if config is not None else None
    if not isinstance(section, Mapping) or not str(section.get("_component_")).endswith("DiskLogger"):
        return []
    log_dir, name = section.get("log_dir"), section.get("filename")
    if not isinstance(log_dir, str):
        return []
    pattern = glob.escape(name) if isinstance(name, str) else "log_*.txt"
    try:
        found = {path.resolve(): path for base in bases for path in (base / log_dir).glob(pattern)}
        return sorted(found.values(), key=lambda path: (_begun(path), path.stat().st_mtime), reverse=True)
    except (OSError, ValueError, NotImplementedError):
        # A name that no file can have, or an absolute one, which glob doesn't take.
        return []


def _begun(path: Path) -> int:
    match = re.fullmatch(r"log_(\d{1,15})\.txt", path.name)
    return int(match.group(1)) if match else 0


def _last_losses(log: Path) -> list[bytes]:
    """The steps at the end of a progress bar, as DiskLogger writes them: both print the same float."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            found = _BAR.findall(file.read())
    except OSError:
        return []
    return [b"Step %s | loss:%s " % pair for pair in found]


def _has_any(path: Path, texts: Iterable[bytes]) -> bool:
    return any(text in block for block in _readable(path) for text in texts)


def _readable(path: Path) -> Iterator[bytes]:
    try:
        yield from blocks(path)
    except UsageError:
        return
