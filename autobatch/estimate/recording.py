"""Records the traces of a subject, each in a process of its own, and makes the curve."""

from __future__ import annotations

import base64
import json
import os
import tempfile
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autobatch.edits.files import replace_file
from autobatch.estimate.recipe_config import STEPS, estimate_config, offloads, shards_on_host
from autobatch.estimate.records import NoEstimate
from autobatch.estimate.subject import Subject
from autobatch.estimate.trace import Curve, NotAligned, Trace
from autobatch.estimate.worker import TraceSpec, record
from autobatch.probing.forkserver import ForkServer
from autobatch.probing.versions import installed_versions
from autobatch.records import from_json, to_json
from autobatch.runs.fingerprint import fingerprint

#: Batch sizes to record. Not 1, at which copies can become views.
_ON_THE_LINE = (2, 3)
_CHECK = 8

#: A third size may be off the line through the other two by this fraction of its peak: rounding.
_TOLERANCE = 0.005

#: Version of the file's form.
_FORM = 2


@dataclass(frozen=True)
class Recorded:
    """What recording gave.

    Attributes:
        curve: peaks at any batch_size.
        off_line_fraction: how far the third batch_size was off.
        resident_bytes: memory of a process before the recipe.
        memory_bytes: the most that a process took to record.
        seconds: that it took; 0 when it was on file.
    """

    curve: Curve
    off_line_fraction: float
    resident_bytes: int
    memory_bytes: int
    seconds: float


def recorded(
    subject: Subject, server: ForkServer, *, timeout_s: float, keep: Path | None, fresh: bool = False
) -> Recorded:
    """The curve of `subject`.

    Args:
        subject: what to estimate.
        server: gives the processes.
        timeout_s: for all of it.
        keep: file in which it is kept, and looked for; None for none.
        fresh: record again though it is on file.

    Raises:
        NoEstimate: the recipe doesn't run on fake tensors, takes too long, or isn't on a line.
    """
    key = _key(subject)
    kept = _read(keep, key) if keep is not None and not fresh else None
    if kept is not None:
        return _curve(kept, cuda=subject.device == "cuda", seconds=0.0)
    began = time.monotonic()
    given_up = threading.Event()

    def stop_when_given_up() -> None:
        if given_up.is_set():
            raise NoEstimate("given up")

    with tempfile.TemporaryDirectory(prefix="autobatch-estimate-") as scratch:

        def one(spec: TraceSpec) -> dict[str, Any]:
            left = timeout_s - (time.monotonic() - began)
            return _record(spec, server, left, stop_when_given_up)

        # The third is only compared with the others, and one step does for that.
        jobs = [*((batch_size, STEPS) for batch_size in _ON_THE_LINE), (_CHECK, 1)]
        # Before any thread: OmegaConf resolves a config in one at a time.
        specs = [_specification(subject, Path(scratch), *job) for job in jobs]
        with ThreadPoolExecutor(max_workers=max(1, min(len(jobs), _cores()))) as pool:
            waiting = [pool.submit(one, spec) for spec in specs]
            try:
                answers = [future.result() for future in waiting]
            except BaseException:
                # One has failed, or somebody has lost patience: the others' processes end too.
                given_up.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    result = _curve(answers, cuda=subject.device == "cuda", seconds=time.monotonic() - began)
    if keep is not None:
        _write(keep, key, answers)
    return result


def _curve(answers: list[dict[str, Any]], *, cuda: bool, seconds: float) -> Recorded:
    one, two, third = (from_json(Trace, answer["trace"]) for answer in answers)
    try:
        curve = Curve(one, two, cuda=cuda)
        off = curve.check(third)
    except NotAligned as error:
        raise NoEstimate(f"{error}: a line through them would say nothing") from error
    if off > _TOLERANCE:
        raise NoEstimate(
            f"batch_size {third.batch_size} is {100 * off:.1f} % off the line through {one.batch_size} and "
            f"{two.batch_size}"
        )
    resident, memory = (max(answer[name] for answer in answers) for name in ("resident", "memory"))
    return Recorded(curve, off, resident, memory, seconds)


def _specification(subject: Subject, scratch: Path, batch_size: int, steps: int) -> TraceSpec:
    """What a process needs to know, with its config written to `scratch`."""
    config = scratch / f"{batch_size}.yaml"
    config.write_text(estimate_config(subject, batch_size, steps), encoding="utf-8")
    return TraceSpec(
        recipe=str(subject.recipe.path),
        config=str(config),
        working_dir=str(subject.working_dir),
        cuda=subject.device == "cuda",
        offload=offloads(subject),
        batch_size=batch_size,
        world=subject.world,
        shards_on_host=shards_on_host(subject),
        answer=str(config.with_suffix(".json")),
    )


def _record(
    spec: TraceSpec, server: ForkServer, timeout_s: float, on_wait: Callable[[], None]
) -> dict[str, Any]:
    answer = Path(spec.answer)
    log = answer.with_suffix(".log")
    ended = server.run(record, spec, log=log, timeout_s=max(0.0, timeout_s), on_wait=on_wait)
    if ended.timed_out:
        raise NoEstimate(f"the recipe on fake tensors took longer than {timeout_s:.0f} s")
    try:
        said: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NoEstimate(f"the process that runs the recipe ended with status {ended.code}") from error
    if "error" in said:
        raise NoEstimate(f"the recipe doesn't run on fake tensors: {_shortened(said['error'])}")
    return said


def _shortened(error: str) -> str:
    """First and last line: torchtune says what it was doing, and quotes the cause below."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return lines[0] if len(lines) < 2 else f"{lines[0]} {lines[-1]}"


def _key(subject: Subject) -> str:
    """Hash of everything that decides the curve."""
    extras = {
        "recipe": subject.recipe.identity,
        "device": subject.device,
        "packed": str(subject.packed),
        "world": str(subject.world and to_json(subject.world)),
        "form": str(_FORM),
        **installed_versions(),
    }
    return fingerprint(subject.resolved(), extras)


def _read(path: Path, key: str) -> list[dict[str, Any]] | None:
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["key"] != key:
            return None
        answers: list[dict[str, Any]] = json.loads(zlib.decompress(base64.b64decode(kept["traces"])))
    except (OSError, ValueError, KeyError, TypeError, zlib.error):
        return None
    return answers


def _write(path: Path, key: str, answers: list[dict[str, Any]]) -> None:
    """Traces are long lists of numbers that repeat: packed, they are a few hundred KiB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = base64.b64encode(zlib.compress(json.dumps(to_json(answers)).encode(), 9)).decode()
    replace_file(path, json.dumps({"key": key, "traces": packed}) + "\n", expected=None)


def _cores() -> int:
    return len(os.sched_getaffinity(0))
