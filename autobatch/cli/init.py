"""`autobatch init RUN --config NAME|FILE`: make a run directory."""

from __future__ import annotations

import argparse
import difflib
import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autobatch.scaffold.layout import Plan
    from autobatch.validation.findings import Report

_DESCRIPTION = """\
Make a run directory: RUN/finetune.yaml from a torchtune config or one of autobatch's, with
`packed: True` and comments that say what that does, and RUN/finetune.slurm from the template. The
config's own comments stay. Everything is checked before anything is written, and no file that is
there is replaced unless you say --force.
"""

_EPILOG = """\
what becomes of the config, unless a key=value says otherwise:
  dataset.packed               True, where dataset, model and recipe can pack
  tokenizer.max_seq_len        2048, where it is null and the run packs
  output_dir                   ./output, where it is below /tmp
  log_peak_memory_stats        True
  gradient_accumulation_steps  1, where it is missing; so is batch_size

files:
  RUN/finetune.yaml   the config that `autobatch probe` writes batch_size into
  RUN/finetune.slurm  the training job: autobatch verify, then tune run

exit codes:
  0  made
  1  a check failed and nothing was written; --skip-validation writes all the same
  2  an option or the config can't be used, or a file is there already; nothing was written

example:
  $ autobatch init runs/run1 --config llama3_2/1B_lora_single_device --data data/train.json \\
        dataset=torchtune.datasets.instruct_dataset epochs=3
  autobatch: output_dir: ./output in the run directory, not /tmp/torchtune/llama3_2_1B/lora_single_device; \
--output-dir chooses
  ...
  next: autobatch probe runs/run1
  runs/run1/finetune.slurm
  runs/run1/finetune.yaml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.add_argument("run", metavar="RUN", help="run directory to make, such as runs/run1; it may exist")
    parser.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        help="set a value of the config as `tune run` would, or remove one with ~key; anywhere behind RUN",
    )
    what = parser.add_argument_group("the config")
    what.add_argument(
        "--config",
        required=True,
        metavar="NAME|FILE",
        help="a name that `tune ls` prints, one of autobatch's (finetune_template, llama3_2_1b_lora, "
        "llama3_2_3b_lora, llama3_1_8b_lora, qwen2_5_3b_lora), a YAML file, or another run directory, whose "
        "recipe and header are taken over, too",
    )
    what.add_argument(
        "--model-dir", metavar="DIR", help="where `tune download` put the model: tokenizer and checkpoint"
    )
    what.add_argument(
        "--data",
        metavar="FILE|DIR|NAME",
        help="dataset: a .json, .jsonl, .csv or .parquet file, a directory of them, or a name on the Hugging "
        "Face hub; sets dataset.source, data_files or data_dir, and split",
    )
    what.add_argument(
        "--output-dir", metavar="DIR", help="where checkpoints and logs go (default: see below)"
    )
    what.add_argument(
        "--recipe",
        metavar="NAME|PATH",
        help="recipe that trains (default: the one that torchtune lists the config under, else inferred from it); "
        "a recipe file must lie in RUN",
    )
    what.add_argument(
        "--max-seq-len", type=_positive, metavar="N", help="tokens of a packed row (tokenizer.max_seq_len)"
    )
    header = parser.add_argument_group("the header of finetune.slurm")
    for name, value, text in (
        ("partition", "NAME", "partition to run on"),
        ("account", "NAME", "account to charge"),
        ("time", "TIME", "limit of the training job, such as 12:00:00 (default: 12 hours)"),
        ("gres", "LIST", "generic resources, such as gpu:a100:1 (default: gpu:1; none for device: cpu)"),
        ("mem", "SIZE", "memory of the node, such as 64G (default)"),
        ("constraint", "LIST", "features that the node must have, such as a100"),
    ):
        header.add_argument(f"--{name}", metavar=value, help=text)
    header.add_argument("--cpus", metavar="N", dest="cpus_per_task", help="CPU cores (default: 8)")
    parser.add_argument(
        "--force",
        action="store_true",
        help="replace files that are there; what they held is kept in NAME.old",
    )
    parser.add_argument(
        "--skip-validation", action="store_true", help="show what the checks find, and write all the same"
    )
    parser.add_argument(
        "--no-build",
        action="store_true",
        help="check without asking torchtune (seconds) for the model's size and the components' arguments",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check, print what would change as diffs, and write nothing"
    )
    parser.add_argument("--json", action="store_true", help="print what was (or would be) made as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Make the run, and return the exit code."""
    from autobatch.cli.validating import may_go_on
    from autobatch.scaffold.layout import plan_run, refuse_occupied, write_run
    from autobatch.scaffold.request import InitRequest
    from autobatch.scaffold.script_text import HEADER_OPTIONS

    header = {name: getattr(arguments, name.replace("-", "_")) for name in HEADER_OPTIONS}
    plan = plan_run(
        InitRequest(
            run_dir=arguments.run,
            config=arguments.config,
            overrides=tuple(arguments.overrides),
            model_dir=arguments.model_dir,
            data=arguments.data,
            output_dir=arguments.output_dir,
            recipe=arguments.recipe,
            max_seq_len=arguments.max_seq_len,
            header={name: value for name, value in header.items() if value is not None},
        ),
        Path.cwd(),
    )
    if not arguments.force and not arguments.dry_run:
        refuse_occupied(plan)
    for line in (*plan.notes, *(f"warning: {warning}" for warning in plan.warnings)):
        print(f"autobatch: {line}", file=sys.stderr)
    reports = _reports(plan, build=not arguments.no_build)
    following = f"autobatch probe {shlex.quote(arguments.run)}"
    kept: dict[Path, Path] = {}
    if not may_go_on(reports, skip=arguments.skip_validation):
        if arguments.json:
            _print_json(plan, reports, kept, following, written=False)
        return 1
    if not arguments.dry_run:
        kept = write_run(plan, force=arguments.force)
        for path, copy in kept.items():
            print(f"autobatch: {path}: replaced; what it held is in {copy.name}", file=sys.stderr)
    if arguments.json:
        _print_json(plan, reports, kept, following, written=not arguments.dry_run)
        return 0
    if arguments.dry_run:
        print("\n".join(_diffs(plan)))
        return 0
    print(f"next: {following}", file=sys.stderr)
    print("\n".join(str(Path(arguments.run, path.name)) for path in plan.files))
    return 0


