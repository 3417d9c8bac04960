"""The simulation itself: what PyTorch sees of the cards, and what becomes of the memory and the values."""

from __future__ import annotations

import os

import pytest

from tests.cuda import in_child as child
from tests.cuda.conftest import CARD, GIB, InChild


@pytest.mark.parametrize(
    ("devices", "cards"),
    [
        pytest.param("0,1,2,3", [0, 1, 2, 3], id="all"),
        pytest.param("2,0", [2, 0], id="in another order"),
        pytest.param("1,7,0", [1], id="one that isn't there hides the rest"),
        pytest.param("GPU-00000000-0000-0000-0000-000000000003", [3], id="UUID"),
        pytest.param(
            "GPU-00000000-0000-0000-0000-000000000002,GPU-00000000-0000-0000-0000-000000000001",
            [2, 1],
            id="UUIDs",
        ),
    ],
)
def test_visible_cards(in_child: InChild, devices: str, cards: list[int]) -> None:
    assert in_child(child.visible, devices) == {"by_nvml": len(cards), "cards": cards}


@pytest.mark.parametrize("devices", [pytest.param("", id="empty"), pytest.param("-1", id="-1")])
def test_no_visible_card(in_child: InChild, devices: str) -> None:
    assert in_child(child.visible, devices) == {"by_nvml": 0, "available": False}


def test_memory_of_the_only_card_that_is_seen(in_child: InChild) -> None:
    assert in_child(child.memory_of_the_second_of_two) == {"taken": GIB, "device": "cuda:0"}


def test_a_full_card_takes_no_memory_of_the_machine(in_child: InChild) -> None:
    seen = in_child(child.sixty_gib)

    assert seen["allocated"] >= 60 * GIB
    assert seen["grown"] < GIB // 16


def test_values(in_child: InChild) -> None:
    assert in_child(child.copies) == {
        "pinned": [False, True, True],
        "host to host": 0,
        "host to pinned": 0,
        "card to host": [1, 1, 1, 0, 0, 1, 1, 1],
        "card to host, all": 6,
        "card to host, small": [1, 1, 0, 0, 0, 1, 1],
        "through the card": 0,
        "an item": 0,
    }


def test_two_threads_with_a_card_each(in_child: InChild) -> None:
    assert in_child(child.two_threads) == {"current": [0, 1], "taken": [20, 40]}


def test_no_address_space_is_lost(in_child: InChild) -> None:
    """3,000 times 70 GiB, no two of one size, are ten times the address space that there is."""
    assert in_child(child.cycles, 3000) == {"lost": 0}


@pytest.mark.parametrize(
    ("backend", "masked", "node"),
    [
        pytest.param("MATH", True, "ToCopyBackward0", id="math"),
        pytest.param("FLASH_ATTENTION", False, "ScaledDotProductFlashAttentionBackward0", id="flash"),
        pytest.param(
            "EFFICIENT_ATTENTION", True, "ScaledDotProductEfficientAttentionBackward0", id="efficient"
        ),
        pytest.param("CUDNN_ATTENTION", False, "ScaledDotProductCudnnAttentionBackward0", id="cuDNN"),
        pytest.param("CUDNN_ATTENTION", True, "ScaledDotProductCudnnAttentionBackward0", id="cuDNN, masked"),
    ],
)
def test_attention(in_child: InChild, backend: str, masked: bool, node: str) -> None:
    assert in_child(child.attention, backend, masked) == {"node": node, "gradients": [[2, 4, 128, 64]] * 3}


def test_no_driver_but_ours_is_loaded(in_child: InChild) -> None:
    assert in_child(child.drivers) == {
        "simulated": True,
        "real": None,
        "directories": [os.environ["TRITON_LIBCUDA_PATH"]],
    }


def test_readings_of_the_meter(in_child: InChild) -> None:
    full = {"reserved": 3 * GIB, "allocated": 3 * GIB, "device": 3 * GIB}

    held, given_back, reset = in_child(child.peaks_of_a_meter)

    assert held == {"peaks_bytes": full, "current_bytes": full, "alloc_retries": 0}
    assert given_back["peaks_bytes"] == full
    # The allocator keeps what it has.
    assert given_back["current_bytes"] == {**full, "allocated": 0}
    # A recipe that resets the peaks, as torchtune does, loses no earlier reading.
    assert reset["peaks_bytes"] == full
    assert reset["current_bytes"] == {"reserved": 0, "allocated": 0, "device": 0}


def test_the_card_as_a_device(in_child: InChild) -> None:
    assert in_child(child.device, "cuda", 3) == {
        "kind": "cuda",
        "name": "NVIDIA H100 80GB HBM3",
        "total_bytes": CARD.total_bytes,
        "simulated": True,
        "label": "simulated NVIDIA H100 80GB HBM3",
    }
    assert in_child(child.device, "cuda", 4) is None
