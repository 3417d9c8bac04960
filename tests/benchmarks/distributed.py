"""Is a distributed probe's answer the right one? On CPU, against plain runs at every batch size.

As `tests.benchmarks.exactness`, for recipes of several processes with gloo. Plain `tune run --nproc_per_node N`,
with nothing of autobatch inside, trains at every batch size from 1 to two above the answer, and the largest of
its ranks' peaks is what is true. Plain runs and probes both go through `tests/recipes/on_cpu.py`, without which
torchtune's distributed recipes ask for CUDA.

    python -m tests.benchmarks.distributed
    python -m tests.benchmarks.distributed --configs lora-2-ranks --json figures.json

Exit status 1 when a bar fails, else 0. About twenty minutes on two cores.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import autobatch
from autobatch.demo import SmallRun
from autobatch.probing.meter import MALLOC_ENVIRONMENT
from autobatch.records import to_json
from autobatch.units import format_bytes
from tests.benchmarks.cases import MIB, TARGET, predicted_bytes
from tests.benchmarks.exactness import STEPS, in_a_process_of_its_own
from tests.benchmarks.judging import MAX_TRIALS, PEAK_TOLERANCE, Measured, markdown_table
from tests.benchmarks.machine import machine_facts, write_json
from tests.benchmarks.plain import PlainRun, PlainRunFailed

_SHIM = Path(__file__).parents[1] / "recipes" / "on_cpu.py"

#: The batch_size that the capacities are meant for: small, as a plain run of 4 ranks is slow on 2 cores.
_AIM = 3

_POLL_S = 0.02

_TIMEOUT_S = 600.0

_HEADER = (
    "config", "ranks", "capacity", "probe", "true", "exact", "peak, probe", "peak, plain", "difference",
    "largest difference", "peaks by rank, probe", "peaks by rank, plain", "sizes tried", "probe s",
)  # fmt: skip


@dataclass(frozen=True)
class DistributedCase:
    """One run to probe.

    Attributes:
        run: what is laid out.
        ranks: processes.
        heavy_rank: one that takes more memory than the others; None for none.
    """

    run: SmallRun
    ranks: int
    heavy_rank: int | None = None

    @property
    def capacity_bytes(self) -> int:
        """By the rule of thumb of the exactness benchmark, as if the model were whole on each rank."""
        return round(predicted_bytes(self.run, _AIM) / TARGET / MIB) * MIB


CASES = (
    DistributedCase(SmallRun("lora-2-ranks-unequal", max_seq_len=256), 2, heavy_rank=1),
    DistributedCase(SmallRun("full-4-ranks", method="full", max_seq_len=256), 4),
    DistributedCase(
        SmallRun("full-2-ranks-accumulation", method="full", max_seq_len=256, gradient_accumulation_steps=4),
        2,
    ),
    DistributedCase(SmallRun("lora-4-ranks", max_seq_len=256), 4),
    DistributedCase(SmallRun("lora-2-ranks", max_seq_len=256), 2),
    DistributedCase(SmallRun("full-4-ranks-unequal", method="full", max_seq_len=256), 4, heavy_rank=2),
)


@dataclass(frozen=True)
class Distributed:
    """What one case gave.

    Attributes:
        case: its name.
        ranks: processes.
        measured: as for one process; a plain run's peaks are of the largest rank (``resident``) and of each
            (``rank 0``, ...).
    """

    case: str
    ranks: int
    measured: Measured

    @property
    def differences(self) -> list[float]:
        """The probe's peak over the plain run's, at every size that both have."""
        plain = {run.batch_size: run.peaks_bytes["resident"] for run in self.measured.plain}
        return [
            trial.peak_bytes / plain[trial.batch_size] - 1
            for trial in self.measured.trials
            if trial.peak_bytes is not None and not trial.cut_short and trial.batch_size in plain
        ]

    def failed_bars(self) -> list[str]:
        """What isn't as it must be."""
        measured, failed = self.measured, []
        if measured.batch_size is None or measured.batch_size != measured.true_batch_size:
            failed.append(f"batch_size {measured.batch_size} instead of {measured.true_batch_size}")
        if any(abs(difference) > PEAK_TOLERANCE for difference in self.differences):
            failed.append(f"a peak is off by more than {100 * PEAK_TOLERANCE:g} %")
        if len(measured.trials) > MAX_TRIALS:
            failed.append(f"{len(measured.trials)} trials (limit {MAX_TRIALS})")
        return failed

    def row(self) -> tuple[str, ...]:
        """The cells under the header."""
        measured = self.measured
        at = next((t for t in measured.trials if t.batch_size == measured.batch_size), None)
        plain = next((r for r in measured.plain if r.batch_size == measured.batch_size), None)
        if at is None or plain is None or measured.difference is None:
            return (self.case, str(self.ranks), *["-"] * (len(_HEADER) - 2))
        largest = max(self.differences, key=abs)
        return (
            self.case,
            str(self.ranks),
            format_bytes(measured.capacity_bytes),
            str(measured.batch_size),
            str(measured.true_batch_size),
            "yes" if measured.batch_size == measured.true_batch_size else "NO",
            format_bytes(measured.probe_peak or 0),
            format_bytes(measured.plain_peak or 0),
            f"{100 * measured.difference:+.2f} %",
            f"{100 * largest:+.2f} %",
            _mib(peaks["resident"] for peaks in at.peaks_by_rank),
            _mib(plain.peaks_bytes[f"rank {rank}"] for rank in range(self.ranks)),
            " ".join(str(trial.batch_size) for trial in measured.trials),
            f"{measured.seconds:.1f}",
        )


