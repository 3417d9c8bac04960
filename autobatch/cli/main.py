"""`autobatch COMMAND ...`: finds the command's module, runs it, turns errors into exit codes."""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from autobatch import __version__
from autobatch.errors import AutobatchError, UsageError

#: name -> what it does. Each is a module of this package with `add_arguments(parser)` and `run(arguments)`;
#: only the one that is called is imported.
COMMANDS = {
    "init": "make a run directory from a torchtune config or one of autobatch's",
    "validate": "check a config, a run, an experiment or a plan before it costs a job",
    "estimate": "predict the peak memory of a run before any GPU is asked for",
    "probe": "measure the largest batch_size of a run and write it into its files",
    "verify": "check that a run's probe still holds, as the first line of its training job",
    "status": "show how far the probes of a run or an experiment are",
    "cancel": "end the probe of a run",
    "density": "show how the dataset of a run packs, from the dataset or from logs",
    "report": "show the last probe of a run, or those of an experiment, as table and picture",
    "metrics": "record what a training took in runs_status.yaml",
    "compare": "show the runs of an experiment side by side",
    "skills": "list the skills for an agent that works on the cluster, or install them",
    "simulate": "run a command with a simulated GPU: no GPU, the same memory",
    "demo": "lay out a complete small run and probe it",
}

_EXIT_CODES = """\
exit codes:
  0  done
  1  the answer is no: nothing fits, or the measurement can't be trusted
  2  wrong usage or unreadable input
  3  the job or the recipe crashed
  130, 143, ...  ended by a signal (128 and its number); a probe that was waited for is ended too

with --json, stdout holds one JSON value whatever the exit code: the command's answer, also when the answer is
no, or {"error": "what is wrong, where, what to do", "exit_code": 2} when there is none
"""

_EXAMPLE = """\
example:
  $ autobatch probe runs/run1
"""

#: What ends a process that does nothing about it; a terminal that is closed, and `kill`.
_ENDING = (signal.SIGTERM, signal.SIGHUP)


class _Ended(BaseException):
    """A signal told this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Parser(argparse.ArgumentParser):
    """Leaves it to `main` how to say that the words are wrong."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        raise UsageError(f"{message}\n    {self.prog} --help says more")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name, or a `±`, that the terminal's encoding doesn't have must not end the command.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with _ended_by_signals():
            code = _run(words)
            if sys.stdout is not None:
                sys.stdout.flush()
            return code
    except AutobatchError as error:
        return _fail(str(error), error.exit_code, words)
    except KeyboardInterrupt:
        return _fail("interrupted", 128 + signal.SIGINT, words)
    except _Ended as ended:
        return _fail(f"ended by {signal.Signals(ended.number).name}", 128 + ended.number, words)
    except BrokenPipeError:
        # The reader of our output (head, less) has gone; Python flushes once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 128 + signal.SIGPIPE
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", UsageError.exit_code, words)
    except Exception as error:
        if os.environ.get("AUTOBATCH_TRACEBACK"):
            traceback.print_exc()
        return _fail(_describe_bug(error), AutobatchError.exit_code, words)


def _run(words: list[str]) -> int:
    parser = _Parser(
        prog="autobatch",
        description="Measures the largest batch_size that a torchtune run can train with.",
        epilog=f"{_EXIT_CODES}\n{_EXAMPLE}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"autobatch {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, description=None, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name in words[:1]:
            importlib.import_module(f"autobatch.cli.{name}").add_arguments(command)
    arguments, rest = parser.parse_known_args(words)
    # argparse takes a list of positional arguments from one place only; `key=value`, or another run, may follow
    # any option.
    listed = getattr(arguments, "overrides", getattr(arguments, "paths", None))
    if listed is not None and not any(word.startswith("-") for word in rest):
        listed += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return int(importlib.import_module(f"autobatch.cli.{arguments.command}").run(arguments))


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Raise `_Ended` on a signal to end, so that what was begun is ended too."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        for further in taken:
            signal.signal(further, signal.SIG_IGN)
        raise _Ended(number)

    taken = []

    # One that is ignored (nohup) stays so. Only the main thread may set any.
    with suppress(ValueError):
        for number in _ENDING:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, on_signal)
                taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _fail(message: str, exit_code: int, words: Sequence[str]) -> int:
    """Say why there is no answer: to people on stderr, to a program that asked for JSON on stdout too."""
    # A full disk, or a reader that has gone: the exit code says it all the same.
    with suppress(OSError):
        print(f"autobatch: {message}", file=sys.stderr)
    # argparse takes an option's beginning, too.
    if any(len(word) > 2 and "--json".startswith(word) for word in words):
        with suppress(OSError):
            print(json.dumps({"error": message, "exit_code": exit_code}, indent=2), flush=True)
    return exit_code


def _describe_bug(error: Exception) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if f"{os.sep}autobatch{os.sep}" in frame.filename] or frames
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
    return (
        f"a bug in autobatch: {type(error).__name__}: {error} ({where})\n    please report it, with what "
        "AUTOBATCH_TRACEBACK=1 in the environment adds"
    )


if __name__ == "__main__":
    sys.exit(main())
