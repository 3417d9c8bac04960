"""What a request asks of a run: the effective batch to hold, the cap, and what is written."""

from __future__ import annotations

import argparse
import re
from typing import Any

import pytest

from autobatch.cli.probe_arguments import add_arguments, request_of
from autobatch.errors import RunProblems, UsageError
from autobatch.probing.search import Cap
from autobatch.probing.wish import batch_before, cap_of, wish_of
from autobatch.probing.writeback import write_back
from autobatch.records import (
    Density,
    Device,
    Limit,
    PackingMode,
    Preference,
    ProbeRequest,
    ProbeResult,
    Status,
    Unit,
)
from autobatch.runs.directory import RunDirectory, read_run
from tests.conftest import MakeRun

#: 5 examples a pack.
DENSITY = Density(packed=True, examples=500, packs=100, tokens=12_000, max_seq_len=128, longest_example=60)
UNPACKED = Density(packed=False, examples=500, packs=500, tokens=12_000, max_seq_len=128, longest_example=60)


def read(make_run: MakeRun, **options: Any) -> tuple[ProbeRequest, RunDirectory]:
    """A run of batch_size 4 x gradient_accumulation_steps 8, and a request that holds an effective batch."""
    run = make_run()
    config = run / "finetune.yaml"
    text = re.sub(
        r"(?m)^gradient_accumulation_steps: 1", "gradient_accumulation_steps: 8", config.read_text()
    )
    if options.get("packing") is not None:
        text = text.replace("packed: True", "packed: False")
    config.write_text(text)
    request = ProbeRequest(str(run), **({"hold_effective_batch": True} | options))
    return request, read_run(run, request)


@pytest.mark.parametrize(
    ("options", "density", "sequences", "cap"),
    [
        pytest.param({}, DENSITY, 32, Cap(32, Limit.HOLD), id="the present product"),
        pytest.param({"effective_batch": 24}, DENSITY, 24, Cap(24, Limit.HOLD), id="24"),
        pytest.param({"effective_batch": 160}, DENSITY, 100, Cap(100, Limit.DATASET), id="too many"),
        pytest.param({"max_batch_size": 7}, DENSITY, 32, Cap(4, Limit.MAX_BATCH_SIZE), id="at most 7"),
        pytest.param({"max_batch_size": 40}, DENSITY, 32, Cap(32, Limit.HOLD), id="at most 40"),
        pytest.param({"effective_batch_in": Unit.EXAMPLES}, DENSITY, 32, Cap(32, Limit.HOLD), id="examples"),
        pytest.param(
            {"effective_batch": 61, "effective_batch_in": Unit.EXAMPLES},
            DENSITY,
            12,
            Cap(12, Limit.HOLD),
            id="61 examples",
        ),
        pytest.param(
            {"packing": PackingMode.UNPACKED, "effective_batch_in": Unit.EXAMPLES},
            UNPACKED,
            32,
            Cap(32, Limit.HOLD),
            id="unpacked",
        ),
        pytest.param({"packing": PackingMode.PACK}, DENSITY, 32, Cap(32, Limit.HOLD), id="packing is new"),
        pytest.param(
            {"packing": PackingMode.PACK, "effective_batch_in": Unit.EXAMPLES},
            DENSITY,
            6,
            Cap(6, Limit.HOLD),
            id="packing is new, the examples held",
        ),
        pytest.param({"hold_effective_batch": False}, DENSITY, None, Cap(12, Limit.DATASET), id="not held"),
    ],
)
def test_what_is_held(
    make_run: MakeRun, options: dict[str, Any], density: Density, sequences: int | None, cap: Cap
) -> None:
    request, run = read(make_run, **options)

    wish = wish_of(request, run, density)

    assert (None if wish.hold is None else wish.hold.sequences) == sequences
    assert cap_of(request, wish, density) == cap
    before = batch_before(run, density)
    was_packed = options.get("packing") is None
    assert (before.sequences, before.examples) == (32, 160.0 if was_packed else 32.0)


def test_that_packing_changes_what_a_sequence_is_is_said(make_run: MakeRun) -> None:
    request, run = read(make_run, packing=PackingMode.PACK)

    held = wish_of(request, run, DENSITY).hold

    assert held is not None
    assert held.remarks == (
        "packing is new: 32 sequences an update take about 160 examples (--in examples holds their number)",
    )


def test_an_override_on_the_tune_run_line_is_refused(make_run: MakeRun) -> None:
    path = make_run()
    script = path / "finetune.slurm"
    script.write_text(
        script.read_text().replace("finetune.yaml", "finetune.yaml gradient_accumulation_steps=2")
    )
    assert read_run(path, ProbeRequest(str(path))).gradient_accumulation_steps == 2

    with pytest.raises(RunProblems) as caught:
        read_run(path, ProbeRequest(str(path), hold_effective_batch=True))

    line = next(n for n, text in enumerate(script.read_text().splitlines(), 1) if "tune run" in text)
    assert f"finetune.slurm:{line}: overrides the gradient_accumulation_steps that " in str(caught.value)


def test_accumulation_is_written_below_batch_size_where_it_was_missing(make_run: MakeRun) -> None:
    path = make_run()
    config = path / "finetune.yaml"
    text = re.sub(r"(?m)^gradient_accumulation_steps:.*\n", "", config.read_text())
    config.write_text(text)
    request = ProbeRequest(str(path), hold_effective_batch=True)
    result = ProbeResult(
        Status.DONE,
        "",
        request,
        device=Device("cpu", "a CPU", 2**34),
        capacity_bytes=2**34,
        batch_size=2,
        gradient_accumulation_steps=2,
        peak_bytes=2**30,
        density=DENSITY,
    )

    write_back(read_run(path, request), result, lambda event: None)

    line = next(line for line in text.splitlines() if line.startswith("batch_size: 4"))
    written = line.replace("batch_size: 4", "batch_size: 2") + "\ngradient_accumulation_steps: 2"
    assert config.read_text() == text.replace(line, written)


@pytest.mark.parametrize(
    ("words", "fields"),
    [
        pytest.param([], (False, None, Unit.SEQUENCES, Preference.MEMORY), id="none"),
        pytest.param(
            ["--hold-effective-batch"], (True, None, Unit.SEQUENCES, Preference.MEMORY), id="present"
        ),
        pytest.param(
            ["--hold-effective-batch", "64", "--in", "examples", "--prefer", "throughput"],
            (True, 64, Unit.EXAMPLES, Preference.THROUGHPUT),
            id="all",
        ),
    ],
)
def test_options(words: list[str], fields: tuple[object, ...]) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)

    request = request_of(parser.parse_args(["run1", *words]))

    assert (
        request.hold_effective_batch,
        request.effective_batch,
        request.effective_batch_in,
        request.prefer,
    ) == fields


def test_a_unit_without_what_it_counts() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)

    with pytest.raises(UsageError) as caught:
        request_of(parser.parse_args(["run1", "--in", "examples"]))

    assert str(caught.value) == "--in examples says what --hold-effective-batch counts: give that too"
