"""`autobatch COMMAND ...`: finds the command's module, runs it, turns errors into exit codes."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from autobatch import __version__
from autobatch.errors import AutobatchError

#: name -> what it does. Each is a module of this package with `add_arguments(parser)` and `run(arguments)`;
#: only the one that is called is imported.
COMMANDS = {
    "init": "make a run directory from a torchtune config or one of autobatch's",
    "validate": "check a config, a run, an experiment or a plan before it costs a job",
    "probe": "measure the largest batch_size of a run and write it into its files",
    "verify": "check that a run's probe still holds, as the first line of its training job",
    "status": "show how far the probes of a run or an experiment are",
    "cancel": "end the probe of a run",
    "density": "show how the dataset of a run packs, from the dataset or from logs",
    "report": "show the last probe of a run",
    "metrics": "record what a training took in runs_status.yaml",
    "compare": "show the runs of an experiment side by side",
    "skills": "list the skills for an agent that works on the cluster, or install them",
    "demo": "lay out a complete small run and probe it",
}

_EXIT_CODES = """\
exit codes:
  0  done
  1  the answer is no: nothing fits, or the measurement can't be trusted
  2  wrong usage or unreadable input
  3  the job or the recipe crashed
"""

_EXAMPLE = """\
example:
  $ autobatch probe runs/run1
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
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
    # argparse takes a list of positional arguments from one place only; `key=value` may follow any option.
    if hasattr(arguments, "overrides") and not any(word.startswith("-") for word in rest):
        arguments.overrides += rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        code = importlib.import_module(f"autobatch.cli.{arguments.command}").run(arguments)
    except AutobatchError as error:
        print(f"autobatch: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("autobatch: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) has gone.
        sys.stderr.close()
        return 141
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
