"""Dividing an effective batch, against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatch.probing.effective_batch import Hold, hold, largest_divisor
from autobatch.records import Unit

MOST = 4096


def test_the_largest_divisor_up_to_any_cap_for_every_product() -> None:
    # Column c of row n: the largest b <= c with n % b == 0, by marking the multiples of each b in turn.
    largest = np.ones((MOST + 1, MOST + 1), dtype=np.int16)
    for b in range(2, MOST + 1):
        largest[b::b, b:] = b

    for product in range(1, MOST + 1):
        ours = [largest_divisor(product, cap) for cap in range(1, MOST + 1)]
        assert np.array_equal(ours, largest[product, 1:]), product


@given(st.integers(1, MOST), st.integers(1, MOST), st.integers(1, MOST), st.sampled_from([1, 2, 3, 8]))
def test_what_is_held_is_the_nearest_product_from_below(asked: int, rows: int, cap: int, world: int) -> None:
    held = hold(asked, Unit.SEQUENCES, examples_per_sequence=2.5, rows=rows, world_size=world)

    products = [n for n in range(1, min(asked, rows) + 1) if n % world == 0]
    assert held.sequences == max(products, default=0)
    sizes = [b for b in range(1, min(held.per_device, cap) + 1) if held.per_device % b == 0]
    assert list(held.batch_sizes(cap)) == sizes
    assert bool(held.remarks) == (held.sequences != asked)
    assert held.cut_by_dataset == (asked > rows)
    assert held.micro_batches == min(2, held.per_device)


@pytest.mark.parametrize(
    ("asked", "unit", "rows", "world_size", "sequences", "remarks"),
    [
        pytest.param(32, Unit.SEQUENCES, 384, 1, 32, (), id="as asked"),
        pytest.param(
            100,
            Unit.EXAMPLES,
            384,
            1,
            19,
            ("100 examples an update come to 19 sequences of 5.21 examples, about 99",),
            id="examples",
        ),
        pytest.param(
            2,
            Unit.EXAMPLES,
            384,
            1,
            1,
            ("2 examples an update come to 1 sequences of 5.21 examples, about 5",),
            id="fewer examples than fill a sequence",
        ),
        pytest.param(
            512,
            Unit.SEQUENCES,
            384,
            1,
            384,
            (
                "384 sequences an update, not 512: the dataset has 384, and with more for one update torchtune "
                "would train zero steps",
            ),
            id="more than the dataset has",
        ),
        pytest.param(
            30,
            Unit.SEQUENCES,
            384,
            4,
            28,
            ("28 sequences an update, not 30, which 4 devices don't divide",),
            id="four devices",
        ),
    ],
)
def test_what_is_said_of_it(
    asked: int, unit: Unit, rows: int, world_size: int, sequences: int, remarks: tuple[str, ...]
) -> None:
    held = hold(asked, unit, examples_per_sequence=5.21, rows=rows, world_size=world_size)

    assert (held.sequences, held.remarks) == (sequences, remarks)


def test_without_accumulation_one_batch_is_all_of_it() -> None:
    held = Hold(12, accumulates=False)

    assert [tuple(held.batch_sizes(cap)) for cap in (11, 12, 13)] == [(), (12,), (12,)]
    assert held.micro_batches == 1
