"""The signal with which Slurm warns a probe's job: of its time limit, and where it is preempted.

It is meant for the job alone (`launch/entry.py`). Where Slurm signals each process of a step (ProctrackType
linuxproc or pgid), it would end whatever else the job has started: a trial would seem to have crashed just when
the search ends in time.
"""

from __future__ import annotations

import os
import signal

#: submitit asks Slurm for the signal that the variable names, without its SIG.
_VARIABLE, _DEFAULT = "SUBMITIT_PREEMPT_SIGNAL", "USR2"


def warning_signal() -> signal.Signals:
    """The signal, as submitit would choose it in this environment."""
    name = os.environ.get(_VARIABLE, _DEFAULT)
    return signal.Signals.__members__.get(f"SIG{name}", signal.SIGUSR2)


def ignore_warning() -> None:
    """Leave the warning to the job; what this process starts ignores it too."""
    signal.signal(warning_signal(), signal.SIG_IGN)
