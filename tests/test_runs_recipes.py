"""`autobatch.runs.recipes` and `torchtune_source`: which recipe trains, read without importing torchtune."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from autobatch.errors import Problem, RunProblems
from autobatch.runs.recipes import Recipe, infer_name, refuse_distributed, resolve_recipe
from autobatch.runs.slurm_script import SlurmScript, parse_script
from autobatch.runs.torchtune_source import can_pack, is_missing, registered_recipes, similar

LORA: dict[str, Any] = {
    "model": {"_component_": "torchtune.models.llama3_2.lora_llama3_2_1b"},
    "optimizer": {},
}
RECIPES = registered_recipes()


def script(line: str, directory: Path) -> SlurmScript:
    return parse_script(f"#!/bin/bash\n{line}\n", directory / "finetune.slurm")


def problem_of(*arguments: Any, **keywords: Any) -> Problem:
    with pytest.raises(RunProblems) as caught:
        resolve_recipe(*arguments, **keywords)
    assert len(caught.value.problems) == 1
    return caught.value.problems[0]


SHIPPED = [
    pytest.param(recipe.name, config, id=f"{recipe.name}:{config.parent.name}/{config.stem}")
    for recipe in RECIPES.values()
    if "_single_device" in recipe.name
    for config in recipe.configs
]


@pytest.mark.parametrize(("name", "config"), SHIPPED)
def test_inference_gives_the_recipe_that_torchtune_lists(name: str, config: Path) -> None:
    assert infer_name(yaml.safe_load(config.read_text())) == name


@pytest.mark.parametrize("name", ["full_dpo_distributed", "qat_distributed", "qat_lora_finetune_distributed"])
def test_inference_of_recipes_that_exist_only_distributed(name: str) -> None:
    assert {infer_name(yaml.safe_load(c.read_text())) for c in RECIPES[name].configs} == {name}


def test_every_single_device_recipe_file_exists() -> None:
    assert len(SHIPPED) > 50
    assert all(r.path.is_file() and r.path.is_absolute() for r in RECIPES.values() if "_single" in r.name)


def test_the_option_comes_first(tmp_path: Path) -> None:
    slurm = script("tune run full_finetune_single_device --config finetune.yaml", tmp_path)
    recipe = resolve_recipe("lora_dpo_single_device", slurm, LORA, tmp_path)
    assert (recipe.name, recipe.source) == ("lora_dpo_single_device", "option")
    assert recipe.note == "lora_dpo_single_device, from --recipe"
    assert recipe.warnings == (
        "--recipe lora_dpo_single_device is measured; finetune.slurm trains with full_finetune_single_device",
    )


def test_then_the_script(tmp_path: Path) -> None:
    slurm = script("tune run full_finetune_single_device --config finetune.yaml", tmp_path)
    recipe = resolve_recipe(None, slurm, LORA, tmp_path)
    assert recipe == Recipe(
        name="full_finetune_single_device",
        path=RECIPES["full_finetune_single_device"].path,
        source="finetune.slurm",
        note="full_finetune_single_device, from finetune.slurm:2",
        supports_distributed=False,
        is_registered=True,
    )


@pytest.mark.parametrize(
    ("line", "why"),
    [
        pytest.param(None, "there is no finetune.slurm", id="no-script"),
        pytest.param("python train.py", "finetune.slurm has no `tune run`", id="no-tune-run"),
    ],
)
def test_then_the_config(line: str | None, why: str, tmp_path: Path) -> None:
    recipe = resolve_recipe(None, script(line, tmp_path) if line else None, LORA, tmp_path)
    assert (recipe.name, recipe.source) == ("lora_finetune_single_device", "inferred")
    assert recipe.note == f"lora_finetune_single_device, inferred from the config ({why})"
    assert "--recipe" in recipe.warnings[0]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """exp/run1 with recipes of its own, in a file, a package and a module beside the run."""
    run = tmp_path / "exp" / "run1"
    for file in ("mine.py", "pkg/deep/own.py", "pkg/whole/__main__.py"):
        (run / file).parent.mkdir(parents=True, exist_ok=True)
        (run / file).write_text("# a recipe\n")
    (tmp_path / "here.py").write_text("# a recipe\n")
    return run


@pytest.mark.parametrize(
    ("given", "file"),
    [
        pytest.param("mine.py", "exp/run1/mine.py", id="relative-to-run"),
        pytest.param("here.py", "here.py", id="relative-to-cwd"),
        pytest.param("pkg/deep/own.py", "exp/run1/pkg/deep/own.py", id="deep"),
    ],
)
def test_option_path(given: str, file: str, tree: Path) -> None:
    root = tree.parents[1]
    recipe = resolve_recipe(given, None, LORA, tree, cwd=root)
    assert (recipe.path, recipe.source) == (root / file, "option")


def test_option_absolute_path(tree: Path) -> None:
    assert resolve_recipe(str(tree / "mine.py"), None, {}, tree).name == "mine"


@pytest.mark.parametrize(
    ("written", "file"),
    [
        pytest.param("mine.py", "mine.py", id="file"),
        pytest.param("mine", "mine.py", id="module"),
        pytest.param("pkg/deep/own.py", "pkg/deep/own.py", id="path"),
        pytest.param("pkg/deep/own", "pkg/deep/own.py", id="path-without-suffix"),
        pytest.param("pkg.deep.own", "pkg/deep/own.py", id="dotted"),
        pytest.param("pkg.whole", "pkg/whole/__main__.py", id="package"),
    ],
)
def test_tune_run_path(written: str, file: str, tree: Path) -> None:
    slurm = script(f"tune run {written} --config finetune.yaml", tree)
    recipe = resolve_recipe(None, slurm, LORA, tree)
    assert (recipe.path, recipe.source, recipe.warnings) == (tree / file, "finetune.slurm", ())


def test_tune_run_path_is_relative_to_the_working_directory(tree: Path) -> None:
    slurm = script("tune run deep/own.py --config finetune.yaml", tree)
    assert resolve_recipe(None, slurm, LORA, tree, working_dir=tree / "pkg").path == tree / "pkg/deep/own.py"


def test_tune_run_module_that_is_installed(tmp_path: Path) -> None:
    slurm = script("tune run json.tool --config finetune.yaml", tmp_path)
    assert resolve_recipe(None, slurm, LORA, tmp_path).path.parts[-2:] == ("json", "tool.py")


def test_tune_run_path_that_torchtune_cannot_run_is_said(tree: Path) -> None:
    slurm = script("tune run ./mine.py --config finetune.yaml", tree)
    recipe = resolve_recipe(None, slurm, LORA, tree)
    assert "without a leading `./`" in recipe.warnings[0]


def test_an_edited_recipe_is_another(tree: Path) -> None:
    recipe = resolve_recipe("mine.py", None, LORA, tree, cwd=tree)
    before = recipe.identity
    recipe.path.write_text("# edited\n")
    assert before.startswith("mine sha256:")
    assert recipe.identity != before


@pytest.mark.parametrize(
    ("name", "what", "remedy"),
    [
        pytest.param(
            "lora_finetune_single", "no recipe", "did you mean lora_finetune_single_device", id="typo"
        ),
        pytest.param("nope.py", "no recipe 'nope.py'", "the path of a recipe file", id="no-file"),
        pytest.param("generate", "not a training recipe", "lora_finetune_single_device", id="generate"),
        pytest.param("eleuther_eval", "not a training recipe", "--recipe NAME", id="evaluation"),
        pytest.param("quantize", "not a training recipe", "--recipe NAME", id="quantize"),
        pytest.param("dev/generate_v2", "not a training recipe", "--recipe NAME", id="dev"),
        pytest.param("ppo_full_finetune_single_device", "rollouts", "autobatch measures", id="ppo"),
    ],
)
@pytest.mark.parametrize("source", ["option", "script"])
def test_recipes_that_cannot_be_measured(
    source: str, name: str, what: str, remedy: str, tmp_path: Path
) -> None:
    if source == "option":
        problem = problem_of(name, None, LORA, tmp_path)
        assert problem.where == "--recipe"
    else:
        slurm = script(f"tune run {name} --config finetune.yaml", tmp_path)
        problem = problem_of(None, slurm, LORA, tmp_path)
        assert problem.where == f"{tmp_path / 'finetune.slurm'}:2"
    assert what in problem.what
    assert remedy in problem.remedy


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        pytest.param(
            "lora_finetune_distributed", "--recipe lora_finetune_single_device", id="one for one device"
        ),
        pytest.param("full_dpo_distributed", "no recipe for one device", id="only distributed"),
    ],
)
def test_what_is_for_one_device_refuses_distributed_recipes(name: str, remedy: str, tmp_path: Path) -> None:
    recipe = resolve_recipe(name, None, LORA, tmp_path)

    with pytest.raises(RunProblems) as caught:
        refuse_distributed(recipe, "--recipe", "autobatch init")

    (problem,) = caught.value.problems
    assert problem.what == f"{name} trains on several devices; autobatch init is for one device so far"
    assert remedy in problem.remedy


def test_several_processes_with_the_option_are_said(tree: Path) -> None:
    slurm = script("tune run --nproc_per_node 4 lora_finetune_distributed --config finetune.yaml", tree)
    recipe = resolve_recipe("lora_finetune_single_device", slurm, LORA, tree)
    assert "one device that holds the whole model" in recipe.warnings[0]


def test_a_config_that_says_too_little(tmp_path: Path) -> None:
    problem = problem_of(None, None, {"model": {"_component_": "x"}}, tmp_path)
    assert "can't be inferred" in problem.what
    assert "lora_finetune_single_device" in problem.remedy


@pytest.mark.parametrize(
    ("component", "packs"),
    [
        ("torchtune.datasets.instruct_dataset", True),
        ("torchtune.datasets.alpaca_cleaned_dataset", True),
        ("torchtune.datasets.wikitext_dataset", True),
        ("torchtune.datasets._chat.chat_dataset", True),
        ("torchtune.datasets.preference_dataset", False),
        ("torchtune.datasets.PreferenceDataset", False),
        ("torchtune.datasets.stack_exchange_paired_dataset", False),
        ("torchtune.datasets.hh_rlhf_helpful_dataset", False),
        ("torchtune.datasets.cnn_dailymail_articles_dataset", False),
        ("torchtune.datasets.multimodal.the_cauldron_dataset", False),
        ("torchtune.datasets.multimodal.vqa_dataset", False),
        ("torchtune.datasets.no_such_dataset", None),
        ("my.own.dataset", None),
    ],
)
def test_can_pack(component: str, packs: bool | None) -> None:
    assert can_pack(component) is packs


@pytest.mark.parametrize(
    ("component", "missing"),
    [
        ("torchtune.models.llama3_2.lora_llama3_2_1b", False),
        ("torchtune.models.llama3_2.qlora_llama3_2_1b", False),
        ("torchtune.models.llama3_2._component_builders.lora_llama3_2", False),
        ("torchtune.training.quantization.Int8DynActInt4WeightQATQuantizer", False),
        ("torchtune.models.llama3_2.lora_llama3_2_1B", True),
        ("torchtune.models.lama3.x", True),
        ("torchtune.models", True),
        ("torch.optim.AdamW", False),
    ],
)
def test_is_missing(component: str, missing: bool) -> None:
    assert is_missing(component) is missing


def test_similar() -> None:
    found = similar("torchtune.models.llama3_2.lora_llama3_2_1B")
    assert found[0] == "torchtune.models.llama3_2.lora_llama3_2_1b"
