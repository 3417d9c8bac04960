"""Does the density arithmetic say what torchtune packs, how much faster, and how does it grow?

    identity    random cases against torchtune's PackedDataset: split_across_pack, max_packs, too long examples
    speed       1,000,000 lengths, against PackedDataset on tokens that lie ready
    scale       `autobatch density` on the demo's dataset with 10,000, 100,000 and 1,000,000 examples

    python -m tests.benchmarks.packing_scale --markdown tests/benchmarks/results/packing-scale.md

Exit status 1 when a bar fails (`packing_judging`), else 0. Some minutes.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stderr
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from autobatch.demo.examples import as_json, make_examples
from autobatch.demo.layout import SmallRun
from autobatch.json_form import to_json
from autobatch.packing.density import density_of_lengths
from tests.benchmarks.exactness import in_a_process_of_its_own
from tests.benchmarks.machine import machine_facts, write_json
from tests.benchmarks.packing_judging import Counts, Measured, Packed, Scaled, failed_bars, report

CASES = 10_000
LENGTHS = 1_000_000
MAX_SEQ_LEN = 512
SIZES = (10_000, 100_000, 1_000_000)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the tables, write the figures."""
    options = _parser().parse_args(arguments)
    measured = Measured(
        cases=CASES,
        different=in_process(differences, CASES),
        arithmetic=tuple(in_process(arithmetic, split) for split in (False, True)),
        torchtune=tuple(in_process(packed_by_torchtune, split) for split in (False, True)),
        scaled=tuple(scale(size) for size in SIZES),
    )
    facts = {**machine_facts(), "date": datetime.now(timezone.utc).date().isoformat()}
    lines = report(facts, measured)
    print("\n".join(lines))
    if options.json:
        write_json({**facts, **to_json(measured), "failed": failed_bars(measured)}, options.json)
    if options.markdown:
        options.markdown.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return 1 if failed_bars(measured) else 0


def in_process(function: Any, argument: Any) -> Any:
    """What `function` returns in a process of its own, whose memory is then its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        said = pool.apply(function, (argument,))
    print(f"{function.__name__}({argument}): {said}", flush=True)
    return said


def differences(cases: int) -> list[str]:
    """The random cases in which the arithmetic and torchtune differ, in words."""
    rng = random.Random(0)
    found = []
    for _ in range(cases):
        max_seq_len, split = rng.randint(1, 64), rng.random() < 0.5
        longest = max_seq_len * rng.choice((1, 3)) if split else max_seq_len
        lengths = [rng.randint(1, longest) for _ in range(rng.randint(0, 80))]
        if rng.random() < 0.05:
            lengths.append(longest + 1)
        settings = {
            "split_across_pack": split,
            "max_packs": rng.choice((None, None, 1, 2, rng.randint(0, 80))),
        }
        ours, theirs = (
            counts_or_error(pack, lengths, max_seq_len, settings) for pack in (counts, counts_of_torchtune)
        )
        if ours != theirs:
            found.append(f"{lengths} in {max_seq_len}, {settings}: {ours}, torchtune {theirs}")
    return found


def counts_or_error(pack: Any, lengths: list[int], max_seq_len: int, settings: Any) -> Counts | None:
    """What a way of packing counts; None when it refuses the lengths."""
    try:
        packed: Counts = pack(lengths, max_seq_len, **settings)
    except ValueError:
        return None
    return packed


def counts(lengths: Sequence[int], max_seq_len: int, **settings: Any) -> Counts:
    """By the arithmetic."""
    density = density_of_lengths(lengths, max_seq_len, **settings)
    return Counts(density.packs, density.examples, density.tokens)


def counts_of_torchtune(lengths: Sequence[int], max_seq_len: int, **settings: Any) -> Counts:
    """By PackedDataset: an example's first token is 1, its others are 2, and padding is 0."""
    from torchtune.datasets import PackedDataset

    tokens = {length: [1] + [2] * (length - 1) for length in set(lengths)}
    examples = [{"tokens": tokens[length], "labels": tokens[length]} for length in lengths]
    with redirect_stderr(io.StringIO()):
        packs = PackedDataset(examples, max_seq_len=max_seq_len, **settings).packs
    begun = sum(int((pack["tokens"] == 1).sum()) for pack in packs)
    return Counts(len(packs), begun, sum(int((pack["tokens"] != 0).sum()) for pack in packs))


