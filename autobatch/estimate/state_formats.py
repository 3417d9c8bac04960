"""How optimizers of few bits keep their state. Pure.

- `bitsandbytes/optim/optimizer.py`, `Optimizer2State.init_state`: two states of one byte an element with a
  fp32 scale for each 256 elements; fp32 below 4096 elements, or where `optim_bits` is 32. The paged ones keep what
  has 100,000 elements or more in unified memory, which PyTorch's allocator doesn't see;
- `torchao/optim/adam.py` and `subclass_8bit.py`, `subclass_4bit.py`: the same with blocks of 256 (8-bit) or 128
  (4-bit, half a byte an element); other sizes in the parameter's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class StateFormat:
    """How an optimizer keeps its two states of each parameter.

    Attributes:
        bits: of an element.
        block: elements that share a scale.
        paged: large states lie in unified memory.
        small_as_parameter: what isn't quantized has the parameter's dtype, not fp32.
    """

    bits: int
    block: int = 256
    paged: bool = False
    small_as_parameter: bool = False


#: By dotted path.
FORMATS = {
    **{
        f"bitsandbytes.optim.{paged}{name}{suffix}": StateFormat(bits, paged=bool(paged))
        for paged in ("", "Paged")
        for name in ("Adam", "AdamW")
        for suffix, bits in (("", 32), ("8bit", 8), ("32bit", 32))
    },
    **{
        f"torchao.{module}.{name}{bits}bit": StateFormat(
            bits, 256 if bits == 8 else 128, small_as_parameter=True
        )
        for module in ("optim", "prototype.low_bit_optim")
        for name in ("Adam", "AdamW")
        for bits in (4, 8)
    },
}
