"""Pictures of probes: what is in them, that nothing overlaps, and that colour isn't needed."""

from __future__ import annotations

import itertools
import re
import struct
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from autobatch.errors import UsageError
from autobatch.records import (
    Density,
    Device,
    Fit,
    Limit,
    Metric,
    Prediction,
    ProbeRequest,
    ProbeResult,
    Status,
    Trial,
    Verdict,
)
from autobatch.report.chart import Mark, chart_of, on_common_scales
from autobatch.report.experiment import ProbedRun
from autobatch.report.figures import MOST_PANELS, experiment_figure, panel_figure, probe_figure
from autobatch.report.look import drawing, line_of, style_of
from autobatch.report.page import probe_page
from autobatch.report.picture import experiment_file, probe_file

GIB = 2**30
CARD = Device("cuda", "NVIDIA H100 80GB HBM3", 80 * GIB)
SVG = "{http://www.w3.org/2000/svg}"

#: What a name, or a recipe's error, may hold.
NASTY = """<script>alert('1')</script> & "q" | $x_1$ \x1b[31m"""


def gib(size: float) -> int:
    return round(size * GIB)


DONE = ProbeResult(
    status=Status.DONE,
    message="batch_size 24 (peak 55.1 GiB, 68.9 % of 80.0 GiB); batch_size 25 would take 71.7 %",
    request=ProbeRequest("/runs/run1"),
    recipe="lora_finetune_single_device, from finetune.slurm:14",
    device=CARD,
    metric=Metric.RESERVED,
    capacity_bytes=CARD.total_bytes,
    target_bytes=56 * GIB,
    batch_size=24,
    limit=Limit.MEMORY,
    peak_bytes=gib(55.1),
    trials=(
        Trial(1, Verdict.FITS, peak_bytes=gib(4.04), tokens_per_second=9120.4),
        Trial(24, Verdict.FITS, peak_bytes=gib(55.1), tokens_per_second=48211.7),
        Trial(25, Verdict.OVER_TARGET, peak_bytes=gib(57.36), tokens_per_second=48306),
        Trial(40, Verdict.OUT_OF_MEMORY, detail="CUDA out of memory"),
    ),
    fit=Fit(1.8 * GIB, 2.22 * GIB, 0.0012),
    density=Density(
        packed=True, examples=8000, packs=108, tokens=219_414, max_seq_len=2048, longest_example=66
    ),
    prediction=Prediction(26, 24, gib(51)),
    ended="2026-01-02T03:04:05+00:00",
)

#: A smaller card is planned for, and the target is next to it.
PLANNED = replace(
    DONE,
    request=replace(DONE.request, target_fraction=0.97, capacity_bytes=40 * GIB),
    capacity_bytes=40 * GIB,
    target_bytes=gib(38.8),
    batch_size=17,
    peak_bytes=gib(38.3),
    trials=(
        Trial(17, Verdict.FITS, peak_bytes=gib(38.3), tokens_per_second=41000),
        Trial(18, Verdict.OVER_TARGET, peak_bytes=gib(40.5), tokens_per_second=41500),
        Trial(30, Verdict.OUT_OF_MEMORY),
    ),
)

#: The last trial ended with the first step that was over the target.
CUT_SHORT = replace(
    DONE,
    trials=(
        *DONE.trials[:2],
        Trial(25, Verdict.OVER_TARGET, peak_bytes=gib(56.2), cut_short=True),
    ),
)

NOTHING_FITS = replace(
    DONE,
    status=Status.NOTHING_FITS,
    message="nothing fits: batch_size 1 ran out of memory, and the target is 56.0 GiB (70.0 % of 80.0 GiB).",
    batch_size=None,
    peak_bytes=None,
    trials=(Trial(1, Verdict.OUT_OF_MEMORY),),
    fit=None,
    prediction=None,
)

CRASHED = replace(
    NOTHING_FITS,
    status=Status.CRASHED,
    message=f"batch_size 8: the recipe failed: {NASTY}\nThe trial's whole output: probe/trials/batch_size_8.log",
    trials=(Trial(8, Verdict.CRASHED, detail=NASTY),),
)

#: Of a version that wrote less.
OLD = ProbeResult(
    Status.DONE,
    "batch_size 2",
    ProbeRequest("/runs/run1"),
    batch_size=2,
    trials=(Trial(1, Verdict.FITS, peak_bytes=GIB), Trial(2, Verdict.FITS, peak_bytes=2 * GIB)),
)

RESULTS = [
    pytest.param(DONE, id="done"),
    pytest.param(PLANNED, id="planned"),
    pytest.param(CUT_SHORT, id="cut short"),
    pytest.param(NOTHING_FITS, id="nothing fits"),
    pytest.param(CRASHED, id="crashed"),
    pytest.param(OLD, id="old"),
]


def sweep(count: int) -> list[ProbedRun]:
    """Runs of one card: every fifth isn't probed."""
    return [
        ProbedRun(f"lora_r8_lr{number}e-4", None, "not probed")
        if number % 5 == 4
        else ProbedRun(f"lora_r8_lr{number}e-4", DONE, "")
        for number in range(count)
    ]


