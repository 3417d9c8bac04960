"""Density: against packs that torchtune itself made, from samples, and of whole runs."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tqdm import tqdm

from autobatch.packing.build import PackSpec, _read_pack, build
from autobatch.packing.density import (
    Pack,
    blocks_to_sample,
    density_from_blocks,
    density_of,
    density_of_lengths,
    least_examples,
)
from autobatch.packing.logs import packing_progress
from autobatch.records import Density, ProbeRequest, from_json
from autobatch.runs.directory import read_run
from tests.conftest import MakeRun

IGNORED = -100

Examples = list[dict[str, list[int]]]


def examples_of(lengths: Sequence[int], token: int = 7, label: int = 7) -> Examples:
    return [{"tokens": [token] * length, "labels": [label] * length} for length in lengths]


def packed_by_torchtune(examples: Examples, max_seq_len: int, *, split: bool) -> list[Pack]:
    from torchtune.datasets import PackedDataset

    dataset = PackedDataset(examples, max_seq_len=max_seq_len, split_across_pack=split)
    return [_read_pack(dataset[index]) for index in range(len(dataset))]


def packed_by_hand(lengths: Sequence[int], max_seq_len: int) -> list[list[int]]:
    """Successive examples into a pack until the next doesn't fit."""
    packs: list[list[int]] = []
    for length in lengths:
        if not packs or sum(packs[-1]) + length > max_seq_len:
            packs.append([])
        packs[-1].append(length)
    return packs


