"""What must hold of any log that autobatch reads.

Nothing is raised, whatever the bytes; the files are left as they are; and the same log says the same when it is
read in other ways: line by line and not in one go (a word in it makes the reader look closer), with escape
sequences of a terminal in it, with lines in between that tell nothing, cut at another block.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from hypothesis import strategies as st

from autobatch.metrics.accounting import job_accounts, job_output
from autobatch.metrics.gpu_samples import read_gpu_samples
from autobatch.metrics.log_packing import estimated, max_seq_len_of
from autobatch.metrics.logs import find_logs, read_logs
from autobatch.metrics.records import LogMetrics
from autobatch.packing.logs import packing_progress
from tests.benchmarks.fuzz_log_texts import (
    ACCOUNTS,
    LOGS,
    PADDING,
    RUNS,
    SAMPLES,
    SCONTROL,
    TRAININGS,
    Training,
)
from tests.benchmarks.fuzz_rounds import Check

#: Of `autobatch.metrics.log_text`: a text is read in blocks of so many bytes.
BLOCK_BYTES = 2**20

_FOLDER = tempfile.TemporaryDirectory(prefix="fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
FOLDER = Path(_FOLDER.name)


def check_read(case: tuple[bytes, bytes]) -> str:
    """`read_logs`, `packing_progress` and what is made of them: whatever the bytes."""
    paths = []
    for number, content in enumerate(case):
        path = FOLDER / f"{number}.log"
        path.write_bytes(content)
        paths.append(path)
    found = read_logs(paths)
    assert [path.read_bytes() for path in paths] == list(case)
    assert found.steps >= 0
    assert found.training_seconds is None or found.training_seconds >= 0
    assert all(density is None or density > 0 for density in (found.packing.packing_density,))
    json.dumps([found.steps, dict(found.peak_memory_gib), found.loss, found.tokens_per_second])
    packing_progress(paths[0])
    estimated(found.packing, mean_tokens=100, max_seq_len=max_seq_len_of(found.config) or 2048)
    return f"{'some' if found.steps else 'no'} steps"


def check_ways(case: tuple[bytes, int]) -> str:
    """The same log, read in other ways."""
    log, cut = case
    first = _metrics(log)
    assert _said(b"reloaded\n" + log) == repr(first), "line by line it says something else"
    if b"\x1b" not in log:
        coloured = re.sub(rb"(?<=[\r\n])(?=[^\r\n])", b"\x1b[0m", log)
        assert _said(coloured) == repr(first), "with escape sequences it says something else"
    spaces = max(0, BLOCK_BYTES - 1 - cut % (len(log) + 1))
    assert _said(PADDING[:spaces] + b"\n" + log) == repr(first), "cut there it says something else"
    return f"{'some' if first.steps else 'no'} steps"


def check_training(training: Training) -> str:
    """A log as torchtune writes it, with lines that tell nothing in between: all that it says is found."""
    found = _metrics(training.log)
    assert found.steps == training.steps
    assert found.recipe == training.recipe
    assert found.loss == training.loss
    assert found.packing.total_examples == training.examples
    assert found.peak_memory_gib.get("reserved") == training.reserved
    assert found.config.get("batch_size") == training.batch_size
    return "read"


def check_samples(content: bytes) -> str:
    """`read_gpu_samples` and all that it answers."""
    path = FOLDER / "gpu_metrics.csv"
    path.write_bytes(content)
    samples = read_gpu_samples(path)
    assert path.read_bytes() == content
    figures = (
        samples.seconds,
        samples.peak_memory_gib,
        samples.mean_memory_gib,
        samples.mean_utilization_pct,
    )
    assert samples.gpus <= len(samples.samples)
    if samples.start is not None and samples.end is not None:
        samples.between(samples.start, datetime(2026, 1, 1))
    assert all(figure is None or isinstance(figure, float) for figure in figures)
    return f"{'some' if samples.samples else 'no'} samples"


def check_accounts(case: tuple[str | None, str | None]) -> str:
    """`job_accounts` and `job_output`, whatever Slurm's clients print."""
    listed, shown = case

    def ask(*command: str) -> str | None:
        return listed if command[0] == "sacct" else shown

    accounts = job_accounts(["28", "28_0"], ask=ask)
    for account in accounts.values():
        assert account.state
        for time in (account.start, account.end):
            assert time is None or time.tzinfo is None, "a time with a zone can't be compared"
        assert account.elapsed_s is None or account.elapsed_s >= 0
    job_output("28", ask=ask)
    return f"{len(accounts)} jobs"


def check_files(case: Mapping[str, bytes]) -> str:
    """`find_logs` in any run directory; what it finds is read."""
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        run = Path(folder) / "run1"
        run.mkdir()
        for name, content in case.items():
            path = run / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        found = find_logs(run)
        read_logs(found)
        assert all((run / name).read_bytes() == content for name, content in case.items())
    return f"{len(found)} files"


def _metrics(log: bytes) -> LogMetrics:
    path = FOLDER / "one.log"
    path.write_bytes(log)
    return read_logs([path])


def _said(log: bytes) -> str:
    """For comparing: NaN isn't itself."""
    return repr(_metrics(log))


CHECKS = {
    "read_logs": Check(st.tuples(LOGS, LOGS), check_read),
    "read_logs, other ways": Check(st.tuples(LOGS, st.integers(0, 4000)), check_ways),
    "read_logs, torchtune's": Check(TRAININGS, check_training),
    "read_gpu_samples": Check(SAMPLES, check_samples),
    "job_accounts": Check(st.tuples(ACCOUNTS, SCONTROL), check_accounts),
    "find_logs": Check(RUNS, check_files),
}