def words_of(svg: bytes) -> list[str]:
    return ["".join(text.itertext()) for text in ET.fromstring(svg).iter(f"{SVG}text")]


class TestChart:
    def test_out_of_memory_stands_at_the_capacity(self) -> None:
        chart = chart_of(DONE, "run1")

        assert [(p.batch_size, p.mark.value) for p in chart.points][-1] == (40, "out of memory")
        assert chart.points[-1].gib == chart.levels[-1].gib == 80
        assert [level.name for level in chart.levels] == ["target", "capacity"]

    def test_out_of_memory_with_a_smaller_card_planned_stands_at_the_devices_own(self) -> None:
        chart = chart_of(PLANNED, "run1")

        assert [(level.name, level.gib) for level in chart.levels][1:] == [("planned", 40), ("capacity", 80)]
        assert chart.points[-1].gib == 80

    def test_a_planned_card_alone_where_nothing_went_above_it(self) -> None:
        chart = chart_of(replace(PLANNED, trials=PLANNED.trials[:1]), "run1")

        assert [level.name for level in chart.levels] == ["target", "planned"]
        assert chart.top < 80

    @pytest.mark.parametrize("result", RESULTS)
    def test_everything_lies_within_the_axes(self, result: ProbeResult) -> None:
        chart = chart_of(result, "run1")

        assert all(0 <= p.gib < chart.top and 0 < p.batch_size < chart.right for p in chart.points)
        assert all(level.gib < chart.top for level in chart.levels)
        for batch_size, size in chart.fit_ends() or ():
            assert -1e-9 <= size <= chart.top * 1.000001
            assert -1e-9 <= batch_size <= chart.right * 1.000001

    def test_one_scale_for_one_card(self) -> None:
        smaller = replace(DONE, trials=DONE.trials[:3])
        other = replace(PLANNED, device=replace(CARD, name="NVIDIA A100-SXM4-40GB"))

        scaled, one_range = on_common_scales([chart_of(r, "r") for r in (DONE, smaller, NOTHING_FITS, other)])

        assert len({(c.top, c.right) for c in scaled[:3]}) == 1
        assert scaled[3].right != scaled[0].right
        assert not one_range

    def test_a_batch_size_that_is_many_times_anothers_has_a_scale_of_its_own(self) -> None:
        tiny = replace(DONE, batch_size=1, trials=DONE.trials[:1], prediction=None)

        scaled, one_range = on_common_scales([chart_of(DONE, "a"), chart_of(tiny, "b")])

        assert not one_range
        assert scaled[1].right < 3
        assert scaled[0].top == scaled[1].top


