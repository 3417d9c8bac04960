"""torchtune's distributed recipes on CPU: `on_cpu: NAME` in the config says which.

They ask for NCCL and for CUDA's memory statistics whatever the device is. Here these are gloo and nothing; all
else is the recipe as it is. For tests and benchmarks, their plain runs and probes alike; nothing of autobatch
loads it.

With `heavy_rank: N` that rank holds 32 MiB more than the others, and 8 MiB for every sequence of a batch.
"""

import gc
import os
import runpy
import sys
from pathlib import Path

import torch
import torch.distributed
import torchtune
from omegaconf import OmegaConf
from torchtune import training


def main() -> None:
    join = torch.distributed.init_process_group
    torch.distributed.init_process_group = lambda *_, **__: join("gloo")
    training.get_memory_stats = lambda **_: {}
    training.log_memory_stats = lambda *_, **__: None
    training.cleanup_before_training = gc.collect
    settings = OmegaConf.merge(
        OmegaConf.load(sys.argv[sys.argv.index("--config") + 1]),
        OmegaConf.from_dotlist([word for word in sys.argv if "=" in word]),
    )
    is_heavy = int(os.environ["RANK"]) == OmegaConf.select(settings, "heavy_rank")
    mib = 32 + 8 * settings.batch_size if is_heavy else 0
    held = torch.ones(mib * 2**20, dtype=torch.uint8)
    recipe = Path(torchtune.__file__).parents[1] / "recipes" / f"{settings.on_cpu}.py"
    runpy.run_path(str(recipe), run_name="__main__")
    del held


if __name__ == "__main__":
    main()
