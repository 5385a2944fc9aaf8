"""A parallel phrase corpus from real locale data (Unicode CLDR, through Babel), for any pair of languages.

Dates, times, numbers, amounts of money, measures, durations, lists and names, each written out in both languages from
the same value. So there is something to learn to translate without a single file: numbers to carry over and regroup,
clocks to convert, words to look up, orders to change.
"""

import hashlib
import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from itertools import islice, product, repeat
from math import inf
from typing import Any, Literal

from babel import Locale, UnknownLocaleError, localedata
from babel.dates import format_date, format_interval, format_time, format_timedelta, get_datetime_format
from babel.lists import format_list
from babel.numbers import (
    format_compact_decimal,
    format_currency,
    format_decimal,
    format_percent,
    get_currency_precision,
)
from babel.units import format_unit

from regard.core.errors import ConfigError, did_you_mean
from regard.data.pairs import Pair

Value = tuple[Any, ...]
"""What a phrase says, in no language: (2021, 3, 5), or ("length-meter", Decimal("1.5"))."""

Form = Callable[[Value, Locale], str]
"""One way to write a value; raises KeyError or ValueError, as Babel does, where a locale has no such form."""

Values = Callable[[random.Random], Iterator[Value]]
"""Draws values; it may repeat itself and need not end."""

_HELD_OUT_PERCENT = 4  # of all combinations, for valid and for test each
_YEARS = range(1950, 2050)

# Few enough words for each to come up often: a demonstration should learn them in minutes.
_TERRITORIES = """
    AR AT AU BE BG BR CA CH CL CN CO CU CZ DE DK EE EG ES FI FR GB GR HR HU IE IL IN IR IS IT JM JP KE KR LB LT LU LV
    MA MX NG NL NO NP NZ PE PH PK PL PT RO RS RU SE SG SK TH TN TR UA US UY VN ZA
"""
_LANGUAGES = (
    "ar bg bn ca cs da de el en es et eu fa fi fr ga he hi hr hu id is it ja ko la lt lv nl no pl pt ro ru sv th"
)
_CURRENCIES = "AUD BRL CAD CHF CNY EUR GBP HKD INR JPY KRW MXN NZD PLN RUB SEK TRY USD ZAR"
_UNITS = {
    "length": "kilometer meter centimeter millimeter mile foot inch",
    "mass": "tonne kilogram gram pound",
    "volume": "liter milliliter cubic-meter gallon",
    "area": "square-kilometer square-meter hectare",
    "speed": "kilometer-per-hour meter-per-second mile-per-hour",
    "temperature": "celsius fahrenheit",
    "duration": "second minute hour day week month year",
    "digital": "byte kilobyte megabyte gigabyte",
    "energy": "joule kilowatt-hour",
    "power": "watt kilowatt",
    "electric": "volt ampere",
}
_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800, "month": 2592000, "year": 31536000}

# A duration names two neighbouring units: the larger, the smaller, and how many of each there can be.
_DURATIONS = (
    ("year", 99, "month", 11),
    ("week", 51, "day", 6),
    ("day", 30, "hour", 23),
    ("hour", 23, "minute", 59),
    ("minute", 59, "second", 59),
)

_NAMES: dict[str, tuple[Sequence[Any], Callable[[Locale], Mapping[Any, str]]]] = {
    "territory": (_TERRITORIES.split(), lambda locale: locale.territories),
    "language": (_LANGUAGES.split(), lambda locale: locale.languages),
    "currency": (_CURRENCIES.split(), lambda locale: locale.currencies),
    "month": (range(1, 13), lambda locale: locale.months["stand-alone"]["wide"]),
    "weekday": (range(7), lambda locale: locale.days["stand-alone"]["wide"]),
}

# People type plain spaces, and no marks of writing direction.
_TYPED = str.maketrans(
    dict.fromkeys("\u00a0\u2007\u2009\u202f", " ")
    | dict.fromkeys("\u061c\u200e\u200f\u202a\u202b\u202c\u2066\u2067\u2069")
)

# Words where a script puts spaces between them; single characters elsewhere (Thai to Khmer, kana, Han), and digits.
_ATOM = re.compile(r"[^\W\d\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]+|\S")


@dataclass(frozen=True)
class PhraseCorpus:
    """Phrases in two languages; no source of one split is in another, nor the combination behind it.

    Attributes:
        train: (source, target) pairs, shuffled, as in the other two.
        valid: pairs to watch training by.
        test: pairs to report on.
        categories: what kind of phrase each source is: "date", "currency", "list" ...
    """

    train: list[Pair]
    valid: list[Pair]
    test: list[Pair]
    categories: dict[str, str]

    def samples(self, count: int = 3) -> dict[str, list[Pair]]:
        """The first ``count`` training pairs of every category, to look at."""
        samples: dict[str, list[Pair]] = {}
        for pair in self.train:
            samples.setdefault(self.categories[pair[0]], []).append(pair)
        return {category: samples[category][:count] for category in sorted(samples)}


