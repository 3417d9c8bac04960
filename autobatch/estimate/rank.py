"""Rank 0 of a distributed recipe, by itself.

torch's fake process group says that it has the world's size and communicates nothing, so that the recipe's own
`fully_shard` and `parallelize_module` divide the model by it and allocate what a rank does. Rank 0 has the largest
part where a dimension can't be divided evenly. What NCCL would take lies outside of PyTorch's allocator.
"""

from __future__ import annotations

import os
from typing import Any

from autobatch.probing.components import EventFile
from autobatch.probing.worker import TrialSpec, enter_run, run_to_its_end
from autobatch.world import World


def run_rank_zero(spec: TrialSpec, world: World) -> None:
    """Run the recipe as rank 0 of `world`; doesn't return."""
    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(world.size),
        "LOCAL_WORLD_SIZE": str(world.processes_per_node),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "0",
    }
    enter_run(spec.working_dir, spec.device, as_command=False)
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    join = dist.init_process_group

    def join_nobody(*_: Any, **__: Any) -> None:
        join(backend="fake", rank=0, world_size=world.size, store=FakeStore())

    # Recipes import it by name, after this.
    dist.init_process_group = join_nobody
    run_to_its_end(spec, EventFile(spec.events))
