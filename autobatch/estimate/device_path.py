"""What a card's kernels would keep where the CPU's keep something else.

The recipe runs on fake CPU tensors: fake CUDA tensors can't run backward where there is no card. Nearly every
operation keeps the same tensors on both. These don't, and are replaced by functions that keep what CUDA's do:

| operation                | on CUDA                                                           | source  |
|--------------------------|-------------------------------------------------------------------|---------|
| attention, packed        | flex: q, k, v, output, a fp32 number a row; a block mask          | [1]     |
| attention, causal, bf16  | flash: the same; in backward a fp32 gradient of the query         | [2]     |
| attention, causal, fp32  | memory-efficient: as flex                                         | [3]     |
| attention, dense mask    | memory-efficient: the mask too, as a bias of the query's dtype    | [3]     |
| rms_norm, all one dtype  | one fused kernel: input, weight, a fp32 number a row              | [4]     |
| dropout                  | a byte an element                                                 | [5]     |

[1] torch/_inductor/kernel/flex, torch/nn/attention/flex_attention.py  [2] flash_attn/flash_api.cpp, mha_bwd
[3] native/transformers/attention.cpp  [4] native/layer_norm.cpp, rms_norm  [5] native/Dropout.cpp

On CPU only the packed mask is replaced, whose size torchtune computes from values.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.nn import functional as F

from autobatch.estimate.offloading import Offloading
from autobatch.estimate.tracker import current_tracker

#: Rows and columns of a block of flex attention's mask (torch/nn/attention/flex_attention.py).
_BLOCK = 128

#: Elements that torchao's NF4 quantizes at a time.
_NF4_CHUNK = 2**20

_PACKED_MASK = "packed_block_causal_mask"

_make_tensor = torch.tensor
_composite_rms_norm = F.rms_norm
_plain_dropout = F.dropout


@contextmanager
def cpu_path() -> Iterator[None]:
    """The CPU's own kernels."""
    with ExitStack() as stack:
        for owner, name, replacement in (*_on_both(), (_collate(), _PACKED_MASK, _dense_mask)):
            stack.enter_context(replaced(owner, name, replacement))
        yield


@contextmanager
def cuda_path(*, offload: bool) -> Iterator[None]:
    """What CUDA's kernels keep; with `offload`, activations in the host's memory."""
    from torchtune import training

    on_cuda: list[tuple[Any, str, Callable[..., Any]]] = [
        (_collate(), _PACKED_MASK, _block_mask),
        (F, "scaled_dot_product_attention", _attention),
        (F, "rms_norm", _rms_norm),
        (F, "dropout", _dropout),
    ]
    if offload:
        on_cuda.append((training, "get_act_offloading_ctx_manager", lambda model, _: Offloading(model)))
    with ExitStack() as stack:
        for owner, name, replacement in (*_on_both(), *on_cuda):
            stack.enter_context(replaced(owner, name, replacement))
        yield


def _on_both() -> tuple[tuple[Any, str, Any], ...]:
    from torchao.dtypes import nf4tensor
    from torchtune.modules.low_precision import FrozenNF4Linear

    return (
        (torch, "tensor", _tensor),
        (FrozenNF4Linear, "__init__", _init_frozen_nf4),
        (nf4tensor, "CHUNK_SIZE", 2**62),
        (nf4tensor.NF4Tensor, "quantize_tensor_nearest", staticmethod(_quantize_one_chunk)),
    )


def _collate() -> Any:
    import torchtune.data._collate as collate

    return collate


@contextmanager
def replaced(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    """Another function, or number, under the name by which it is called.

    Not a `TorchFunctionMode`: those are off inside the autograd engine, where checkpointing computes activations
    once more.
    """
    original = inspect.getattr_static(owner, name)
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        setattr(owner, name, original)


def _tensor(data: Any, **keywords: Any) -> torch.Tensor:
    """`torch.tensor`, which would read the values of tensors in a list; scaled RoPE makes such lists.

    Unpacked rows are lists too, and like packed ones they don't count.
    """
    if not isinstance(data, (list, tuple)):
        return _make_tensor(data, **keywords)
    if any(isinstance(item, torch.Tensor) for item in data):
        data = [0.0] * len(data)
    with current_tracker().ignoring():
        return _make_tensor(data, **keywords)


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    bias = None
    flash = attn_mask is None and query.dtype is not torch.float32
    if attn_mask is not None and attn_mask.stride(-1) != 0:
        bias = torch.zeros_like(attn_mask, dtype=query.dtype)
    result: torch.Tensor = _Attention.apply(query, key, value, bias, flash)  # type: ignore[no-untyped-call]  # torch's
    return result


class _Attention(torch.autograd.Function):
    """Any of CUDA's attention kernels that never make the scores."""

    @staticmethod
    def forward(ctx: Any, query: Any, key: Any, value: Any, bias: Any, flash: bool) -> Any:
        # In the query's order of memory, as every one of those kernels does.
        output = torch.empty_like(query)
        log_sum_exp = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, log_sum_exp, bias)
        ctx.flash = flash
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        query, key, value, _, log_sum_exp, _ = ctx.saved_tensors
        delta = torch.empty_like(log_sum_exp)
        accumulator = torch.empty_like(query, dtype=torch.float32) if ctx.flash else None
        gradients = tuple(torch.empty_like(tensor) for tensor in (query, key, value))
        del delta, accumulator
        return (*gradients, None, None)


