"""Real trainings whose logs tests read: a few steps of the small run, each as a Slurm job would leave it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
TUNE = Path(sys.executable).parent / "tune"
STDOUT_LOGGER = (
    "metric_logger._component_=torchtune.training.metric_logging.StdoutLogger",
    "~metric_logger.log_dir",
)

_SPLIT = "dataset.split=train[:80]"


@dataclass(frozen=True)
class Training:
    """One `tune run`.

    Attributes:
        run: its run directory.
        log: what the job wrote, stdout and stderr together.
        status: its exit status.
    """

    run: Path
    log: Path
    status: int


#: name -> overrides. Each trains on 80 examples, which make 69 packs of 128 tokens.
TRAININGS = {
    "disk": ("epochs=2", "batch_size=4"),
    "stdout": (*STDOUT_LOGGER, "epochs=2", "batch_size=1"),
    "error": ("lr_scheduler._component_=tests.recipes.schedules.breaks", "lr_scheduler.how=error"),
    "memory": ("lr_scheduler._component_=tests.recipes.schedules.breaks", "lr_scheduler.how=memory"),
}


def train_all(laid_out: Path, directory: Path) -> dict[str, Training]:
    """Run every training, two at a time."""
    names = list(TRAININGS)
    done: dict[str, Training] = {}
    for pair in (names[:2], names[2:]):
        started = {name: _start(name, laid_out, directory) for name in pair}
        for name, process in started.items():
            run = directory / name / "run1"
            done[name] = Training(run, run / "slurm-4711.out", process.wait())
    return done


def _start(name: str, laid_out: Path, directory: Path) -> subprocess.Popen[bytes]:
    shutil.copytree(laid_out, directory / name)
    run = directory / name / "run1"
    overrides = TRAININGS[name]
    if "schedules" in overrides[0]:
        overrides = (*overrides, "lr_scheduler.at=5", "~lr_scheduler.num_warmup_steps", "batch_size=4")
    # As in a job: stdout in a file is written 8 KiB at a time, between stderr's lines.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with (run / "slurm-4711.out").open("wb") as log:
        return subprocess.Popen(
            [
                str(TUNE),
                "run",
                "lora_finetune_single_device",
                "--config",
                "finetune.yaml",
                *overrides,
                _SPLIT,
            ],
            cwd=run,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**environment, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
