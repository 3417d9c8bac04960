"""Rank 0 of a distributed recipe, by itself: FSDP and tensor parallelism with no other process.

torch's fake process group says that it has the world's size and communicates nothing, so that the recipe's own
`fully_shard` and `parallelize_module` divide the model by it and allocate what a rank does. Rank 0 has the largest
part where a dimension can't be divided evenly.

What the recipe asks of a card, and what isn't to be seen on fake CPU tensors, is replaced here:

| what                       | by                                                                        |
|----------------------------|---------------------------------------------------------------------------|
| NCCL                       | the fake process group                                                    |
| storages that FSDP resizes | the same, and the tracker hears of it                                     |
| shapes that DTensor finds  | the same, and nothing of it counts                                        |
| FSDP's streams             | their numbers: blocks of one stream's cache don't serve another           |
| weights, loaded            | each whole on the card while its part is cut out                          |
| `fsdp_cpu_offload`         | parameters, gradients and optimizer state on the host, copies on the card |
| gloo, on CPU               | the same, with the flat copy that its all-gather works in                 |

Sources: torch/distributed/fsdp/_fully_shard (torch 2.13), torchtune/training/_distributed.py (0.6.1).
"""

from __future__ import annotations

import gc
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch

from autobatch.estimate.device_path import replaced
from autobatch.estimate.trace import Kind
from autobatch.estimate.tracker import current_tracker
from autobatch.world import World


@contextmanager
def rank_zero(world: World, *, cuda: bool, offload: bool) -> Iterator[None]:
    """Be rank 0 of `world`.

    Args:
        world: the processes of the training.
        cuda: allocate as on a card; else as with gloo on CPU.
        offload: parameters, gradients and optimizer state are in the host's memory (`fsdp_cpu_offload`).
    """
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore
    from torchtune import training

    join = dist.init_process_group

    def join_nobody(*_: Any, **__: Any) -> None:
        join(backend="fake", rank=0, world_size=world.size, store=FakeStore())

    os.environ |= {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": str(world.size),
        "LOCAL_WORLD_SIZE": str(world.processes_per_node),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "0",
    }
    changes: list[tuple[Any, str, Any]] = [
        (dist, "init_process_group", join_nobody),
        (training, "get_memory_stats", lambda **_: {}),
        (training, "log_memory_stats", lambda *_, **__: None),
        (training, "cleanup_before_training", _cleanup),
        *_unfaked(),
        *_followed(cuda=cuda),
        *(_on_card(offload=offload) if cuda else _with_gloo()),
    ]
    with ExitStack() as stack:
        for owner, name, replacement in changes:
            stack.enter_context(replaced(owner, name, replacement))
        yield


def _cleanup() -> None:
    gc.collect()
    current_tracker().cache_emptied()


