"""`autobatch demo [DIR]`: lay out a complete small run and probe it."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

_DESCRIPTION = """\
Lay out a complete small experiment in DIR and probe its run: a Llama-3.2-shaped model of a few
million random weights, a small trained tokenizer, 2,000 made-up instruction examples of varied
length, finetune.yaml, finetune.slurm and runs_plan.md. Needs no GPU, no Slurm and no download.
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
        default="1.5GiB",
        metavar="SIZE",
        help="pretend that the machine has this much memory (default: 1.5GiB)",
    )
    parser.add_argument(
        "--cluster",
        choices=("auto", "slurm", "local", "inline"),
        default="local",
        help="as in autobatch probe (default: local)",
    )
    parser.add_argument("--lay-out-only", action="store_true", help="write the files and probe nothing")
    parser.add_argument(
        "--force", action="store_true", help="write into a directory that holds files already"
    )


def run(arguments: argparse.Namespace) -> int:
    """Lay out and probe."""
    from autobatch.cli.main import main
    from autobatch.demo import lay_out
    from autobatch.launch.drawing import PAGE

    # It says at import that its CUDA extensions need another torch; the demo makes its weights without them.
    logging.getLogger("torchao").setLevel(logging.ERROR)
    directory = Path(arguments.directory)
    run_dir = lay_out(directory, force=arguments.force)
    print(f"laid out {directory}: {run_dir} and what it needs", file=sys.stderr)
    if arguments.lay_out_only:
        return 0
    words = ["probe", str(run_dir), "--capacity", arguments.capacity, "--cluster", arguments.cluster]
    print(f"$ autobatch {' '.join(words)}", file=sys.stderr)
    code = main(words)
    page = run_dir / "probe" / PAGE
    if page.is_file():
        print(f"report: {page}", file=sys.stderr)
    return code
