"""Validates configs, runs, experiments and plans: everything is read, then asked about, then checked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autobatch.errors import UsageError
from autobatch.records import PackingMode, ProbeRequest
from autobatch.runs import checks
from autobatch.runs.directory import PLAN_NAME, check_trained_config
from autobatch.runs.experiment import find_runs
from autobatch.runs.findings import Findings
from autobatch.runs.launching import resolve_world
from autobatch.validation import training_checks
from autobatch.validation.build import Answer, Builder, Section, sections_of
from autobatch.validation.data_checks import check_local_data
from autobatch.validation.findings import Collector, Report
from autobatch.validation.limits import SizeLimit, limit_by_name, limit_for
from autobatch.validation.measured import Measured, measured_of
from autobatch.validation.memory_checks import check_batch_size
from autobatch.validation.plan import check_plan
from autobatch.validation.subject import Kind, Subject, read_subject

#: Devices that torchtune trains on and autobatch doesn't measure (torchtune/utils/_device.py).
_OTHER_DEVICES = ("mps", "npu", "xpu")

#: How a message about a file that a config names begins.
_NAMED_FILE = re.compile(r"(?P<section>\w+)\.[\w.]+: ")


@dataclass
class _File:
    """A config or a plan on its way to its report."""

    path: Path
    collector: Collector = field(default_factory=Collector)
    subject: Subject | None = None
    plan_of: list[_File] | None = None


def validate(paths: Sequence[Path], *, build: bool = True) -> list[Report]:
    """Checks everything at `paths`; a report a file.

    Args:
        paths: each a config file, a run directory, an experiment directory (all of its runs, and its plan)
            or a `runs_plan.md` (held against the runs beside it).
        build: ask torchtune, in a process of its own, for the model's size and the components' arguments.
            Without, the size comes from the component's name.

    Raises:
        UsageError: a path names nothing that can be validated.
    """
    files = [file for path in paths for file in _files_at(path)]
    configs = [file for file in files if file.plan_of is None]
    for file in configs:
        file.subject = read_subject(file.path, file.collector)
    builder = Builder(enabled=build)
    asked: dict[Path, list[Section]] = {}
    for file in configs:
        if file.subject is not None:
            asked.setdefault(file.subject.working_dir, []).extend(sections_of(file.subject.config.values))
    for working_dir, sections in asked.items():
        builder.ask(sections, working_dir)
    return [
        _plan_report(file) if file.plan_of is not None else _config_report(file, builder) for file in files
    ]


def _files_at(path: Path) -> list[_File]:
    if not path.exists():
        raise UsageError(
            f"{path}: no such file or directory: name a config, a run, an experiment or a runs_plan.md"
        )
    if path.is_dir():
        configs = [_File(run / "finetune.yaml") for run in find_runs(path)]
        if not configs:
            raise UsageError(f"{path}: no finetune.yaml here or one level below")
        is_run = configs[0].path.parent == path
        has_plan = not is_run and (path / PLAN_NAME).is_file()
        return [*configs, *([_File(path / PLAN_NAME, plan_of=configs)] if has_plan else [])]
    if path.suffix.lower() == ".md":
        beside = [_File(run / "finetune.yaml") for run in find_runs(path.resolve().parent)]
        for file in beside:
            file.subject = read_subject(file.path, file.collector)
        return [_File(path, plan_of=beside)]
    return [_File(path)]


def _plan_report(file: _File) -> Report:
    runs = [other.subject for other in file.plan_of or [] if other.subject is not None]
    return check_plan(file.path, [run for run in runs if run.kind is Kind.TRAINING])


def _config_report(file: _File, builder: Builder) -> Report:
    subject, c = file.subject, file.collector
    path = str(file.path.resolve())
    if subject is None:
        name = file.path.parent.resolve().name if file.path.name == "finetune.yaml" else file.path.name
        return Report(path, name, c.sorted(), readable=False)
    for section in sections_of(subject.config.values):
        _check_component(subject, section, builder.answer(section, subject.working_dir), c)
    facts: dict[str, Any] = {"kind": subject.kind.value}
    if subject.kind is Kind.TRAINING:
        facts |= _check_training(subject, builder, c)
    else:
        c.info("kind", f"for {subject.kind.value}: checked are its values and components alone", path)
    return Report(path, subject.name, c.sorted(), facts)


def _check_component(subject: Subject, section: Section, answer: Answer, c: Collector) -> None:
    component = section.arguments["_component_"]
    where = subject.config.where(f"{section.path}._component_")
    if answer.wrong_argument:
        c.error(
            "component",
            f"{section.path}: {component} {answer.wrong_argument}",
            where,
            "correct its arguments",
        )
    elif answer.not_importable:
        c.warning(
            "component",
            f"{section.path}: {component} can't be imported here: {answer.not_importable}",
            where,
            "install what is missing, or validate in the environment that trains",
        )


def _check_training(subject: Subject, builder: Builder, c: Collector) -> dict[str, Any]:
    """Every check of a training config; returns the facts that it went by."""
    _check_as_the_probe_does(subject, c)
    measured = measured_of(subject)
    parameters, limit = _size_of(subject, builder)
    check_batch_size(subject, limit, measured, c)
    check_local_data(subject, c)
    training_checks.check_offloading(subject, c)
    training_checks.check_optimizer_in_backward(subject, c)
    training_checks.check_lora(subject, c)
    training_checks.check_recipe_fits_model(subject, c)
    training_checks.check_unpacked(subject, c)
    training_checks.check_steps(subject, measured.density, c)
    return _facts(subject, parameters, limit, measured)


def _check_as_the_probe_does(subject: Subject, c: Collector) -> None:
    """What `autobatch probe` checks of a run, each check under a name of its own."""
    config, where = subject.config, str(subject.config.path)
    found: dict[str, Findings] = {}

    def findings(check: str) -> Findings:
        return found.setdefault(check, Findings())

    if _reads_data_elsewhere(subject):
        c.info(
            "sections", "its recipe reads data from other sections than dataset; they aren't checked", where
        )
    else:
        checks.check_sections(config, findings("sections"))
    device, _, _ = checks.check_device(config, findings("device"))
    checks.positive_integer(config, "batch_size", findings("batch-size"))
    checks.positive_integer(
        config, "gradient_accumulation_steps", findings("gradient-accumulation"), default=1
    )
    mode = PackingMode.CONFIG if subject.may_pack else PackingMode.UNPACKED
    checks.check_packing(config, mode, subject.recipe, device, findings("packing"))
    checks.check_optimizer(config, device, findings("optimizer"))
    checks.check_files(config, subject.working_dir, True, findings("files"))
    if subject.run_dir is not None:
        check_trained_config(config, subject.script, subject.working_dir, findings("trained-config"))
    for check, its in found.items():
        if check == "files":
            _take_files(subject, its, c)
        elif check == "device" and device in _OTHER_DEVICES:
            _take_device(config.where("device"), its, c)
        else:
            c.take(check, its, where)
    if subject.run_dir is not None and subject.recipe is not None:
        _check_processes(subject, device, c)


def _check_processes(subject: Subject, device: str, c: Collector) -> None:
    """With how many processes it trains: what contradicts itself is refused by torchtune, or dies in the job."""
    tune_run = subject.script.tune_run if subject.script else None
    if tune_run is None or subject.recipe is None:
        return
    # `--nproc_per_node gpu` is the job's to say, and nothing is wrong with that.
    assumed = 1 if tune_run.processes_per_node is None else None
    request = ProbeRequest(str(subject.run_dir), processes_per_node=assumed)
    found = Findings()
    resolve_world(request, subject.script, subject.recipe, subject.config, device, found)
    for problem in found.problems:
        c.error("processes", problem.what, problem.where, problem.remedy)


def _reads_data_elsewhere(subject: Subject) -> bool:
    """Whether the recipe is one of torchtune's dev/, of which one has `datasets` and `dataloader`."""
    experimental = subject.recipe is not None and subject.recipe.name.startswith("dev/")
    return experimental and "dataset" not in subject.config.values


