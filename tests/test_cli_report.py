"""`autobatch report`: of a run and of an experiment, printed and into files."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autobatch.cli.main import main
from autobatch.launch.drawing import draw_report
from autobatch.records import ProbeResult, to_json
from autobatch.report.chart import chart_of
from autobatch.report.experiment import ProbedRun
from autobatch.report.text_plot import Terminal, experiment_plot, probe_plot
from tests.test_report_pictures import DONE, NASTY, NOTHING_FITS, OLD, PLANNED, RESULTS

PLOT = """\
peak reserved memory, GiB
   |                                            .
   |==========================================.===x====== capacity 80.0 GiB
75 |                                      . .
   |                                  . .
   |                              . .
   |--------------------------.-o^----------------------- target 70 % 56.0 GiB
50 |                        .   ?
   |                    . .
   |                . .
25 |            . .
   |        . .
   |      .
   | o. .
 0 |.
   ++----------+-----------+----------+-----------+------
    0         10          20         30          40
                    batch_size, sequences
o fits   ^ over target   x out of memory (no peak)   ? estimate
. fit: 1.80 GiB + 2.22 GiB for each sequence"""

BARS = """\
peak as a share of the capacity (┃ is the target)
run1  ████████████████████████████·┃···········  68.9 %
run2  ███████████████████████████████████████·┃  95.7 %
run3  no batch_size
run4  not probed"""

TABLE = """\
run   batch_size      peak  of capacity  tokens/s  density  effective batch  limited by  probe
run1          24  55.1 GiB       68.9 %     48212    74.07               24  memory      done
run2           -         -            -         -    74.07                -  -           nothing fits
run3           -         -            -         -        -                -  -           not probed
run4           -         -            -         -        -                -  -           PROBLEM

