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
from typing import Any

import torch
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack

from autobatch.estimate.trace import Kind, Trace

_SCALAR = torch.ops.aten._local_scalar_dense.default


class Tracker(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's
    """Records a `Trace` while it is entered, below any `FakeTensorMode`."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self._alive: dict[int, tuple[weakref.ref[Any], int | None]] = {}
        self._sizes: list[int] = []
        self._kinds: list[Kind | None] = []
        self._on_host: list[bool] = []
        self._events: list[int] = []
        self._steps: list[int] = []
        self._first_batch: int | None = None
        self._training = False
        self._host = False
        self._ignoring = False
        self._hooks = (
            register_optimizer_step_pre_hook(self._before_optimizer),
            register_optimizer_step_post_hook(self._after_optimizer),
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is _SCALAR:
            # There is no value to read; a recipe reads them to log, to count tokens, and to loop over.
            return _any_value_of(args[0].dtype)
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
        self._host = True
        try:
            yield
        finally:
            self._host = False

    @contextmanager
    def ignoring(self) -> Iterator[None]:
        """What is allocated meanwhile doesn't count: the rows of the dataset, as many as a batch is large."""
        self._ignoring = True
        try:
            yield
        finally:
            self._ignoring = False

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
            self._call(module.parameters(), Kind.PARAMETERS)
        return Trace(
            batch_size,
            tuple(self._sizes),
            tuple(kind or Kind.OTHER for kind in self._kinds),
            tuple(self._on_host),
            tuple(self._events),
            self._first_batch,
            tuple(self._steps),
            seconds,
        )

    def _look_at(self, result: Any) -> None:
        if isinstance(result, torch.Tensor):
            if type(result) in _PLAIN:
                self._see(result.untyped_storage())
        elif isinstance(result, (tuple, list)):
            for item in result:
                self._look_at(item)

    def _see(self, storage: Any) -> None:
        key = id(storage)
        if key in self._alive:
            return
        if self._ignoring:
            self._alive[key] = (weakref.ref(storage, lambda _: self._alive.pop(key)), None)
            return
        index = len(self._sizes)
        self._sizes.append(storage.nbytes())
        self._kinds.append(Kind.ACTIVATIONS if self._training else None)
        self._on_host.append(self._host)
        self._events.append(index + 1)

        def dropped(_: Any) -> None:
            del self._alive[key]
            self._events.append(-(index + 1))

        self._alive[key] = (weakref.ref(storage, dropped), index)

    def _before_optimizer(self, optimizer: Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self._call(parameters, Kind.PARAMETERS)
        self._call([p.grad for p in parameters if p.grad is not None], Kind.GRADIENTS)
        self._training = False

    def _after_optimizer(self, optimizer: Optimizer, *_: Any) -> None:
        for state in optimizer.state.values():
            self._call([v for v in state.values() if isinstance(v, torch.Tensor)], Kind.OPTIMIZER)
        # With the optimizer in the backward pass, that goes on.
        self._training = True

    def _call(self, tensors: Any, kind: Kind) -> None:
        """Says what the storages of `tensors` are for."""
        for tensor in tensors:
            for part in _parts(tensor):
                known = self._alive.get(id(part.untyped_storage()))
                if known is not None and known[1] is not None:
                    self._kinds[known[1]] = kind


def current_tracker() -> Tracker:
    """The tracker that this code runs below: how a recipe's component finds it."""
    for mode in _get_current_dispatch_mode_stack():
        if isinstance(mode, Tracker):
            return mode
    raise RuntimeError("this component belongs to `autobatch estimate` and works only there")


def _plain_types() -> set[type]:
    from torch._subclasses.fake_tensor import FakeTensor

    return {torch.Tensor, torch.nn.Parameter, FakeTensor}


_PLAIN = _plain_types()


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
    return [part for name in names for part in _parts(getattr(tensor, name))]


def _modules() -> Iterator[torch.nn.Module]:
    for thing in gc.get_objects():
        if issubclass(type(thing), torch.nn.Module):
            yield thing
