"""The pure parts of the benchmarks of peers, of packing and of cold costs, and that they start."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from tests.benchmarks import cold_costs, packing_judging, peers, peers_judging
from tests.benchmarks.cold_costs import TUNE, Cost
from tests.benchmarks.packing_judging import Counts, Measured, Packed, Scaled
from tests.benchmarks.packing_scale import counts, counts_or_error, differences
from tests.benchmarks.peers_curves import ANSWERS, CARD_BYTES, KINDS, TARGET_BYTES, all_curves, make_curve
from tests.benchmarks.peers_judging import PLAIN, SEEDED, Attempt, Found, cheaper_by_their_rule, failed_bars
from tests.benchmarks.peers_on_curves import NoisySearches, _searched
from tests.benchmarks.peers_on_run import largest_within
from tests.benchmarks.peers_worker import CurveTraining, Log, find

MIB = 2**20


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("answer", ANSWERS)
def test_a_curve_has_its_answer_whatever_the_noise(kind: str, answer: int) -> None:
    curve = make_curve(kind, answer, seed=3)

    assert curve.at(answer) <= TARGET_BYTES < curve.at(answer + 1)
    assert all(peak <= TARGET_BYTES for peak in curve.peaks_bytes[:answer])
    assert all(peak > TARGET_BYTES for peak in curve.peaks_bytes[answer:])


def test_curves_are_of_their_kinds() -> None:
    rises = {kind: rises_of(make_curve(kind, 200).peaks_bytes[:100]) for kind in KINDS}

    assert len(all_curves()) == len(KINDS) * len(ANSWERS)
    assert max(rises["affine"]) - min(rises["affine"]) <= 1
    assert min(rises["stepped"]) == 0
    assert max(rises["noisy"]) > 2 * min(rises["noisy"]) > 0


def rises_of(peaks: Sequence[int]) -> list[int]:
    return [more - less for less, more in pairwise(peaks)]


def test_halving_on_a_curve_counts_steps_and_failures() -> None:
    curve, log = make_curve("affine", 7), Log()

    said = find("halving", CurveTraining(list(curve.peaks_bytes), CARD_BYTES, log), log)

    assert said["answer"] == 8
    assert [trial["batch_size"] for trial in said["trials"]] == [128, 64, 32, 16, 8]
    assert [trial["out_of_memory"] for trial in said["trials"]] == [True] * 4 + [False]
    assert [trial["steps"] for trial in said["trials"]] == [1, 1, 1, 1, 3]


def test_our_search_on_a_curve() -> None:
    found = _searched(make_curve("affine", 37), SEEDED, -0.0869)

    assert (found.answer, found.exact, found.out_of_memory) == (37, True, 0)
    assert [attempt.batch_size for attempt in found.attempts] == [41, 37, 38]
    assert [attempt.steps for attempt in found.attempts] == [3, 3, 1]


def attempts(*sizes: int, out_of_memory: int = 0) -> tuple[Attempt, ...]:
    """Trials at these sizes, the first ones out of memory."""
    return tuple(
        Attempt(size, 1 if index < out_of_memory else 3, index < out_of_memory)
        for index, size in enumerate(sizes)
    )


OURS = [
    Found("affine, 200", SEEDED, 200, 200, 200, attempts(219, 200, 201), 0.1, 0.7),
    Found("affine, 200", PLAIN, 200, 200, 200, attempts(1, 43, 188, 200, 201), 0.1, 0.7),
]
PEER = Found(
    "affine, 200", "accelerate", 190, 200, 309, attempts(*range(300, 189, -10), out_of_memory=11), 1, 0.7
)


@pytest.mark.parametrize(
    ("found", "failed"),
    [
        pytest.param([*OURS, replace(PEER, attempts=attempts(*range(30, 20, -1)))], [], id="as it should be"),
        pytest.param(
            [replace(OURS[0], answer=199)],
            ["affine, 200: autobatch says 199, and 200 is right"],
            id="a wrong answer",
        ),
        pytest.param(
            [replace(OURS[1], attempts=attempts(400, 1, 43, 188, 200, 201, out_of_memory=1))],
            ["affine, 200: autobatch, no estimate ran out of memory 1 times (limit 0)"],
            id="out of memory",
        ),
        pytest.param(
            [replace(OURS[1], attempts=attempts(1, 43, 180, 188, 190, 200, 201))],
            ["affine, 200: autobatch, no estimate took 7 trials (limit 6)"],
            id="too many trials at 200",
        ),
        pytest.param(
            [replace(OURS[0], attempts=attempts(250, 180, 200, 201))],
            ["median of 4 trials with an estimate (limit 3)"],
            id="too many trials in the median",
        ),
        pytest.param(
            [*OURS, PEER],
            [
                "affine, 200: autobatch, no estimate took 15 steps, and accelerate, whose answer 190 is within "
                "10 % of 200, 14"
            ],
            id="a peer took fewer steps",
        ),
        pytest.param(
            [*OURS, replace(PEER, answer=150, attempts=attempts(150))], [], id="a peer that is far off"
        ),
        pytest.param(
            [OURS[0], replace(PEER, answer=200, attempts=attempts(201, out_of_memory=1))],
            [
                "affine, 200: autobatch took 9 steps, and accelerate, whose answer 200 is within 10 % of 200, "
                "1 (without a trial at that size)"
            ],
            id="a peer that has not tried its answer",
        ),
    ],
)
def test_a_bar_of_the_peers_benchmark_that_fails_is_named(found: list[Found], failed: list[str]) -> None:
    assert failed_bars(found) == failed
    assert len({line.count("|") for line in peers_judging.table(found)}) == 1


def test_peers_are_measured_by_their_own_rule_too() -> None:
    peer = replace(PEER, answer=300, attempts=attempts(300))

    assert failed_bars([*OURS, peer]) == []
    assert cheaper_by_their_rule([*OURS, peer]) == [
        "affine, 200: accelerate came to 300 of 309 in 3 steps and 0 OOMs; autobatch took 9 and 0",
        "affine, 200: accelerate came to 300 of 309 in 3 steps and 0 OOMs; autobatch, no estimate took 15 and 0",
    ]


def test_the_report_names_what_fails() -> None:
    facts = {
        "cpu": "a CPU",
        "cores": 2,
        "versions": {"torch": "2"},
        "peers": {"lightning": "2"},
        "date": "today",
        "load_average": 0.5,
    }
    noisy = NoisySearches(400, 400, 4, 7)
    dear = replace(PEER, attempts=attempts(*range(300, 189, -10)))

    good, bad = (peers.report(facts, [*OURS, peer], [*OURS, PEER], OURS, noisy) for peer in (dear, PEER))

    assert "All bars hold." in good
    assert "Bars that fail:" in bad
    assert f"- {failed_bars([*OURS, PEER])[0]}" in bad
    assert any("exact in 400 of 400 searches" in line for line in good)


def test_wrong_answers_on_noisy_curves_are_counted() -> None:
    assert NoisySearches(400, 400, 4, 7).failed_bars() == []
    assert NoisySearches(400, 398, 4, 7).failed_bars() == ["noisy curves: 2 of 400 answers are wrong"]


@pytest.mark.parametrize("near", [1, 5, 6, 11])
def test_the_true_size_is_found_from_anywhere(near: int) -> None:
    run = []

    def peak(batch_size: int) -> int:
        run.append(batch_size)
        return 100 + 10 * batch_size

    assert largest_within(peak, 155, near) == 5
    assert {5, 6} <= set(run)


def test_an_environment_that_is_there_is_not_made_again(tmp_path: Path) -> None:
    wanted = peers._REQUIREMENTS.read_text() + peers._CONSTRAINTS.read_text()
    (tmp_path / ".ready").write_text(wanted)

    assert peers.install(tmp_path) == tmp_path / "bin" / "python"


COUNTS = Counts(100, 500, 40_000)
PACKING = Measured(
    cases=10,
    different=[],
    arithmetic=(Packed(False, COUNTS, 0.1, 0.1), Packed(True, COUNTS, 0.2, 0.2)),
    torchtune=(Packed(False, COUNTS, 40.0, 40.0), Packed(True, COUNTS, 40.0, 40.0)),
    scaled=(Scaled(1000, 100, 1.0, 9.0, 500 * MIB, 9), Scaled(10_000, 1000, 10.0, 18.0, 510 * MIB, 10)),
)


@pytest.mark.parametrize(
    ("measured", "failed"),
    [
        pytest.param(PACKING, [], id="as it should be"),
        pytest.param(
            replace(PACKING, different=["[3] in 8"]), ["differs: [3] in 8"], id="a case that differs"
        ),
        pytest.param(
            replace(PACKING, torchtune=(PACKING.torchtune[0], Packed(True, COUNTS, 8.0, 8.0))),
            ["split_across_pack True: 40 times as fast (limit 50)"],
            id="too slow",
        ),
        pytest.param(
            replace(
                PACKING, arithmetic=(Packed(False, Counts(99, 500, 40_000), 0.1, 0.1), PACKING.arithmetic[1])
            ),
            [f"split_across_pack False: {Counts(99, 500, 40_000)}, and torchtune has {COUNTS}"],
            id="other packs",
        ),
        pytest.param(
            replace(PACKING, scaled=(PACKING.scaled[0], replace(PACKING.scaled[1], counting_seconds=14.0))),
            ["10000 examples: 14.0 times the time of 1000 (limit 13)"],
            id="not linear",
        ),
        pytest.param(
            replace(PACKING, scaled=(replace(PACKING.scaled[0], progress_lines=0),)),
            ["1000 examples: no progress was shown"],
            id="no progress",
        ),
    ],
)
def test_a_bar_of_the_packing_benchmark_that_fails_is_named(measured: Measured, failed: list[str]) -> None:
    assert packing_judging.failed_bars(measured) == failed


def test_random_packings_are_compared() -> None:
    assert differences(20) == []
    assert counts([3, 4, 2], 8) == Counts(2, 3, 9)
    assert counts_or_error(counts, [9], 8, {}) is None


COSTS = [
    Cost(TUNE, (5.0, 6.0, 7.0), (4.0,), 3000),
    Cost("autobatch --help", (0.1, 0.2, 9.0), (0.1,), 150),
    Cost("autobatch status RUN", (0.3, 0.4, 0.5), (0.3,), 300),
]


@pytest.mark.parametrize(
    ("costs", "failed"),
    [
        pytest.param(COSTS, [], id="as it should be"),
        pytest.param(
            [*COSTS, Cost("slow", (6.5,), (6.5,), 3000)],
            ["slow: 6.50 s, tune --help 6.00", "slow: 3000.00 modules, tune --help 3000.00"],
            id="as dear as tune",
        ),
    ],
)
def test_a_bar_of_the_cold_costs_that_fails_is_named(costs: list[Cost], failed: list[str]) -> None:
    facts = {"cpu": "a CPU", "cores": 2, "versions": {"python": "3"}, "date": "today"}

    assert cold_costs.failed_bars(costs) == failed
    assert "| autobatch --help | 0.20 | 0.10 | 0.10 | 150 | 3 % | 5 % |" in cold_costs.report(facts, costs)


@pytest.mark.parametrize("name", ["peers", "packing_scale", "cold_costs"])
def test_help_is_there(name: str) -> None:
    said = subprocess.run(
        [sys.executable, "-m", f"tests.benchmarks.{name}", "--help"], capture_output=True, text=True
    )
    assert said.returncode == 0
    assert f"python -m tests.benchmarks.{name}" in said.stdout
