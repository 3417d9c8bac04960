"""`autobatch demo [DIR]`: lay out a complete small run and probe it."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

_DESCRIPTION = """\
Lay out a complete small experiment in DIR and probe its run: a Llama-3.2-shaped model of a few
million random weights, a small trained tokenizer, 2,000 made-up instruction examples of varied
length, finetune.yaml, finetune.slurm and runs_plan.md. Needs no GPU, no Slurm and no download.
With --gpu, a run in the shape of Llama 3.2 1B, on a simulated GPU: it needs a CUDA build of PyTorch and a C
compiler, and no GPU.
"""

_EPILOG = """\
example:
  $ autobatch demo demo-run
  ...
  batch_size 9 (peak 1.04 GiB, 69.3 % of 1.50 GiB); batch_size 10 would take 73.3 %
  ...
  report: demo-run/run1/probe/report.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.add_argument(
        "directory",
        metavar="DIR",
        nargs="?",
        default="demo-run",
        help="where to lay it out (default: demo-run)",
    )
    parser.add_argument(
        "--capacity",
        metavar="SIZE",
        help="pretend that there is this much memory (default: 1.5GiB; with --gpu, the GPU's)",
    )
    parser.add_argument(
        "--gpu", metavar="NAME", help="simulate this GPU, such as h100-80gb; a wrong name lists all"
    )
    parser.add_argument(
        "--cluster",
        choices=("auto", "slurm", "local", "inline"),
        help="as in autobatch probe (default: local; with --gpu, inline)",
    )
    parser.add_argument("--lay-out-only", action="store_true", help="write the files and probe nothing")
    parser.add_argument(
        "--force", action="store_true", help="write into a directory that holds files already"
    )


def run(arguments: argparse.Namespace) -> int:
    """Lay out and probe."""
    from autobatch.cli.main import main
    from autobatch.demo import LLAMA_1B, lay_out
    from autobatch.launch.drawing import PAGE

    if arguments.gpu is not None:
        _begin_simulation(arguments)
    # It says at import that its CUDA extensions need another torch; the demo makes its weights without them.
    logging.getLogger("torchao").setLevel(logging.ERROR)
    directory = Path(arguments.directory)
    run_dir = lay_out(directory, LLAMA_1B if arguments.gpu else None, force=arguments.force)
    print(f"laid out {directory}: {run_dir} and what it needs", file=sys.stderr)
    if arguments.lay_out_only:
        return 0
    capacity = arguments.capacity or ("" if arguments.gpu else "1.5GiB")
    words = [
        "probe",
        str(run_dir),
        "--cluster",
        arguments.cluster or ("inline" if arguments.gpu else "local"),
    ]
    words += ["--capacity", capacity] if capacity else []
    simulation = f"autobatch simulate --gpu {arguments.gpu} -- " if arguments.gpu else ""
    print(f"$ {simulation}autobatch {' '.join(words)}", file=sys.stderr)
    code = main(words)
    page = run_dir / "probe" / PAGE
    if page.is_file():
        print(f"report: {page}", file=sys.stderr)
    return code


def _begin_simulation(arguments: argparse.Namespace) -> None:
    """Start this command again on a simulated GPU, unless it runs on one."""
    from autobatch.simulated_gpu.environment import is_simulated, simulated_environment
    from autobatch.simulated_gpu.gpus import gpu_named

    if is_simulated():
        return
    environment = simulated_environment(gpu_named(arguments.gpu))
    command = [
        sys.executable,
        "-m",
        "autobatch.cli.main",
        "demo",
        arguments.directory,
        "--gpu",
        arguments.gpu,
    ]
    command += ["--capacity", arguments.capacity] if arguments.capacity else []
    command += ["--cluster", arguments.cluster] if arguments.cluster else []
    command += ["--lay-out-only"] if arguments.lay_out_only else []
    command += ["--force"] if arguments.force else []
    sys.stdout.flush()
    os.execve(command[0], command, environment)
