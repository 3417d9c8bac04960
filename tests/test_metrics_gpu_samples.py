"""gpu_metrics.csv as nvidia-smi writes it, and as it is left behind."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from autobatch.errors import UsageError
from autobatch.metrics.gpu_samples import read_gpu_samples

HEADER = (
    "timestamp, utilization.gpu [%], utilization.memory [%], memory.used [MiB], memory.total [MiB], "
    "power.draw [W], temperature.gpu\n"
)


def row(time: str, mib: str = "20480 MiB", utilization: str = "90 %") -> str:
    return f"2025/10/20 {time}, {utilization}, 40 %, {mib}, 81559 MiB, 412.11 W, 61\n"


@pytest.mark.parametrize(
    ("text", "peak", "mean", "utilization", "gpus", "seconds"),
    [
        pytest.param("", None, None, None, 0, None, id="empty"),
        pytest.param(HEADER, None, None, None, 0, None, id="stopped before the first sample"),
        pytest.param(
            HEADER + row("14:30:00.100", "10240 MiB", "0 %") + row("14:30:30.200", "30720 MiB", "100 %"),
            30.0, 20.0, 50.0, 1, 30.1, id="one card",
        ),
        pytest.param(
            HEADER
            + row("14:30:00.100") + row("14:30:00.104", "40960 MiB") + row("14:30:30.101") + row("14:30:30.109"),
            40.0, 25.0, 90.0, 2, 30.009, id="two cards in turn",
        ),
        pytest.param(
            HEADER + row("14:30:00.1", "4864 MiB", "[N/A]") + row("14:30:30.1", "4864 MiB", "[N/A]"),
            4.75, 4.75, None, 1, 30.0, id="MIG has no utilisation",
        ),
        pytest.param(
            HEADER + row("14:30:00.1", "[Not Supported]", "50 %"), None, None, 50.0, 1, 0.0, id="not supported"
        ),
        pytest.param(
            HEADER + row("14:30:00.1") + "2025/10/20 14:30:30.1, 90 %, 4", 20.0, 20.0, 90.0, 1, 0.0, id="cut off"
        ),
        pytest.param(
            HEADER + row("14:30:00.1") + row("14:30:30.1", "204"), 20.0, 10.1, 90.0, 1, 30.0, id="without units"
        ),
        pytest.param(
            HEADER + row("10:00:00.1", "71680 MiB") + HEADER + row("14:30:00.1") + row("14:31:00.1"),
            20.0, 20.0, 90.0, 1, 60.0, id="requeued: the last attempt",
        ),
        pytest.param(
            HEADER + row("10:00:00.1", "71680 MiB") + HEADER, 70.0, 70.0, 90.0, 1, 0.0, id="requeued, cut off"
        ),
        pytest.param(
            "memory.used [MiB]\n" + HEADER + "\0\0" + row("14:30:00.1") + "Unable to determine the device\n\n",
            20.0, 20.0, 90.0, 1, 0.0, id="other text between",
        ),
        pytest.param(
            "timestamp, memory.used [MiB]\n2025/10/20 14:30:00.1, 1024 MiB\n",
            1.0, 1.0, None, 1, 0.0, id="fewer columns",
        ),
    ],
)  # fmt: skip
def test_what_the_samples_say(
    tmp_path: Path,
    text: str,
    peak: float | None,
    mean: float | None,
    utilization: float | None,
    gpus: int,
    seconds: float | None,
) -> None:
    path = tmp_path / "gpu_metrics.csv"
    path.write_text(text)

    samples = read_gpu_samples(path)

    assert samples.peak_memory_gib == peak
    assert samples.mean_memory_gib == (pytest.approx(mean, abs=0.001) if mean is not None else None)
    assert samples.mean_utilization_pct == utilization
    assert samples.gpus == gpus
    assert samples.seconds == (pytest.approx(seconds) if seconds is not None else None)


def test_a_window_of_time(tmp_path: Path) -> None:
    path = tmp_path / "gpu_metrics.csv"
    path.write_text(HEADER + "".join(row(f"14:{m}:00.0", f"{m * 1024} MiB") for m in range(10, 20)))
    samples = read_gpu_samples(path)

    window = samples.between(datetime(2025, 10, 20, 14, 12), datetime(2025, 10, 20, 14, 14))

    assert [s.memory_gib for s in window.samples] == [12.0, 13.0, 14.0]
    assert samples.between(datetime(2025, 10, 21), datetime(2025, 10, 22)).mean_memory_gib is None


def test_no_file_has_no_samples(tmp_path: Path) -> None:
    assert read_gpu_samples(tmp_path / "gpu_metrics.csv").samples == ()


def test_a_directory_in_its_place_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Is a directory"):
        read_gpu_samples(tmp_path)


@settings(max_examples=200, deadline=None)
@given(junk=st.binary(max_size=300), at=st.integers(0, 400))
@example(junk=b"\x1c ", at=len(HEADER) + len("2025/10/20 14:30:00.1, 90"))
def test_junk_never_crashes(junk: bytes, at: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    whole = (HEADER + row("14:30:00.1") + row("14:30:30.1")).encode()
    path = tmp_path_factory.getbasetemp() / "junk.csv"
    path.write_bytes(whole[:at] + junk + whole[at:])

    samples = read_gpu_samples(path)

    assert samples.gpus <= 4
