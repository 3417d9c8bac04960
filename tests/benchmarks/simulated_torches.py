"""The tests of the CUDA path with several builds of PyTorch, as a table.

make test-cuda-all
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.machine import machine_facts

_VERSIONS = (
    "import importlib.metadata as m, platform, torch; "
    "print(torch.__version__, torch.version.cuda, m.version('triton'), platform.python_version(), sep=' | ')"
)
_HEADER = ("torch", "CUDA", "Triton", "Python", "passed", "failed", "skipped", "seconds")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them, print the table; 1 when a test fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("environments", nargs="+", type=Path, help="virtual environments")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    options = parser.parse_args(arguments)
    lines = ["| " + " | ".join(_HEADER) + " |", "|" + " --- |" * len(_HEADER)]
    failed_anywhere = False
    for environment in options.environments:
        simulate = [str(environment / "bin" / "autobatch"), "simulate", "--gpus", "4", "--", "python"]
        versions = _run([*simulate, "-c", _VERSIONS])[1].strip().splitlines()[-1]
        began = time.monotonic()
        status, said = _run([*simulate, "-m", "pytest", "tests/cuda", "-n", "2", "--dist", "loadfile", "-q"])
        seconds = time.monotonic() - began
        passed, failed, skipped = (_count(said, word) for word in ("passed", "failed", "skipped"))
        failed_anywhere = failed_anywhere or status != 0
        lines.append(f"| {versions} | {passed} | {failed} | {skipped} | {seconds:.0f} |")
        print(lines[-1], flush=True)
        if status != 0:
            print(said)
    if options.markdown:
        facts = machine_facts()
        head = f"{facts['cpu']}, {facts['cores']} cores, no GPU; torchtune {facts['versions']['torchtune']}."
        options.markdown.write_text("\n".join([head, "", *lines]) + "\n", encoding="utf-8")
    return int(failed_anywhere)


def _run(command: Sequence[str]) -> tuple[int, str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return done.returncode, done.stdout


def _count(said: str, word: str) -> int:
    found = re.search(rf"(\d+) {word}", said)
    return int(found[1]) if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