def _reports(plan: Plan, *, build: bool) -> list[Report]:
    """What `autobatch validate` says of the config before it is there."""
    from autobatch.validation.validator import validate

    path = plan.config_path
    with tempfile.TemporaryDirectory(prefix="autobatch-init-") as directory:
        # By another name than finetune.yaml it is a config by itself, whose files may still be missing.
        staged = Path(directory).resolve() / "config.yaml"
        staged.write_bytes(plan.files[path].encode())
        reports = validate([staged], build=build)

    def final(text: str) -> str:
        return text.replace(str(staged), str(path))

    return [
        replace(
            report,
            path=str(path),
            name=plan.run_dir.name,
            # Which files are missing the plan knows: it looks from where the run will be.
            findings=tuple(
                replace(f, what=final(f.what), where=final(f.where), remedy=final(f.remedy))
                for f in report.findings
                if f.check != "files"
            ),
        )
        for report in reports
    ]


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _print_json(
    plan: Plan, reports: Sequence[Report], kept: dict[Path, Path], following: str, *, written: bool
) -> None:
    made = {
        "run": str(plan.run_dir),
        "config": plan.source.origin,
        "recipe": plan.recipe,
        "written": written,
        "files": {str(path): text for path, text in plan.files.items()},
        "replaced": {str(path): str(copy) for path, copy in kept.items()},
        "notes": list(plan.notes),
        "warnings": list(plan.warnings),
        "findings": [asdict(finding) for report in reports for finding in report.findings],
        "next": following,
    }
    print(json.dumps(made, indent=2, ensure_ascii=False))


def _diffs(plan: Plan) -> list[str]:
    """Each file beside what it is made from; beside what is there, where it would be replaced."""
    lines: list[str] = []
    for path, text in plan.files.items():
        before, name = plan.before(path)
        lines += difflib.unified_diff(before.splitlines(), text.splitlines(), name, str(path), lineterm="")
    return lines
