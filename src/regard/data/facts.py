"""Passages with questions on them, from real locale data (Unicode CLDR, through Babel): what people speak and pay with.

Each passage tells it of a few countries, so an answer has to be read, and cannot be learnt by heart.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from babel import Locale
from babel.languages import get_official_languages
from babel.numbers import get_territory_currencies

from regard.data.split import Splits
from regard.data.squad import Answer, Question

PASSAGES, TOLD, HELD_OUT = 1500, 4, 75
"""How many passages there are, of how many countries each tells, and how many are held out for each purpose."""


class Country(NamedTuple):
    """What is told of a country."""

    name: str
    language: str
    money: str


def facts(seed: int = 0) -> Splits[Question]:
    """Questions to learn from, to watch training by, and to report on; no passage is in two of them."""
    rng = random.Random(seed)
    known = countries()
    passages = [asked(number, rng.sample(known, TOLD)) for number in range(PASSAGES)]
    parts = passages[2 * HELD_OUT :], passages[:HELD_OUT], passages[HELD_OUT : 2 * HELD_OUT]
    train, valid, test = ([question for passage in part for question in passage] for part in parts)
    return {"train": train, "valid": valid, "test": test}


def countries() -> list[Country]:
    """Those with an official language and a currency of today, as English names them."""
    english = Locale("en")
    found = []
    for code, name in sorted(english.territories.items()):
        if not code.isalpha():  # a continent
            continue
        spoken = [english.languages[each] for each in get_official_languages(code) if each in english.languages]
        money = get_territory_currencies(code)
        if spoken and money and money[-1] in english.currencies:
            found.append(Country(name, spoken[0], english.currencies[money[-1]]))
    return found


def asked(number: int, told: list[Country]) -> list[Question]:
    """A passage about these countries, and a question on each thing that it says and says once."""
    passage, marks = "", dict[tuple[str, str], list[int]]()
    for country in told:
        for thing, before, what, after in (
            ("name", "In ", country.name, " people speak "),
            ("language", "", country.language, " and pay with the "),
            ("money", "", country.money, ". "),
        ):
            marks.setdefault((thing, what), []).append(len(passage) + len(before))
            passage += before + what + after
    found = list[Question]()
    for country in told:
        for thing, text, question in (
            ("language", country.language, f"What do people speak in {country.name}?"),
            ("money", country.money, f"What do people pay with in {country.name}?"),
            ("name", country.name, f"Where do people pay with the {country.money}?"),
        ):
            once = thing != "name" or len(marks["money", country.money]) == 1
            if once:
                place = marks[thing, text][0] if thing == "name" else _after(passage, country.name, text)
                name = f"{number}-{len(found)}"
                found.append(Question(name, question, passage.rstrip(), (Answer(text, place),)))
    return found


def _after(passage: str, country: str, text: str) -> int:
    """Where what is said of a country stands."""
    return passage.index(text, passage.index(f"In {country} people") + len(f"In {country} people speak "))
