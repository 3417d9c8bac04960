"""Makes the text of finetune.yaml out of a config: a pure change of text, every comment of it kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from autobatch.edits.yaml_format import Value
from autobatch.errors import Problem, RunProblems
from autobatch.runs.checks import refuses_packs, why_it_cannot_pack
from autobatch.runs.recipes import Recipe, refuse_distributed, resolve_recipe
from autobatch.scaffold.comments import explain
from autobatch.scaffold.dataset import find_data, missing_columns, set_data
from autobatch.scaffold.draft import Draft, Key
from autobatch.scaffold.overrides import apply_overrides
from autobatch.scaffold.places import seen_from, set_model_dir, set_output_dir
from autobatch.scaffold.request import InitRequest
from autobatch.scaffold.sources import Source

#: Tokens of a packed row, where neither the config nor the user says.
DEFAULT_MAX_SEQ_LEN = 2048

#: torchtune's own is below /tmp, which is another one on each node and shared by all runs of a config.
_OUTPUT_DIR = "./output"


@dataclass(frozen=True)
class ConfigText:
    """A finetune.yaml, not written yet.

    Attributes:
        text: of the file.
        recipe: that trains it.
        device: ``cuda`` or ``cpu``, as the config says.
        notes: what was chosen, for the user to hear.
        warnings: what will stop the run from training as it is.
    """

    text: str
    recipe: Recipe
    device: str
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def make_config(source: Source, request: InitRequest, run_dir: Path, cwd: Path) -> ConfigText:
    """What `source` becomes for a run.

    Args:
        source: the config to start from.
        request: what the user asked for.
        run_dir: absolute, where the run will be.
        cwd: where the user is.

    Raises:
        UsageError: the config can't be read, or an option can't be applied to it.
    """
    draft = Draft(source.text, source.path)
    draft.notes += source.notes
    warnings = []
    apply_overrides(draft, request.overrides)
    if request.model_dir is not None:
        set_model_dir(draft, seen_from(run_dir, request.model_dir, cwd))
    if request.data is not None:
        data = find_data(request.data, run_dir, cwd)
        set_data(draft, data)
        if columns := missing_columns(draft, data):
            warnings.append(columns)
    _choose_output_dir(draft, request, run_dir, cwd)
    recipe = _recipe(draft, source, request, run_dir, cwd)
    if recipe.source == "inferred":
        draft.notes.append(f"recipe {recipe.name}, inferred from the config; --recipe names another")
    device = str(draft.config.get("device")).partition(":")[0]
    packed = _pack(draft, recipe, device)
    _choose_length(draft, request.max_seq_len, packed=packed)
    _fill_in(draft)
    draft.text = explain(draft.text, packed=packed, name=draft.name)
    draft.begin_with(f"Made by `autobatch init` from {source.origin}.")
    return ConfigText(draft.text, recipe, device, tuple(draft.notes), tuple(warnings))


def _choose_output_dir(draft: Draft, request: InitRequest, run_dir: Path, cwd: Path) -> None:
    if request.output_dir is not None:
        set_output_dir(draft, seen_from(run_dir, request.output_dir, cwd))
        return
    before = draft.config.get("output_dir")
    if isinstance(before, str) and before.startswith("/tmp/") and ("output_dir",) not in draft.given:
        set_output_dir(draft, _OUTPUT_DIR)
        draft.notes.append(
            f"output_dir: {_OUTPUT_DIR} in the run directory, not {before}; --output-dir chooses"
        )


def _recipe(draft: Draft, source: Source, request: InitRequest, run_dir: Path, cwd: Path) -> Recipe:
    """The recipe that was asked for, else the one that the source comes with, else what its keys imply."""
    given = request.recipe or source.recipe
    values = draft.config.values
    try:
        recipe = resolve_recipe(
            given, None, values, run_dir, cwd=cwd if request.recipe else source.path.parent
        )
        refuse_distributed(recipe, "--recipe" if request.recipe else str(source.path), "autobatch init")
        return recipe
    except RunProblems as error:
        if request.recipe:
            raise
        problems = [Problem(problem.what, str(source.path), problem.remedy) for problem in error.problems]
        raise RunProblems(problems) from error


def _pack(draft: Draft, recipe: Recipe, device: str) -> bool:
    """Sets `packed: True` where that works; whether the run packs."""
    dataset = draft.config.get("dataset")
    if isinstance(dataset, list):
        packed = bool(dataset) and all(isinstance(d, Mapping) and d.get("packed") for d in dataset)
        if not packed:
            draft.notes.append("dataset is a list: write `packed: True` into each of its entries by hand")
        return packed
    if not isinstance(dataset, Mapping):
        return False
    if ("dataset", "packed") in draft.given:
        return dataset.get("packed") is True
    why = why_it_cannot_pack(dataset, recipe)
    if not why and refuses_packs(draft.config, device):
        why = "gemma2 models refuse packed datasets on CUDA"
    if why:
        if dataset.get("packed"):
            draft.set({("dataset", "packed"): False})
        draft.notes.append(f"not packed: {why}; probe with --unpacked")
        return False
    draft.set({("dataset", "packed"): True})
    return True


def _choose_length(draft: Draft, wanted: int | None, *, packed: bool) -> None:
    key = ("tokenizer", "max_seq_len")
    if not isinstance(draft.config.get("tokenizer"), Mapping):
        return  # the validation says so
    if wanted is not None:
        draft.set({key: wanted})
    elif packed and draft.config.get("tokenizer.max_seq_len") is None:
        draft.set({key: DEFAULT_MAX_SEQ_LEN})
        draft.notes.append(
            f"tokenizer.max_seq_len: {DEFAULT_MAX_SEQ_LEN} tokens, since packing needs a length; "
            "--max-seq-len chooses another"
        )


def _fill_in(draft: Draft) -> None:
    """What training needs, or what the commands after it read."""
    values: dict[Key, Value] = {("log_peak_memory_stats",): True}
    if draft.config.get("gradient_accumulation_steps") is None:
        values["gradient_accumulation_steps",] = 1
    if draft.config.get("batch_size") is None:
        values["batch_size",] = 1
    draft.set(values)
