"""Packing density in a log, in whatever form it is there.

    stated   "Packed 8000 examples into 2857 sequences", "packing density: 2.80", "Packing efficiency: 87%",
             and autobatch's own line, where a probe ran in the same job
    counted  "Loaded 8000 examples" and "Dataset packed: 2857 total sequences"
    nothing  "Dataset loaded: 8000 examples": then `estimated`, if the user knows the examples' length

torchtune 0.6.1 itself shows the examples, in the bar "Packing dataset", and no number of packs. The steps of
an epoch tell it: batches of batch_size packs, an incomplete one dropped, and so an incomplete step.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from autobatch.errors import UsageError
from autobatch.metrics.records import PackingMetrics, Source

_COUNT = rb"(\d[\d,]{0,17})"
_BAR = re.compile(rb"Packing dataset:[^|]*\|[^|]*\| (\d{1,15})/(\d{1,15}) \[")
_PACKED_INTO = re.compile(rb"[Pp]acked " + _COUNT + rb" examples into " + _COUNT + rb" (?:sequences|packs)")
_SEQUENCES = re.compile(rb"Dataset packed: " + _COUNT + rb" (?:total )?(?:sequences|packs)")
_LOADED = re.compile(rb"(?:Loaded|Dataset loaded:) " + _COUNT + rb" examples\b")
_DENSITY = re.compile(rb"[Pp]acking density[:=*\s]+(?:about )?(\d{1,12}(?:\.\d{1,12})?)\b")
_EFFICIENCY = re.compile(rb"[Pp]acking efficiency[:=*\s]+(\d{1,3}(?:\.\d{1,12})?) ?%")
#: `autobatch.report.table.density_line`.
_PROBED = re.compile(
    rb"examples per pack: (\d{1,15}) examples in (?:about )?(\d{1,15}) packs of \d+ tokens"
    rb"(?:, (\d{1,3}\.\d) % of them not padding)?"
)

#: An epoch's steps give the packs within batch_size * gradient_accumulation_steps; more than this part of them
#: either way is no answer.
_MOST_UNCERTAINTY = 0.05


@dataclass
class PackingLines:
    """Reads how the dataset of one training packed, line by line."""

    stated_examples: int | None = None
    stated_sequences: int | None = None
    stated_density: float | None = None
    efficiency: float | None = None
    loaded: int | None = None
    sequences: int | None = None
    bars: list[tuple[int, int]] = field(default_factory=list)

    def read_bar(self, line: bytes) -> None:
        """torchtune's progress bar: a list of datasets has one each, a validation set one more."""
        if (found := _BAR.search(line)) is None:
            return
        done, total = int(found.group(1)), int(found.group(2))
        if self.bars and self.bars[-1][1] == total and done >= self.bars[-1][0]:
            self.bars[-1] = (done, total)
        elif len(self.bars) < 1000:
            self.bars.append((done, total))

    def read_counts(self, line: bytes) -> None:
        """Forms A and B, where they give counts."""
        if found := _PACKED_INTO.search(line):
            self.stated_examples, self.stated_sequences = _count(found.group(1)), _count(found.group(2))
        elif found := _SEQUENCES.search(line):
            self.sequences = _count(found.group(1))
        elif found := _LOADED.search(line):
            self.loaded = _count(found.group(1))

    def read_statement(self, line: bytes) -> None:
        """Form A, where it gives ratios; and autobatch's own line."""
        if found := _PROBED.search(line):
            self.stated_examples, self.stated_sequences = int(found.group(1)), int(found.group(2))
            if found.group(3):
                self.efficiency = float(found.group(3))
        elif found := _DENSITY.search(line):
            self.stated_density = float(found.group(1))
        if (found := _EFFICIENCY.search(line)) and float(found.group(1)) <= 100:
            self.efficiency = float(found.group(1))

    def merged(self, other: PackingLines) -> PackingLines:
        """What both files of a training say, this one first."""
        mine = {name: value for name, value in vars(self).items() if value not in (None, [])}
        return PackingLines(**{**vars(other), **mine})

    def metrics(self, config: Mapping[str, Any], recipe: str | None, steps_per_epoch: int) -> PackingMetrics:
        """What is known, best source first.

        Args:
            config: the resolved config, empty when the log doesn't have it.
            recipe: class of the recipe.
            steps_per_epoch: by the progress bar; 0 when there is none.
        """
        examples = self.stated_examples or self._examples(config)
        known = PackingMetrics(total_examples=examples, packing_efficiency=self.efficiency)
        if self.stated_sequences and self.stated_examples:
            return replace(
                known,
                total_sequences=self.stated_sequences,
                packing_density=self.stated_examples / self.stated_sequences,
                source=Source.STATED,
            )
        if self.stated_density:
            return replace(
                known,
                total_sequences=self.sequences,
                packing_density=self.stated_density,
                source=Source.STATED,
            )
        if self.sequences and examples:
            return replace(
                known,
                total_sequences=self.sequences,
                packing_density=examples / self.sequences,
                source=Source.COUNTED,
            )
        if examples and (packs := packs_of_an_epoch(config, recipe, steps_per_epoch)):
            sequences, exact = packs
            return replace(
                known,
                total_sequences=sequences,
                packing_density=examples / sequences,
                source=Source.COUNTED if exact else Source.ESTIMATE,
            )
        if not self.bars and _is_packed(config) is False:
            # A row is an example.
            return replace(known, total_sequences=examples, packing_density=1.0, source=Source.STATED)
        return known

    def _examples(self, config: Mapping[str, Any]) -> int | None:
        if self.loaded is not None or not self.bars:
            return self.loaded
        return sum(total for _, total in self.bars[: max(1, len(_datasets(config)))])