run2: nothing fits: batch_size 1 ran out of memory, and the target is 56.0 GiB (70.0 % of 80.0 GiB).
"""


def write(run: Path, result: ProbeResult | str) -> None:
    (run / "probe").mkdir(parents=True)
    (run / "finetune.yaml").write_text("batch_size: 4\n")
    text = result if isinstance(result, str) else json.dumps(to_json(result))
    (run / "probe" / "result.json").write_text(text)


@pytest.fixture
def experiment(tmp_path: Path) -> Path:
    """Four runs: probed, refused, not probed, and with a damaged result."""
    directory = tmp_path / "runs"
    write(directory / "run1", DONE)
    write(directory / "run2", NOTHING_FITS)
    (directory / "run3").mkdir()
    (directory / "run3" / "finetune.yaml").touch()
    write(directory / "run4", "{")
    return directory


class TestTextPlot:
    def test_of_a_probe_in_ascii(self) -> None:
        assert probe_plot(chart_of(DONE, "run1"), Terminal(78, False, False)) == PLOT.splitlines()

    def test_of_an_experiment(self) -> None:
        runs = [
            ProbedRun("run1", DONE, ""),
            ProbedRun("run2", PLANNED, ""),
            ProbedRun("run3", NOTHING_FITS, NOTHING_FITS.message),
            ProbedRun("run4", None, "not probed"),
        ]

        assert experiment_plot(runs, Terminal(57, True, False)) == BARS.splitlines()

    @pytest.mark.parametrize("result", RESULTS)
    @pytest.mark.parametrize("unicode", [True, False], ids=["unicode", "ascii"])
    def test_keeps_within_any_terminal(self, result: ProbeResult, unicode: bool) -> None:
        for width in range(1, 130):
            runs = [ProbedRun("a" * 50, result, ""), ProbedRun(NASTY, None, "not probed")]
            terminal = Terminal(width, unicode, False)
            lines = [*probe_plot(chart_of(result, "r"), terminal), *experiment_plot(runs, terminal)]

            assert max((len(line) for line in lines), default=0) <= width
            assert all(line.isprintable() for line in lines)
            assert unicode or all(line.isascii() for line in lines)
            assert bool(probe_plot(chart_of(result, "r"), terminal)) == (width >= 50)

    def test_colour_is_all_that_colour_adds(self) -> None:
        plain, coloured = (
            "\n".join(probe_plot(chart_of(DONE, "r"), Terminal(80, True, colour))) for colour in (False, True)
        )

        assert "\x1b[1;31m✕\x1b[0m" in coloured
        for code in ("1;31", "1;32", "1;33", "1;36", "0"):
            coloured = coloured.replace(f"\x1b[{code}m", "")
        assert coloured == plain


class TestRun:
    def test_plot_below_the_table_unless_asked_not_to(self, experiment: Path, capsys: Any) -> None:
        code = main(["report", str(experiment / "run1")])
        with_plot = capsys.readouterr().out
        main(["report", str(experiment / "run1"), "--no-plot"])
        table = capsys.readouterr().out

        assert code == 0
        assert with_plot.startswith(table)
        assert with_plot.removeprefix(table).splitlines()[1] == "peak reserved memory, GiB"
        assert "\x1b" not in with_plot

    @pytest.mark.parametrize(
        ("environment", "is_coloured", "is_ascii"),
        [
            pytest.param({"TERM": "xterm", "PYTHONIOENCODING": "utf-8"}, True, False, id="a terminal"),
            pytest.param(
                {"TERM": "xterm", "PYTHONIOENCODING": "ascii", "NO_COLOR": "1"}, False, True, id="ASCII"
            ),
        ],
    )
    def test_on_a_terminal(
        self, experiment: Path, environment: dict[str, str], is_coloured: bool, is_ascii: bool
    ) -> None:
        controller, terminal = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-m", "autobatch.cli.main", "report", str(experiment / "run1")],
            env={name: value for name, value in os.environ.items() if name != "NO_COLOR"}
            | environment
            | {"COLUMNS": "60"},
            stdout=terminal,
        )
        os.close(terminal)
        said = b""
        # A terminal that nobody has open any more reads as an error.
        while True:
            try:
                said += os.read(controller, 65536)
            except OSError:
                break
        os.close(controller)

        plot = said.decode().replace("\r", "").partition("peak reserved memory, GiB")[2]
        assert process.wait() == 0
        assert ("\x1b[1;32m" in plot) == is_coloured
        assert plot.isascii() == is_ascii
        assert "capacity 80.0 GiB" in plot

    def test_a_page_and_a_picture(self, experiment: Path, capsys: Any) -> None:
        page, picture = experiment / "a.HTML", experiment / "b.svg"

        code = main(
            ["report", str(experiment / "run2"), "--json", "--output", str(page), "--output", str(picture)]
        )

        said = capsys.readouterr()
        assert code == 1
        assert json.loads(said.out) == to_json(NOTHING_FITS)
        assert said.err == f"written: {page}\nwritten: {picture}\n"
        assert "<h1>run2: nothing fits</h1>" in page.read_text()
        assert picture.read_text().startswith("<?xml")

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            pytest.param(
                ["--output", "x.pdf"], "x.pdf: a report is written as .png, .svg, .html", id="suffix"
            ),
            pytest.param(["--output", "{runs}/there.svg"], "there.svg is there already", id="there already"),
            pytest.param(["--output", "{runs}/no/x.svg"], "no/x.svg: can't be written", id="no directory"),
            pytest.param(["--force"], "--force is for --output FILE", id="force alone"),
        ],
    )
    def test_what_cant_be_written(
        self, experiment: Path, capsys: Any, words: list[str], message: str
    ) -> None:
        there = experiment / "there.svg"
        there.write_text("mine")

        code = main(["report", str(experiment / "run1"), *(w.format(runs=experiment) for w in words)])

        assert code == 2
        assert message in capsys.readouterr().err
        assert there.read_text() == "mine"

    @pytest.mark.parametrize("path", ["run1", "."])
    def test_json_is_one_value_when_a_file_cant_be_written(
        self, experiment: Path, capsys: Any, path: str
    ) -> None:
        words = ["--json", "--output", str(experiment / "no" / "x.svg")]

        code = main(["report", str(experiment / path), *words])

        answer = json.loads(capsys.readouterr().out)
        assert answer["exit_code"] == code == 2
        assert "no/x.svg: can't be written" in answer["error"]


class TestExperiment:
    def test_every_run_is_listed(self, experiment: Path, capsys: Any) -> None:
        code = main(["report", str(experiment), "--no-plot"])

        lines = capsys.readouterr().out.splitlines(keepends=True)
        expected = TABLE.splitlines(keepends=True)
        assert code == 0
        assert lines[:4] == expected[:4]
        assert "result.json: can't be read: " in lines[4]
        assert lines[4].startswith(expected[4].partition("PROBLEM")[0])
        assert lines[5:] == expected[5:]

    def test_json_is_a_list(self, experiment: Path, capsys: Any) -> None:
        main(["report", str(experiment), "--json"])

        entries = json.loads(capsys.readouterr().out)
        assert [entry["run"] for entry in entries] == ["run1", "run2", "run3", "run4"]
        assert entries[0]["result"] == to_json(DONE)
        assert [bool(entry["problem"]) for entry in entries] == [False, True, True, True]
        assert entries[2]["result"] is None

    def test_into_files(self, experiment: Path) -> None:
        files = [experiment / f"all.{form}" for form in ("html", "svg")]
        files[0].write_text("an earlier one")

        code = main(
            ["report", str(experiment), "--force", *(w for file in files for w in ("--output", str(file)))]
        )

        assert code == 0
        assert "<h1>runs</h1>" in files[0].read_text()
        assert "not drawn: run3: not probed" in files[1].read_text()

    def test_without_a_probe_the_answer_is_no(self, tmp_path: Path, capsys: Any) -> None:
        (tmp_path / "run1").mkdir()
        (tmp_path / "run1" / "finetune.yaml").touch()

        code = main(["report", str(tmp_path)])

        assert code == 1
        assert "not probed" in capsys.readouterr().out

    def test_without_a_run(self, tmp_path: Path, capsys: Any) -> None:
        assert main(["report", str(tmp_path)]) == 2
        assert "no finetune.yaml here or one level below" in capsys.readouterr().err


class TestBesideTheResult:
    """What a probe's job draws at its end."""

    def test_a_refusal_has_a_page_and_an_older_picture_goes(self, tmp_path: Path) -> None:
        refused = replace(NOTHING_FITS, trials=())
        write(tmp_path / "run1", refused)
        (tmp_path / "run1" / "probe" / "report.png").write_text("of an earlier probe")

        assert draw_report(refused, tmp_path / "run1") == ""

        assert NOTHING_FITS.message in (tmp_path / "run1" / "probe" / "report.html").read_text()
        assert not (tmp_path / "run1" / "probe" / "report.png").exists()

    def test_what_went_wrong_is_said(self, tmp_path: Path) -> None:
        write(tmp_path / "run1", "{")

        problem = draw_report(OLD, tmp_path / "run1")

        assert problem.startswith(f"{tmp_path}/run1/probe/report.html: autobatch: ")
        assert "result.json: can't be read" in problem

    def test_it_has_its_time(self, tmp_path: Path) -> None:
        write(tmp_path / "run1", OLD)

        assert draw_report(OLD, tmp_path / "run1", -1).endswith("report.html: not within 0 s")

    def test_an_answer_that_was_on_file_is_not_drawn_again(self, tmp_path: Path) -> None:
        write(tmp_path / "run1", "{")
        for name in ("report.html", "report.png"):
            (tmp_path / "run1" / "probe" / name).write_text("there")

        assert draw_report(replace(OLD, reused=True), tmp_path / "run1") == ""

        assert (tmp_path / "run1" / "probe" / "report.html").read_text() == "there"
