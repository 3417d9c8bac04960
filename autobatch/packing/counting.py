"""Counting what torchtune's PackedDataset would pack, without its packs, whose tensors take time and memory.

The dataset component makes its PackedDataset itself, with its own choice of split_across_pack and max_packs, but
that only goes through the lengths of the examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from autobatch.packing.density import density_of_lengths
from autobatch.records import Density


def count_packs(make_dataset: Callable[[], Any]) -> Density | None:
    """The density of a dataset that packs its examples with PackedDataset, or of several concatenated.

    Args:
        make_dataset: makes it, by the config's own component.

    Returns:
        None when it packs in another way, or fails: then it must be made as training makes it.
    """
    from torchtune.datasets import ConcatDataset, PackedDataset

    with _without_packs() as counted:
        try:
            made = make_dataset()
        except Exception:
            # Made again as training makes it, it says why; or a component looks into its own packs.
            return None
    parts = made._datasets if type(made) is ConcatDataset else [made]
    # One of another class does with its packs what only it knows.
    if any(type(part) is not PackedDataset for part in parts) or len(parts) != len(counted):
        return None
    return _together([density for part in parts for owner, density in counted if owner is part])


@contextmanager
def _without_packs() -> Iterator[list[tuple[Any, Density]]]:
    """Each PackedDataset that is made meanwhile, and its density; none has any packs."""
    from torchtune.datasets import PackedDataset
    from tqdm import tqdm

    counted: list[tuple[Any, Density]] = []

    def count(self: Any) -> None:
        # torchtune's own bar, which `packing.logs` reads.
        with tqdm(total=len(self.ds), desc="Packing dataset", dynamic_ncols=True) as bar:

            def lengths() -> Iterator[int]:
                for sample in self.ds:
                    yield len(sample["tokens"])
                    bar.update()

            density = density_of_lengths(
                lengths(),
                self.max_seq_len,
                split_across_pack=self.split_across_pack,
                max_packs=self.max_packs,
            )
        counted.append((self, density))

    original = PackedDataset._pack
    PackedDataset._pack = count
    try:
        yield counted
    finally:
        PackedDataset._pack = original


def _together(parts: list[Density]) -> Density | None:
    """One after another: each is packed by itself."""
    if not parts:
        return None
    return replace(
        parts[0],
        examples=sum(part.examples for part in parts),
        packs=sum(part.packs for part in parts),
        tokens=sum(part.tokens for part in parts),
        longest_example=max(part.longest_example for part in parts),
    )
