"""The processes of a distributed training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """How many processes train together, and where.

    Attributes:
        nodes: machines.
        processes_per_node: ranks on each of them; on CUDA each has a card.
        data_parallel: ranks with rows of their own: the world size over `tensor_parallel_dim`.
    """

    nodes: int
    processes_per_node: int
    data_parallel: int

    @property
    def size(self) -> int:
        """The world size: ranks in all."""
        return self.nodes * self.processes_per_node

    def __str__(self) -> str:
        each = f"{self.processes_per_node} process{'es' if self.processes_per_node > 1 else ''}"
        return f"{each} on one node" if self.nodes == 1 else f"{self.nodes} nodes with {each} each"
