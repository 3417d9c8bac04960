"""`autobatch validate PATH`: check configs, runs and plans before they cost a job."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

_DESCRIPTION = """\
Check a torchtune config, a run directory, an experiment directory (all of its runs, and its plan) or
a runs_plan.md (against the runs beside it): missing files and sections, unresolved ${...}, arguments that
a component doesn't take, settings that the recipe refuses, zero optimizer steps, packing that can't
work, and batch_size against what was measured, or else against a rule of thumb.

Changes no file. Unless --no-build is given, the components that the config names, your own among them,
are imported and the model's is called, as `tune run` would do, in a process of its own: validate no
config that you wouldn't train with. With --no-build nothing that the config names is imported or run.
"""

_EPILOG = """\
findings:
  error    training would fail, train nothing, or use a batch_size that was measured not to fit; or
           batch_size is above the rule of thumb for a packed run on one card
  warning  likely not what was meant
  info     worth knowing

the rule of thumb (planning document), for one 80 GB card that holds the whole model:
  model      packed: True    packed: False
  1B              8               20
  3B              4               12
  7B/8B           2                6
  13B             1                4
  70B             1                2
  larger          1                1
Above it: an error when packed, a warning when not, an info with several devices. At it, packed: a warning.
It isn't applied where RUN/probe/result.json holds for the config: what was measured counts.

files it reads:
  RUN/finetune.yaml, RUN/finetune.slurm, runs_plan.md
  RUN/probe/   what a probe or autobatch density measured, where it holds for the config and the data

--json prints a list, one object a file:
  path, name, readable, passed
  facts     what the checks went by: model, parameters, size, recipe, batch_size, packed, max_seq_len,
            gradient_accumulation_steps, effective_batch_size, examples_per_pack, ...
  findings  severity, check (its name stays the same over versions), what, where (file:line), remedy

exit codes:
  0  no error
  1  errors; with --strict also warnings
  2  something can't be read, or PATH names nothing that can be validated

example, the batch_size of an unpacked run kept for packed: True:
  $ autobatch validate runs/
  runs/run1/finetune.yaml: 1.24B parameters, batch_size 16, packed (2048 tokens), effective batch size 16 sequences
    error  batch-size-limit  finetune.yaml:53
        batch_size 16 is above 8, the rule of thumb for 1B, packed, on one 80 GB card
        measure it: autobatch probe RUN; until then batch_size: 8, or packed: False, with which the rule allows 20
  FAIL  run1
  0 passed, 1 failed
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.add_argument(
        "paths", metavar="PATH", nargs="+", help="config, run directory, experiment directory or runs_plan.md"
    )
    parser.add_argument("--strict", action="store_true", help="warnings too make exit code 1")
    parser.add_argument(
        "--no-build",
        action="store_true",
        help="import no component: the model's size then comes from its component's name, and the components' "
        "arguments aren't checked; saves seconds",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Validate, print, and return the exit code."""
    from autobatch.cli.validating import report_lines
    from autobatch.report.table import printable
    from autobatch.validation.validator import validate

    reports = validate([Path(path) for path in arguments.paths], build=not arguments.no_build)
    passed = [report.passes(strict=arguments.strict) for report in reports]
    if arguments.json:
        shown = [{**asdict(r), "passed": ok} for r, ok in zip(reports, passed, strict=True)]
        print(json.dumps(shown, indent=2, ensure_ascii=False))
    else:
        for report in reports:
            print("\n".join(report_lines(report)))
        for report, ok in zip(reports, passed, strict=True):
            print(f"{'PASS' if ok else 'FAIL'}  {printable(report.name)}")
        print(f"{sum(passed)} passed, {len(passed) - sum(passed)} failed")
    unreadable = [report.path for report in reports if not report.readable]
    for path in unreadable:
        print(f"autobatch: {path}: can't be read as what it should be", file=sys.stderr)
    return 2 if unreadable else 0 if all(passed) else 1
