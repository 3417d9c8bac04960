"""Who holds the lock of a file: a process, told in the name of a file, and whether it is still there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import secrets
import socket
import time
from dataclasses import dataclass
from pathlib import Path

#: Ends the name of a holder's second file, its new text.
NEW = ".new"


@dataclass(frozen=True)
class Holder:
    """A process that has the lock, or wants it; `entry` is this as the name of a file.

    Attributes:
        host: its name.
        pid: of the process.
        start: when that started, in clock ticks since boot (``/proc/PID/stat``, field 22).
        system: of the kernel and the PID namespace; only where it is the same is `pid` the same process.
        since: Unix time on the host's clock, in seconds; for people.
        token: nobody else's.
    """

    host: str
    pid: int
    start: int
    system: str
    since: int
    token: str

    @classmethod
    def this(cls) -> Holder:
        """This process, with a new token."""
        host = re.sub(r"[^\w.-]", "_", socket.gethostname(), flags=re.ASCII)[:64] or "unknown"
        token = secrets.token_hex(8)
        pid = os.getpid()
        start = _start_of(pid)
        # /proc may be another PID namespace's: nobody can find this process by its number then.
        known = start is not None and start == _start_of("self")
        return cls(host, pid, start or 0, _this_system() if known else token, int(time.time()), token)

    @property
    def entry(self) -> str:
        return f"{self.host}~{self.pid}~{self.start}~{self.system}~{self.since}~{self.token}"

    @classmethod
    def parse(cls, entry: str) -> Holder | None:
        """The holder whose `entry` this is, or its new text; None for any other file."""
        found = re.fullmatch(
            r"([\w.-]+)~(\d+)~(\d+)~(\w+)~(\d+)~(\w+)", entry.removesuffix(NEW), flags=re.ASCII
        )
        if found is None:
            return None
        host, pid, start, system, since, token = found.groups()
        return cls(host, int(pid), int(start), system, int(since), token)

    @property
    def is_dead(self) -> bool:
        """Whether the process is known to be gone; False where this process can't know."""
        return self.system == _this_system() and self.start != _start_of(self.pid)

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        return f"process {self.pid} on {self.host} since {since}"


def _start_of(pid: int | str) -> int | None:
    """Start of a process in clock ticks since boot; None when it is gone, or a zombie."""
    try:
        content = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name of its program, in brackets, may hold anything.
    fields = content.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def _this_system() -> str:
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8"))
    for namespace in ("pid", "time"):
        with contextlib.suppress(OSError):
            parts.append(str(Path(f"/proc/self/ns/{namespace}").readlink()))
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:12]
