"""`autobatch simulate -- COMMAND`: run a command with a simulated GPU."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from autobatch.errors import UsageError
from autobatch.units import parse_bytes

_DESCRIPTION = """\
Run a command with a simulated GPU in place of a real one: PyTorch's own CUDA build, with its caching
allocator, its compiler and its out-of-memory errors, on libraries that count memory and run no kernel. A
probe or a training of an 80 GB card runs on a laptop, in little memory, and takes the same memory of that
card. Nothing is computed: every value read from the card is 0, a loss too, and times say nothing. A GPU of
this machine stays untouched. It needs a CUDA build of PyTorch and a C compiler, and compiles its libraries
at first use.
"""

_EPILOG = """\
a probe on a simulated GPU says so, and writes nothing into finetune.yaml or runs_plan.md

exit codes:
  those of the command; 1 where there is no CUDA build of PyTorch or no C compiler; 2 for a wrong option

example:
  $ autobatch simulate --gpu a100-40gb -- tune run lora_finetune_single_device --config finetune.yaml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.add_argument(
        "--gpu",
        metavar="NAME",
        default="h100-80gb",
        help="GPU to simulate, or a MIG slice of one, such as h100-80gb:3g.40gb (default: h100-80gb); a wrong "
        "name lists all",
    )
    parser.add_argument("--capacity", metavar="SIZE", help="with this much memory instead, such as 48GiB")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="how many of them (default: 1)")
    parser.add_argument(
        "--taken", metavar="SIZE", default="", help="memory of each that other processes use, such as 2GiB"
    )
    parser.add_argument(
        "--trace",
        action="store_true",
        help="tell which of NVIDIA's functions were only answered with success",
    )
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what to run")


def run(arguments: argparse.Namespace) -> int:
    """Become the command."""
    from autobatch.simulated_gpu.environment import simulated_environment
    from autobatch.simulated_gpu.gpus import gpu_named, gpu_of_capacity

    words = arguments.words[1:] if arguments.words[:1] == ["--"] else arguments.words
    if not words:
        raise UsageError("nothing to run: write the command behind --, such as -- tune run ...")
    if not 1 <= arguments.gpus <= 64:
        raise UsageError(f"--gpus {arguments.gpus}: a machine has 1 to 64")
    gpu = gpu_named(arguments.gpu)
    if arguments.capacity:
        gpu = gpu_of_capacity(gpu, parse_bytes(arguments.capacity))
    taken = parse_bytes(arguments.taken) if arguments.taken else 0
    # The libraries are compiled for this environment: its own `python` and `tune` come first, activated or not.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    program = shutil.which(words[0], path=path)
    if program is None:
        raise UsageError(f"{words[0]}: no such command")
    environment = simulated_environment(gpu, count=arguments.gpus, taken_bytes=taken, trace=arguments.trace)
    environment["PATH"] = path
    sys.stdout.flush()
    os.execve(program, words, environment)
