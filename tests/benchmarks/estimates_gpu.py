"""A simulated GPU against plain `tune run`s on the real one: the GPU benchmark's runs, three batch sizes each.

    python -m tests.benchmarks.estimates_gpu --markdown tests/benchmarks/results/estimates-gpu.md
    autobatch simulate -- python -m tests.benchmarks.estimates_gpu      # rehearsed: a simulated GPU against itself

The batch sizes are 1, the largest that the estimate says fits in 70 % of the GPU, and one halfway. What counts is
torchtune's own log of the allocator's peaks. Exit status 1 when a bar fails: allocated equal to the byte, reserved
within 2 %.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from autobatch.estimate.estimator import estimate
from autobatch.estimate.records import Question
from autobatch.simulated_gpu.gpus import gpu_of_product
from autobatch.units import format_bytes
from tests.benchmarks.gpu import in_a_process_of_its_own
from tests.benchmarks.gpu_cases import CASES, GpuCase, lay_out_case
from tests.benchmarks.plain import PlainRun, run_plain

_STEPS = 4
_TOKENS = 2048

#: Bar on the error of the reserved peak.
_RESERVED = 0.02

HEADER = ("config", "batch_size", "allocated", "simulated", "error", "reserved", "simulated", "error")


def main(arguments: Sequence[str] | None = None) -> int:
    """Estimate and train, print the table; 1 when a bar fails, 2 without a GPU."""
    options = _parser().parse_args(arguments)
    found = _gpu()
    if found is None:
        print("no CUDA device here, or one that can't be simulated", file=sys.stderr)
        return 2
    name, total = found
    failed = False
    lines = ["| " + " | ".join(HEADER) + " |", "|" + " --- |" * len(HEADER)]
    with tempfile.TemporaryDirectory(prefix="estimates-gpu-") as scratch:
        for case in CASES:
            if options.only and case.name not in options.only:
                continue
            directory = Path(scratch) / "runs" / case.name
            in_a_process_of_its_own(lay_out_case, directory, case, Path(scratch) / "models", "cuda", _TOKENS)
            run_dir = directory / case.name
            question = Question(str(run_dir), gpu=name, capacity_bytes=total)
            largest = max(1, estimate(question).fitting.batch_size or 0)
            for batch_size in sorted({1, (1 + largest) // 2, largest}):
                simulated = _simulated(run_dir, name, total, batch_size)
                plain = _train(run_dir, case, batch_size)
                line, holds = _row(case, plain, simulated)
                failed = failed or not holds
                lines.append(line)
                print(line, flush=True)
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return int(failed)


def _gpu() -> tuple[str, int] | None:
    """Name and bytes of the GPU here."""
    import torch

    if not torch.cuda.is_available():
        return None
    gpu = gpu_of_product(torch.cuda.get_device_name())
    return (gpu.name, torch.cuda.mem_get_info()[1]) if gpu is not None else None


def _simulated(run_dir: Path, name: str, total: int, batch_size: int) -> dict[str, int]:
    found = estimate(Question(str(run_dir), gpu=name, capacity_bytes=total, batch_size=batch_size))
    return {"allocated": found.allocated_bytes or 0, "reserved": found.reserved_bytes or 0}


def _train(run_dir: Path, case: GpuCase, batch_size: int) -> PlainRun:
    recipe = "full_finetune_single_device" if case.method == "full" else "lora_finetune_single_device"
    with tempfile.TemporaryDirectory(dir=run_dir) as output:
        return run_plain(
            run_dir,
            recipe,
            batch_size,
            steps=_STEPS,
            output_dir=Path(output),
            device="cuda",
            environment={"HF_HUB_OFFLINE": "1"},
        )


def _row(case: GpuCase, plain: PlainRun, simulated: dict[str, int]) -> tuple[str, bool]:
    cells = [case.name, str(plain.batch_size)]
    holds = True
    for metric, limit in (("allocated", 0.0), ("reserved", _RESERVED)):
        measured = plain.peaks_bytes.get(metric)
        cells += [format_bytes(measured) if measured else "-", format_bytes(simulated[metric]), "-"]
        if measured:
            error = simulated[metric] / measured - 1
            cells[-1] = f"{100 * error:+.2f} %"
            # GiB in the log, to the last digit of a float.
            holds = holds and abs(simulated[metric] - measured) <= limit * measured + 1
    return "| " + " | ".join(cells) + " |", holds


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument("--only", nargs="*", help="these cases")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
