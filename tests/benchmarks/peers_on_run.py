"""One real torchtune run, searched by autobatch and by the others."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import autobatch
from autobatch.probing.meter import MALLOC_ENVIRONMENT
from autobatch.records import Trial, Verdict
from autobatch.runs.out_of_memory import is_out_of_memory
from tests.benchmarks.cases import CASES, TARGET
from tests.benchmarks.exactness import in_a_process_of_its_own
from tests.benchmarks.peers_judging import PLAIN, Attempt, Found
from tests.benchmarks.peers_worker import STARTING_BATCH_SIZE, TOOLS
from tests.benchmarks.plain import parse_step_log, run_plain

CASE = next(case for case in CASES if case.name == "lora-fp32")

#: What the demo's finetune.slurm exports.
_EXPORTS = {"HF_HUB_OFFLINE": "1"}
_ENVIRONMENT = {**_EXPORTS, **MALLOC_ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""}

#: Optimizer steps of a plain run.
_STEPS = 4

#: By hand: not a package that could be called.
_HALVING = "halving"


def on_run(python: Path, scratch: Path) -> list[Found]:
    """Every tool on the run.

    Args:
        python: of the other tools' environment.
        scratch: for the run and files.

    Raises:
        RuntimeError: the limit that the others train within isn't the capacity.
    """
    in_a_process_of_its_own(scratch, CASE.run)
    run_dir = scratch / CASE.run.name
    # On CPU a probe has no estimate.
    searched = {PLAIN: _probe(run_dir)}
    plain = _PlainRuns(run_dir, scratch)
    true = largest_within(plain.peak, int(CASE.capacity_bytes * TARGET), near=searched[PLAIN]["answer"] or 1)
    row_bytes = plain.peak(true + 1) - plain.peak(true)
    near = true + (CASE.capacity_bytes - plain.peak(true)) // row_bytes
    own = largest_within(plain.peak, CASE.capacity_bytes, near)
    recipe = _recipe(python)
    _check_limit(python, run_dir, recipe, own)
    for tool in TOOLS:
        found = (
            _halving(python, run_dir, recipe) if tool == _HALVING else _search(python, run_dir, recipe, tool)
        )
        searched[tool] = found
        print(f"{CASE.name}: {tool}: {found['answer']} ({found['seconds']:.1f} s)", flush=True)
    return [
        Found(
            case=CASE.name,
            tool=tool,
            answer=found["answer"],
            true=true,
            own=own if tool in TOOLS else true,
            attempts=tuple(Attempt(**trial) for trial in found["trials"]),
            seconds=found["seconds"],
            peak=plain.peak(found["answer"]) / CASE.capacity_bytes if found["answer"] else None,
        )
        for tool, found in searched.items()
    ]


def _probe(run_dir: Path) -> dict[str, Any]:
    began = time.monotonic()
    result = autobatch.probe(
        run_dir, cluster="inline", target=TARGET, capacity=CASE.capacity_bytes, force=True
    )
    seconds = time.monotonic() - began
    print(f"{CASE.name}: {result.message} ({seconds:.1f} s)", flush=True)
    return {
        "answer": result.batch_size,
        "trials": [_attempt(trial) for trial in result.trials],
        "seconds": seconds,
    }


def _attempt(trial: Trial) -> dict[str, Any]:
    out = trial.verdict is Verdict.OUT_OF_MEMORY
    return {
        "batch_size": trial.batch_size,
        "steps": len(trial.step_peaks_bytes) + out,
        "out_of_memory": out,
    }


class _PlainRuns:
    """Peaks of plain `tune run`s, each trained once.

    Args:
        run_dir: the run.
        scratch: for what they write.
    """

    def __init__(self, run_dir: Path, scratch: Path) -> None:
        self._run_dir = run_dir
        self._scratch = scratch
        self._peaks: dict[int, int] = {}

    def peak(self, batch_size: int) -> int:
        """Resident memory when the last step had been logged."""
        if batch_size not in self._peaks:
            self._peaks[batch_size] = self._train(batch_size)
        return self._peaks[batch_size]

    def _train(self, batch_size: int) -> int:
        with tempfile.TemporaryDirectory(dir=self._scratch) as output:
            run = run_plain(
                self._run_dir,
                CASE.run.recipe_name,
                batch_size,
                steps=_STEPS,
                output_dir=Path(output),
                device="cpu",
                environment=_EXPORTS,
            )
        peak = run.trained_bytes or run.peaks_bytes["resident"]
        print(f"  plain, batch_size {batch_size}: {peak / 2**20:.1f} MiB, {run.seconds:.1f} s", flush=True)
        return peak


def largest_within(peak: Callable[[int], int], most_bytes: int, near: int) -> int:
    """The largest batch_size whose peak is within `most_bytes`, looked for from `near` on."""
    size = near
    while size and peak(size) > most_bytes:
        size -= 1
    while peak(size + 1) <= most_bytes:
        size += 1
    return size


def _search(python: Path, run_dir: Path, recipe: str, tool: str) -> Any:
    with tempfile.TemporaryDirectory() as place:
        order, answer, log = (Path(place) / name for name in ("order.json", "answer.json", "log"))
        asked = {"run": str(run_dir), "recipe": recipe, "capacity_bytes": CASE.capacity_bytes, "tool": tool}
        order.write_text(json.dumps(asked), encoding="utf-8")
        _call([python, "-m", "tests.benchmarks.peers_worker", order, answer], log, check=True)
        return json.loads(answer.read_text(encoding="utf-8"))


def _halving(python: Path, run_dir: Path, recipe: str) -> dict[str, Any]:
    """Each job in a process of its own, as Slurm would start it."""
    began = time.monotonic()
    trials: list[dict[str, Any]] = []
    size = STARTING_BATCH_SIZE
    while True:
        trials.append(_job(python, run_dir, recipe, size))
        if not trials[-1]["out_of_memory"]:
            return {"answer": size, "trials": trials, "seconds": time.monotonic() - began}
        size //= 2


def _job(python: Path, run_dir: Path, recipe: str, batch_size: int) -> dict[str, Any]:
    """A training within the capacity."""
    with tempfile.TemporaryDirectory() as output:
        log = Path(output) / "job.log"
        words = [run_dir, recipe, CASE.capacity_bytes, batch_size, output]
        code, said = _call([python, "-m", "tests.benchmarks.peers_training", *words], log)
        steps = sum(
            len(parse_step_log(file.read_text())) for file in (Path(output) / "logs").glob("log_*.txt")
        )
    out = code != 0 and is_out_of_memory(said)
    if code != 0 and not out:
        raise RuntimeError(f"a job at batch_size {batch_size} ended with status {code}:\n{said[-2000:]}")
    return {"batch_size": batch_size, "steps": steps + out, "out_of_memory": out}


def _check_limit(python: Path, run_dir: Path, recipe: str, own: int) -> None:
    fits, fails = (_job(python, run_dir, recipe, size)["out_of_memory"] for size in (own, own + 1))
    if fits or not fails:
        raise RuntimeError(
            f"plain runs say that {own} is the largest within the capacity; within the limit on data, {own} "
            f"{'runs out of memory' if fits else 'trains'} and {own + 1} {'does not train' if fails else 'trains'}"
        )


def _recipe(python: Path) -> str:
    """The recipe's file in the other tools' environment."""
    code = "import importlib.util as u; print(u.find_spec('torchtune').submodule_search_locations[0])"
    said = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    return str(Path(said.stdout.strip()).parent / "recipes" / f"{CASE.run.recipe_name}.py")


def _call(words: list[Any], log: Path, *, check: bool = False) -> tuple[int, str]:
    """(exit status, all that it said) of a process with the environment of a trial."""
    with log.open("wb") as file:
        ended = subprocess.run(
            [str(word) for word in words],
            env={**os.environ, **_ENVIRONMENT},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    said = log.read_text(encoding="utf-8", errors="replace")
    if check and ended.returncode:
        raise RuntimeError(f"{words[2]} ended with status {ended.returncode}:\n{said[-2000:]}")
    return ended.returncode, said
