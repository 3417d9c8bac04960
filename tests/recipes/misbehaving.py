"""A training recipe whose memory and manners are set in its config, for tests: `misbehaviour: NAME`.

It goes through the same components as torchtune's recipes (metric_logger, tokenizer, dataset) and touches
real memory: MIB_FIXED, and MIB_EACH for every sequence of a batch.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from omegaconf import DictConfig
from torchtune import config

MIB = 2**20
MIB_FIXED = 100
MIB_EACH = 40


def touch(mib: float) -> torch.Tensor:
    """Memory of so many MiB that is really resident."""
    return torch.ones(int(mib * MIB), dtype=torch.uint8)


def once(name: str) -> bool:
    """True for the first process that asks, by a file in the working directory."""
    try:
        Path(name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@config.parse  # type: ignore[untyped-decorator]  # torchtune has no type hints to follow
def recipe_main(cfg: DictConfig) -> None:
    how, b = cfg.misbehaviour, cfg.batch_size
    logger = config.instantiate(cfg.metric_logger)
    tokenizer = config.instantiate(cfg.tokenizer)
    dataset = config.instantiate(cfg.dataset, tokenizer)
    fixed = touch(MIB_FIXED)
    assert dataset[0]["tokens"].numel() == tokenizer.max_seq_len
    if how == "crash" and b == cfg.at:
        raise ValueError(f"the loss is not a number at batch_size {b}")
    if how == "oom" and b >= cfg.at:
        torch.empty(2**60, dtype=torch.uint8)
    if how == "hang" and b == cfg.at:
        time.sleep(3600)
    if how == "hang once" and b == cfg.at and once("hung"):
        time.sleep(3600)
    if how == "killed once" and b == cfg.at and once("killed"):
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "killed always":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "leaves early":
        sys.exit(0)
    noise = random.Random(b)
    leaked = []
    for step in range(1, cfg.max_steps_per_epoch + 1):
        mib = MIB_EACH * b
        if how == "step":
            mib = 200 if b <= 12 else 900
        if how == "noise":
            mib *= 1 + noise.uniform(-0.003, 0.003)
        if how == "leak":
            leaked.append(touch(20))
        if how == "flat":
            mib = 10
        if how == "saturates":
            # tokens/s double from 1 to 2 and from 2 to 4; each further sequence slows them a little.
            time.sleep(0.03 * max(b, 4) * (1 + 0.05 * max(b - 4, 0)))
            # A peak that was reached stays the peak; later steps, whose time counts, sleep and do no work.
            mib *= step == 1
        batch = touch(mib)
        del batch
        logger.log_dict({"loss": 1.0, "tokens_per_second_per_gpu": 1000.0}, step=step)
    del fixed


if __name__ == "__main__":
    sys.exit(recipe_main())