class TestAgainstTorchtune:
    @given(
        st.integers(2, 40).flatmap(
            lambda longest: st.tuples(
                st.just(longest), st.lists(st.integers(1, longest), min_size=1, max_size=60)
            )
        ),
        st.sampled_from([(7, 7), (0, 7), (7, IGNORED), (0, IGNORED)]),
    )
    @settings(deadline=None)
    def test_whole_examples(self, made: tuple[int, list[int]], content: tuple[int, int]) -> None:
        max_seq_len, lengths = made

        packs = packed_by_torchtune(examples_of(lengths, *content), max_seq_len, split=False)

        assert [list(pack.lengths) for pack in packs] == packed_by_hand(lengths, max_seq_len)
        assert density_of(packs, max_seq_len) == Density(
            packed=True,
            examples=len(lengths),
            packs=len(packs),
            tokens=sum(lengths),
            max_seq_len=max_seq_len,
            longest_example=max(lengths),
        )

    @given(
        st.integers(2, 40).flatmap(
            lambda longest: st.tuples(
                st.just(longest), st.lists(st.integers(1, longest), min_size=1, max_size=60)
            )
        ),
        st.sampled_from([(7, 7), (0, 7), (7, IGNORED), (0, IGNORED)]),
    )
    @settings(deadline=None)
    def test_examples_split_across_packs(self, made: tuple[int, list[int]], content: tuple[int, int]) -> None:
        max_seq_len, lengths = made

        density = density_of(
            packed_by_torchtune(examples_of(lengths, *content), max_seq_len, split=True), max_seq_len
        )

        assert density.examples == len(lengths)
        assert density.tokens == sum(lengths)
        assert density.packs == -(-sum(lengths) // max_seq_len)

    @pytest.mark.parametrize("split", [False, True], ids=["whole", "split"])
    @pytest.mark.parametrize(
        ("lengths", "packs"),
        [
            pytest.param([4, 4, 8, 2, 6], [[4, 4], [8], [2, 6]], id="exact fill"),
            pytest.param([8, 8], [[8], [8]], id="each as long as a pack"),
            pytest.param([1] * 8, [[1] * 8], id="single tokens"),
            pytest.param([8, 1], [[8], [1]], id="one token left over"),
            pytest.param([3], [[3]], id="one example"),
        ],
    )
    def test_where_packs_end_with_examples(
        self, lengths: list[int], packs: list[list[int]], split: bool
    ) -> None:
        read = packed_by_torchtune(examples_of(lengths), 8, split=split)

        assert [list(pack.lengths) for pack in read] == packs
        assert not any(pack.continues for pack in read)

    def test_pieces_of_split_examples(self) -> None:
        read = packed_by_torchtune(examples_of([5, 5, 8, 3]), 8, split=True)

        assert read == [
            Pack((5, 3)),
            Pack((2, 6), continues=True),
            Pack((2, 3), continues=True),
        ]
        assert [pack.examples for pack in read] == [2, 1, 1]


@st.composite
def packings(draw: st.DrawFn) -> tuple[list[int], int, bool, int | None]:
    """(lengths, max_seq_len, split_across_pack, max_packs) as PackedDataset may be given them."""
    max_seq_len, split = draw(st.integers(1, 40)), draw(st.booleans())
    longest = max_seq_len * draw(st.integers(1, 4)) if split else max_seq_len
    lengths = draw(st.lists(st.integers(1, longest), max_size=50))
    return lengths, max_seq_len, split, draw(st.none() | st.integers(0, 30))


class TestOfLengths:
    @given(packings())
    @settings(deadline=None, max_examples=300)
    def test_as_torchtune_packs(self, made: tuple[list[int], int, bool, int | None]) -> None:
        lengths, max_seq_len, split, max_packs = made

        density = density_of_lengths(lengths, max_seq_len, split_across_pack=split, max_packs=max_packs)

        assert (density.packs, density.examples, density.tokens) == counts_of_torchtune(*made)

    def test_an_example_longer_than_a_pack(self) -> None:
        with pytest.raises(ValueError, match="an example has 9 tokens, more than max_seq_len 8"):
            density_of_lengths([3, 9], 8)

        assert density_of_lengths([3, 9], 8, split_across_pack=True).packs == 2

    @pytest.mark.parametrize(
        ("settings", "same"),
        [
            pytest.param({}, True, id="whole examples"),
            pytest.param(
                {"_component_": "torchtune.datasets.text_completion_dataset", "column": "output"},
                True,
                id="split across packs",
            ),
            pytest.param(
                {"_component_": "tests.recipes.datasets.two_packs", "packed": True}, True, id="max_packs"
            ),
            pytest.param(
                {"_component_": "tests.recipes.datasets.packs_of_its_own", "packed": True},
                False,
                id="packs of its own",
            ),
        ],
    )
    def test_a_count_is_what_building_gives(
        self, run: Path, settings: dict[str, Any], same: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        section = read_run(run, ProbeRequest(str(run))).resolved()["dataset"]
        if "torchtune" in settings.get("_component_", "torchtune"):
            kept = ("_component_", "source", "data_files", "split", "packed")
            section = {**(section if not settings else {key: section[key] for key in kept}), **settings}
        else:
            section = settings
        packed = density_in(built(run, dataset=section))

        counted = density_in(built(run, dataset=section, rows=False))

        assert (counted.examples, counted.packs, counted.tokens) == (
            packed.examples,
            packed.packs,
            packed.tokens,
        )
        assert counted.packs > 1
        # What was counted was not packed: torchtune's own method has no part in it.
        monkeypatch.setattr("torchtune.datasets.PackedDataset._split_and_add_pack", None)
        assert ("density" in built(run, dataset=section, rows=False)) is same


def counts_of_torchtune(
    lengths: Sequence[int], max_seq_len: int, split: bool, max_packs: int | None
) -> tuple[int, int, int]:
    """(packs, examples that begin in them, tokens) of a PackedDataset; an example's first token is 1."""
    from torchtune.datasets import PackedDataset

    examples = [{"tokens": ([1] + [2] * (length - 1))[:length], "labels": [2] * length} for length in lengths]
    with redirect_stderr(io.StringIO()):
        packs = PackedDataset(
            examples, max_seq_len=max_seq_len, split_across_pack=split, max_packs=max_packs
        ).packs
    began = sum(int((pack["tokens"] == 1).sum()) for pack in packs)
    return len(packs), began, sum(int((pack["tokens"] != 0).sum()) for pack in packs)


class TestDensity:
    def test_ratio_and_efficiency(self) -> None:
        density = density_of([Pack((40, 30, 20)), Pack((100,)), Pack((10, 10))], 100)

        assert density.examples_per_pack == 2.0
        assert density.efficiency == pytest.approx(0.7)

    def test_of_nothing(self) -> None:
        density = density_of([], 100)

        assert density.examples_per_pack == 0.0
        assert density.efficiency is None

    def test_unpacked_has_no_efficiency(self) -> None:
        density = Density(packed=False, examples=5, packs=5, tokens=50, max_seq_len=100, longest_example=20)

        assert density.efficiency is None


class TestSample:
    @given(st.integers(0, 5000), st.integers(1, 6000), st.integers(1, 300))
    def test_blocks_lie_in_the_dataset_and_do_not_overlap(
        self, examples: int, sample: int, least: int
    ) -> None:
        blocks = blocks_to_sample(examples, sample, least)

        indexes = [index for block in blocks for index in block]
        assert indexes == sorted(set(indexes))
        assert all(0 <= index < examples for index in indexes)
        assert len(indexes) >= min(examples, sample)
        assert len(blocks) == 1 or all(len(block) >= least for block in blocks)

    @pytest.mark.parametrize(
        ("examples", "sample", "least", "blocks"),
        [
            pytest.param(1000, 100, 1, [range(10)], id="spread"),
            pytest.param(50, 50, 1, [range(50)], id="as many as there are"),
            pytest.param(50, 1000, 1, [range(50)], id="more than there are"),
            pytest.param(50, 10, 20, [range(50)], id="blocks as long as that cover it"),
            pytest.param(1000, 1, 1, [range(1)], id="one"),
        ],
    )
    def test_first_block(self, examples: int, sample: int, least: int, blocks: list[range]) -> None:
        assert blocks_to_sample(examples, sample, least)[:1] == blocks

    def test_first_and_last_example_are_in_it(self) -> None:
        blocks = blocks_to_sample(1000, 100)

        assert len(blocks) == 10
        assert (blocks[0].start, blocks[-1].stop) == (0, 1000)

    @pytest.mark.parametrize(
        ("length", "max_seq_len", "density"),
        [
            pytest.param(10, 100, 10.0, id="filling"),
            pytest.param(30, 100, 3.0, id="with padding"),
            pytest.param(100, 100, 1.0, id="one in each"),
            pytest.param(7, 1000, 142.0, id="many in each"),
        ],
    )
    @pytest.mark.parametrize("sample", [20, 200, 2000])
    def test_exact_for_identical_examples(
        self, length: int, max_seq_len: int, density: float, sample: int
    ) -> None:
        whole = density_of(as_packs([length] * 21_300, max_seq_len), max_seq_len)

        sampled = sampled_density([length] * 21_300, max_seq_len, sample)

        assert sampled.packs == whole.packs
        assert sampled.examples == 21_300
        assert sampled.examples_per_pack == density
        assert sampled.standard_error == 0.0
        assert sampled.longest_example == length
        assert sampled.efficiency == pytest.approx(length * density / max_seq_len)

    @pytest.mark.parametrize(
        ("draw", "max_seq_len"),
        [
            pytest.param(lambda r: r.randint(10, 100), 512, id="uniform"),
            pytest.param(lambda r: 1 + int(r.expovariate(1 / 60)), 512, id="exponential"),
            pytest.param(lambda r: r.randint(5, 60), 2048, id="many in each pack"),
            pytest.param(lambda r: r.randint(100, 500), 512, id="few in each pack"),
            pytest.param(lambda r: r.choice([8, 400]), 512, id="of two kinds"),
        ],
    )
    @pytest.mark.parametrize("sample", [100, 1000])
    def test_the_truth_lies_within_three_standard_errors(
        self, draw: Callable[[random.Random], int], max_seq_len: int, sample: int
    ) -> None:
        seeds = 60
        within, errors, bias = 0, 0.0, 0.0
        for seed in range(seeds):
            rng = random.Random(seed)
            lengths = [min(draw(rng), max_seq_len) for _ in range(4000)]
            truth = density_of(as_packs(lengths, max_seq_len), max_seq_len).examples_per_pack
            sampled = sampled_density(lengths, max_seq_len, sample)
            assert sampled.standard_error is not None
            within += abs(sampled.examples_per_pack - truth) <= 3 * sampled.standard_error
            errors += sampled.standard_error / truth / seeds
            bias += (sampled.examples_per_pack / truth - 1) / seeds

        # With five blocks the error has four degrees of freedom: Student's t is within 3 in 96 %.
        assert within >= 0.9 * seeds
        assert abs(bias) <= 0.01 + 3 * errors / seeds**0.5
        assert errors <= (0.12 if sample == 100 else 0.06)

    def test_a_larger_sample_has_a_smaller_error(self) -> None:
        rng = random.Random(0)
        lengths = [rng.randint(10, 100) for _ in range(50_000)]

        errors = [sampled_density(lengths, 512, sample).standard_error or 0 for sample in (500, 5000)]

        assert errors[0] == pytest.approx(errors[1] * 10**0.5, rel=0.5)

    def test_one_block_has_no_error(self) -> None:
        density = density_from_blocks(
            [as_packs([10] * 50, 100)], examples=500, sampled_examples=50, max_seq_len=100
        )

        assert density.standard_error is None
        assert density.packs == 50


def as_packs(lengths: Sequence[int], max_seq_len: int) -> list[Pack]:
    return [Pack(tuple(pack)) for pack in packed_by_hand(lengths, max_seq_len)]


def sampled_density(lengths: Sequence[int], max_seq_len: int, sample: int) -> Density:
    blocks = blocks_to_sample(len(lengths), sample, least_examples(lengths[:50], max_seq_len))
    return density_from_blocks(
        [as_packs([lengths[index] for index in block], max_seq_len) for block in blocks],
        examples=len(lengths),
        sampled_examples=sum(len(block) for block in blocks),
        max_seq_len=max_seq_len,
    )


class TestProgress:
    def test_of_tqdm_itself(self, tmp_path: Path) -> None:
        log = tmp_path / "packing.log"
        seen = []
        with log.open("w") as file:
            bar = tqdm(total=2000, desc="Packing dataset", file=file, mininterval=0, ncols=80)
            for _ in range(4):
                bar.update(500)
                seen.append(packing_progress(log))
            bar.close()

        assert seen == [(500, 2000), (1000, 2000), (1500, 2000), (2000, 2000)]
        assert packing_progress(log) == (2000, 2000)

    def test_of_torchtune_itself(self, tmp_path: Path) -> None:
        said = io.StringIO()
        with redirect_stderr(said):
            packed_by_torchtune(examples_of([3] * 40), 8, split=False)
        log = tmp_path / "packing.log"
        log.write_text(f"Generating train split\n{said.getvalue()}\n")

        assert packing_progress(log) == (40, 40)

    @pytest.mark.parametrize(
        ("text", "progress"),
        [
            pytest.param(
                "Packing dataset:  45%|####      | 900/2000 [00:01<00:01, 890.21it/s]", (900, 2000), id="one"
            ),
            pytest.param(
                "Packing dataset:  45%|████▌     | 900/2000 [00:01<00:01]\r"
                "Packing dataset:  50%|█████     | 1000/2000 [00:01<00:01]",
                (1000, 2000),
                id="the last state",
            ),
            pytest.param("Map: 45%|####  | 900/2000 [00:01<00:01]", None, id="another bar"),
            pytest.param("Packing dataset: 0it [00:00, ?it/s]", None, id="without a total"),
            pytest.param("", None, id="empty"),
            pytest.param("Packing dataset: 5%|# | 1/20 [00:01<00:01]" + "x" * 5000, None, id="long ago"),
        ],
    )
    def test_of_a_log(self, tmp_path: Path, text: str, progress: tuple[int, int] | None) -> None:
        log = tmp_path / "packing.log"
        log.write_text(text)

        assert packing_progress(log) == progress

    def test_without_a_log(self, tmp_path: Path) -> None:
        assert packing_progress(tmp_path / "none.log") is None


@pytest.fixture
def run(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run as working directory, as its relative paths want it, and no cache of tiktoken's."""
    made = make_run()
    monkeypatch.chdir(made)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    return made


def built(
    run: Path,
    *,
    packed: bool = True,
    sample: int | None = None,
    dataset: object = None,
    rows: bool = True,
) -> dict[str, Any]:
    """What `build` answers for a run, with another dataset section if given."""
    config = read_run(run, ProbeRequest(str(run))).resolved()
    if dataset is not None:
        config["dataset"] = dataset
    (run / "resolved.yaml").write_text(yaml.safe_dump(config))
    stored = str(run / "rows.pt") if rows else None
    spec = PackSpec(str(run / "resolved.yaml"), packed, sample, stored, str(run / "answer.json"))
    build(spec)
    answer: dict[str, Any] = json.loads((run / "answer.json").read_text())
    return answer


def stored_rows(run: Path) -> list[dict[str, Any]]:
    import torch

    rows: list[dict[str, Any]] = torch.load(run / "rows.pt", weights_only=True)
    return rows


def density_in(answer: dict[str, Any]) -> Density:
    return from_json(Density, {**answer["density"], "seconds": 0.0})


def lengths_of(run: Path) -> list[int]:
    """Tokens of each example of a run, by torchtune's own dataset."""
    from omegaconf import OmegaConf
    from torchtune import config as torchtune_config

    config: Any = OmegaConf.load(run / "resolved.yaml")
    tokenizer = torchtune_config.instantiate(config.tokenizer)
    dataset = torchtune_config.instantiate(OmegaConf.merge(config.dataset, {"packed": False}), tokenizer)
    return [len(row["tokens"]) for row in dataset]


class TestBuild:
    def test_packed(self, run: Path) -> None:
        answer = built(run)

        lengths = lengths_of(run)
        assert density_in(answer) == Density(
            packed=True,
            examples=300,
            packs=len(packed_by_hand(lengths, 128)),
            tokens=sum(lengths),
            max_seq_len=128,
            longest_example=max(lengths),
        )
        assert answer["density"]["seconds"] > 0
        rows = stored_rows(run)
        assert len(rows) == len(packed_by_hand(lengths, 128))
        assert all(row["tokens"].shape == (128,) for row in rows)

    def test_unpacked_keeps_the_longest_example_alone(self, run: Path) -> None:
        answer = built(run, packed=False)

        lengths = lengths_of(run)
        assert density_in(answer) == Density(
            packed=False,
            examples=300,
            packs=300,
            tokens=sum(lengths),
            max_seq_len=128,
            longest_example=max(lengths),
        )
        (row,) = stored_rows(run)
        assert len(row["tokens"]) == max(lengths)

    def test_sampled(self, run: Path) -> None:
        whole = density_in(built(run))

        answer = built(run, sample=100)

        sampled = density_in(answer)
        assert sampled.examples == 300
        assert sampled.sampled_examples is not None
        assert 50 <= sampled.sampled_examples <= 200
        assert sampled.standard_error is not None
        assert 0 < sampled.standard_error < 0.3
        distance = abs(sampled.examples_per_pack - whole.examples_per_pack)
        assert distance <= 3 * sampled.standard_error
        assert answer["held_bytes"] >= 0

    def test_a_sample_of_everything_is_exact(self, run: Path) -> None:
        assert density_in(built(run, sample=1000)) == density_in(built(run))

    def test_unpacked_sample(self, run: Path) -> None:
        sampled = density_in(built(run, packed=False, sample=30))

        assert (sampled.examples, sampled.packs, sampled.sampled_examples) == (300, 300, 30)
        assert sampled.tokens == pytest.approx(sum(lengths_of(run)), rel=0.3)

    def test_a_list_of_datasets_is_concatenated(self, run: Path) -> None:
        section = read_run(run, ProbeRequest(str(run))).resolved()["dataset"]
        one = density_in(built(run))

        two = density_in(built(run, dataset=[section, {**section, "split": "train[:50%]"}]))

        assert two.examples == one.examples + 150
        assert one.packs < two.packs < 2 * one.packs

    @pytest.mark.parametrize(
        ("component", "packed", "sample", "error"),
        [
            pytest.param(
                "accepts_packed_and_ignores_it",
                True,
                None,
                "the dataset component accepts packed: True but doesn't pack: its rows have labels, tokens and "
                "no seq_lens",
                id="doesn't pack",
            ),
            pytest.param("empty", True, None, "the dataset has no examples", id="empty, packed"),
            pytest.param("empty", True, 10, "the dataset has no examples", id="empty, sampled"),
            pytest.param("empty", False, None, "the dataset has no examples", id="empty, unpacked"),
            pytest.param(
                "rows_of_another_kind",
                False,
                None,
                "can't tell the length of a row with pixels: it has neither tokens nor chosen_input_ids and "
                "rejected_input_ids",
                id="no tokens",
            ),
        ],
    )
    def test_datasets_that_cannot_be_used(
        self, run: Path, component: str, packed: bool, sample: int | None, error: str
    ) -> None:
        section = {"_component_": f"tests.recipes.datasets.{component}", "packed": True}

        answer = built(run, packed=packed, sample=sample, dataset=section)

        assert answer["error"] == error
        assert "density" not in answer
        assert not (run / "rows.pt").exists()

    def test_a_component_of_ours_unpacked(self, run: Path) -> None:
        section = {"_component_": "tests.recipes.datasets.accepts_packed_and_ignores_it", "packed": True}

        density = density_in(built(run, packed=False, dataset=section))

        assert (density.examples, density.tokens, density.longest_example) == (3, 21, 9)
