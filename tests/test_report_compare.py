"""Runs side by side: formats compared whole, each caveat and recommendation by what brings it about."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from autobatch.errors import UsageError
from autobatch.records import Limit, Metric, Status
from autobatch.report.caveats import caveats
from autobatch.report.columns import COLUMNS, sort_runs
from autobatch.report.compare import Comparison, compare
from autobatch.report.comparison_formats import FORMATS, as_csv, as_json, as_markdown, as_text
from autobatch.report.recommendations import recommendations
from autobatch.report.run_figures import RunFigures
from autobatch.report.run_sources import read_figures
from tests.compared_runs import (
    DENSITY,
    entry,
    experiment_of,
    full_experiment,
    set_config,
    write_result,
    write_status,
)

GOLDEN = Path(__file__).parent / "golden"

#: Trained at the measured batch_size, within the target, and as predicted.
GOOD = RunFigures(
    run="good",
    status="completed",
    probe="done",
    model="1B",
    packed=True,
    max_seq_len=2048,
    batch_size=24,
    measured_batch_size=24,
    limit="memory",
    gradient_accumulation_steps=1,
    effective_batch_size=24,
    packing_density=2.8,
    packing_source="counts in the log",
    total_examples=8000,
    dataset="a",
    gpu="H100",
    capacity_gb=80.0,
    target_gb=56.0,
    peak_gpu_memory_gb=55.5,
    predicted_peak_memory_gb=55.1,
    predicted_from="trial",
    tokens_per_second=1000.0,
    steps=100,
    final_loss=1.0,
)


@pytest.fixture
def experiment(laid_out: Path, tmp_path: Path) -> Path:
    return full_experiment(laid_out, tmp_path)


class TestWhole:
    @pytest.mark.parametrize(("form", "ending"), [("text", "txt"), ("markdown", "md"), ("csv", "csv")])
    def test_as_in_the_golden_file(self, experiment: Path, form: str, ending: str) -> None:
        assert FORMATS[form](compare(experiment)) == (GOLDEN / f"compare.{ending}").read_text()

    def test_json_says_the_same_as_csv_and_more(self, experiment: Path) -> None:
        found = compare(experiment)

        data = json.loads(as_json(found))
        lines = list(csv.DictReader(io.StringIO(as_csv(found))))

        assert data["schema_version"] == 1
        assert [run["run"] for run in data["runs"]] == ["run1", "run2", "run3", "run4", "run5", "old"]
        for run, line in zip(data["runs"], lines, strict=True):
            for key in (c.key for c in COLUMNS if c.key != "status"):
                value = run[key]
                shown = str(value).lower() if isinstance(value, bool) else str(value)
                assert line[key] == ("" if value is None else shown)
        assert data["runs"][2]["failure"] == "out of memory"
        assert {c["code"] for c in data["caveats"]} >= {"out-of-memory", "idle-memory", "effective-batch"}
        assert [r["code"] for r in data["recommendations"]] == [
            "fastest", "raise-batch-size", "lower-batch-size", "raise-batch-size", "probe",
        ]  # fmt: skip


class TestSources:
    def test_one_run_directory_is_compared_alone(self, experiment: Path) -> None:
        found = compare(experiment / "run2")

        assert [run.run for run in found.runs] == ["run2"]
        assert found.runs[0].tokens_per_second == 43120

    def test_patterns_choose_runs(self, experiment: Path) -> None:
        found = compare(experiment, ["run[12]", "old"])

        assert [run.run for run in found.runs] == ["run1", "run2", "old"]

    def test_a_pattern_without_a_run_lists_the_runs(self, experiment: Path) -> None:
        with pytest.raises(UsageError) as raised:
            compare(experiment, ["lora-*"])

        assert "--run lora-*" in str(raised.value)
        assert "run1, run2, run3, run4, run5, old" in str(raised.value)

    def test_without_any_entry_the_probe_speaks(self, laid_out: Path, tmp_path: Path) -> None:
        experiment = experiment_of(laid_out, tmp_path, "run1")
        write_result(experiment / "run1")

        (run,) = compare(experiment).runs

        assert (run.status, run.probe, run.batch_size, run.measured_batch_size) == (None, "done", 4, 24)
        assert run.packing_density == pytest.approx(8000 / 108)
        assert run.packing_efficiency == pytest.approx(100 * 13_713 / (108 * 128))
        # Batch size 4 wasn't tried: it comes from the line.
        assert run.predicted_from == "fit"
        assert run.predicted_peak_memory_gb == pytest.approx(1.82 + 4 * 2.22)

    def test_a_changed_config_makes_a_probe_stale(self, laid_out: Path, tmp_path: Path) -> None:
        experiment = experiment_of(laid_out, tmp_path, "run1", "run2")
        for name in ("run1", "run2"):
            write_result(experiment / name)
        config = experiment / "run2" / "finetune.yaml"
        config.write_text(config.read_text().replace("lora_rank: 8", "lora_rank: 64"))
        set_config(experiment / "run1", batch_size=7)  # what a probe searches isn't part of it

        found = compare(experiment)

        assert [run.probe_is_stale for run in found.runs] == [False, True]
        assert [r.code for r in found.recommendations if "run2" in r.runs] == ["probe-again"]

    def test_exports_of_the_training_script_count_as_in_verify(
        self, laid_out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        experiment = experiment_of(laid_out, tmp_path, "run1")
        script = experiment / "run1" / "finetune.slurm"
        monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        write_result(experiment / "run1")
        monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")
        assert compare(experiment).runs[0].probe_is_stale
        script.write_text(
            script.read_text().replace(
                "export HF_HUB_OFFLINE=1", "export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True"
            )
        )

        assert not compare(experiment).runs[0].probe_is_stale

    def test_the_config_of_the_training_counts_not_the_file_as_it_is_now(self, experiment: Path) -> None:
        set_config(experiment / "run1", batch_size=8)

        found = compare(experiment, ["run1"])

        assert found.runs[0].batch_size == 24
        assert any(
            "finetune.yaml was changed since it trained (batch_size 24 -> 8)" in c.text for c in found.caveats
        )

    def test_a_planned_run_is_shown_as_the_file_is_now(self, laid_out: Path, tmp_path: Path) -> None:
        experiment = experiment_of(laid_out, tmp_path, "run1")
        write_status(experiment, [entry("run1", "planned", batch_size=16, tokens_per_second=None)])

        (run,) = compare(experiment).runs

        assert (run.status, run.batch_size, run.has_figures) == ("planned", 4, False)

    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            pytest.param("{", "can't be read", id="not JSON"),
            pytest.param('{"schema_version": 99}', "newer autobatch", id="newer"),
        ],
    )
    def test_a_damaged_result_costs_its_figures_alone(self, experiment: Path, damage: str, said: str) -> None:
        path = experiment / "run1" / "probe" / "result.json"
        path.write_text(damage)

        found = compare(experiment)

        assert found.runs[0].measured_batch_size is None
        assert found.runs[0].tokens_per_second == 48211.7
        assert found.runs[1].measured_batch_size == 24
        assert any(str(path) in c.text and said in c.text for c in found.caveats if c.code == "source")

    def test_a_config_that_is_no_yaml_costs_its_figures_alone(self, experiment: Path) -> None:
        (experiment / "run5" / "finetune.yaml").write_text("batch_size: [\n")

        found = compare(experiment)

        assert found.runs[4].batch_size is None
        assert any("run5/finetune.yaml:" in c.text for c in found.caveats if c.runs == ("run5",))

    def test_values_of_the_wrong_kind_are_left_out_and_named(self, laid_out: Path, tmp_path: Path) -> None:
        experiment = experiment_of(laid_out, tmp_path, "run1")
        wrong = entry("run1", "completed", tokens_per_second="fast", steps=1.5, final_loss=float("nan"))
        write_status(experiment, [wrong])

        found = compare(experiment)

        assert [c.text for c in found.caveats if c.code == "source"] == [
            "run1: its final loss is nan: the training diverged",
            "run1: metrics.tokens_per_second is 'fast', not a number up to 1e+15: left out",
            "run1: metrics.steps is 1.5, not a whole number up to 1e+15: left out",
        ]
        json.loads(as_json(found))

    def test_a_peak_of_another_kind_than_the_logged_one_predicts_nothing(self, experiment: Path) -> None:
        write_result(experiment / "run2", metric=Metric.ALLOCATED)

        found = compare(experiment, ["run2"]).runs[0]

        assert found.peak_gpu_memory_gb == 11.4
        assert found.predicted_peak_memory_gb is None
        assert found.peak_vs_predicted_pct is None

    def test_a_sampled_density_is_an_estimate(self, experiment: Path) -> None:
        write_result(experiment / "run4", density=replace(DENSITY, sampled_examples=400))

        found = compare(experiment, ["run4"])

        assert found.runs[0].packing_source == "probe, sampled"
        assert "density-estimated" in [c.code for c in found.caveats]

    def test_a_probe_that_found_nothing_is_not_a_measurement(self, experiment: Path) -> None:
        write_result(experiment / "run4", status=Status.NOTHING_FITS, batch_size=None, trials=(), fit=None)

        found = compare(experiment, ["run4"])

        assert found.runs[0].measured_batch_size is None
        assert [c.code for c in found.caveats] == ["probe-failed"]
        assert [r.code for r in found.recommendations] == ["probe"]


class TestCaveats:
    def test_like_runs_have_none(self) -> None:
        assert caveats([GOOD, replace(GOOD, run="other", final_loss=1.2, tokens_per_second=900.0)]) == ()

    @pytest.mark.parametrize(
        ("changes", "code", "said"),
        [
            pytest.param(
                {"peak_gpu_memory_gb": 50.0, "target_gb": 56.0},
                "off-prediction",
                "its peak is 9.3 % below the probe's prediction",
                id="off its prediction",
            ),
            pytest.param(
                {"peak_gpu_memory_gb": 56.5},
                "over-target",
                "its peak of 56.5 GiB is over the target of 56.0 GiB",
                id="over target",
            ),
            pytest.param(
                {"peak_gpu_memory_gb": 11.2, "predicted_peak_memory_gb": 11.0, "batch_size": 4},
                "idle-memory",
                "its peak of 11.2 GiB is 20 % of what the target allows",
                id="idle",
            ),
            pytest.param(
                {"peak_gpu_memory_gb": 11.2, "predicted_peak_memory_gb": 11.0, "limit": Limit.DATASET.value},
                "idle-memory",
                "20 % of what the target allows; its dataset has too few packs for a larger batch",
                id="limited by its data",
            ),
            pytest.param(
                {"status": "failed", "failure": "out of memory", "peak_gpu_memory_gb": None},
                "out-of-memory",
                "ran out of memory with batch_size 24",
                id="out of memory",
            ),
            pytest.param(
                {"status": "failed", "failure": "time limit"}, "failed", "failed (time limit)", id="failed"
            ),
            pytest.param({"status": "running"}, "running", "aren't those of a whole training", id="running"),
            pytest.param({"probe_is_stale": True}, "stale-probe", "may no longer hold", id="stale"),
            pytest.param(
                {"effective_batch_size": 96},
                "effective-batch",
                "effective batch sizes differ (24 sequences: good; 96 sequences: other): final losses",
                id="effective batch",
            ),
            pytest.param({"steps": 50}, "steps", "100 steps: good; 50 steps: other", id="steps"),
            pytest.param({"model": "3B"}, "model", "models differ (1B: good; 3B: other)", id="models"),
            pytest.param({"max_seq_len": 4096, "packing_density": 5.6}, "max-seq-len", "4096: other", id="length"),
            pytest.param({"gpu": "A100"}, "gpu", "cards differ (H100: good; A100: other)", id="cards"),
            pytest.param({"dataset": "b"}, "data", "datasets differ (good; other)", id="dataset"),
            pytest.param({"total_examples": 9000}, "data", "datasets differ (good; other)", id="examples"),
            pytest.param({"packing_density": 3.0}, "density", "good 2.80, other 3.00", id="density"),
            pytest.param(
                {"packing_source": "estimate"},
                "density-estimated",
                "estimates, not counts: other, beside counted ones (good)",
                id="estimated",
            ),
        ],
    )  # fmt: skip
    def test_what_brings_one_about(self, changes: dict[str, object], code: str, said: str) -> None:
        found = caveats([GOOD, replace(GOOD, run="other", **changes)])  # type: ignore[arg-type]

        assert [c.code for c in found] == [code]
        assert said in found[0].text
        assert "other" in found[0].runs

    @pytest.mark.parametrize(
        ("peak", "codes"), [(57.8, ["over-target"]), (57.9, ["over-target", "off-prediction"])]
    )
    def test_five_percent_is_the_bound(self, peak: float, codes: list[str]) -> None:
        assert [c.code for c in caveats([replace(GOOD, peak_gpu_memory_gb=peak)])] == codes


class TestRecommendations:
    def test_the_fastest_with_its_figures(self) -> None:
        other = replace(GOOD, run="other", tokens_per_second=1100.0)

        (found,) = recommendations([GOOD, other])

        assert found.code == "fastest"
        assert found.runs == ("other",)
        assert found.text == (
            "other (batch_size 24, packed): the fastest of the 2 completed 1B runs on H100 within the target, "
            "1100 tokens/s per GPU, 10 % more than good; so the fewest GPU-hours for the same tokens"
        )

    def test_a_tie_is_called_one(self) -> None:
        found = recommendations([GOOD, replace(GOOD, run="other", tokens_per_second=1015.0)])

        assert found[0].runs == ("other", "good")
        assert "equally fast" in found[0].text

    def test_a_run_over_its_target_is_not_recommended(self) -> None:
        third = replace(GOOD, run="third", tokens_per_second=800.0)
        over = replace(GOOD, run="over", tokens_per_second=2000.0, peak_gpu_memory_gb=60.0)

        found = recommendations([GOOD, third, over])

        assert found[0].runs == ("good",)
        assert found[0].text.endswith("; over the target, left out: over")

    def test_a_peak_nobody_knows_is_said(self) -> None:
        found = recommendations(
            [GOOD, replace(GOOD, run="other", tokens_per_second=1500.0, peak_gpu_memory_gb=None)]
        )

        assert found[0].runs == ("other",)
        assert found[0].text.endswith("; no peak to hold against its target: other")
        assert "within the target" not in found[0].text

    @pytest.mark.parametrize(
        "changes",
        [
            pytest.param({"tokens_per_second": None, "training_time_minutes": 5.0}, id="no figure"),
            pytest.param({"status": "failed", "failure": "out of memory"}, id="died"),
            pytest.param({"status": "running"}, id="under way"),
        ],
    )
    def test_no_fastest_is_named_without_two_figures(self, changes: dict[str, object]) -> None:
        found = recommendations([GOOD, replace(GOOD, run="other", **changes)])  # type: ignore[arg-type]

        assert [r.code for r in found] == ["fastest-unknown"]

    def test_models_and_cards_are_not_mixed(self) -> None:
        found = recommendations([GOOD, replace(GOOD, run="other", model="3B", tokens_per_second=300.0)])

        assert found == ()

    @pytest.mark.parametrize(
        ("size", "accumulation", "measured", "said"),
        [
            (4, 8, 24, "16 with gradient_accumulation_steps 2 keeps the effective batch of 32 sequences"),
            (4, 6, 24, "24 with gradient_accumulation_steps 1 keeps the effective batch of 24 sequences"),
            (4, 1, 24, "raising it changes the effective batch from 4 to 24 sequences"),
            (7, 1, 8, "raising it changes the effective batch from 7 to 8 sequences"),
            (5, 5, 7, "raising it changes the effective batch from 25 to 35 sequences"),
        ],
    )  # fmt: skip
    def test_a_batch_size_below_the_measured_one(
        self, size: int, accumulation: int, measured: int, said: str
    ) -> None:
        run = replace(
            GOOD, batch_size=size, gradient_accumulation_steps=accumulation, measured_batch_size=measured
        )

        (found,) = recommendations([run])

        assert found.code == "raise-batch-size"
        assert f"batch_size {size} is below the {measured} measured to fit" in found.text
        assert said in found.text

    def test_a_batch_size_above_the_measured_one(self) -> None:
        (found,) = recommendations([replace(GOOD, batch_size=32)])

        assert found.code == "lower-batch-size"
        assert found.text == "good: lower batch_size from 32 to 24, the largest measured to fit"

    def test_trained_without_a_figure(self) -> None:
        (found,) = recommendations([replace(GOOD, tokens_per_second=None)])

        assert found.code == "collect-metrics"

    def test_nothing_is_recommended_for_a_directory_that_is_gone(self) -> None:
        gone = replace(GOOD, is_there=False, measured_batch_size=None, tokens_per_second=None)

        assert recommendations([gone]) == ()


class TestFormats:
    @pytest.mark.parametrize(
        "name", ["a|b", "*bold*", "__init__", "[x](y)", "<b>", "back`tick", "a\\|b", "a_b"]
    )
    def test_markdown_shows_a_name_as_it_is(self, name: str) -> None:
        text = as_markdown(Comparison("e", (replace(GOOD, run=name),), (), ()))

        cells = cells_of(text)
        assert cells[len(cells) // 2] == name

    @given(st.text(st.characters(), min_size=1))
    def test_any_name_leaves_one_row(self, name: str) -> None:
        found = Comparison("e", (replace(GOOD, run=name, failure=name), GOOD), (), ())

        table = as_markdown(found).split("### ")[0]
        cells = cells_of(as_markdown(found))

        assert len(table.rstrip("\n").split("\n")) == 6
        assert len(cells) == 3 * (table.split("\n")[3].count("|") - 1)
        assert len(as_text(found).split("not known")[0].rstrip("\n").split("\n")) == 3
        assert [row[0] for row in list(csv.reader(io.StringIO(as_csv(found))))[1:]] == [
            "".join(c if c.isprintable() else " " for c in name),
            "good",
        ]
        assert json.loads(as_json(found).encode())["runs"][0]["run"] == name

    def test_a_terminal_obeys_nothing_from_a_file(self) -> None:
        found = Comparison("e", (replace(GOOD, status="failed", failure="\x1b[2Jgone\nrun9  done"),), (), ())

        assert "\x1b" not in as_text(found)
        assert "failed:  [2Jgone run9  done" in as_text(found)


_KEYS = (
    "status", "failure", "config", "metrics", "batch_size", "gradient_accumulation_steps", "effective_batch_size",
    "packing_density", "peak_gpu_memory_gb", "predicted_peak_memory_gb", "tokens_per_second",
    "training_time_minutes", "gpu_hours", "final_loss", "steps", "model",
)  # fmt: skip
_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
_VALUES = _SCALARS | st.just(10**5000) | st.just(5e-324) | st.sampled_from(["completed", "failed", "1e9"])
_SECTIONS = st.dictionaries(st.sampled_from(_KEYS), _VALUES)
_ENTRIES = st.dictionaries(st.sampled_from(_KEYS), _VALUES | st.lists(_SCALARS) | _SECTIONS)


@given(
    st.lists(
        st.dictionaries(st.sampled_from(_KEYS), _VALUES | st.lists(_SCALARS) | _SECTIONS),
        min_size=1,
        max_size=3,
    )
)
def test_any_entry_is_shown_in_every_format(entries: list[dict[str, Any]]) -> None:
    runs = tuple(read_figures(f"run{n}", None, entry) for n, entry in enumerate(entries))
    found = Comparison("e", runs, caveats(runs), recommendations(runs))

    for form in FORMATS.values():
        assert form(found).endswith("\n")
    for column in COLUMNS:
        assert len(sort_runs(runs, column.key)) == len(entries)


def test_sorting_puts_what_isnt_known_last() -> None:
    runs = [replace(GOOD, run=str(n), tokens_per_second=v) for n, v in enumerate((2.0, None, 1.0, 3.0))]

    up = sort_runs(runs, "tokens_per_second")
    down = sort_runs(runs, "tokens/s", descending=True)

    assert [run.run for run in up] == ["2", "0", "3", "1"]
    assert [run.run for run in down] == ["3", "0", "2", "1"]


def test_an_unknown_column_lists_the_columns() -> None:
    with pytest.raises(UsageError) as raised:
        sort_runs([GOOD], "speed")

    assert "--sort speed" in str(raised.value)
    assert "tokens_per_second" in str(raised.value)


def cells_of(markdown: str) -> list[str]:
    """The text of every cell of the tables, as a Markdown renderer shows it."""
    shown = []
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    for before, token in pairwise(tokens):
        if before.type in ("th_open", "td_open"):
            shown.append("".join(child.content for child in token.children or []))
    return shown
