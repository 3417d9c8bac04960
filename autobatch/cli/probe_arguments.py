"""The options of `autobatch probe`, and what they ask for."""

from __future__ import annotations

import argparse

from autobatch.errors import UsageError
from autobatch.records import Metric, PackingMode, Preference, ProbeRequest, Unit
from autobatch.units import parse_bytes

_DESCRIPTION = """\
Measure the largest batch_size of a run: its own recipe runs a few optimizer steps at a few batch
sizes, each in a process of its own, until b fits in the target and b + 1 doesn't, both measured.
The answer goes into RUN/finetune.yaml and ../runs_plan.md, with the packing density; every figure
behind it into RUN/probe/result.json. Nothing is written before the last trial has ended.

Of many runs, those with one memory fingerprint (the same but for learning rate, seed, epochs, output and
logging, data of the same form), one environment and one set of resources are a group: one series of trials
answers for all of them, one task of a Slurm array (or, elsewhere, one job after the other) carries it out.
Each run packs its own dataset, for its own density and its own cap, and what its own cap needs is measured.
Trials on file, of any run of the experiment, count too. Nothing is started unless all runs can be probed.
"""

_SLURM_DESCRIPTION = """\
Each overrides autobatch.yaml, which overrides the #SBATCH header of finetune.slurm. Spelled as for sbatch.
"""

_CHOICE_DESCRIPTION = """\
Without these, the largest that fits. Each answer is measured, with trials of at least two micro-batches where an
update may have as many. N is cut to the rows of the dataset, and said so: with more, torchtune trains zero steps.
tokens/s come from a few steps and are noisy, the more so on a CPU.
"""

