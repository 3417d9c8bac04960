"""Experiments of several runs, for tests: copies of one run that differ in what is said."""

from __future__ import annotations

import re
import shutil
from pathlib import Path


def copy_run(run: Path, name: str, *, script: str = "", **settings: object) -> Path:
    """A sibling of `run`; settings replace a key's line of finetune.yaml, wherever it is, or are added.

    Args:
        run: to copy, without its `probe/`.
        name: of the copy.
        script: line put before the `tune run` of finetune.slurm.
        settings: by key.
    """
    copy = run.parent / name
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("probe"))
    config = copy / "finetune.yaml"
    text = config.read_text()
    for key, value in settings.items():
        text, count = re.subn(rf"(?m)^( *){key}: .*$", rf"\g<1>{key}: {value}", text)
        if not count:
            text += f"{key}: {value}\n"
    config.write_text(text)
    if script:
        batch = copy / "finetune.slurm"
        batch.write_text(batch.read_text().replace("\ntune run", f"\n{script}\ntune run"))
    return copy
