"""The fork server of a probe on CUDA: its children find CUDA untouched, or start cold."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda import in_child as child
from tests.cuda.conftest import InChild

REPOSITORY = Path(__file__).parents[2]


def test_a_child_finds_cuda_untouched(in_child: InChild) -> None:
    assert in_child(child.untouched) == {
        "initialised": False,
        "spoiled": False,
        "torchtune": False,
        # What compiling takes is imported already, and a trial is no server.
        "inductor": True,
        "asks NVML alone": False,
        "usable": True,
    }


@pytest.mark.parametrize(
    ("preloaded", "forked"),
    [
        pytest.param("torch", True, id="untouched"),
        pytest.param("tests.recipes.initialises_cuda", False, id="initialised in the server"),
    ],
)
def test_a_server_with_cuda_initialised_is_given_up(tmp_path: Path, preloaded: str, forked: bool) -> None:
    """`tests.cuda.around_a_server` runs a child twice: of what is used in between, each tells its own."""
    said = subprocess.run(
        [sys.executable, "-m", "tests.cuda.around_a_server", preloaded, str(tmp_path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )

    first, second = (json.loads(line) for line in said.stdout.splitlines())
    for seen in (first, second):
        assert seen["code"] == 0
        assert (seen["forked"], seen["usable"]) == (forked, True)
