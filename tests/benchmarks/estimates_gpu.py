"""The estimate against plain `tune run`s on a card: the GPU benchmark's runs, at three batch sizes each.

    python -m tests.benchmarks.estimates_gpu --markdown tests/benchmarks/results/estimates-gpu.md
    python -m tests.benchmarks.estimates_gpu --cpu-rehearsal

The batch sizes are 1, the largest that the estimate says fits in 70 % of the card, and one halfway. What counts is
torchtune's own log of the allocator's peaks. Exit status 1 when a bar fails: peak allocated, median error at most
3 %, worst 10 %. The rehearsal does the same in little without a card, where there is no such log to compare with.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from autobatch.estimate.cards import HOPPER, workspace_bytes
from autobatch.estimate.recording import recorded
from autobatch.estimate.subject import read_subject
from autobatch.estimate.trace import Curve
from autobatch.probing.forkserver import ForkServer
from autobatch.units import format_bytes
from tests.benchmarks.gpu import in_a_process_of_its_own
from tests.benchmarks.gpu_cases import CASES, REHEARSAL, GpuCase, lay_out_case
from tests.benchmarks.plain import PlainRun, run_plain

_STEPS = 4
_TARGET = 0.70
_TOKENS = {"cuda": 2048, "cpu": 128}

#: Bars on the error of the allocated peak.
_MEDIAN, _WORST = 0.03, 0.10

HEADER = ("config", "batch_size", "allocated", "estimate", "error", "reserved", "estimate", "error")


def main(arguments: Sequence[str] | None = None) -> int:
    """Estimate and train, print the table; 1 when a bar fails, 2 without a card."""
    options = _parser().parse_args(arguments)
    device = "cpu" if options.cpu_rehearsal else "cuda"
    total, workspace = _card(device)
    if total is None:
        print("no CUDA device here; --cpu-rehearsal runs the same in little without one", file=sys.stderr)
        return 2
    server = ForkServer({"PYTHONWARNINGS": "ignore"}, device)
    errors: list[float] = []
    lines = ["| " + " | ".join(HEADER) + " |", "|" + " --- |" * len(HEADER)]
    with tempfile.TemporaryDirectory(prefix="estimates-gpu-") as scratch:
        for case in REHEARSAL if options.cpu_rehearsal else CASES:
            run_dir = _laid_out(Path(scratch), case, device)
            curve = recorded(read_subject(run_dir), server, timeout_s=600, keep=None).curve
            for batch_size in _sizes(curve, total * _TARGET - workspace):
                plain = _train(run_dir, case, batch_size, device)
                lines.append(_row(case, plain, curve, workspace, errors))
                print(lines[-1], flush=True)
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if not errors:
        return 0
    median, worst = statistics.median(errors), max(errors)
    print(f"peak allocated: median error {100 * median:.2f} %, worst {100 * worst:.2f} %")
    return 0 if median <= _MEDIAN and worst <= _WORST else 1


def _card(device: str) -> tuple[int | None, int]:
    """Bytes of the card, None without one, and what cuBLAS takes of them."""
    if device == "cpu":
        return 2**30, 0
    import torch

    if not torch.cuda.is_available():
        return None, 0
    major, _ = torch.cuda.get_device_capability()
    return torch.cuda.get_device_properties(0).total_memory, workspace_bytes(max(major, HOPPER - 1))


def _laid_out(scratch: Path, case: GpuCase, device: str) -> Path:
    directory = scratch / "runs" / case.name
    in_a_process_of_its_own(lay_out_case, directory, case, scratch / "models", device, _TOKENS[device])
    return directory / case.name


def _sizes(curve: Curve, target_bytes: float) -> list[int]:
    largest = max(1, curve.largest(lambda peak: peak.reserved_bytes <= target_bytes, 64))
    return sorted({1, (1 + largest) // 2, largest})


def _train(run_dir: Path, case: GpuCase, batch_size: int, device: str) -> PlainRun:
    recipe = "full_finetune_single_device" if case.method == "full" else "lora_finetune_single_device"
    with tempfile.TemporaryDirectory(dir=run_dir) as output:
        return run_plain(
            run_dir,
            recipe,
            batch_size,
            steps=_STEPS,
            output_dir=Path(output),
            device=device,
            environment={"HF_HUB_OFFLINE": "1"},
        )


def _row(case: GpuCase, plain: PlainRun, curve: Curve, workspace: int, errors: list[float]) -> str:
    peak = curve.at(plain.batch_size)
    cells = [case.name, str(plain.batch_size)]
    for metric, tensors in (("allocated", peak.allocated_bytes), ("reserved", peak.reserved_bytes)):
        estimate, measured = tensors + workspace, plain.peaks_bytes.get(metric)
        cells += [format_bytes(measured) if measured else "-", format_bytes(estimate), "-"]
        if measured:
            cells[-1] = f"{100 * (estimate - measured) / measured:+.2f} %"
            if metric == "allocated":
                errors.append(abs(estimate - measured) / measured)
    return "| " + " | ".join(cells) + " |"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument(
        "--cpu-rehearsal", action="store_true", help="small runs on CPU: does all of it work?"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
