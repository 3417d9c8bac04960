"""The trials of an estimate, inside a process that sees a simulated GPU.

They are a probe's own (`probing.trial`), with two differences: nothing is read from disk but the config, since
rows and tokenizer have no content; and of a distributed recipe rank 0 runs alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from autobatch.estimate.rank import run_rank_zero
from autobatch.estimate.records import NoEstimate
from autobatch.estimate.subject import Subject
from autobatch.probing.components import EventFile
from autobatch.probing.forkserver import ForkServer
from autobatch.probing.outcome import ENDS_THE_PROBE
from autobatch.probing.search import Answer, Cap, Try, is_decisive, next_step
from autobatch.probing.trial import TrialRunner, can_be_judged, judge
from autobatch.probing.trial_config import TrialSetup
from autobatch.probing.worker import run_recipe
from autobatch.records import Limit, Metric, Trial, Verdict

#: Nobody asks for more; it keeps the search of a tiny model from going on for ever.
CAP = Cap(4096, Limit.MAX_BATCH_SIZE)

#: Optimizer steps, at least: as in a probe.
_MIN_STEPS = 3


class SimulatedTrials:
    """Runs and remembers the trials of one config.

    Args:
        subject: what is estimated.
        server: gives the processes; its own sees the simulated GPU.
        directory: gets the trials' files.
        target_bytes: what the reserved peak may reach.
        timeout_s: for all of them.
        known: trials on file, of the same config on the same GPU.
        known_parts: their `parts`.
        tell: hears of each trial, and whether it was known.
    """

    def __init__(
        self,
        subject: Subject,
        server: ForkServer,
        directory: Path,
        *,
        target_bytes: int,
        timeout_s: float,
        known: Sequence[Trial] = (),
        known_parts: Mapping[int, dict[str, int]] | None = None,
        tell: Callable[[Trial, bool], None] = lambda trial, known: None,
    ) -> None:
        self._directory = directory
        self._target_bytes = target_bytes
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._known = {trial.batch_size: trial for trial in known}
        self._tell = tell
        self.trials: list[Trial] = []
        #: By batch_size, what the allocated peak consists of, as the meter saw it come.
        self.parts = dict(known_parts or {})
        #: How many of them were on file.
        self.reused = 0
        directory.mkdir(parents=True, exist_ok=True)
        rows = directory / "rows.pt"
        _store_row(subject, rows)
        world = subject.world
        self._runner = TrialRunner(
            server,
            TrialSetup(
                config=subject.without_files(),
                recipe=subject.recipe.path,
                working_dir=subject.working_dir,
                device="cuda",
                metric=Metric.RESERVED,
                target_bytes=target_bytes,
                rows=rows,
                held_bytes=0,
                packed=subject.packed,
                row_tokens=None,
                min_steps=_MIN_STEPS,
                timeout_s=timeout_s,
                load_weights=False,
                directory=directory,
                world=world,
                alone=True,
            ),
            run_recipe if world is None else partial(run_rank_zero, world=world),
        )

    def search(self, guess: int | None = None) -> int:
        """The largest batch_size that fits, by trials of it and of the next; 0 when none does.

        Raises:
            NoEstimate: a trial crashed, or there is no time left.
        """
        while True:
            step = next_step(self.trials, target_bytes=self._target_bytes, cap=CAP, guess=guess)
            if isinstance(step, Answer):
                return step.batch_size or 0
            assert isinstance(step, Try)
            self.at(step.batch_size, end_when_over=is_decisive(self.trials, step.batch_size))

    def at(self, batch_size: int, *, end_when_over: bool = False) -> Trial:
        """The trial at one size.

        Args:
            batch_size: of each rank.
            end_when_over: its peak isn't wanted if it doesn't fit.

        Raises:
            NoEstimate: it crashed, or there is no time left.
        """
        tried = next((trial for trial in self.trials if trial.batch_size == batch_size), None)
        if tried is not None and (end_when_over or not tried.cut_short):
            return tried
        known = self._known.get(batch_size)
        is_known = (
            known is not None
            and can_be_judged(known, Metric.RESERVED, self._target_bytes)
            and (end_when_over or not known.cut_short)
        )
        if known is not None and is_known:
            trial = judge(known, Metric.RESERVED, self._target_bytes)
            self.reused += 1
        else:
            left = self._deadline - time.monotonic()
            trial = self._runner.run(batch_size, at_most_s=max(0.0, left), end_when_over=end_when_over)
            self.parts[batch_size] = self._read_parts(batch_size)
        self._tell(trial, is_known)
        if trial.verdict in ENDS_THE_PROBE:
            raise NoEstimate(self._why(trial))
        self.trials = [*(other for other in self.trials if other is not tried), trial]
        return trial

    def _read_parts(self, batch_size: int) -> dict[str, int]:
        events = EventFile(self._directory / "trials" / f"batch_size_{batch_size}.events").read()
        first = next((event for event in events if event["event"] == "first_batch"), None)
        steps = [event for event in events if event["event"] == "step"]
        if first is None or not steps:
            return {}
        return _parts(first["current"], steps)

    def _why(self, trial: Trial) -> str:
        if trial.verdict is Verdict.TIMED_OUT:
            return f"it took longer than {self._timeout_s:.0f} s (--timeout)"
        how = "the recipe doesn't run on a simulated GPU"
        return f"{how}: batch_size {trial.batch_size} {trial.verdict.value}: {_shortened(trial.detail)}"


def _parts(before: dict[str, int], steps: Sequence[dict[str, Any]]) -> dict[str, int]:
    allocated = Metric.ALLOCATED.value
    model = before[allocated]
    peak = steps[-1]["peaks"][allocated]
    # Gradients are given up at the end of a step: what stays on top of the model is the optimizer's.
    kept = min(step["current"][allocated] for step in steps) - model
    return {
        "model, before the first batch": model,
        "optimizer state and cuBLAS workspaces": max(0, kept),
        "gradients, activations and temporaries": peak - model - max(0, kept),
    }


def _store_row(subject: Subject, path: Path) -> None:
    """One row of max_seq_len tokens; a trial repeats it."""
    import torch

    length = subject.max_seq_len
    if subject.packed:
        row: dict[str, Any] = {
            "tokens": torch.ones(length, dtype=torch.long),
            "labels": torch.ones(length, dtype=torch.long),
            "input_pos": torch.arange(length),
            "seq_lens": torch.tensor([length]),
        }
    else:
        pairs = ("chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels")
        row = {name: [1] * length for name in (pairs if subject.makes_pairs else ("tokens", "labels"))}
    torch.save([row], path)


def _shortened(error: str) -> str:
    """First and last line: torchtune says what it was doing, and quotes the cause below."""
    lines = [line.strip() for line in error.splitlines() if line.strip()]
    return lines[0] if len(lines) < 2 else f"{lines[0]} {lines[-1]}"