def _unfaked() -> list[tuple[Any, str, Any]]:
    """The mesh of ranks is read from a tensor, which must have its values."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
    from torch.distributed.fsdp._fully_shard import _fsdp_init
    from torch.utils._python_dispatch import _disable_current_modes

    def real(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(*arguments: Any, **keywords: Any) -> Any:
            with _disable_current_modes():
                return function(*arguments, **keywords)

        return called

    return [
        (dist, "init_device_mesh", real(init_device_mesh)),
        (_fsdp_init, "init_device_mesh", real(init_device_mesh)),
        (DeviceMesh, "__init__", real(DeviceMesh.__init__)),
        (DeviceMesh, "__getitem__", real(DeviceMesh.__getitem__)),
        (DeviceMesh, "_concatenate", staticmethod(real(DeviceMesh._concatenate))),
    ]


def _followed(*, cuda: bool) -> list[tuple[Any, str, Any]]:
    """What the tracker must hear of."""
    from torch.distributed.fsdp._fully_shard import _fsdp_param_group as groups
    from torch.distributed.tensor._sharding_prop import ShardingPropagator
    from torchao.dtypes.nf4tensor import NF4Tensor

    resize = torch.UntypedStorage.resize_
    propagate = ShardingPropagator._propagate_tensor_meta_non_cached
    whole_nf4 = NF4Tensor.fsdp_post_all_gather
    gather, copy_out, reduce = (
        _for_collectives(getattr(groups, name))
        for name in ("foreach_all_gather", "foreach_all_gather_copy_out", "foreach_reduce")
    )

    def resize_and_tell(storage: Any, size: int) -> Any:
        result = resize(storage, size)
        current_tracker().resized(storage)
        return result

    def shapes_alone(*arguments: Any) -> Any:
        with current_tracker().ignoring():
            return propagate(*arguments)

    def reduced(parameters: Any, unsharded: list[torch.Tensor], *rest: Any, **more: Any) -> Any:
        # Named before they are given up.
        current_tracker().call(unsharded, Kind.COLLECTIVES)
        result = reduce(parameters, unsharded, *rest, **more)
        if cuda:
            _gradients_to_host(parameters)
        return result

    def nf4_in_place(tensor: Any, outputs: Any, metadata: Any, dtype: Any, *, out: Any = None) -> Any:
        # With `out` it only compares addresses, which fake tensors don't have.
        return None if out is not None else whole_nf4(tensor, outputs, metadata, dtype)

    return [
        (torch.UntypedStorage, "resize_", resize_and_tell),
        (ShardingPropagator, "_propagate_tensor_meta_non_cached", shapes_alone),
        (groups, "foreach_all_gather", gather),
        (groups, "foreach_all_gather_copy_out", copy_out),
        (groups, "foreach_reduce", reduced),
        (NF4Tensor, "fsdp_post_all_gather", nf4_in_place),
    ]


def _for_collectives(function: Callable[..., Any]) -> Callable[..., Any]:
    def called(*arguments: Any, **keywords: Any) -> Any:
        with current_tracker().meant_for(Kind.COLLECTIVES):
            return function(*arguments, **keywords)

    return called


def _gradients_to_host(parameters: Any) -> None:
    """Gradients that FSDP copies to the host after their reduce-scatter; on the CPU it has nothing to copy."""
    for parameter in parameters:
        gradient = parameter.sharded_param.grad
        if parameter.offload_to_cpu and gradient is not None:
            with current_tracker().on_host():
                gradient._local_tensor = gradient._local_tensor.clone()


def _on_card(*, offload: bool) -> list[tuple[Any, str, Any]]:
    """What a card's memory sees and the CPU's doesn't."""
    from torchtune import training

    load = training.load_from_full_model_state_dict

    def load_from_host(model: Any, weights: Mapping[str, torch.Tensor], *rest: Any, **more: Any) -> Any:
        on_host = {name: _OnHost(weight) for name, weight in weights.items()}
        with replaced(torch.Tensor, "cpu", _copy_on_host):
            return load(model, on_host, *rest, **more)

    changes = [
        (torch.cpu, "stream", _Streams(torch.cpu.stream)),
        (training, "load_from_full_model_state_dict", load_from_host),
    ]
    return changes + (_offloaded() if offload else [])


class _OnHost:
    """A weight in the host's memory, as far as torchtune's loading knows it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor

    def to(self, where: torch.dtype | torch.device) -> Any:
        """Cast there, or copied to the card."""
        if not isinstance(where, torch.dtype):
            return self._tensor.clone()
        with current_tracker().on_host():
            return _OnHost(self._tensor.to(where))


def _copy_on_host(tensor: torch.Tensor) -> torch.Tensor:
    with current_tracker().on_host():
        return tensor.clone()


class _Streams:
    """`torch.cpu.stream`, the CPU's stand-in for CUDA's, with each stream numbered as it is first used."""

    def __init__(self, enter: Callable[[Any], AbstractContextManager[Any]]) -> None:
        self._enter = enter
        self._known = [torch.cpu.current_stream()]

    @contextmanager
    def __call__(self, stream: Any) -> Iterator[None]:
        number = next((n for n, known in enumerate(self._known) if known is stream), len(self._known))
        if number == len(self._known):
            self._known.append(stream)
        with self._enter(stream), current_tracker().on_stream(number):
            yield


def _offloaded() -> list[tuple[Any, str, Any]]:
    from torch.distributed.fsdp._fully_shard._fsdp_param import FSDPParam

    inputs = inspect.getattr_static(FSDPParam, "all_gather_inputs").fget
    to_empty = torch.nn.Module.to_empty

    def copied_to_card(parameter: Any) -> list[torch.Tensor]:
        return [tensor.clone() for tensor in inputs(parameter)]

    def empty_on_host(module: Any, *arguments: Any, **keywords: Any) -> Any:
        with current_tracker().on_host():
            return to_empty(module, *arguments, **keywords)

    return [
        (FSDPParam, "all_gather_inputs", property(copied_to_card)),
        (torch.nn.Module, "to_empty", empty_on_host),
        (torch.Tensor, "is_pinned", lambda *_, **__: True),
    ]


def _with_gloo() -> list[tuple[Any, str, Any]]:
    """gloo gathers into a flat tensor of its own first, as measured peaks show.

    What it may copy to reduce and scatter was at no measured peak, and isn't followed.
    """
    from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather

    gather = DefaultAllGather.__call__

    def gathered(self: Any, output_tensor: torch.Tensor, *rest: Any, **more: Any) -> Any:
        flat = torch.empty_like(output_tensor)
        result = gather(self, output_tensor, *rest, **more)
        del flat
        return result

    return [(DefaultAllGather, "__call__", gathered)]
