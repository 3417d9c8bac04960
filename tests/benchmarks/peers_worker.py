"""The other tools, run in the environment that they are installed in.

    ENVIRONMENT/bin/python -m tests.benchmarks.peers_worker ORDER.json ANSWER.json

`ORDER.json` names the tool and what it is to find a batch_size for: memory curves, or a torchtune run within a
capacity (`peers_training`). Imports nothing of autobatch; mypy, which runs elsewhere, doesn't find the tools.

Each tool is used as its documentation says, with its defaults; the training that it is given takes three
optimizer steps at each size, as Lightning's trials do.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

#: Optimizer steps of a training: Lightning's default for a trial, and autobatch's.
STEPS = 3

#: Where accelerate starts when it isn't told.
STARTING_BATCH_SIZE = 128


class Training(Protocol):
    """What a tool tries at one batch_size after the other."""

    @property
    def rows(self) -> Any:
        """A map-style dataset."""

    def run(self, batch_size: int) -> None:
        """Train for `STEPS` steps from the beginning; RuntimeError when memory runs out."""

    def module(self, batch_size: int) -> Any:
        """A LightningModule with an attribute batch_size that trains the same."""


class Log:
    """Notes the steps that are begun, and how each trial ends."""

    def __init__(self) -> None:
        self.trials: list[dict[str, Any]] = []

    def begin(self, batch_size: int) -> None:
        """A trial at `batch_size` begins."""
        self.trials.append({"batch_size": batch_size, "steps": 0, "out_of_memory": False})

    def step(self) -> None:
        """A step is begun."""
        self.trials[-1]["steps"] += 1

    def out_of_memory(self) -> None:
        """The trial ends so."""
        self.trials[-1]["out_of_memory"] = True


class CurveTraining:
    """Training whose memory is a curve, on a card that ends somewhere.

    Args:
        peaks_bytes: by batch_size, from 1 on.
        card_bytes: of the card.
        log: hears of the steps.
    """

    def __init__(self, peaks_bytes: list[int], card_bytes: int, log: Log) -> None:
        self._peaks_bytes = peaks_bytes
        self._card_bytes = card_bytes
        self._log = log

    @property
    def rows(self) -> Any:
        return range(len(self._peaks_bytes))

    def run(self, batch_size: int) -> None:
        self._log.begin(batch_size)
        for _ in range(STEPS):
            self.step(batch_size)

    def step(self, batch_size: int) -> None:
        """One optimizer step."""
        import torch

        self._log.step()
        peak = self._peaks_bytes[batch_size - 1]
        if peak > self._card_bytes:
            self._log.out_of_memory()
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {peak / 2**30:.2f} GiB. GPU 0 has a total capacity of "
                f"{self._card_bytes / 2**30:.2f} GiB"
            )

    def module(self, batch_size: int) -> Any:
        import torch
        from lightning.pytorch import LightningModule  # type: ignore[import-not-found]

        training, log = self, self._log

        class OnCurve(LightningModule):  # type: ignore[misc]
            def __init__(self) -> None:
                super().__init__()
                self.batch_size = batch_size
                self.weight = torch.nn.Parameter(torch.zeros(1))

            def training_step(self, batch: Any, index: int) -> Any:
                if index == 0:
                    log.begin(len(batch))
                training.step(len(batch))
                return self.weight.sum()

            def configure_optimizers(self) -> Any:
                return torch.optim.AdamW(self.parameters())

            def train_dataloader(self) -> Any:
                return torch.utils.data.DataLoader(training.rows, self.batch_size, drop_last=True)

        return OnCurve()


def accelerate(training: Training) -> int:
    """`accelerate.utils.find_executable_batch_size` around the training."""
    from accelerate.utils import find_executable_batch_size  # type: ignore[import-not-found]

    @find_executable_batch_size(starting_batch_size=STARTING_BATCH_SIZE)  # type: ignore[untyped-decorator]
    def train(batch_size: int) -> int:
        training.run(batch_size)
        return batch_size

    return int(train())


def lightning(mode: str) -> Callable[[Training], int]:
    """`Tuner.scale_batch_size` in a mode."""

    def find(training: Training) -> int:
        from lightning.pytorch import Trainer
        from lightning.pytorch.tuner import Tuner  # type: ignore[import-not-found]

        for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
            logging.getLogger(name).setLevel(logging.ERROR)
        with tempfile.TemporaryDirectory() as scratch:
            trainer = Trainer(
                accelerator="cpu",
                max_epochs=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=scratch,
            )
            # With another batch_size than its init_val, its first trial would run with that one.
            found = Tuner(trainer).scale_batch_size(training.module(batch_size=2), mode=mode)
        assert found is not None
        return int(found)

    return find


def halving(training: Training) -> int:
    """What people do by hand: submit the job, and when it has run out of memory, submit it with half."""
    batch_size = STARTING_BATCH_SIZE
    while True:
        try:
            training.run(batch_size)
            return batch_size
        except RuntimeError as error:
            if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
                raise
        batch_size //= 2


TOOLS: dict[str, Callable[[Training], int]] = {
    "accelerate": accelerate,
    "Lightning power": lightning("power"),
    "Lightning binsearch": lightning("binsearch"),
    "halving": halving,
}


def import_tools() -> None:
    """Import what the tools are in."""
    for module in ("accelerate.utils", "lightning.pytorch.tuner"):
        importlib.import_module(module)


def find(tool: str, training: Training, log: Log) -> dict[str, Any]:
    """Let a tool look for a batch_size: its answer, its trials, and its seconds without imports."""
    began = time.monotonic()
    answer = TOOLS[tool](training)
    seconds = time.monotonic() - began
    return {"tool": tool, "answer": answer, "trials": log.trials, "seconds": seconds}


def main(order: Path, answer: Path) -> None:
    """Carry out an order."""
    warnings.filterwarnings("ignore")
    asked = json.loads(order.read_text(encoding="utf-8"))
    if "run" in asked:
        from tests.benchmarks.peers_training import search_run

        said: Any = search_run(asked)
    else:
        # So that the first tool of each kind isn't charged with it.
        import_tools()
        said = []
        for task in asked["curves"]:
            log = Log()
            training = CurveTraining(task["peaks_bytes"], task["card_bytes"], log)
            said.append({"curve": task["curve"], **find(task["tool"], training, log)})
    answer.write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
