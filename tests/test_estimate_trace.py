"""Two traces give the peak at any batch_size, with its bends."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatch.estimate.trace import Curve, Kind, NotAligned, Peak, Trace, replay

MIB = 2**20


def trace_at(batch_size: int) -> Trace:
    """A weight, an activation that grows with the batch, and a gradient that comes when it is gone.

    peak(b) = 64 + max(10 b, 100) MiB
    """
    return Trace(
        batch_size=batch_size,
        sizes=(64 * MIB, 10 * MIB * batch_size, 100 * MIB),
        kinds=(Kind.PARAMETERS, Kind.ACTIVATIONS, Kind.GRADIENTS),
        on_host=(False, False, False),
        events=(1, 2, -2, 3, -3),
        first_batch=1,
        steps=(3, 5),
    )


@pytest.fixture
def curve() -> Curve:
    return Curve(trace_at(2), trace_at(3), cuda=True)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 10, 11, 1000])
def test_the_peak_bends_where_another_moment_is_highest(curve: Curve, batch_size: int) -> None:
    assert curve.at(batch_size).allocated_bytes == (64 + max(10 * batch_size, 100)) * MIB


def test_what_the_peak_consists_of(curve: Curve) -> None:
    low, high = curve.at(4), curve.at(20)

    assert low.by_kind[Kind.GRADIENTS] == 100 * MIB
    assert low.by_kind[Kind.ACTIVATIONS] == 0
    assert high.by_kind[Kind.ACTIVATIONS] == 200 * MIB
    assert high.by_kind[Kind.PARAMETERS] == 64 * MIB
    assert high.before_bytes == 64 * MIB


def test_the_largest_that_fits_and_one_more_that_doesnt(curve: Curve) -> None:
    def fits(peak: Peak) -> bool:
        return peak.allocated_bytes <= 64 * MIB + 999 * MIB

    assert curve.largest(fits) == 99
    assert not fits(curve.at(100))
    assert curve.largest(fits, at_most=40) == 40
    assert curve.largest(lambda peak: False) == 0


@given(st.integers(1, 500), st.integers(1, 500))
def test_more_sequences_never_take_less(one: int, other: int) -> None:
    curve = Curve(trace_at(2), trace_at(3), cuda=True)
    small, large = sorted((one, other))

    assert curve.at(small).allocated_bytes <= curve.at(large).allocated_bytes
    assert curve.at(small).allocated_bytes <= curve.at(small).reserved_bytes


def test_a_third_trace_on_the_curve_and_one_off_it(curve: Curve) -> None:
    third = trace_at(40)
    off = replace(third, sizes=(64 * MIB, 800 * MIB, 100 * MIB))

    assert curve.check(third) == 0
    assert curve.check(off) == pytest.approx((864 - 464) / 864)


def test_a_third_trace_of_fewer_steps_is_compared_as_far_as_it_goes(curve: Curve) -> None:
    third = trace_at(40)
    shorter = replace(
        third, sizes=third.sizes[:2], kinds=third.kinds[:2], on_host=(False, False), events=(1, 2, -2)
    )

    assert curve.check(shorter) == 0


def test_traces_of_other_events_say_nothing() -> None:
    with pytest.raises(NotAligned, match="batch_size 2"):
        Curve(trace_at(2), replace(trace_at(3), events=(1, 2, 3, -2, -3)), cuda=True)


def test_what_lies_on_the_host_counts_only_where_there_is_no_card() -> None:
    trace = replace(trace_at(1), on_host=(True, False, False))

    on_card = replay(trace, trace.sizes, 1, cuda=True)
    on_cpu = replay(trace, trace.sizes, 1, cuda=False)

    assert on_card.allocated_bytes == 100 * MIB
    assert on_cpu.allocated_bytes == 164 * MIB


def test_loading_counts_on_cpu_and_not_where_torchtune_resets_the_counters() -> None:
    trace = Trace(
        1, (500 * MIB, 10 * MIB), (Kind.OTHER, Kind.ACTIVATIONS), (False, False), (1, -1, 2, -2), 2, (4,)
    )

    on_card = replay(trace, trace.sizes, 1, cuda=True)
    on_cpu = replay(trace, trace.sizes, 1, cuda=False)

    assert on_card.allocated_bytes == 10 * MIB
    assert on_card.reserved_bytes == 500 * MIB  # the cache keeps what loading took
    assert on_cpu.allocated_bytes == 500 * MIB