def _rms_norm(
    input: torch.Tensor,
    normalized_shape: Any,
    weight: torch.Tensor | None = None,
    eps: float | None = None,
) -> torch.Tensor:
    mixed = weight is not None and weight.dtype != input.dtype
    if mixed or not hasattr(torch.ops.aten, "_fused_rms_norm_backward"):
        return _composite_rms_norm(input, normalized_shape, weight, eps)
    result: torch.Tensor = _FusedRmsNorm.apply(input, weight)  # type: ignore[no-untyped-call]  # torch's
    return result


class _FusedRmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Any, weight: Any) -> Any:
        ctx.save_for_backward(input, weight, input.new_empty((*input.shape[:-1], 1), dtype=torch.float32))
        return torch.empty_like(input)

    @staticmethod
    def backward(ctx: Any, gradient: Any) -> Any:
        input, weight, _ = ctx.saved_tensors
        of_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        return torch.empty_like(input), of_weight


def _dropout(
    input: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> torch.Tensor:
    if not training or p == 0.0:
        return _plain_dropout(input, p, training, inplace)
    result: torch.Tensor = torch.native_dropout(input, p, True)[0]
    return result


def _init_frozen_nf4(
    self: Any,
    in_dim: int,
    out_dim: int,
    bias: bool = False,
    device: Any = None,
    dtype: Any = None,
    **how: Any,
) -> None:
    """torchtune's frozen NF4 layer with its weight assigned instead of swapped.

    `torch.utils.swap_tensors` refuses tensors that have weak references, as fake ones do.
    """
    from torch import nn
    from torchtune.modules.low_precision import nf4_linear

    nn.Linear.__init__(self, in_dim, out_dim, bias=bias, device=device, dtype=dtype)
    if self.bias is not None:
        self.bias.requires_grad_(False)
    weight = nf4_linear.to_nf4(self.weight.requires_grad_(False), **how)
    self.weight = nn.Parameter(weight, requires_grad=False)


def _quantize_one_chunk(value: torch.Tensor, nf4: torch.Tensor) -> torch.Tensor:
    """What torchao's NF4 takes to quantize the first of many chunks (torchao/dtypes/nf4tensor.py).

    One after another they take the same memory; a 27B has tens of thousands.
    """
    chunk = value[:_NF4_CHUNK].unsqueeze(-1)
    (chunk - nf4).abs().min(dim=-1)
    return value.new_zeros(1, dtype=torch.uint8).expand(value.numel())


def _dense_mask(seq_lens: Any) -> torch.Tensor:
    rows, tokens = len(seq_lens), len(seq_lens[0])
    return torch.ones(rows, tokens, tokens, dtype=torch.bool)


def _block_mask(seq_lens: Any) -> torch.Tensor:
    """A mask that takes the memory of a block mask: how many blocks, and which, for rows and for columns.

    Looks dense to the model; strides of zero say that it isn't. `create_block_mask` evaluates the causal and the
    document mask densely, and their conjunction.
    """
    rows, tokens = len(seq_lens), len(seq_lens[0])
    of_a_token = torch.ones(rows, tokens, dtype=torch.long)
    dense = _dense_mask(seq_lens) & _dense_mask(seq_lens)
    del dense
    blocks = -(-tokens // _BLOCK)
    numbers = 4 * rows * (blocks + blocks * blocks)
    mask = torch.ones(4 * numbers + 8 * of_a_token.numel(), dtype=torch.bool)
    return mask.as_strided((rows, tokens, tokens), (0, 0, 0))
