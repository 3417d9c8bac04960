"""Follows every storage that a recipe's tensors live in, on fake tensors.

A `TorchDispatchMode` above a `FakeTensorMode`: each operation's result is looked at, a storage that wasn't seen
before is an allocation, and a weak reference to it says when it is dropped. Operations inside the autograd
engine pass through here too, so that gradients, recomputed activations and optimizer state all count, and
nothing needs to be known about the recipe.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from autobatch.estimate.trace import Kind, Trace

_SCALAR = torch.ops.aten._local_scalar_dense.default
_DEVICE = torch.ops.prim.device.default


@dataclass
class _Seen:
    """A storage that is alive.

    Attributes:
        reference: says when it is dropped.
        index: of what it holds now; None while that is nothing, or doesn't count.
        counts: whether it is followed at all.
    """

    reference: weakref.ref[Any]
    index: int | None
    counts: bool = True


class Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Records a `Trace` while it is entered, below any `FakeTensorMode`.

    Args:
        updates_on_host: the optimizer works in the host's memory, where parameters and gradients are.
    """

    def __init__(self, *, updates_on_host: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self._alive: dict[int, _Seen] = {}
        self._sizes: list[int] = []
        self._kinds: list[Kind | None] = []
        self._on_host: list[bool] = []
        self._streams: list[int] = []
        self._events: list[int] = []
        self._steps: list[int] = []
        self._first_batch: int | None = None
        self._emptied: int | None = None
        self._stream = 0
        self._purpose: Kind | None = None
        self._training = False
        self._host = False
        self._updates_on_host = updates_on_host
        self._ignoring = False
        self._hooks = (
            register_optimizer_step_pre_hook(self._before_optimizer),
            register_optimizer_step_post_hook(self._after_optimizer),
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _SCALAR:
            # There is no value to read; a recipe reads them to log, to count tokens, and to loop over.
            return _any_value_of(args[0].dtype)
        if func is _DEVICE and isinstance(args[0], FakeTensor):
            # The half of all calls, with FSDP; it knows without a dispatch.
            return args[0].device
        for kind in types:
            if kind not in _PLAIN:
                # A tensor made of others (NF4): its own implementation runs them, each through here.
                return NotImplemented
        result = func(*args, **(kwargs or {}))
        self._look_at(result)
        return result

    def first_batch(self) -> None:
        """The recipe is set up and asks for its first batch; later calls do nothing."""
        if self._first_batch is None:
            gc.collect()
            self._first_batch = len(self._events)
            self._training = True

    def step_done(self) -> int:
        """An optimizer step is over; returns how many are."""
        self._training = True
        self._steps.append(len(self._events))
        # Training collects garbage at moments of its own; here always at the same ones.
        gc.collect()
        return len(self._steps)

    @contextmanager
    def on_host(self) -> Iterator[None]:
        """What is allocated meanwhile lies in the host's memory: a checkpoint that was read."""
        before, self._host = self._host, True
        try:
            yield
        finally:
            self._host = before

    @contextmanager
    def ignoring(self) -> Iterator[None]:
        """What is allocated meanwhile doesn't count: the rows of the dataset, as many as a batch is large."""
        self._ignoring = True
        try:
            yield
        finally:
            self._ignoring = False

    @contextmanager
    def on_stream(self, stream: int) -> Iterator[None]:
        """What is allocated meanwhile comes from this CUDA stream's part of the cache; 0 is the default stream."""
        before, self._stream = self._stream, stream
        try:
            yield
        finally:
            self._stream = before

    @contextmanager
    def meant_for(self, kind: Kind) -> Iterator[None]:
        """What is allocated meanwhile is `kind`, unless it turns out to be a parameter, gradient or state."""
        before, self._purpose = self._purpose, kind
        try:
            yield
        finally:
            self._purpose = before

    def cache_emptied(self) -> None:
        """The recipe hands the allocator's cache back to the driver."""
        self._emptied = len(self._events)

    def resized(self, storage: Any) -> None:
        """A storage has given up its memory, or has got some anew, and stays the same object.

        FSDP does so with a layer's gathered parameters.
        """
        seen = self._alive.get(id(storage))
        if seen is None or not seen.counts:
            return
        if seen.index is not None:
            self._events.append(-(seen.index + 1))
        seen.index = self._allocated(storage.nbytes()) if storage.nbytes() else None

    def trace(self, batch_size: int, seconds: float) -> Trace:
        """What was recorded.

        Raises:
            RuntimeError: no batch was asked for.
        """
        for hook in self._hooks:
            hook.remove()
        if self._first_batch is None:
            raise RuntimeError("the recipe asked for no batch")
        for module in _modules():
            self.call(module.parameters(), Kind.PARAMETERS)
        return Trace(
            batch_size,
            tuple(self._sizes),
            tuple(kind or Kind.OTHER for kind in self._kinds),
            tuple(self._on_host),
            tuple(self._events),
            self._first_batch,
            tuple(self._steps),
            seconds,
            tuple(self._streams),
            self._emptied,
        )

    def _look_at(self, result: Any) -> None:
        if isinstance(result, torch.Tensor):
            # FSDP's models are made on the meta device first, where nothing takes memory.
            if type(result) in _PLAIN and result.device.type != "meta":
                self._see(result.untyped_storage())
        elif isinstance(result, (tuple, list)):
            for item in result:
                self._look_at(item)

    def _see(self, storage: Any) -> None:
        key = id(storage)
        if key in self._alive:
            return
        counts = not self._ignoring
        index = self._allocated(storage.nbytes()) if counts else None
        self._alive[key] = _Seen(weakref.ref(storage, lambda _: self._dropped(key)), index, counts)

    def _allocated(self, size: int) -> int:
        index = len(self._sizes)
        self._sizes.append(size)
        self._kinds.append(self._purpose or (Kind.ACTIVATIONS if self._training else None))
        self._on_host.append(self._host)
        self._streams.append(self._stream)
        self._events.append(index + 1)
        return index

    def _dropped(self, key: int) -> None:
        index = self._alive.pop(key).index
        if index is not None:
            self._events.append(-(index + 1))

    def _before_optimizer(self, optimizer: Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.call(parameters, Kind.PARAMETERS)
        self.call([p.grad for p in parameters if p.grad is not None], Kind.GRADIENTS)
        self._training = False
        self._host = self._updates_on_host

    def _after_optimizer(self, optimizer: Optimizer, *_: Any) -> None:
        for state in optimizer.state.values():
            self.call([v for v in state.values() if isinstance(v, torch.Tensor)], Kind.OPTIMIZER)
        self._host = False
        # With the optimizer in the backward pass, that goes on.
        self._training = True

    def call(self, tensors: Any, kind: Kind) -> None:
        """Says what the storages of `tensors` are for."""
        for tensor in tensors:
            for part in _parts(tensor):
                known = self._alive.get(id(part.untyped_storage()))
                if known is not None and known.index is not None:
                    self._kinds[known.index] = kind


def current_tracker() -> Tracker:
    """The tracker that this code runs below: how a recipe's component finds it."""
    for mode in _get_current_dispatch_mode_stack():
        if isinstance(mode, Tracker):
            return mode
    raise RuntimeError("this component belongs to `autobatch estimate` and works only there")


_PLAIN = {torch.Tensor, torch.nn.Parameter, FakeTensor}


def _any_value_of(dtype: torch.dtype) -> float | int | bool:
    if dtype is torch.bool:
        return True
    return 1.0 if dtype.is_floating_point else 1


def _parts(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that one is made of; itself when it is a plain one."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if type(tensor) in _PLAIN or flatten is None:
        return [tensor]
    names, _ = flatten()
    inner = (getattr(tensor, name) for name in names)
    # A DTensor names its mesh of ranks, too.
    return [part for each in inner if isinstance(each, torch.Tensor) for part in _parts(each)]


def _modules() -> Iterator[torch.nn.Module]:
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.nn.Module):
            yield thing