def _take_device(where: str, findings: Findings, c: Collector) -> None:
    """A device that autobatch can't measure is an info; what is wrong with dtype stays an error."""
    for problem in findings.problems:
        add = c.info if problem.where == where else c.error
        add("device", problem.what, problem.where, problem.remedy)


def _take_files(subject: Subject, findings: Findings, c: Collector) -> None:
    """Missing files: of a run, errors; weights may still be on their way; elsewhere paths may be placeholders."""
    for problem in findings.problems:
        named = _NAMED_FILE.match(problem.what)
        if named and subject.run_dir is None:
            c.info("files", problem.what, problem.where, problem.remedy)
        elif named and named["section"].endswith("checkpointer"):
            c.warning("files", f"{problem.what}; training needs it", problem.where, problem.remedy)
        else:
            c.error("files", problem.what, problem.where, problem.remedy)


def _size_of(subject: Subject, builder: Builder) -> tuple[int | None, SizeLimit | None]:
    """Parameters of the model, if it was built, and its row in the rule of thumb."""
    model = next((s for s in sections_of(subject.config.values) if s.is_model), None)
    if model is None:
        return None, None
    parameters = builder.answer(model, subject.working_dir).parameters
    if parameters is not None:
        return parameters, limit_for(parameters)
    return None, limit_by_name(model.arguments)


def _ranks(subject: Subject) -> int | None:
    """Processes that take a batch each; None when nothing says how many there are."""
    tune_run = subject.script.tune_run if subject.script else None
    if tune_run is None:
        return None if subject.recipe is not None and subject.recipe.is_distributed else 1
    processes = tune_run.processes
    # Ranks that share a model by tensor parallelism share their rows too.
    return (
        None if processes is None else processes // (subject.integer("tensor_parallel_dim", 1) or 1) or None
    )


def _facts(
    subject: Subject, parameters: int | None, limit: SizeLimit | None, measured: Measured
) -> dict[str, Any]:
    size = subject.integer("batch_size")
    steps = subject.integer("gradient_accumulation_steps", 1)
    ranks = _ranks(subject)
    effective = size * steps * ranks if size is not None and steps is not None and ranks is not None else None
    component = subject.config.get("model._component_")
    density = measured.density
    per_pack = density.examples_per_pack if density is not None and density.packed else None
    return {
        "kind": subject.kind.value,
        "model": component if isinstance(component, str) else None,
        "parameters": parameters,
        "size": limit.label if limit else None,
        "recipe": subject.recipe.name if subject.recipe else None,
        "batch_size": size,
        "packed": subject.packed,
        "max_seq_len": subject.integer("tokenizer.max_seq_len"),
        "gradient_accumulation_steps": steps,
        "effective_batch_size": effective,
        "examples_per_pack": per_pack,
        "effective_examples": effective * per_pack if effective and per_pack else None,
        "activation_checkpointing": subject.config.get("enable_activation_checkpointing") is True,
    }