class TestFigures:
    def test_every_mark_has_a_shape_and_every_line_a_dash_of_its_own(self) -> None:
        markers = [style_of(mark, 1)["marker"] for mark in Mark]
        dashes = [line_of(name)["linestyle"] for name in ("target", "planned", "capacity", "fit")]

        assert len(set(markers)) == len(Mark)
        assert len({str(dash) for dash in dashes}) == 4

    @pytest.mark.parametrize("result", RESULTS)
    @pytest.mark.parametrize(
        ("width_in", "on_page"),
        [pytest.param(7.2, False, id="a file"), pytest.param(3.9, True, id="on a phone's page")],
    )
    def test_no_two_words_overlap_and_none_is_cut_off(
        self, result: ProbeResult, width_in: float, on_page: bool
    ) -> None:
        with drawing():
            figure = probe_figure(chart_of(result, "lora_r8"), width_in=width_in, on_page=on_page)

            assert overlapping(figure) == []

    def test_no_two_words_overlap_in_small_pictures(self) -> None:
        charts = [chart_of(result, "lora_rank_8_seed_1234") for result in (DONE, PLANNED, NOTHING_FITS)]
        with drawing():
            found = [overlapping(panel_figure(chart)) for chart in charts]
            found.append(overlapping(experiment_figure(charts * 2, "sweep", ["not drawn: r7: not probed"])))

        assert found == [[], [], [], []]

    def test_the_words_of_an_svg(self) -> None:
        words = words_of(probe_file(DONE, "svg", "run1"))

        assert {"peak reserved memory (GiB)", "batch_size (sequences)", "tokens/s"} <= set(words)
        assert {"target 70 %", "56.0 GiB", "capacity", "80.0 GiB"} <= set(words)
        assert {"fits", "over target", "out of memory (no peak)", "estimate"} <= set(words)
        assert "fit: 1.80 GiB + 2.22 GiB × batch_size" in words
        assert "run1: batch_size 24" in words
        assert "55.1 GiB, 68.9 % of 80.0 GiB; NVIDIA H100 80GB HBM3" in words

    def test_a_name_is_drawn_as_it_is(self) -> None:
        words = words_of(probe_file(OLD, "svg", NASTY))

        assert f"{NASTY[:-5]} [31m: batch_size 2" in words

    def test_a_png_has_its_size_and_is_the_same_again(self) -> None:
        first = probe_file(OLD, "png", "run1")

        width, height = struct.unpack(">II", first[16:24])
        assert first.startswith(b"\x89PNG")
        assert (width, height) == (1080, 613)
        assert probe_file(OLD, "png", "run1") == first

    def test_what_was_never_measured_has_no_picture_but_a_page(self) -> None:
        refused = replace(CRASHED, trials=())

        with pytest.raises(UsageError, match=r"(?s)nothing was measured.*\.html"):
            probe_file(refused, "png", "run1")

        assert b"the recipe failed" in probe_file(refused, "html", "run1")

    def test_of_many_runs_the_first_are_drawn_and_the_others_counted(self) -> None:
        words = words_of(experiment_file(sweep(65), "svg", "sweep"))

        assert "sweep: 52 of 65 runs have a batch_size" in words
        assert sum(word.startswith("lora_r8_lr") for word in words) == MOST_PANELS
        assert f"the first {MOST_PANELS} of 52 runs; the page (.html) has all" in words
        assert "not drawn: lora_r8_lr4e-4: not probed" in words
        assert "not drawn either: 7 more, see the table" in words


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of words that share ground, and words that reach beyond the picture."""
    figure.draw_without_rendering()
    boxes = [(text.get_text(), text.get_window_extent().padded(-0.5)) for text in words_in(figure)]
    found = [(a, b) for (a, one), (b, two) in itertools.combinations(boxes, 2) if one.overlaps(two)]
    whole = figure.bbox.padded(1)
    found += [(word, "the edge") for word, box in boxes if not (whole.x0 <= box.x0 and box.x1 <= whole.x1)]
    return found


def words_in(figure: Figure) -> list[Text]:
    """Every text that is drawn; an axis keeps labels of ticks beyond its ends, and of none."""
    hidden: set[object] = set()
    for axes in figure.axes:
        if not axes.get_visible():
            hidden.update(axes.findobj(Text))
        for axis in (axes.xaxis, axes.yaxis):
            low, high = axis.get_view_interval()
            shown = [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            hidden.update({*axis.findobj(Text)} - {axis.label, *shown})
    texts = [text for text in figure.findobj(Text) if text not in hidden]
    return [t for t in texts if isinstance(t, Text) and t.get_visible() and t.get_text()]


class Tags(HTMLParser):
    """Checks that tags are closed in order; collects ids, words and references."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.words: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self._note(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._note(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] != "style":
            self.words.append(data.strip())

    def _note(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            assert not name.startswith("on")
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "xlink:href"):
                self.references.append(value or "")


def parsed(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    return tags


class TestPage:
    @pytest.mark.parametrize("result", RESULTS)
    def test_is_whole_and_needs_nothing_else(self, result: ProbeResult) -> None:
        page = probe_page(result, NASTY)

        tags = parsed(page)
        targets = {*tags.references, *(f"#{name}" for name in re.findall(r"url\(#([^)]+)\)", page))}
        assert "script" not in tags.seen
        assert len(tags.ids) == len(set(tags.ids))
        assert targets <= {f"#{name}" for name in tags.ids}
        assert not re.search(r"https?:|@import|url\((?!#)", page)
        assert '<meta name="viewport" content="width=device-width' in page
        assert "\x1b" not in page

    def test_names_and_errors_are_shown_as_they_are(self) -> None:
        words = parsed(probe_page(CRASHED, NASTY)).words

        shown = NASTY.replace("\x1b", " ")
        assert f"{shown}: crashed" in words
        assert f"batch_size 8: the recipe failed: {shown}" in words

    def test_colours_are_the_pages_so_that_it_can_be_dark(self) -> None:
        pictures = re.findall(r"<svg .*?</svg>", probe_page(DONE, "run1"), flags=re.DOTALL)

        assert len(pictures) == 2
        assert all("var(--ink)" in picture and "var(--fits)" in picture for picture in pictures)
        assert all(set(re.findall(r"#[0-9a-f]{6}\b", picture)) == set() for picture in pictures)

    def test_says_what_was_measured(self) -> None:
        words = parsed(probe_page(DONE, "run1")).words

        assert words[:3] == ["run1: batch_size 24"] * 2 + [DONE.message]
        assert {"55.1 GiB", "68.9 %", "48212", "out of memory", "NVIDIA H100 80GB HBM3, 80.0 GiB"} <= set(
            words
        )

    def test_of_an_experiment_lists_every_run(self) -> None:
        runs = [*sweep(6), ProbedRun(NASTY, CRASHED, "batch_size 8: the recipe failed")]

        tags = parsed(experiment_file(runs, "html", NASTY).decode())

        assert [run.name in tags.words for run in runs[:6]] == [True] * 6
        assert {"not probed", "crashed", "batch_size 8: the recipe failed"} <= set(tags.words)
        assert "5 of 7 runs have a batch_size." in tags.words
        assert sum(tag == "svg" for tag in tags.seen) == 6
        assert len(tags.ids) == len(set(tags.ids))
        assert {reference for reference in tags.references if "run-" in reference} >= {"#run-1", "#run-6"}
