"""torchtune's distributed recipes on CPU: `on_cpu: NAME` in the config says which.

They ask for NCCL and for CUDA's memory statistics whatever the device is. Here these are gloo and nothing; all
else is the recipe as it is. For tests and benchmarks, their plain runs and probes alike; nothing of autobatch
loads it.
"""

import gc
import runpy
import sys
from pathlib import Path

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
    name = OmegaConf.load(sys.argv[sys.argv.index("--config") + 1]).on_cpu
    runpy.run_path(str(Path(torchtune.__file__).parents[1] / "recipes" / f"{name}.py"), run_name="__main__")


if __name__ == "__main__":
    main()
