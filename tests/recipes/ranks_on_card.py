"""A distributed recipe without a model, whose ranks take of their cards what the config says.

Each takes `fixed_gib`, and `each_gib` for each sequence; the last rank half as much again for each sequence.
"""

from __future__ import annotations

import os
import sys

import torch
from omegaconf import DictConfig
from torch.distributed import all_reduce, destroy_process_group, init_process_group
from torchtune import config, utils

GIB = 2**30


@config.parse  # type: ignore[untyped-decorator]  # torchtune has no type hints to follow
def recipe_main(cfg: DictConfig) -> None:
    init_process_group("cuda:nccl,cpu:gloo")
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    device = utils.get_device(cfg.device)
    logger = config.instantiate(cfg.metric_logger) if rank == 0 else None
    dataset = config.instantiate(cfg.dataset, config.instantiate(cfg.tokenizer))
    weight = torch.nn.Parameter(torch.zeros(8, device=device))
    optimizer = torch.optim.SGD([weight])
    each = cfg.each_gib * (1.5 if rank == ranks - 1 else 1)

    def take(gib: float) -> torch.Tensor:
        return torch.empty(round(gib * GIB), dtype=torch.uint8, device=device)

    fixed = take(cfg.fixed_gib)
    for step in range(1, cfg.max_steps_per_epoch + 1):
        for index in range(cfg.batch_size):
            dataset[index]
        batch = take(each * cfg.batch_size)
        del batch
        weight.grad = torch.ones(8, device=device)
        all_reduce(weight.grad)
        optimizer.step()
        if logger is not None:
            logger.log_dict({"loss": 1.0, "tokens_per_second_per_gpu": 1000.0}, step=step)
    del fixed
    destroy_process_group()


if __name__ == "__main__":
    sys.exit(recipe_main())
