"""The demo's dataset: small instruction tasks with their answers, made from a seed.

Their lengths are as uneven as those of a real instruction dataset, many short and a few long, so that
the packing density has something to say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from autobatch.demo.words import ADJECTIVES, DAYS, NAMES, PLACES, THINGS, number_in_words

#: Median and spread (sigma of a log-normal) of the number of items in an example, and the most that one
#: may have. With the demo's tokenizer that makes 25 to 420 tokens, 87 on average.
_MEDIAN_ITEMS = 5.5
_SPREAD = 0.75
_MAX_ITEMS = 26


@dataclass(frozen=True)
class Example:
    """One row of the dataset, under the column names that `instruct_dataset` expects.

    Attributes:
        input: the instruction.
        output: the answer to be learned.
    """

    input: str
    output: str


def make_examples(count: int, seed: int = 0) -> list[Example]:
    """`count` examples, the same ones for the same seed.

    A longer list begins with the shorter one.
    """
    rng = Random(seed)
    return [rng.choice(_TASKS)(rng, _item_count(rng)) for _ in range(count)]


def as_json(examples: Sequence[Example]) -> str:
    """A JSON array with one example a line."""
    rows = (json.dumps({"input": e.input, "output": e.output}, ensure_ascii=False) for e in examples)
    return "[\n" + ",\n".join(rows) + "\n]\n"


def _item_count(rng: Random) -> int:
    return min(_MAX_ITEMS, max(1, round(_MEDIAN_ITEMS * rng.lognormvariate(0.0, _SPREAD))))


def _things(rng: Random, count: int) -> list[str]:
    return rng.sample(THINGS, count)


def _phrases(rng: Random, count: int) -> list[str]:
    return [f"{rng.choice(ADJECTIVES)} {thing}" for thing in _things(rng, count)]


def _listed(items: Sequence[str]) -> str:
    """``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _capitalise(rng: Random, count: int) -> Example:
    words = _things(rng, count)
    return Example(f"Write in capitals: {', '.join(words)}", ", ".join(words).upper())


def _sort(rng: Random, count: int) -> Example:
    words = _things(rng, count + 1)
    asked = f"Sort these words from A to Z, one a line: {', '.join(words)}."
    return Example(asked, "\n".join(sorted(words)))


def _reverse(rng: Random, count: int) -> Example:
    words = _phrases(rng, count)
    asked = f"Say this list backwards, from the last to the first: {_listed(words)}."
    return Example(asked, f"{_listed(words[::-1])}.")


def _add(rng: Random, count: int) -> Example:
    """A running sum, with every step of the way written out."""
    numbers = [rng.randint(1, 99 if count > 3 else 999) for _ in range(min(count, 12) + 1)]
    steps = []
    total = numbers[0]
    for number in numbers[1:]:
        before, total = total, total + number
        steps.append(f"{number_in_words(before)} plus {number_in_words(number)} is {number_in_words(total)}")
    asked = f"What is {' plus '.join(number_in_words(number) for number in numbers)}?"
    return Example(asked, "; ".join(steps).capitalize() + ".")


def _longest(rng: Random, count: int) -> Example:
    words = _things(rng, count + 1)
    longest = max(words, key=len)
    answer = f"The longest word is {longest}, with {number_in_words(len(longest))} letters."
    return Example(
        f"Which of these words is the longest (the first, if several are)? {_listed(words)}.", answer
    )


def _stock(rng: Random, count: int) -> Example:
    """A storekeeper's list, summarised."""
    place = rng.choice(PLACES)
    amounts = {phrase: rng.randint(2, 60) for phrase in _phrases(rng, count)}
    lines = [f"- {amount} pieces, {phrase}" for phrase, amount in amounts.items()]
    most = max(amounts, key=lambda phrase: amounts[phrase])
    asked = f"Summarise what is kept at the {place}.\n" + "\n".join(lines)
    answer = (
        f"The {place} keeps {len(amounts)} kinds of things, {sum(amounts.values())} pieces in all. "
        f"Most of them are of the {most} ({amounts[most]})."
    )
    return Example(asked, answer)


def _diary(rng: Random, count: int) -> Example:
    """A list of errands, put in order by person."""
    people = rng.sample(NAMES, min(3, count))
    errands = [
        (rng.choice(people), rng.choice(DAYS), rng.choice(PLACES), thing) for thing in _things(rng, count)
    ]
    asked = "Group these errands by person:\n" + "\n".join(
        f"On {day} {who} takes the {thing} to the {place}." for who, day, place, thing in errands
    )
    answer = "\n".join(
        f"{who}: " + "; ".join(f"{thing} to the {place}" for w, _, place, thing in errands if w == who)
        for who in sorted({errand[0] for errand in errands})
    )
    return Example(asked, answer)


_TASKS: tuple[Callable[[Random, int], Example], ...] = (
    _capitalise,
    _sort,
    _reverse,
    _add,
    _longest,
    _stock,
    _diary,
)
