"""Sizes and durations as people write and read them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autobatch.errors import UsageError
from autobatch.units import format_bytes, format_percent, format_seconds, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [
        pytest.param("1", 1, id="bytes"),
        pytest.param("512B", 512, id="B"),
        pytest.param("40GiB", 40 * 2**30, id="GiB"),
        pytest.param("80GB", 80 * 10**9, id="GB"),
        pytest.param("512 MiB", 512 * 2**20, id="a space"),
        pytest.param("  2kib ", 2048, id="any case, spaces around"),
        pytest.param("1.5TiB", 3 * 2**39, id="a fraction"),
        pytest.param("0.5KB", 500, id="below one unit"),
        pytest.param("3TB", 3 * 10**12, id="TB"),
    ],
)
def test_parse_bytes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "", "GiB", "-1GiB", "40 Gi B", "40GiBs", "40G", "1e9", "1,5GiB", "0", "0GiB", "0.1B", "nan", "inf", "40 %",
        "9" * 30, "9" * 400 + "TiB",
    ],
)  # fmt: skip
def test_what_is_no_size_is_quoted(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_bytes(text)

    assert str(caught.value).startswith(f"{text!r} is not a size: ")


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    try:
        size = parse_bytes(text)
    except UsageError:
        return
    assert size >= 1


@pytest.mark.parametrize(
    ("size", "text"),
    [
        pytest.param(0, "0.0 MiB", id="0"),
        pytest.param(2**20, "1.0 MiB", id="1 MiB"),
        pytest.param(512 * 2**20, "512.0 MiB", id="MiB"),
        pytest.param(2**30, "1.00 GiB", id="from 1 GiB"),
        pytest.param(1.02 * 2**30, "1.02 GiB", id="two digits below 10 GiB"),
        pytest.param(55.07 * 2**30, "55.1 GiB", id="one above"),
        pytest.param(-3 * 2**30, "-3.00 GiB", id="negative, of a fitted line"),
    ],
)
def test_format_bytes(size: float, text: str) -> None:
    assert format_bytes(size) == text


def test_format_percent() -> None:
    assert format_percent(55.1, 80) == "68.9 %"
    assert format_percent(0, 80) == "0.0 %"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        pytest.param(0, "0.0 s", id="0"),
        pytest.param(8.06, "8.1 s", id="seconds"),
        pytest.param(59.94, "59.9 s", id="below a minute"),
        pytest.param(59.96, "1 min 00 s", id="rounds to a minute"),
        pytest.param(65, "1 min 05 s", id="minutes"),
        pytest.param(3599.4, "59 min 59 s", id="below an hour"),
        pytest.param(3599.6, "1 h 00 min", id="rounds to an hour"),
        pytest.param(7380, "2 h 03 min", id="hours"),
        pytest.param(100 * 3600, "100 h 00 min", id="days"),
    ],
)
def test_format_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text