def _mib(peaks: Any) -> str:
    return " ".join(f"{peak / MIB:.0f}" for peak in peaks)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the chosen cases, print the table, write the figures."""
    options = _parser().parse_args(arguments)
    known = {case.run.name: case for case in CASES}
    names = options.configs.split(",") if options.configs else list(known)
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"no such config: {', '.join(unknown)}; there are {', '.join(known)}")
    os.environ["OMP_NUM_THREADS"] = "1"
    facts = {**machine_facts(), "date": datetime.now(timezone.utc).date().isoformat()}
    done = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="distributed-") as scratch:
            done.append(measure(known[name], Path(scratch)))
        print("\n".join(markdown_table(_HEADER, [done[-1].row()])), flush=True)
        if options.json:
            write_json({**facts, "target": TARGET, "steps": STEPS, "cases": to_json(done)}, options.json)
    lines = report(facts, done)
    print("\n".join(lines))
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if any(case.failed_bars() for case in done) else 0


def report(facts: dict[str, Any], done: Sequence[Distributed]) -> list[str]:
    """The table as Markdown, with what it was measured on and which bars fail."""
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    failed = [f"- {case.case}: {bar}" for case in done for bar in case.failed_bars()]
    return [
        "# Distributed probes against plain runs, on CPU",
        "",
        f"{facts['cpu']}, {facts['cores']} cores; {versions}; {facts['date']}. gloo, one thread a rank.",
        f"Target {100 * TARGET:g} % of the capacity. A plain run is `tune run --nproc_per_node N` for {STEPS} "
        "optimizer steps and its checkpoint, at every batch size from 1 to two above the answer; its peak is that "
        "of its largest rank (the kernel's VmHWM, looked at every 20 ms).",
        "",
        *markdown_table(_HEADER, [case.row() for case in done]),
        "",
        "`probe` is the probe's answer, `true` the largest batch_size whose plain run stays within the target. "
        "`difference` is at the answer, `largest difference` over all sizes that the probe tried. Ranks' peaks "
        "are in MiB, at the answer. In `-unequal` one rank holds 32 MiB and 8 MiB for every sequence of a batch "
        "more than the others, in plain runs and probes.",
        "",
        *(["Bars that fail:", "", *failed] if failed else ["All bars hold."]),
    ]


def measure(case: DistributedCase, scratch: Path) -> Distributed:
    """Probe one case, then run it plainly at every size up to two above the answer."""
    in_a_process_of_its_own(scratch, case.run)
    run_dir = scratch / case.run.name
    on_ranks(run_dir, case)
    began = time.monotonic()
    result = autobatch.probe(run_dir, cluster="inline", target=TARGET, capacity=case.capacity_bytes)
    seconds = time.monotonic() - began
    print(f"{case.run.name}: {result.message} ({seconds:.1f} s)", flush=True)
    plain = []
    for batch_size in range(1, (result.batch_size or 0) + 3):
        plain.append(run_plain_ranks(run_dir, batch_size, case.ranks))
        peaks = _mib(plain[-1].peaks_bytes[f"rank {rank}"] for rank in range(case.ranks))
        print(f"  plain, batch_size {batch_size}: {peaks} MiB, {plain[-1].seconds:.1f} s", flush=True)
    measured = Measured(
        name=case.run.name,
        capacity_bytes=case.capacity_bytes,
        target_bytes=result.target_bytes or 0,
        batch_size=result.batch_size,
        message=result.message,
        seconds=seconds,
        trials=tuple(replace(trial, detail=trial.detail[:200]) for trial in result.trials),
        plain=tuple(plain),
    )
    return Distributed(case.run.name, case.ranks, measured)


def on_ranks(run_dir: Path, case: DistributedCase, *, heavy_rank: int | None = None) -> None:
    """Let a laid out run train on the case's ranks, by the shim.

    Args:
        run_dir: of the run.
        case: whose run it is.
        heavy_rank: another one than the case's.
    """
    shutil.copy(_SHIM, run_dir)
    method = "full" if case.run.method == "full" else "lora"
    script, config = run_dir / "finetune.slurm", run_dir / "finetune.yaml"
    single = f"tune run {case.run.recipe_name}"
    script.write_text(
        script.read_text().replace(single, f"tune run --nproc_per_node {case.ranks} {_SHIM.name}")
    )
    rank = case.heavy_rank if heavy_rank is None else heavy_rank
    heavy = "" if rank is None else f"heavy_rank: {rank}\n"
    config.write_text(f"{config.read_text()}\non_cpu: {method}_finetune_distributed\n{heavy}")


def run_plain_ranks(run_dir: Path, batch_size: int, ranks: int) -> PlainRun:
    """Train `STEPS` optimizer steps on `ranks` processes and read the peak of each.

    Raises:
        PlainRunFailed: the training failed, or a rank was never seen.
    """
    command = [
        *(str(Path(sys.executable).parent / "tune"), "run", "--nproc_per_node", str(ranks), _SHIM.name),
        *(
            "--config",
            "finetune.yaml",
            f"batch_size={batch_size}",
            f"max_steps_per_epoch={STEPS}",
            "epochs=1",
        ),
    ]
    began = time.monotonic()
    peaks: dict[int, int] = {}
    with tempfile.TemporaryDirectory() as output:
        log = Path(output) / "tune.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*command, f"output_dir={output}/output"],
                cwd=run_dir,
                env={**os.environ, **MALLOC_ENVIRONMENT, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"},
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        while process.poll() is None:
            peaks |= _peaks_of_ranks(process.pid)
            if time.monotonic() - began > _TIMEOUT_S:
                process.kill()
            time.sleep(_POLL_S)
        if process.returncode != 0 or sorted(peaks) != list(range(ranks)):
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise PlainRunFailed(f"{' '.join(command)} ended with status {process.returncode}:\n{tail}")
    by_rank = {f"rank {rank}": peak for rank, peak in peaks.items()}
    return PlainRun(
        batch_size, STEPS, {"resident": max(peaks.values()), **by_rank}, None, time.monotonic() - began
    )


def _peaks_of_ranks(torchrun: int) -> dict[int, int]:
    """VmHWM of the children of a process, by the RANK in their environment."""
    found = {}
    for children in Path(f"/proc/{torchrun}/task").glob("*/children"):
        try:
            pids = children.read_text().split()
            for pid in pids:
                rank = re.search(rb"\0RANK=(\d+)\0", Path(f"/proc/{pid}/environ").read_bytes())
                peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
                if rank and peak:
                    found[int(rank.group(1))] = int(peak.group(1)) * 1024
        except OSError:
            continue
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.distributed",
        description="Compare distributed probes with plain runs at every batch size, on CPU.",
    )
    names = ", ".join(case.run.name for case in CASES)
    parser.add_argument("--configs", metavar="A,B", help=f"only these of: {names}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