def many_lengths() -> list[int]:
    """Lengths as an instruction dataset has them: log-normal, cut at max_seq_len."""
    rng = random.Random(1)
    return [min(MAX_SEQ_LEN, max(1, int(rng.lognormvariate(4.3, 0.6)))) for _ in range(LENGTHS)]


def arithmetic(split: bool) -> Packed:
    """The shortest of five times."""
    lengths = many_lengths()
    seconds = []
    for _ in range(5):
        began, used = time.monotonic(), time.process_time()
        counted = counts(lengths, MAX_SEQ_LEN, split_across_pack=split)
        seconds.append((time.process_time() - used, time.monotonic() - began))
    return Packed(split, counted, *min(seconds))


def packed_by_torchtune(split: bool) -> Packed:
    """Once; what it counts is counted afterwards."""
    from torchtune.datasets import PackedDataset

    lengths = many_lengths()
    tokens = {length: [1] + [2] * (length - 1) for length in set(lengths)}
    examples = [{"tokens": tokens[length], "labels": tokens[length]} for length in lengths]
    with redirect_stderr(io.StringIO()):
        began, used = time.monotonic(), time.process_time()
        packs = PackedDataset(examples, max_seq_len=MAX_SEQ_LEN, split_across_pack=split).packs
        seconds = time.process_time() - used, time.monotonic() - began
    begun = sum(int((pack["tokens"] == 1).sum()) for pack in packs)
    counted = Counts(len(packs), begun, sum(int((pack["tokens"] != 0).sum()) for pack in packs))
    return Packed(split, counted, *seconds)


def scale(examples: int) -> Scaled:
    """`autobatch density` on so many examples."""
    with tempfile.TemporaryDirectory(prefix="packing-scale-") as place:
        in_a_process_of_its_own(Path(place), SmallRun())
        # A line each, as large datasets have it: an array would be read as a whole.
        lines = as_json(make_examples(examples)).strip("[]\n").replace("},\n", "}\n")
        (Path(place) / "data" / "train.json").write_text(lines, encoding="utf-8")
        command = [sys.executable, "-m", "autobatch.cli.main", "density", f"{place}/run1", "--json"]
        environment = {**os.environ, "HF_DATASETS_CACHE": f"{place}/cache"}
        began = time.monotonic()
        # A session of its own, by which the packing process is found.
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        peaks: dict[str, int] = {}
        while process.poll() is None:
            for pid, peak in _peaks_below(process.pid).items():
                peaks[pid] = max(peak, peaks.get(pid, 0))
            time.sleep(0.05)
        out, said = process.communicate()
        seconds = time.monotonic() - began
    if process.returncode != 0:
        raise RuntimeError(f"autobatch density ended with status {process.returncode}: {said}")
    density = json.loads(out)[0]["density"]
    scaled = Scaled(
        examples=density["examples"],
        packs=density["packs"],
        counting_seconds=density["seconds"],
        seconds=seconds,
        peak_bytes=max(peaks.values()),
        progress_lines=sum(line.startswith("packing: ") for line in said.splitlines()),
    )
    print(scaled, flush=True)
    return scaled


def _peaks_below(root: int) -> dict[str, int]:
    """VmHWM of a process and of those below it, by pid."""
    parents, peaks = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = dict(
                line.split(":", 1) for line in (entry / "status").read_text().splitlines() if ":" in line
            )
        except OSError:
            continue
        parents[entry.name] = fields["PPid"].strip()
        peaks[entry.name] = int(fields.get("VmHWM", "0 kB").split()[0]) * 1024
    below = {str(root)}
    while more := {pid for pid, parent in parents.items() if parent in below} - below:
        below |= more
    return {pid: peaks[pid] for pid in below if pid in peaks}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.packing_scale",
        description="Compare the density arithmetic with torchtune's packs, and see how it grows.",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    return parser


if __name__ == "__main__":
    sys.exit(main())
