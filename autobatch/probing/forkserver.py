"""Fresh processes at the price of a fork: a server that has torch and torchtune's dependencies imported.

A trial needs a process of its own, so that fragmentation, a leak or a crash never reaches the next
reading, but a cold start costs 5 to 13 s of imports. `multiprocessing`'s fork server imports once and
forks from there in 0.05 s.

torchtune itself is not imported in the server: on a machine with a GPU that initialises CUDA
(`torchtune.utils._import_guard`), and a process forked from one with CUDA initialised can't use it. The
child imports it in 0.1 s. Should CUDA be initialised in the server all the same, children say so
(`CudaInherited`) and the server is given up for cold starts.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any

from autobatch.probing.slurm_warning import ignore_warning

#: Imported in the server: what torchtune's own imports take their time for.
_PRELOAD = (
    "torch",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.run",
    "torch.optim",
    "torchdata.stateful_dataloader",
    "datasets",
    "huggingface_hub",
    "omegaconf",
    "safetensors.torch",
    "sentencepiece",
    "tiktoken",
    "tokenizers",
    "autobatch.packing.build",
    "autobatch.probing.worker",
)

#: What the command `tune` imports beside a recipe: in the memory of a training that it runs itself, not in that
#: of ranks, which torchrun starts by the recipe's file.
_PRELOAD_OF_THE_COMMAND = ("kagglehub",)

#: Only where there is no card to spoil: on a GPU machine `torchao.quantization.autoquant` asks for the card's
#: compute capability as it is imported, which initialises CUDA. There each child imports torchao, in 0.3 s.
_PRELOAD_ON_CPU = ("torchao", "torchao.quantization")

#: What compiling flex attention imports, a second's work. It asks for no card; on CPU it would only take memory.
_PRELOAD_ON_CUDA = ("torch._inductor.compile_fx",)

#: There where NVIDIA's driver is.
_DRIVER = Path("/dev/nvidiactl")

#: A child that finds CUDA initialised by its parent ends with this status (an unused one of sysexits.h).
CUDA_INHERITED = 79

#: Holds the id of the process that the server serves.
SERVED = "AUTOBATCH_SERVED"

#: Imported before anything else: the server ends with that process.
_FIRST = "autobatch.probing.served"

#: Asks the server to end with all that it has started; the kernel sends it when the job is gone.
SIGNAL_OF_THE_END = signal.SIGTERM

#: For the server alone: a trial is to look like a training.
FOR_THE_SERVER_ALONE = ("PYTORCH_NVML_BASED_CUDA_CHECK", "PYTHONSAFEPATH", SERVED)

#: With the first, `torch.cuda.is_available()` asks NVML and leaves the driver alone, which matters in the server;
#: tiktoken keeps copies of tokenizer files under a hash of their path as written, so that two runs with
#: `../model/tokenizer.model` would share one; an empty variable turns that off. With the last, a module of the
#: user's in the current directory isn't taken for one that the server imports.
_ENVIRONMENT = {
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
    "TIKTOKEN_CACHE_DIR": "",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONSAFEPATH": "1",
}

_PR_SET_PDEATHSIG = 1

#: multiprocessing's status of a child whose fork server is gone; the child went with it.
_SERVER_LOST = 255

#: Seconds in which a killed server, all of torch in its memory, is gone.
_SERVER_GOES_S = 2.0


def preloaded(device: str, *, ranks: bool) -> list[str]:
    """Modules to import once for all processes that are forked; none of them uses a card."""
    return [
        *_PRELOAD,
        *(() if ranks else _PRELOAD_OF_THE_COMMAND),
        *(() if device == "cuda" or _DRIVER.exists() else _PRELOAD_ON_CPU),
        *(_PRELOAD_ON_CUDA if device == "cuda" else ()),
    ]


@dataclass(frozen=True)
class Exit:
    """How a child ended.

    Attributes:
        code: exit status; negative: the signal that killed it.
        timed_out: it was still running at the deadline and was killed.
        seconds: from asking for it to its end.
    """

    code: int
    timed_out: bool
    seconds: float


class ForkServer:
    """Runs functions in fresh processes, one call at a time.

    Args:
        environment: set for the server and all its children, on top of this process's. It is set here
            too: multiprocessing's server is one for each process and inherits from it.
        device: that the children will use, ``cuda`` or ``cpu``.
        cold: no server: each process starts anew, with the environment that this one has by then.
        ranks: the children fork the ranks of distributed trainings.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        device: str = "cpu",
        *,
        cold: bool = False,
        ranks: bool = False,
    ) -> None:
        os.environ.update({**_ENVIRONMENT, **environment, SERVED: str(os.getpid())})
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([_FIRST, *preloaded(device, ranks=ranks)])
        self._context: ForkServerContext | SpawnContext = (
            multiprocessing.get_context("spawn") if cold else context
        )

    def start(self, log: Path | None = None) -> None:
        """Begin importing, without waiting for it.

        Args:
            log: gets the server's stderr, where libraries complain as they are imported; None leaves it with
                this process's.
        """
        from multiprocessing import forkserver

        if log is None:
            forkserver.ensure_running()
            return
        log.parent.mkdir(parents=True, exist_ok=True)
        kept = os.dup(2)
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            os.dup2(descriptor, 2)
            forkserver.ensure_running()
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(descriptor)

    def run(
        self,
        target: Callable[..., None],
        *arguments: Any,
        log: Path,
        timeout_s: float,
        on_wait: Callable[[], None] = lambda: None,
    ) -> Exit:
        """Call ``target(*arguments)`` in a fresh process and wait for it.

        Args:
            target: a module-level function.
            log: the child's stdout and stderr go there.
            timeout_s: after that many seconds the child and all its descendants are killed.
            on_wait: called several times a second meanwhile.
        """
        while True:
            ended = self._run_once(target, arguments, log, timeout_s, on_wait)
            if ended.code != CUDA_INHERITED or isinstance(self._context, SpawnContext):
                return ended
            self._context = multiprocessing.get_context("spawn")

    def _run_once(
        self,
        target: Callable[..., None],
        arguments: tuple[Any, ...],
        log: Path,
        timeout_s: float,
        on_wait: Callable[[], None],
    ) -> Exit:
        began = time.monotonic()
        forked = isinstance(self._context, ForkServerContext)
        process = self._context.Process(target=_child, args=(target, arguments, str(log), forked))
        try:
            process.start()
        except (EOFError, ConnectionError):
            # The server was killed. The next call starts another, once the kernel has done away with this one:
            # until then multiprocessing takes it for alive.
            time.sleep(_SERVER_GOES_S)
            return Exit(-signal.SIGKILL, False, time.monotonic() - began)
        timed_out = False
        try:
            while process.is_alive():
                process.join(0.1)
                on_wait()
                if time.monotonic() - began > timeout_s and process.is_alive():
                    timed_out = True
                    break
        finally:
            # Whatever ended it: nothing of a trial stays, dataloader and compile workers included.
            with suppress(ProcessLookupError):
                os.killpg(process.pid or 0, signal.SIGKILL)
            if process.is_alive():
                process.kill()
            process.join()
        code = process.exitcode if process.exitcode is not None else -signal.SIGKILL
        if forked and code == _SERVER_LOST:
            code = -signal.SIGKILL
        return Exit(code, timed_out, time.monotonic() - began)


