"""Density arithmetic on integers: no torch, no torchtune.

A pack is described by `Pack`; torchtune's rows are read into it by `autobatch.packing.build`. Of examples that
nobody has packed, the lengths alone say how they would be.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from autobatch.records import Density

#: The standard error comes from the differences between blocks, and the last pack of each is left out.
_FEWEST_BLOCKS = 5
_MOST_BLOCKS = 10
_PACKS_OF_A_BLOCK = 5


@dataclass(frozen=True)
class Pack:
    """One packed sequence.

    Attributes:
        lengths: tokens of each example (or piece of one) in it, padding excluded.
        continues: its first piece is the rest of an example that began in the pack before.
    """

    lengths: tuple[int, ...]
    continues: bool = False

    @property
    def examples(self) -> int:
        """Examples that begin in this pack."""
        return len(self.lengths) - self.continues


def density_of(packs: Sequence[Pack], max_seq_len: int) -> Density:
    """The density of a whole dataset that was packed.

    Args:
        packs: all of them.
        max_seq_len: tokens of a row.
    """
    return Density(
        packed=True,
        examples=sum(pack.examples for pack in packs),
        packs=len(packs),
        tokens=sum(sum(pack.lengths) for pack in packs),
        max_seq_len=max_seq_len,
        longest_example=max((length for pack in packs for length in pack.lengths), default=0),
    )


def density_of_lengths(
    lengths: Iterable[int],
    max_seq_len: int,
    *,
    split_across_pack: bool = False,
    max_packs: int | None = None,
) -> Density:
    """The density that torchtune's PackedDataset would have, without making its packs.

    Examples go into a pack in their order until the next doesn't fit; that one begins the next pack, or, split,
    fills this one up first (`_pack` and `_split_and_add_pack` in torchtune/datasets/_packed.py).

    Args:
        lengths: tokens of each example, at least 1; gone through once.
        max_seq_len: tokens of a pack.
        split_across_pack: as PackedDataset has it.
        max_packs: stop when there are so many; what isn't in them isn't counted.

    Raises:
        ValueError: an example is longer than a pack, and none is to be split.
    """
    packs = examples = tokens = longest = 0
    # Of the pack that is being filled.
    held = begun = 0
    most = math.inf if max_packs is None else max_packs
    for length in lengths if most else ():
        if length > longest:
            if length > max_seq_len and not split_across_pack:
                raise ValueError(
                    f"an example has {length} tokens, more than max_seq_len {max_seq_len}: raise "
                    "tokenizer.max_seq_len or set split_across_pack: True"
                )
            longest = length
        held += length
        begun += 1
        if held <= max_seq_len:
            continue
        if not split_across_pack:
            packs, examples, tokens = packs + 1, examples + begun - 1, tokens + held - length
            held, begun = length, 1
        else:
            # It begins in this pack only where there is room for its first token.
            here = held - length < max_seq_len
            full = int(min((held - 1) // max_seq_len, most - packs))
            packs, tokens = packs + full, tokens + full * max_seq_len
            held -= full * max_seq_len
            # Where it begins in the pack after this one, that one may have been filled by it, too.
            counted = begun if here or full > 1 else begun - 1
            examples, begun = examples + counted, begun - counted
        if packs >= most:
            break
    else:
        if held:
            packs, examples, tokens = packs + 1, examples + begun, tokens + held
    return Density(
        packed=True,
        examples=examples,
        packs=packs,
        tokens=tokens,
        max_seq_len=max_seq_len,
        longest_example=longest,
    )


def density_from_blocks(
    blocks: Sequence[Sequence[Pack]], *, examples: int, sampled_examples: int, max_seq_len: int
) -> Density:
    """The density of a dataset of which only blocks of successive examples were packed.

    The density of a block is a ratio, so the estimate is the ratio of the sums and its standard error that
    of a ratio estimator over the blocks (Cochran, Sampling Techniques, 3rd ed., section 2.11). The last
    pack of a block is left out when there are others: the block's end cut it short, not max_seq_len.

    Args:
        blocks: the packs of each block.
        examples: in the whole dataset.
        sampled_examples: in the blocks.
        max_seq_len: tokens of a row.
    """
    whole = [block[:-1] if len(block) > 1 else block for block in blocks if block]
    counted = [(sum(pack.examples for pack in block), len(block)) for block in whole]
    begun, packs = (sum(column) for column in zip(*counted, strict=True))
    ratio = begun / packs
    tokens_per_pack = sum(sum(pack.lengths) for block in whole for pack in block) / packs
    total_packs = math.ceil(examples / ratio)
    return Density(
        packed=True,
        examples=examples,
        packs=total_packs,
        tokens=round(tokens_per_pack * total_packs),
        max_seq_len=max_seq_len,
        longest_example=max(length for block in blocks for pack in block for length in pack.lengths),
        sampled_examples=sampled_examples,
        standard_error=_ratio_error(counted, ratio),
    )


def blocks_to_sample(examples: int, sample: int, least: int = 1) -> list[range]:
    """Blocks of successive examples, evenly spread, that hold about `sample` of them.

    Successive, because packing takes examples in the dataset's order and neighbours may be alike.

    Args:
        examples: in the whole dataset.
        sample: how many to take; more are taken where so few don't make `_FEWEST_BLOCKS` blocks.
        least: examples of a block, at least.
    """
    count = min(max(_FEWEST_BLOCKS, min(_MOST_BLOCKS, sample // least)), max(sample, 1))
    size = max(math.ceil(sample / count), least)
    if max(sample, count * size) >= examples:
        return [range(examples)]
    gap = (examples - size) / (count - 1) if count > 1 else 0.0
    starts = [round(index * gap) for index in range(count)]
    return [range(start, start + size) for start in starts]


def least_examples(lengths: Sequence[int], max_seq_len: int) -> int:
    """Examples that fill the packs of a block: one that fills none says nothing of how many fill one.

    Args:
        lengths: tokens of some examples.
        max_seq_len: tokens of a pack.
    """
    mean = sum(lengths) / len(lengths)
    return math.ceil(_PACKS_OF_A_BLOCK * max_seq_len / max(mean, 1.0))


def _ratio_error(counted: Sequence[tuple[int, int]], ratio: float) -> float | None:
    """Standard error of sum(y) / sum(x) over blocks of (y, x); None from a single block."""
    n = len(counted)
    if n < 2:
        return None
    mean_x = sum(x for _, x in counted) / n
    residual = sum((y - ratio * x) ** 2 for y, x in counted) / (n - 1)
    return math.sqrt(residual / n) / mean_x
