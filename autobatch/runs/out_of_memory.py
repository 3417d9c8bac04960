"""How PyTorch, its libraries and Slurm spell out of memory."""

from __future__ import annotations

import re

_OUT_OF_MEMORY = re.compile(
    r"OutOfMemoryError|CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED"
    r"|CUDNN_STATUS_ALLOC_FAILED|DefaultCPUAllocator: can't allocate memory|\bMemoryError\b"
    r"|Cannot allocate memory|std::bad_alloc|OUT_OF_MEMORY|Triton Error \[CUDA\]: out of memory"
    # Expandable segments; the C++ of bitsandbytes, which then ends the process.
    r"|CUDA driver error: out of memory|Error out of memory at line"
    # Out of memory on a MIG slice: the allocator asks NVML for its message, and asserts that NVML answers.
    r"|NVML_SUCCESS == [^\n]*INTERNAL ASSERT FAILED at [^\n]*CUDACachingAllocator"
)
#: cuDNN says so when it can't get its workspace; only then is it about memory.
_CUDNN_NOT_SUPPORTED = "CUDNN_STATUS_NOT_SUPPORTED"
#: Triton's word for a kernel that is too large for the chip, at any batch size.
_NOT_OUT_OF_MEMORY = re.compile(r"out of resource: shared memory")

#: Any text that `is_out_of_memory` is true of holds one of these: for looking through much text fast.
HINTS = (
    "out of memory",
    "ALLOC_FAILED",
    "allocate memory",
    "MemoryError",  # OutOfMemoryError too
    "bad_alloc",
    "OUT_OF_MEMORY",
    "INTERNAL ASSERT FAILED",
    _CUDNN_NOT_SUPPORTED,
)


def is_out_of_memory(message: str) -> bool:
    """Whether an error message is one of PyTorch's spellings of out of memory."""
    if _NOT_OUT_OF_MEMORY.search(message):
        return False
    return bool(_OUT_OF_MEMORY.search(message)) or _CUDNN_NOT_SUPPORTED in message