def phrases(source: str = "en", target: str = "fr", *, seed: int = 0, size: int = 40_000) -> PhraseCorpus:
    """Make about ``size`` training phrases, and a fortieth of that each for validation and test.

    A combination (a date, an amount of a currency, the set of names in a list) is held out by a hash of itself: the
    same one for every seed, size and language, in whatever form it is written. The words of held-out phrases all
    occur in training phrases. A source never stands for two targets.

    Sources are as people type them (plain spaces, no invisible marks); targets keep the typography of CLDR, such as
    the narrow no-break spaces in French numbers.

    Args:
        source: the locale to translate from, such as "en", "pt-BR" or "zh_Hant".
        target: the locale to translate to.
        seed: picks other combinations.
        size: how many training phrases to aim for; a category with few combinations may run out before its share.

    Raises:
        ConfigError: a locale that CLDR does not know, or the same one twice.
    """
    locales = _locale(source), _locale(target)
    if locales[0] == locales[1]:
        raise ConfigError(f"the source and the target language are both '{source}'")
    categories = _categories(*locales)
    total = sum(category.share for category in categories)
    written: dict[str, _Phrase] = {}
    ambiguous = set()
    for category in categories:
        rng = random.Random(f"{seed} {category.name}")
        for phrase in _write(category, locales, rng, size * category.share // total):
            if written.setdefault(phrase.source, phrase).target != phrase.target:
                ambiguous.add(phrase.source)
    kept = [phrase for phrase in written.values() if phrase.source not in ambiguous]
    random.Random(seed).shuffle(kept)
    train = [phrase for phrase in kept if phrase.split == "train"]
    taught = {atom for phrase in train for atom in phrase.atoms}
    learnable = [phrase for phrase in kept if taught.issuperset(phrase.atoms)]
    valid, test = (
        [phrase for phrase in learnable if phrase.split == split][: size // 40] for split in ("valid", "test")
    )
    train_pairs, valid_pairs, test_pairs = (
        [(phrase.source, phrase.target) for phrase in split] for split in (train, valid, test)
    )
    kinds = {phrase.source: phrase.category for phrase in (*train, *valid, *test)}
    return PhraseCorpus(train_pairs, valid_pairs, test_pairs, kinds)


@dataclass(frozen=True)
class _Phrase:
    source: str
    target: str
    category: str
    split: str

    @property
    def atoms(self) -> list[str]:
        """What training must have shown before this can be asked: the words, digits and signs of both sides."""
        return _ATOM.findall(f"{self.source} {self.target}")


def _never(_: Value) -> bool:
    return False


def _always(_: Value) -> bool:
    return True


def _few(value: Value) -> bool:
    """One or two of something, for which many languages have a form of its own."""
    return abs(value[-1]) <= 2


@dataclass(frozen=True)
class _Category:
    """Phrases of one kind: the values to write, the forms to write each in, its share of the corpus.

    ``taught`` are values that always go to training, because little else teaches them: a name by itself, the singular.
    """

    name: str
    share: int
    values: Values
    forms: Sequence[Form]
    taught: Callable[[Value], bool] = _never


def _write(category: _Category, locales: tuple[Locale, Locale], rng: random.Random, count: int) -> Iterator[_Phrase]:
    """Up to ``count`` training phrases of new values, and the held-out ones met on the way."""
    seen = set()
    for value in islice(category.values(rng), 4 * count):  # bounded, where every value has come up
        if count <= 0:
            return
        if value in seen:
            continue
        seen.add(value)
        split = "train" if category.taught(value) else _split(category.name, value)
        for source, target in _translations(category.forms, value, *locales):
            yield _Phrase(source, target, category.name, split)
            count -= split == "train"


def _translations(forms: Iterable[Form], value: Value, source: Locale, target: Locale) -> Iterator[Pair]:
    """The value in each form that both locales have; of forms that look the same in the source, the first."""
    seen = set()
    for form in forms:
        try:
            text, translation = form(value, source).translate(_TYPED), form(value, target)
        except (KeyError, ValueError):
            continue
        if text not in seen:
            seen.add(text)
            yield text, translation


def _split(category: str, value: Value) -> str:
    """Which split a combination belongs to; a permutation of it (names in a list) belongs to the same."""
    parts = [category, *sorted(map(str, value))]
    bucket = int.from_bytes(hashlib.blake2b("\n".join(parts).encode(), digest_size=8).digest()) % 100
    return "test" if bucket < _HELD_OUT_PERCENT else "valid" if bucket < 2 * _HELD_OUT_PERCENT else "train"


def _locale(name: str) -> Locale:
    try:
        return Locale.parse(name.replace("-", "_"))
    except (UnknownLocaleError, ValueError, TypeError):
        hint = did_you_mean(name.replace("-", "_"), localedata.locale_identifiers())
        raise ConfigError(f"unknown language '{name}'{hint}; expected a CLDR locale such as en, fr or pt_BR") from None


def _categories(source: Locale, target: Locale) -> list[_Category]:
    """Everything there is to say in both languages; shares are rough parts of a hundred."""

    def distinct(choices: Iterable[Value], forms: Sequence[Form], probes: Sequence[Value] = _COUNTS) -> list[Value]:
        """The choices that can be told apart in the source, with any of ``probes`` behind them."""
        kept, seen = [], set[str]()
        for choice in choices:
            pairs = (pair for probe in probes for pair in _translations(forms, (*choice, *probe), source, target))
            texts = {text for text, _ in pairs}
            if texts and seen.isdisjoint(texts):
                kept.append(choice)
                seen |= texts
        return kept

    names = distinct(((kind, key) for kind, (keys, _) in _NAMES.items() for key in keys), [_name], probes=[()])
    currencies = distinct(((key,) for kind, key in names if kind == "currency"), _CURRENCY)
    units = distinct(((f"{sort}-{unit}",) for sort, units in _UNITS.items() for unit in units.split()), _UNIT)
    if not (names and currencies and units):
        raise ConfigError(f"CLDR has too few words in both {source} and {target} to make phrases of")
    return [
        _Category("name", 1, _shuffled(names), [_name], taught=_always),
        _Category("list", 20, _lists(names), [_list("standard"), _list("or")]),
        _Category("date", 12, _drawn(_draw_date), [_date("medium"), _date("long"), _date("full"), _skeleton("yMd")]),
        _Category("month", 2, _shuffled(product(_YEARS, range(1, 13), [1])), [_skeleton("yMMMM")]),
        _Category("quarter", 1, _shuffled(product(_YEARS, [1, 4, 7, 10], [1])), [_skeleton("yQQQQ")]),
        _Category("time", 8, _drawn(_draw_time), [_time]),
        _Category("datetime", 5, _drawn(_draw_datetime), [_datetime("medium"), _datetime("full")]),
        _Category("interval", 5, _drawn(_draw_interval), [_interval]),
        _Category(
            "relative", 4, _shuffled(product(_SECONDS, [*range(-99, 0), *range(1, 100)])), _RELATIVE, taught=_few
        ),
        _Category("duration", 5, _drawn(_draw_duration), [_duration("long"), _duration("short")]),
        _Category("number", 6, _drawn(lambda rng: (_number(rng, 5, 2),)), [_decimal]),
        _Category("percent", 3, _drawn(lambda rng: (_number(rng, 3, 1),)), [_percent]),
        _Category("compact", 4, _drawn(_draw_compact), [_compact("long"), _compact("short")]),
        _Category("currency", 10, _drawn(lambda rng: _draw_amount(rng, currencies)), _CURRENCY, taught=_few),
        _Category("unit", 10, _drawn(lambda rng: (*rng.choice(units), _number(rng, 3, 1))), _UNIT, taught=_few),
    ]


def _shuffled(values: Iterable[Value]) -> Values:
    """Each of finitely many values once."""
    every = list(values)
    return lambda rng: iter(rng.sample(every, len(every)))


def _drawn(draw: Callable[[random.Random], Value]) -> Values:
    """Values drawn without end."""
    return lambda rng: (draw(rng) for _ in repeat(None))


def _number(rng: random.Random, digits: int, places: int) -> Decimal:
    """A number with up to ``digits`` digits, each length as likely, and half the time up to ``places`` decimals."""
    whole = Decimal(int(10 ** rng.uniform(0, digits)))
    if not places or rng.random() < 0.5:
        return whole
    return whole + Decimal(rng.randint(1, 10**places - 1)).scaleb(-places).normalize()


# Names, and lists of them: a kind and keys, ("territory", "FR", "JP").


def _name(value: Value, locale: Locale) -> str:
    kind, key = value
    _, names = _NAMES[kind]
    return names(locale)[key]


def _lists(names: Sequence[Value]) -> Values:
    groups = {kind: [key for other, key in names if other == kind] for kind in _NAMES}

    def draw(rng: random.Random) -> Value:
        kind, _ = rng.choice(names)
        return (kind, *rng.sample(groups[kind], min(rng.choice((2, 3)), len(groups[kind]))))

    return _drawn(draw)


def _list(style: Literal["standard", "or"]) -> Form:
    return lambda value, locale: format_list([_name((value[0], key), locale) for key in value[1:]], style, locale)


# Dates (year, month, day), times (hour, minute, perhaps second), both in a row, and spans from one date to another.


def _draw_date(rng: random.Random) -> Value:
    day = date(_YEARS[0], 1, 1) + timedelta(days=rng.randrange(365 * len(_YEARS)))
    return day.year, day.month, day.day


def _draw_time(rng: random.Random) -> Value:
    return tuple(rng.randrange(count) for count in rng.choice(((24, 60), (24, 60, 60))))


def _draw_datetime(rng: random.Random) -> Value:
    return (*_draw_date(rng), rng.randrange(24), rng.randrange(60))


def _draw_interval(rng: random.Random) -> Value:
    """Two days of one year, at most thirty apart."""
    start = date(rng.choice(_YEARS), 1, 1) + timedelta(days=rng.randrange(335))
    end = start + timedelta(days=rng.randint(1, 30))
    return start.year, start.month, start.day, end.year, end.month, end.day


def _date(style: str) -> Form:
    return lambda value, locale: format_date(date(*value), style, locale)


def _skeleton(fields: str) -> Form:
    return lambda value, locale: format_date(date(*value), locale.datetime_skeletons[fields], locale)


def _time(value: Value, locale: Locale) -> str:
    return format_time(time(*value), "short" if len(value) == 2 else "medium", locale=locale)


def _datetime(style: Literal["medium", "full"]) -> Form:
    def write(value: Value, locale: Locale) -> str:
        pattern = str(get_datetime_format(style, locale=locale)).replace("'", "")
        return pattern.replace("{0}", _time(value[3:], locale)).replace("{1}", _date(style)(value[:3], locale))

    return write


def _interval(value: Value, locale: Locale) -> str:
    return format_interval(date(*value[:3]), date(*value[3:]), "yMMMd", locale=locale)


# Time from now ("day", -3), and durations ("hour", 2, "minute", 30).


def _relative(style: Literal["long", "short"]) -> Form:
    def write(value: Value, locale: Locale) -> str:
        unit, count = value
        delta = timedelta(seconds=count * _SECONDS[unit])
        return format_timedelta(delta, granularity=unit, threshold=inf, add_direction=True, format=style, locale=locale)

    return write


def _draw_duration(rng: random.Random) -> Value:
    large, large_most, small, small_most = rng.choice(_DURATIONS)
    return large, rng.randint(1, large_most), small, rng.randint(1, small_most)


def _duration(style: Literal["long", "short"]) -> Form:
    def write(value: Value, locale: Locale) -> str:
        large, large_count, small, small_count = value
        unit = _unit(style)
        parts = [unit((f"duration-{large}", large_count), locale), unit((f"duration-{small}", small_count), locale)]
        styles: tuple[Literal["unit", "unit-short", "standard"], ...] = ("unit", "unit-short", "standard")
        pairing = next(style for style in styles if "2" in locale.list_patterns.get(style, {}))
        return format_list(parts, pairing, locale)  # without a pattern for two, Babel repeats the second

    return write


# Numbers, measures ("length-meter", 1.5) and money ("EUR", 12.50).


def _draw_compact(rng: random.Random) -> Value:
    lead = rng.choice((Decimal(rng.randint(1, 999)), Decimal(rng.randint(11, 99)) / 10))
    return (int(lead * 10 ** rng.choice((3, 6, 9))),)


def _draw_amount(rng: random.Random, currencies: Sequence[Value]) -> Value:
    (code,) = rng.choice(currencies)
    return code, _number(rng, 3, get_currency_precision(code))


def _decimal(value: Value, locale: Locale) -> str:
    return format_decimal(value[0], locale=locale)


def _percent(value: Value, locale: Locale) -> str:
    return format_percent(value[0] / 100, locale=locale, decimal_quantization=False)


def _compact(style: Literal["short", "long"]) -> Form:
    def write(value: Value, locale: Locale) -> str:
        formats = locale.compact_decimal_formats
        length = style if style in formats else "short"  # as for units
        text = format_compact_decimal(value[0], format_type=length, locale=locale, fraction_digits=2)
        if not any(char.isalpha() for char in text):
            raise KeyError(style)  # too small to be shortened in this language
        return text

    return write


def _currency(style: Literal["standard", "name"]) -> Form:
    return lambda value, locale: format_currency(value[1], value[0], locale=locale, format_type=style)


def _unit(style: Literal["long", "short"]) -> Form:
    def write(value: Value, locale: Locale) -> str:
        unit, count = value
        for length in (style, "short"):  # where a language has no long form, CLDR lets the short one serve
            text = format_unit(count, unit, length, locale=locale)
            if unit not in text:  # which Babel writes for want of a form
                return text
        raise KeyError(unit)

    return write


_CURRENCY = (_currency("standard"), _currency("name"))
_RELATIVE = (_relative("long"), _relative("short"))
_UNIT = (_unit("long"), _unit("short"))
_COUNTS = ((1,), (2,), (5,), (12,))