def packs_of_an_epoch(
    config: Mapping[str, Any], recipe: str | None, steps_per_epoch: int
) -> tuple[int, bool] | None:
    """Packs in the dataset, by the steps of an epoch, and whether that is exact; None when it can't be told.

    torchtune 0.6.1 drops an incomplete batch and an incomplete step: of p packs, an epoch has
    (p // batch_size) // gradient_accumulation_steps steps. Each process of a distributed recipe has a part
    of the packs; how many processes there were isn't in the log.
    """
    batch_size, accumulation = config.get("batch_size"), config.get("gradient_accumulation_steps", 1)
    limit = config.get("max_steps_per_epoch")
    if not (_is_natural(batch_size) and _is_natural(accumulation) and steps_per_epoch):
        return None
    if not _is_packed(config) or not (recipe or "").endswith("SingleDevice") or limit == steps_per_epoch:
        return None
    per_step = batch_size * accumulation
    middle = steps_per_epoch * per_step + (per_step - 1) // 2
    if (per_step - 1) / 2 > _MOST_UNCERTAINTY * middle:
        return None
    return middle, per_step == 1


def estimated(known: PackingMetrics, *, mean_tokens: float, max_seq_len: int) -> PackingMetrics:
    """`known` with the density that examples of this mean length should have.

    Packs take whole examples in the dataset's order until the next doesn't fit, so that on average half an
    example's length stays empty: max_seq_len / mean - 1/2 fit (the renewal theorem, for lengths that vary
    little; Feller, An Introduction to Probability Theory II, XI.3). Longer ones are cut off: at least 1.

    Args:
        known: what the log says; stays where it says it.
        mean_tokens: of an example.
        max_seq_len: tokens of a pack.

    Raises:
        UsageError: a length that isn't above 0.
    """
    if not 0 < mean_tokens < math.inf or max_seq_len < 1:
        raise UsageError(
            f"examples of {mean_tokens:g} tokens in packs of {max_seq_len}: both must be above 0 "
            "(--mean-tokens, --max-seq-len)"
        )
    density = max(1.0, max_seq_len / mean_tokens - 0.5)
    examples = known.total_examples
    return replace(
        known,
        total_sequences=math.ceil(examples / density) if examples else known.total_sequences,
        packing_density=density,
        packing_efficiency=100 * min(1.0, density * mean_tokens / max_seq_len),
        source=Source.ESTIMATE,
    )


def max_seq_len_of(config: Mapping[str, Any]) -> int | None:
    """Tokens of a pack, by a resolved config."""
    tokenizer = config.get("tokenizer")
    length = tokenizer.get("max_seq_len") if isinstance(tokenizer, Mapping) else None
    return length if _is_natural(length) else None


def _datasets(config: Mapping[str, Any]) -> list[Any]:
    dataset = config.get("dataset")
    return dataset if isinstance(dataset, list) else [dataset]


def _is_packed(config: Mapping[str, Any]) -> bool | None:
    """Whether every dataset is packed; None when the config doesn't say."""
    said = [dataset.get("packed", False) for dataset in _datasets(config) if isinstance(dataset, Mapping)]
    return all(value is True for value in said) if said else None


def _is_natural(value: Any) -> bool:
    """Whether it is a number above 0 that floats can be made of."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63


def _count(text: bytes) -> int:
    return int(text.replace(b",", b""))
