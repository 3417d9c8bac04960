"""Why a training ended, as its log says: PyTorch's errors, Slurm's lines, the shell's."""

from __future__ import annotations

import re

from autobatch.metrics.log_text import shown
from autobatch.runs.out_of_memory import HINTS, is_out_of_memory

TRACEBACK = b"Traceback (most recent call last):"

#: ``[rank0]: `` of torch.distributed, ``[default0]:`` of torchrun, ``0: `` of `srun --label`.
_PREFIX = re.compile(rb"^(?:\[[a-z]+\d+\]:|\d+:) ?")
#: ``ValueError: ...``, ``torch.OutOfMemoryError: ...``, ``KeyboardInterrupt``.
_ERROR = re.compile(rb"^[A-Za-z_][\w.]*(?::? *$|: )")
#: torchrun's summary of a child's failure, behind the child's own error.
_SUMMARY = b"ChildFailedError"
_FRAMES_AT_MOST = 2000

#: Source: slurm/src/slurmd/slurmstepd (req.c, mgr.c) and src/srun, from 17.11 to 23.11.
_SLURM_OUT_OF_MEMORY = re.compile(
    rb"oom[-_]kill event|error: [^\n]*exceeded memory limit|tasks? [-\d,]+: Out Of Memory"
    rb"|Out of memory: Kill(?:ed)? process"
)
_SLURM_END = re.compile(rb"\*\*\* (?:JOB|STEP) [^*]*?CANCELLED AT \S+(?: (DUE TO [^*]*?))? *\*\*\*")
#: bash's line on a child that a signal ended.
_SIGNAL = re.compile(rb"line \d+: +\d+ (?:Killed|Aborted|Segmentation fault|Bus error|Terminated)\b")

#: A line that says something about memory holds one of these.
MEMORY_MARKS = (
    *(hint.encode() for hint in HINTS),
    b"oom",
    b"memory limit",
    b"Out Of Memory",
    b"Out of memory",
)


class Ending:
    """Reads why one training ended, line by line.

    Attributes:
        out_of_memory: the line that says so.
        error: last line of the last traceback; without one, the shell's word of a signal.
        slurm: ``DUE TO TIME LIMIT`` and the like; ``CANCELLED`` when Slurm gives no reason.
    """

    def __init__(self) -> None:
        self.out_of_memory: str | None = None
        self.error: str | None = None
        self.slurm: str | None = None
        self._frames = 0

    @property
    def in_traceback(self) -> bool:
        """Whether the next line may be of a traceback."""
        return self._frames > 0

    def read_traceback(self, line: bytes) -> None:
        """The line that begins one, and every line after it while `in_traceback`."""
        if TRACEBACK in line:
            self._frames = 1
            return
        self._frames = 0 if self._frames > _FRAMES_AT_MOST else self._frames + 1
        text = _PREFIX.sub(b"", line.rstrip(b"\r"))
        if not _ERROR.match(text):
            return
        self._frames = 0
        error = shown(text)
        if _SUMMARY not in text or self.error is None:
            self.error = error
        if is_out_of_memory(error):
            self.out_of_memory = error

    def read_memory(self, line: bytes) -> None:
        """A line with one of `MEMORY_MARKS`, outside of tracebacks.

        Warnings tell of a plan that cuDNN didn't take, and go on.
        """
        if b"Warning" in line:
            return
        text = shown(_PREFIX.sub(b"", line))
        if _SLURM_OUT_OF_MEMORY.search(line) or (is_out_of_memory(text) and "CUDNN_STATUS_NOT_" not in text):
            self.out_of_memory = text

    def read_slurm(self, line: bytes) -> None:
        """A line with ``CANCELLED``."""
        if (found := _SLURM_END.search(line)) is not None:
            reason = found.group(1)
            self.slurm = reason.decode("utf-8", "replace").strip() if reason else self.slurm or "CANCELLED"

    def read_signal(self, line: bytes) -> None:
        """A line such as ``slurm_script: line 31: 4711 Killed  tune run ...``."""
        if self.error is None and _SIGNAL.search(line):
            self.error = shown(_PREFIX.sub(b"", line))

    def went_on(self) -> None:
        """A later step was seen: whatever was said, it wasn't the end."""
        self.out_of_memory = self.error = None
        self._frames = 0

    def merged(self, other: Ending) -> Ending:
        """What both files of a training say, this one first."""
        both = Ending()
        both.out_of_memory = self.out_of_memory or other.out_of_memory
        both.error = self.error or other.error
        both.slurm = self.slurm or other.slurm
        return both
