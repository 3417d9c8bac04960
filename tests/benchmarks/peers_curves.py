"""Memory curves that every tool is asked about, and the card that they are on.

The card has 70 units of target and 30 above it. 150 of 1,000 are taken whatever the batch_size, as the weights of
a LoRA fine-tuning with its optimizer are; the rest is shared out so that the true answer falls midway between two
sizes. What the curves differ in:

    affine     a line
    stepped    the same line rounded up to whole blocks, as a caching allocator asks the card for memory
    noisy      the same line with each reading off by up to `NOISE`, another one for each batch_size
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

MIB = 2**20

CARD_BYTES = 80 * 1024 * MIB
TARGET = 0.70
TARGET_BYTES = int(CARD_BYTES * TARGET)

#: Largest batch_size that fits the target.
ANSWERS = (1, 7, 37, 200)
KINDS = ("affine", "stepped", "noisy")

#: Batch sizes that a curve is defined for: rows of the dataset.
ROWS = 4096

#: In use before the first batch, and taken at any batch_size, as fractions of the card.
BEFORE = 0.14
FIXED = 0.15

#: Blocks of the stepped curve, as a fraction of the card.
BLOCK = 0.01

#: Six times what repeats of a trial on a CPU differ by (0.05 %).
NOISE = 0.003


@dataclass(frozen=True)
class Curve:
    """Peak memory by batch_size.

    Attributes:
        kind: of `KINDS`.
        answer: the largest batch_size whose peak is at most the target.
        peaks_bytes: at batch_size 1, 2, ..., `ROWS`.
    """

    kind: str
    answer: int
    peaks_bytes: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.answer}"

    def at(self, batch_size: int) -> int:
        """The peak at a batch_size."""
        return self.peaks_bytes[batch_size - 1]

    def largest(self, most_bytes: float) -> int:
        """The largest batch_size below the first whose peak is above `most_bytes`; 0 when there is none."""
        return next((b for b, peak in enumerate(self.peaks_bytes) if peak > most_bytes), ROWS)


def make_curve(kind: str, answer: int, seed: int = 0) -> Curve:
    """A curve of `kind` on which `answer` is true; `seed` is of the noise."""
    fixed = FIXED * CARD_BYTES
    slope = (TARGET_BYTES - fixed) / (answer + 0.5)
    line = [fixed + slope * batch_size for batch_size in range(1, ROWS + 1)]
    if kind == "stepped":
        # The target is a whole number of blocks, so that rounding up moves no size across it.
        block = BLOCK * CARD_BYTES
        line = [math.ceil(round(peak / block, 6)) * block for peak in line]
    elif kind == "noisy":
        noise = random.Random(f"{answer} {seed}")
        line = [peak * (1 + noise.uniform(-NOISE, NOISE)) for peak in line]
        # A reading stays on its side of the target: else the largest size that fits isn't defined.
        line = [
            min(peak, TARGET_BYTES) if size <= answer else max(peak, TARGET_BYTES + 1)
            for size, peak in enumerate(line, 1)
        ]
    curve = Curve(kind, answer, tuple(int(peak) for peak in line))
    assert curve.largest(TARGET_BYTES) == answer
    return curve


def all_curves() -> list[Curve]:
    """Every kind with every answer."""
    return [make_curve(kind, answer) for kind in KINDS for answer in ANSWERS]
