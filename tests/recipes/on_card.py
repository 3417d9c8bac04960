"""A recipe without a model that takes of the card what its config says: `fixed_gib`, `each_gib` for each sequence.

With `how: bends`, sequences after the eighth take four times as much.
With `how: retries`, 45 GiB in small pieces are left in the allocator's cache before the batch, which takes its
memory in one piece: from some size on only after the allocator has emptied its cache and tried again.
"""

from __future__ import annotations

import sys

import torch
from omegaconf import DictConfig
from torchtune import config, utils

GIB = 2**30


@config.parse  # type: ignore[untyped-decorator]  # torchtune has no type hints to follow
def recipe_main(cfg: DictConfig) -> None:
    device = utils.get_device(cfg.device)
    logger = config.instantiate(cfg.metric_logger)
    dataset = config.instantiate(cfg.dataset, config.instantiate(cfg.tokenizer))

    def take(gib: float) -> torch.Tensor:
        return torch.empty(round(gib * GIB), dtype=torch.uint8, device=device)

    fixed = take(cfg.fixed_gib)
    assert len(dataset[0]["tokens"])
    if cfg.how == "retries":
        pieces = [take(1) for _ in range(45)]
        del pieces
    for step in range(1, cfg.max_steps_per_epoch + 1):
        beyond = max(cfg.batch_size - 8, 0) if cfg.how == "bends" else 0
        batch = take(cfg.each_gib * (cfg.batch_size + 3 * beyond))
        del batch
        logger.log_dict({"loss": 1.0, "tokens_per_second_per_gpu": 1000.0}, step=step)
    del fixed


if __name__ == "__main__":
    sys.exit(recipe_main())
