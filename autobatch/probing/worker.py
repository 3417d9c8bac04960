"""Inside a trial's process: the user's recipe, run as `tune run` runs it."""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autobatch.packing.build import PackSpec, build, read_unpacked
from autobatch.probing.components import EventFile, TrialFinished
from autobatch.probing.meter import find_device
from autobatch.probing.residence import touch_inherited_files
from autobatch.records import to_json

#: Status of a trial whose recipe raised; what it raised stands in the event file.
RECIPE_RAISED = 1


@dataclass(frozen=True)
class TrialSpec:
    """What a trial's process needs to know.

    Attributes:
        recipe: path of the recipe file.
        config: path of the config with the trial's components in it.
        working_dir: where the config's relative paths start.
        events: path of the event file.
        device: ``cuda`` or ``cpu``.
        skip_init: leave freshly made layers uninitialised; the checkpoint overwrites them.
    """

    recipe: str
    config: str
    working_dir: str
    events: str
    device: str
    skip_init: bool


def run_recipe(spec: TrialSpec) -> None:
    """Run the recipe's main function on the trial's config, in this process alone."""
    if spec.device == "cpu":
        touch_inherited_files(os.getppid())
    enter_run(spec.working_dir, spec.device)
    run_to_its_end(spec, EventFile(spec.events))


def run_to_its_end(spec: TrialSpec, events: EventFile) -> None:
    """Run the recipe as a script; doesn't return.

    Ends with status 0 after the last step of the trial, else with `RECIPE_RAISED`; a recipe that returns
    or exits before that has not given a measurement, whatever its status.
    """
    status = RECIPE_RAISED
    sys.argv = [spec.recipe, "--config", spec.config]
    sys.path.append(str(Path(spec.recipe).parent))
    try:
        # Any recipe imports it; here, so that the start of a trial can be told from its set-up.
        import torchtune  # noqa: F401

        events.append("started")
        with _uninitialised() if spec.skip_init else _as_usual():
            runpy.run_path(spec.recipe, run_name="__main__")
    except TrialFinished:
        status = 0
    except SystemExit as ended:
        events.append("error", kind="SystemExit", message=f"the recipe ended by itself with {ended.code!r}")
    except BaseException as error:
        events.append("error", kind=type(error).__name__, message=with_causes(error))
        traceback.print_exc()
    else:
        events.append("error", kind="SystemExit", message="the recipe ended by itself")
    # Not sys.exit: destructors of a recipe that failed may hang or fail again, and multiprocessing would wait
    # for inductor's compile workers to shut down. Whoever started this process kills what is left.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def with_causes(error: BaseException) -> str:
    """The message of an error and of those behind it: torchtune and torch.compile wrap what CUDA said."""
    message = str(error)
    seen = {id(error)}
    while True:
        behind = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if behind is None or id(behind) in seen:
            return message
        seen.add(id(behind))
        message += f"\ncaused by {type(behind).__name__}: {behind}"
        error = behind


def describe_device(kind: str, index: int, events: str) -> None:
    """Write what `find_device` finds; in a process of its own, since it initialises CUDA."""
    try:
        device, why = find_device(kind, index), ""
    except RuntimeError as error:
        # NVML sees a card that the driver doesn't give: it is too old for this build of torch, say.
        device, why = None, str(error)
    EventFile(events).append("device", device=to_json(device) if device else None, why=why)


def read_dataset_once(spec: PackSpec, working_dir: str) -> None:
    """Make the dataset and drop it: a first reading fills caches on disk, and takes more memory than later ones.

    What fails here fails again in `pack_dataset`, which says so.
    """
    enter_run(working_dir, "cpu")
    with suppress(Exception):
        read_unpacked(spec)


def pack_dataset(spec: PackSpec, working_dir: str) -> None:
    """Pack the dataset, away from any card: a context on it would show in the trials' readings."""
    enter_run(working_dir, "cpu")
    build(spec)


def enter_run(working_dir: str, device: str, *, as_command: bool = True) -> None:
    """Make this process look as if `tune run` had been typed in the run's directory.

    Args:
        working_dir: where the run's relative paths start.
        device: ``cuda`` or ``cpu``.
        as_command: it is the command's own process; a rank is one that torchrun starts.
    """
    os.chdir(working_dir)
    # torchtune appends the current directory, so that a user's own components are found.
    sys.path.append(working_dir)
    if device == "cpu":
        # torchtune's packed attention mask moves to CUDA whenever a card is visible.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        touch_inherited_files(os.getppid())
        # The resident set is measured, and the command takes some 15 MiB of it beside the recipe. Should this
        # torchtune have none, there is nothing to add.
        if as_command:
            with suppress(ImportError):
                import torchtune._cli.tune  # noqa: F401


@contextmanager
def _uninitialised() -> Iterator[None]:
    """Layers without their random numbers: most of a large model's set-up on CPU, and overwritten."""
    from torch import nn

    kinds: tuple[Any, ...] = (nn.Linear, nn.Embedding)
    originals = [kind.reset_parameters for kind in kinds]
    try:
        for kind in kinds:
            kind.reset_parameters = lambda self: None
        yield
    finally:
        for kind, original in zip(kinds, originals, strict=True):
            kind.reset_parameters = original


@contextmanager
def _as_usual() -> Iterator[None]:
    yield
