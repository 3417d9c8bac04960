"""The words that the demo's examples are made of, and numbers as words."""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


NAMES = _words(
    "Ada Amir Anouk Bela Carmen Chidi Clara Daniel Elif Emil Farida Gita Hana Henrik Ines Ivo Jonas Kaya "
    "Leila Lukas Mai Marta Miguel Nadia Niko Olga Omar Priya Rosa Samir Selma Sofia Tomas Uma Vera "
    "Viktor Wanda Yara Yusuf Zoe"
)

PLACES = _words(
    "airport bakery bank bridge castle cathedral cellar clinic courtyard factory farm garage garden "
    "greenhouse harbour hospital hotel island kitchen laboratory library lighthouse market mill mountain "
    "museum office orchard palace park pharmacy quarry railway restaurant river school station "
    "theatre tower village vineyard warehouse workshop"
)

THINGS = _words(
    "almond apple apricot axe bag ball banana barrel basket bean bell bicycle blanket book bottle bowl "
    "box brick broom brush bucket button cabbage candle carpet carrot chain chair cheese cherry clock cloth "
    "coat coin compass cushion desk door drum engine envelope feather fig flag flute fork garlic "
    "glove grape guitar hammer hat helmet herring jacket jar kettle key knife ladder lamp lantern leaf "
    "lemon letter lock magnet map mattress melon mirror mushroom nail needle newspaper notebook "
    "olive onion orange oven paddle paper parcel peach pear pen pencil pepper piano pillow pipe plank "
    "plate plum pot potato pump pumpkin quilt radio radish ribbon ring rope saddle sail saw scarf "
    "scissors screw shell shelf shirt shoe shovel sieve soap spoon stamp stone stove suitcase table "
    "telescope tent thermometer thread ticket tile tomato towel trumpet turnip umbrella vase violin "
    "wagon wheel whistle window wire"
)

ADJECTIVES = _words(
    "ancient bitter blue bright broad broken brown calm careful clean clever cold copper cracked crooked "
    "dark deep dry dusty early empty faded fast fine flat fragile fresh gentle golden green grey heavy "
    "hollow large late light little long loud narrow new old pale patient plain polished quick quiet red "
    "rough round rusty sharp short silent silver simple slow small smooth soft square steep striped "
    "strong sweet tall thin tiny warm white wide wooden yellow young"
)

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

_SMALL = _words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
)
_TENS = _words("twenty thirty forty fifty sixty seventy eighty ninety")


def number_in_words(number: int) -> str:
    """``four hundred and nineteen`` for 419.

    Args:
        number: from 0 to 999,999.
    """
    if number < 20:
        return _SMALL[number]
    if number < 100:
        tens, rest = divmod(number, 10)
        return _TENS[tens - 2] + (f"-{_SMALL[rest]}" if rest else "")
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        return f"{_SMALL[hundreds]} hundred" + (f" and {number_in_words(rest)}" if rest else "")
    thousands, rest = divmod(number, 1000)
    link = " and " if rest < 100 else " "
    return f"{number_in_words(thousands)} thousand" + (f"{link}{number_in_words(rest)}" if rest else "")