def _child(target: Callable[..., None], arguments: tuple[Any, ...], log: str, forked: bool) -> None:
    """First lines of the new process: own session and log, and no outliving the server."""
    os.setsid()
    ignore_warning()
    signal.signal(SIGNAL_OF_THE_END, signal.SIG_DFL)
    if forked:
        # The server ends what its children have started. A cold child has no one to do so: killed by the kernel
        # as soon as the job is gone, it couldn't either.
        die_with_parent(signal.SIGKILL)
    _die_with_job()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    if forked and _cuda_is_initialised():
        os._exit(CUDA_INHERITED)
    for name in FOR_THE_SERVER_ALONE:
        os.environ.pop(name, None)
    target(*arguments)


def _die_with_job() -> None:
    """End this process and its descendants when the job is gone.

    The fork server would outlive the job: it waits until nobody holds its pipe any more, and multiprocessing
    gives every child an end of it.
    """
    job = multiprocessing.parent_process()
    assert job is not None

    def watch() -> None:
        job.join()
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="die with job").start()


def die_with_parent(number: signal.Signals) -> None:
    """Have the kernel send a signal when the parent ends (prctl(2)): a killed job leaves nothing behind."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
    if os.getppid() != parent:
        os._exit(1)


def _cuda_is_initialised() -> bool:
    """Whether this process is a fork of one with CUDA initialised, by torch or by anything else.

    torch notes it at the fork, and `torch.cuda.is_initialized()` is False from then on. /dev/nvidia-uvm is
    opened by the CUDA driver, not by NVML.
    """
    import torch

    if torch.cuda._is_in_bad_fork():
        return True
    for descriptor in Path("/proc/self/fd").iterdir():
        # The one that lists this folder is closed by now.
        with suppress(OSError):
            if str(descriptor.readlink()).startswith("/dev/nvidia-uvm"):
                return True
    return False
