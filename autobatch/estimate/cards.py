"""Cards, and what of their memory PyTorch can't have or takes for itself.

`total_bytes` is what the driver reports to a process, which is less than the name says. None was measured here:
each is the "total capacity" that PyTorch's out-of-memory messages give for such a card in public reports ("GPU 0
has a total capacity of 79.11 GiB"). Drivers and ECC move it by a few tenths of a GiB. The probe asks the card.
"""

from __future__ import annotations

from dataclasses import dataclass

from autobatch.errors import UsageError

_MIB = 2**20

#: CUDA compute capability, major.
HOPPER = 9
_GIB = 2**30


@dataclass(frozen=True)
class Card:
    """A card.

    Attributes:
        name: as `--gpu` takes it.
        total_bytes: that a process sees.
        capability: CUDA compute capability, major.
    """

    name: str
    total_bytes: int
    capability: int

    @property
    def workspace_bytes(self) -> int:
        """What cuBLAS takes inside the allocator."""
        return workspace_bytes(self.capability)


def workspace_bytes(capability: int) -> int:
    """What cuBLAS takes inside the allocator.

    One workspace for the thread that runs forward and one for autograd's, of 32 MiB from Hopper on and of
    8.125 MiB before (aten/src/ATen/cuda/CublasHandlePool.cpp, parseChosenWorkspaceSize). Not measured here.
    """
    return 2 * (32 * _MIB if capability >= HOPPER else 8 * _MIB + 128 * 1024)


#: CUDA's context and its kernels, outside the allocator: maintainers speak of 0.3 to 0.5 GB. Not measured here;
#: it counts towards what nvidia-smi shows and not towards reserved memory.
CONTEXT_BYTES = 500 * 10**6


def _card(name: str, gib: float, capability: int) -> Card:
    return Card(name, round(gib * _GIB), capability)


CARDS = {
    card.name: card
    for card in (
        _card("t4-16gb", 14.58, 7),
        _card("l4-24gb", 22.03, 8),
        _card("a10g-24gb", 22.06, 8),
        _card("v100-32gb", 31.74, 7),
        _card("a100-40gb", 39.39, 8),
        _card("l40s-48gb", 44.40, 8),
        _card("a6000-48gb", 47.43, 8),
        _card("a100-80gb", 79.14, 8),
        _card("h100-80gb", 79.11, 9),
        _card("h200-141gb", 139.80, 9),
        _card("b200-180gb", 178.35, 10),
    )
}


def card_named(name: str) -> Card:
    """The card that `--gpu` names.

    Raises:
        UsageError: none is called so; the message names the valid names.
    """
    if name not in CARDS:
        raise UsageError(
            f"--gpu {name}: no such card; there are {', '.join(CARDS)}. For any other give --capacity, "
            "such as 48GiB"
        )
    return CARDS[name]
