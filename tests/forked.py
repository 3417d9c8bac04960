"""What tests let the fork server run, and a process around one: `python -m tests.forked LOG PIDS`."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from autobatch.probing.forkserver import ForkServer


def end_with(status: int) -> None:
    sys.exit(status)


def leave_with(status: int) -> None:
    os._exit(status)


def kill_itself(number: int) -> None:
    os.kill(os.getpid(), number)


def fail() -> None:
    raise ValueError("something is wrong")


def say(to_stdout: str, to_stderr: str) -> None:
    sys.stdout.write(f"{to_stdout}\n")
    sys.stdout.flush()
    sys.stderr.write(f"{to_stderr}\n")
    subprocess.run(["echo", "from a grandchild"], check=True)


def write_environment(path: str, *names: str) -> None:
    Path(path).write_text("\n".join(f"{name}={os.environ.get(name)}" for name in names))


def write_what_is_imported(path: str, *names: str) -> None:
    Path(path).write_text("\n".join(f"{name} {name in sys.modules}" for name in names))


def hang_with_a_grandchild(pids: str) -> None:
    """Hang, with a child that hangs and ignores polite signals; their process ids are written down."""
    child = subprocess.Popen(["bash", "-c", "trap '' TERM HUP INT; sleep 600 & wait; sleep 600"])
    partial = Path(pids + ".part")
    partial.write_text(f"{os.getpid()} {child.pid}")
    partial.rename(pids)
    time.sleep(600)


def leave_a_grandchild(pids: str) -> None:
    child = subprocess.Popen(["sleep", "600"])
    Path(pids).write_text(str(child.pid))


def server_pid() -> int:
    """Of the fork server of this process."""
    from multiprocessing import forkserver

    pid: int = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]  # nothing public says it
    return pid


if __name__ == "__main__":
    server = ForkServer({"AUTOBATCH_TEST": "from the server's environment"}, cold=sys.argv[1] == "hang-cold")
    if sys.argv[1] == "environment":
        server.run(
            write_environment,
            sys.argv[3],
            "AUTOBATCH_TEST",
            "TIKTOKEN_CACHE_DIR",
            "INHERITED",
            log=Path(sys.argv[2]),
            timeout_s=120,
        )
    elif sys.argv[1] == "serve":
        server.start()
        sys.stdout.write(f"{server_pid()}\n")
        sys.stdout.flush()
        time.sleep(600)
    else:
        server.run(hang_with_a_grandchild, sys.argv[3], log=Path(sys.argv[2]), timeout_s=600)