_EPILOG = """\
files in RUN/probe/:
  result.json    the answer, or why there is none; every trial; versions, device, density
  trials.jsonl   the journal: a probe that was killed goes on from it and measures nothing twice
  events.jsonl   what happens while it runs, a JSON object a line
  trials/        config and log of each trial;  job/  the job's own log
of many runs, scripts and logs of the jobs are in EXPERIMENT/probe/job/

--json prints the result as result.json holds it, also when the answer is no; an error that leaves no result is
{"error": "...", "exit_code": 2 or 3}. Of many runs it prints {"runs": [{"run", "group", "job_id", "log", "result",
"error", "exit_code"}, ...], "exit_code"}: result and error when it was waited for, train_job_id with --train.

exit codes:
  0  done: the batch_size is in finetune.yaml
  1  nothing fits, the peak doesn't come to rest, or the effective batch can't be held (optimizer_in_bwd: True
     forbids accumulation, and it doesn't fit as one batch); no file was changed
  2  the run or an option can't be used; no file was changed
  3  the recipe crashed or hung; no file was changed
  of many runs: the largest of theirs

example:
  $ autobatch probe demo-run/run1 --capacity 1.5GiB
  ...
  batch_size 9 (peak 1.04 GiB, 69.3 % of 1.50 GiB); batch_size 10 would take 73.3 %
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Define the command's arguments."""
    parser.description = _DESCRIPTION
    parser.epilog = _EPILOG
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="+",
        help="run directory, which holds finetune.yaml; or an experiment directory, for all runs directly below "
        "it; or several of them",
    )
    where = parser.add_argument_group("where it runs")
    where.add_argument(
        "--cluster",
        choices=("auto", "slurm", "local", "inline"),
        default="auto",
        help="slurm: submit a job; local: start one on this machine (both through submitit); inline: a child of "
        "this process, for use inside a job; auto: slurm where there is an sbatch, else local (default)",
    )
    where.add_argument(
        "--wait",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="wait for the answer (default, except on slurm); otherwise print the job's id and return",
    )
    _add_slurm_arguments(parser.add_argument_group("the job on Slurm"))
    what = parser.add_argument_group("what is measured")
    what.add_argument(
        "--target",
        type=float,
        default=0.70,
        metavar="FRACTION",
        help="part of the capacity that the peak may reach (default: 0.70)",
    )
    what.add_argument(
        "--capacity",
        metavar="SIZE",
        help="plan for a card of this size, such as 40GiB (default: the card's own)",
    )
    what.add_argument(
        "--metric",
        choices=[m.value for m in Metric if m is not Metric.RESIDENT],
        default=Metric.RESERVED.value,
        help="the peak that counts on CUDA: reserved by PyTorch's allocator (default; decides an out-of-memory "
        "error), allocated in tensors, or used on the device by anybody. On CPU: the resident set",
    )
    what.add_argument("--max-batch-size", type=int, metavar="N", help="never go above")
    what.add_argument(
        "--recipe",
        metavar="NAME|PATH",
        help="recipe to run (default: the one in finetune.slurm, else inferred from the config)",
    )
    what.add_argument(
        "--nproc-per-node",
        type=int,
        metavar="N",
        help="processes of a distributed recipe on each node (default: as `tune run --nproc_per_node` in "
        "finetune.slurm, else the GPUs of its header)",
    )
    what.add_argument(
        "--nodes",
        type=int,
        metavar="N",
        help="nodes of a distributed recipe (default: as `tune run --nnodes`, else the header's)",
    )
    what.add_argument(
        "--steps", type=int, default=3, metavar="N", help="optimizer steps of a trial, at least (default: 3)"
    )
    what.add_argument(
        "--trial-timeout",
        type=float,
        default=600,
        metavar="SECONDS",
        help="a trial that takes longer counts as hung (default: 600)",
    )
    what.add_argument(
        "--load-weights",
        action="store_true",
        help="read the real checkpoint in each trial instead of a constant in its shapes",
    )
    rows = what.add_mutually_exclusive_group()
    rows.add_argument("--pack", action="store_true", help="set dataset.packed: True, in finetune.yaml too")
    rows.add_argument(
        "--unpacked",
        action="store_true",
        help="leave packed off and probe with batches of the longest example, the worst case",
    )
    what.add_argument(
        "--density-sample",
        type=int,
        metavar="N",
        help="pack about N examples instead of all (more, where N would fill too few packs); density and number "
        "of packs are then extrapolated",
    )
    what.add_argument(
        "--force",
        action="store_true",
        help="measure again though valid measurements are on file, of this run or, of many, of another like it",
    )
    what.add_argument(
        "--no-estimate",
        action="store_true",
        help="begin the search with batch_size 1, not with what autobatch estimate says (the answer is the same)",
    )
    _add_choice_arguments(parser.add_argument_group("which batch size is the answer"))
    output = parser.add_argument_group("output")
    output.add_argument(
        "--dry-run", action="store_true", help="check the run, say what would be done, do nothing"
    )
    output.add_argument(
        "--json", action="store_true", help="print the result (or the job, or the plan) as JSON"
    )


def _add_choice_arguments(choice: argparse._ArgumentGroup) -> None:
    choice.description = _CHOICE_DESCRIPTION
    choice.add_argument(
        "--hold-effective-batch",
        nargs="?",
        type=_size_of_an_update,
        const=True,
        metavar="N",
        help="choose batch_size x gradient_accumulation_steps = N, with the largest batch_size that divides N and "
        "fits, and write both (default N: the config's present product). Nothing else changes what an update sees",
    )
    choice.add_argument(
        "--in",
        dest="effective_batch_in",
        choices=[unit.value for unit in Unit],
        help="what that N counts: sequences, as the recipe does (default), or examples, by the packing density",
    )
    choice.add_argument(
        "--prefer",
        choices=[preference.value for preference in Preference],
        default=Preference.MEMORY.value,
        help="memory: the largest that fits (default); throughput: the smallest measured whose tokens/s are "
        "within 3 %% of the best, with up to 4 trials more to find it",
    )


def _size_of_an_update(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a number: write RUN before --hold-effective-batch, or N behind it"
        ) from error


