"""A process with a fork server that imports MODULE first: `python -m tests.cuda.around_a_server MODULE DIRECTORY`.

Says of two children, one after the other, how they ended, whether they were forked by the server, and whether they
could use CUDA.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from pathlib import Path

from autobatch.probing.forkserver import ForkServer, preloaded


def say(path: str) -> None:
    import torch

    usable = torch.zeros(2, device="cuda").numel() == 2
    Path(path).write_text(json.dumps({"parent": os.getppid(), "usable": usable}))


def main(module: str, directory: str) -> None:
    server = ForkServer({}, "cuda")
    # Beside what it imports itself.
    multiprocessing.get_context("forkserver").set_forkserver_preload(
        [*preloaded("cuda", ranks=False), module]
    )
    for name in ("first", "second"):
        answer = Path(directory) / name
        ended = server.run(say, str(answer), log=Path(directory) / f"{name}.log", timeout_s=120)
        said = json.loads(answer.read_text()) if answer.exists() else {"parent": 0, "usable": False}
        seen = {"code": ended.code, "forked": said["parent"] != os.getpid(), "usable": said["usable"]}
        sys.stdout.write(json.dumps(seen) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
