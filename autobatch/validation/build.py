"""What only torchtune itself can say of a config: how large its model is, and which arguments a component takes.

Asked in a process of its own (`probing.forkserver`), on the meta device and with no card visible: a component
that crashes ends that process alone, and CUDA isn't initialised here. Asked once for each distinct question,
however many runs share it.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autobatch.probing.forkserver import ForkServer
from autobatch.runs import torchtune_source

#: A model of 405B is built on the meta device in seconds; what takes minutes hangs.
_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Answer:
    """What was found out about a section.

    Attributes:
        parameters: of the model, without its LoRA adapters; None where it couldn't be built.
        wrong_argument: what the component doesn't take, in Python's words; empty when it takes all.
        not_importable: why the component can't be imported here; empty when it can.
    """

    parameters: int | None = None
    wrong_argument: str = ""
    not_importable: str = ""


@dataclass(frozen=True)
class Section:
    """A section of a config that has a `_component_`.

    Attributes:
        path: dotted, in the config.
        arguments: its values, resolved, `_component_` among them.
        is_model: whether to count its parameters.
    """

    path: str
    arguments: Mapping[str, Any]
    is_model: bool

    def key(self, working_dir: Path) -> str:
        """Sections that get one answer have one key: of a model all values count, of others their names."""
        component = str(self.arguments["_component_"])
        module = working_dir / component.partition(".")[0]
        is_here = module.is_dir() or module.with_suffix(".py").is_file()
        place = str(working_dir) if is_here else ""
        content = self.arguments if self.is_model else sorted(map(str, self.arguments))
        return json.dumps([component, place, self.is_model, content], skipkeys=True, default=repr)


def sections_of(config: Mapping[str, Any]) -> list[Section]:
    """Every section of a resolved config that has a `_component_`, lists of datasets included."""
    found = []
    for name, value in config.items():
        entries = enumerate(value) if isinstance(value, list) else [(None, value)]
        for index, entry in entries:
            if isinstance(entry, Mapping) and isinstance(entry.get("_component_"), str):
                path = str(name) if index is None else f"{name}.{index}"
                found.append(Section(path, entry, is_model=path == "model"))
    return found


class Builder:
    """Asks torchtune about sections of configs.

    Args:
        enabled: without, and where torchtune isn't installed, nothing is asked and every answer is empty.
    """

    def __init__(self, *, enabled: bool = True) -> None:
        self._enabled = enabled and torchtune_source.package_dir() is not None
        self._answers: dict[str, Answer] = {}

    def ask(self, sections: Iterable[Section], working_dir: Path) -> None:
        """Finds out about sections, so that `answer` has them.

        Args:
            sections: of a config.
            working_dir: from which components of the user's own are imported, as `tune run` does.
        """
        if not self._enabled:
            return
        waiting = {section.key(working_dir): section for section in sections}
        waiting = {key: section for key, section in waiting.items() if key not in self._answers}
        if not waiting:
            return
        with tempfile.TemporaryDirectory(prefix="autobatch-validate-") as directory:
            self._ask_all(waiting, working_dir, Path(directory))

    def answer(self, section: Section, working_dir: Path) -> Answer:
        """What was found out about a section; an empty answer when it wasn't asked about."""
        return self._answers.get(section.key(working_dir), Answer())

    def _ask_all(self, waiting: dict[str, Section], working_dir: Path, directory: Path) -> None:
        server = ForkServer({})
        server.start(directory / "server.log")
        while waiting:
            said = directory / "answers.jsonl"
            said.unlink(missing_ok=True)
            questions = json.dumps(
                [[s.arguments, s.is_model] for s in waiting.values()], skipkeys=True, default=repr
            )
            server.run(
                look_at_sections,
                questions,
                str(working_dir),
                str(said),
                log=directory / "log",
                timeout_s=_TIMEOUT_S,
            )
            text = said.read_text(encoding="utf-8") if said.exists() else ""
            lines = text.split("\n")[:-1]  # a process killed while writing leaves a torn last one
            for line in lines:
                key = next(iter(waiting))
                self._answers[key] = Answer(**json.loads(line))
                del waiting[key]
            if waiting:
                # The process ended over the next one: that one has no answer, the others get theirs.
                self._answers[next(iter(waiting))] = Answer()
                del waiting[next(iter(waiting))]


def look_at_sections(questions: str, working_dir: str, said: str) -> None:
    """In a process of its own: writes an answer a line to `said`, in the order of `questions`."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if Path(working_dir).is_dir():
        os.chdir(working_dir)
    sys.path.append(working_dir)  # as torchtune.config.instantiate does
    with Path(said).open("a", encoding="utf-8", buffering=1) as file:
        for arguments, is_model in json.loads(questions):
            file.write(json.dumps(_look_at(arguments, is_model)) + "\n")


def _look_at(arguments: dict[str, Any], is_model: bool) -> dict[str, Any]:
    from torchtune.config._utils import _get_component_from_path

    name = arguments.pop("_component_")
    try:
        component = _get_component_from_path(name)
    except Exception as error:
        return {"not_importable": _root_of(error)}
    try:
        signature = inspect.signature(component)
    except (TypeError, ValueError):  # of builtins
        return {}
    try:
        # Partial: optimizers, datasets and schedulers get their first arguments from the recipe.
        signature.bind_partial(**arguments)
    except TypeError as error:
        return {"wrong_argument": str(error)}
    if not is_model:
        return {}
    if "quantize_base" in signature.parameters:
        arguments["quantize_base"] = False  # as many parameters, and quantizing 405B takes minutes
    return {"parameters": _count_parameters(name, arguments)}


def _count_parameters(name: str, arguments: dict[str, Any]) -> int | None:
    import torch
    from omegaconf import OmegaConf
    from torchtune import config
    from torchtune.modules.peft import get_adapter_params

    try:
        with torch.device("meta"):
            model = config.instantiate(OmegaConf.create({"_component_": name, **arguments}))
        adapters = {id(parameter) for parameter in get_adapter_params(model).values()}
        return int(sum(p.numel() for p in model.parameters() if id(p) not in adapters))
    except Exception:  # a custom model may refuse the meta device: then its name has to do
        return None


def _root_of(error: BaseException) -> str:
    """The first cause of an import that failed, in a line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [type(error).__name__])[0]
