"""A distributed recipe whose ranks misbehave as its config says: `misbehaviour: NAME`, `on_rank: N`.

It has no model, but what a trial sees of torchtune's distributed recipes: a process group, a dataset on every
rank, a metric logger on rank 0, a collective before each optimizer step.
"""

import os
import signal
import sys
import time

import torch
from omegaconf import DictConfig
from torch.distributed import all_reduce, destroy_process_group, init_process_group
from torchtune import config

from tests.recipes.misbehaving import MIB_EACH, MIB_FIXED, once, touch


@config.parse  # type: ignore[untyped-decorator]  # torchtune has no type hints to follow
def recipe_main(cfg: DictConfig) -> None:
    init_process_group("gloo")
    rank, how, b = int(os.environ["RANK"]), cfg.misbehaviour, cfg.batch_size
    here = rank == cfg.on_rank
    logger = config.instantiate(cfg.metric_logger) if rank == 0 else None
    dataset = config.instantiate(cfg.dataset, config.instantiate(cfg.tokenizer))
    weight = torch.nn.Parameter(torch.zeros(8))
    optimizer = torch.optim.AdamW([weight])
    fixed = touch(MIB_FIXED)
    # Some recipes look at a row before they train.
    assert len(dataset[0]["tokens"])
    for step in range(1, cfg.max_steps_per_epoch + 1):
        for index in range(b):
            dataset[index]
        if here and step == 2 and how == "crash":
            raise ValueError(f"the loss is not a number at batch_size {b}")
        if here and step == 2 and how == "oom" and b >= cfg.at:
            torch.empty(2**60, dtype=torch.uint8)
        if here and step == 2 and how == "hang":
            hang_here()
        if here and step == 2 and (how == "killed always" or (how == "killed once" and once("killed"))):
            os.kill(os.getpid(), signal.SIGKILL)
        batch = touch(MIB_EACH * b * (1.5 if how == "unequal" and here else 1))
        del batch
        # The gradient of every rank: the step waits for all of them.
        weight.grad = torch.ones(8)
        all_reduce(weight.grad)
        optimizer.step()
        if logger is not None:
            logger.log_dict({"loss": 1.0, "tokens_per_second_per_gpu": 1000.0}, step=step)
        if how == "leak" and here:
            fixed = torch.cat((fixed, touch(20)))
    destroy_process_group()


def hang_here() -> None:
    time.sleep(3600)


if __name__ == "__main__":
    sys.exit(recipe_main())
