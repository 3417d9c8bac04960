"""Every config that torchtune ships, and every one of this project, goes through validation."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from autobatch.runs.torchtune_source import registered_recipes
from autobatch.validation.build import Builder, Section
from autobatch.validation.findings import Report
from autobatch.validation.limits import limit_by_name, limit_for
from autobatch.validation.validator import validate
from tests.validated import errors

ROOT = Path(__file__).parent.parent
SHIPPED = sorted(
    {config for recipe in registered_recipes().values() for config in recipe.configs if config.exists()}
)
OWN = sorted((ROOT / "configs").glob("**/*.yaml"))


@pytest.fixture(scope="module")
def reports() -> dict[str, Report]:
    return {report.path: report for report in validate(SHIPPED, build=False)}


@pytest.mark.parametrize("config", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_no_error_in_a_config_of_torchtune(config: Path, reports: dict[str, Report]) -> None:
    report = reports[str(config.resolve())]

    assert errors(report) == []
    assert report.readable


@pytest.mark.parametrize("config", OWN, ids=lambda path: path.stem)
def test_no_error_in_a_config_of_this_project(config: Path) -> None:
    (report,) = validate([config], build=False)

    assert errors(report) == []


def test_the_size_by_name_and_by_parameters_give_one_row() -> None:
    models = {
        str(model): model
        for config in SHIPPED
        if isinstance(model := yaml.safe_load(config.read_text()).get("model"), dict)
        and len(model) == 1
        and "vision" not in model["_component_"]
    }
    sections = [Section("model", model, is_model=True) for model in models.values()]
    builder = Builder()
    builder.ask(sections, ROOT)

    rows = {}
    for section in sections:
        parameters = builder.answer(section, ROOT).parameters
        assert parameters is not None
        rows[section.arguments["_component_"]] = (limit_by_name(section.arguments), limit_for(parameters))

    named = {component: row for component, row in rows.items() if row[0] is not None}
    assert len(named) > 20
    assert {component for component, (by_name, counted) in named.items() if by_name != counted} == set()
    assert set(rows) - set(named) == {"torchtune.models.phi3.phi3_mini"}