def _add_slurm_arguments(slurm: argparse._ArgumentGroup) -> None:
    slurm.description = _SLURM_DESCRIPTION
    slurm.add_argument(
        "--profile", metavar="NAME", help="profile of autobatch.yaml (default: the file's default)"
    )
    for name, value, text in (
        ("partition", "NAME", "partition to run on"),
        ("account", "NAME", "account to charge"),
        ("qos", "NAME", "quality of service"),
        ("constraint", "LIST", "features that the node must have, such as a100"),
        ("gres", "LIST", "generic resources, such as gpu:a100:1"),
        ("gpus", "N", "number of GPUs (default: the header's, else 1 for device: cuda)"),
        ("time", "TIME", "limit of the probe's job, minutes or HH:MM:SS (default: 20)"),
        ("mem", "SIZE", "memory of the node, such as 64G"),
        ("nodelist", "LIST", "nodes to use"),
        ("exclude", "LIST", "nodes not to use"),
    ):
        slurm.add_argument(f"--{name}", metavar=value, help=text)
    slurm.add_argument(
        "--cpus", metavar="N", dest="cpus_per_task", help="CPU cores (sbatch's --cpus-per-task)"
    )
    slurm.add_argument("--after", metavar="JOBID", help="begin only when this job has ended well")
    slurm.add_argument(
        "--train",
        nargs="?",
        const="finetune.slurm",
        metavar="SCRIPT",
        help="submit the training job too (default: finetune.slurm), to start only if the probe ends well; prints "
        "both job ids, the probe's first",
    )
    slurm.add_argument(
        "--max-parallel",
        type=int,
        metavar="N",
        help="of many runs: at most N tasks of an array at a time (default: as many as the cluster lets)",
    )
    slurm.add_argument(
        "--accept-partial",
        action="store_true",
        help="when the job's time limit ends the search, take the largest size measured to fit, not a refusal",
    )


def request_of(arguments: argparse.Namespace) -> ProbeRequest:
    """The request that the options make; `run_dir` as it was typed."""
    mode = PackingMode.PACK if arguments.pack else PackingMode.CONFIG
    held = arguments.hold_effective_batch
    if arguments.effective_batch_in is not None and held is None:
        raise UsageError(
            f"--in {arguments.effective_batch_in} says what --hold-effective-batch counts: give that too"
        )
    return ProbeRequest(
        run_dir=arguments.paths[0],
        recipe=arguments.recipe,
        target_fraction=arguments.target,
        capacity_bytes=parse_bytes(arguments.capacity) if arguments.capacity is not None else None,
        metric=Metric(arguments.metric),
        max_batch_size=arguments.max_batch_size,
        min_steps=arguments.steps,
        trial_timeout_s=arguments.trial_timeout,
        load_weights=arguments.load_weights,
        packing=PackingMode.UNPACKED if arguments.unpacked else mode,
        density_sample=arguments.density_sample,
        force=arguments.force,
        accept_partial=arguments.accept_partial,
        estimate=not arguments.no_estimate,
        hold_effective_batch=held is not None,
        effective_batch=None if held is True else held,
        effective_batch_in=Unit(arguments.effective_batch_in or Unit.SEQUENCES),
        prefer=Preference(arguments.prefer),
        processes_per_node=arguments.nproc_per_node,
        nodes=arguments.nodes,
    )


def slurm_options_of(arguments: argparse.Namespace) -> dict[str, str]:
    """The Slurm options that were given, by sbatch's names."""
    from autobatch.runs.settings import OPTIONS

    given = {name: getattr(arguments, name.replace("-", "_"), None) for name in OPTIONS}
    for name, value in (*given.items(), ("after", arguments.after)):
        # sbatch reads its options line by line.
        if value is not None and "\n" in value:
            raise UsageError(f"--{name} {value!r}: has a line break in it")
    return {name: value for name, value in given.items() if value is not None}
