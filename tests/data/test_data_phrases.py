"""The phrase corpus: held out for good, made of taught words, unambiguous, and right where we can tell."""

import re
from functools import cache

import pytest
from babel import Locale
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.core.errors import ConfigError
from regard.data import phrases as module
from regard.data.phrases import phrases

PAIRS = [("en", "fr"), ("en", "de"), ("zh", "en"), ("ar", "fr"), ("ru", "ja"), ("cy", "pt_BR")]
SIZE = 4000
INVISIBLE = re.compile("[\u00a0\u2007\u2009\u202f\u061c\u200e\u200f]")


@cache
def corpus(source="en", target="fr", seed=0, size=SIZE):
    return phrases(source, target, seed=seed, size=size)


def sources(pairs):
    return {source for source, _ in pairs}


@pytest.mark.parametrize("languages", PAIRS, ids="-".join)
def test_a_source_stands_once_and_in_one_split(languages):
    made = corpus(*languages)
    everything = [source for split in (made.train, made.valid, made.test) for source, _ in split]
    assert len(everything) == len(set(everything))
    assert set(made.categories) == set(everything)
    assert len(made.train) > 0.9 * SIZE
    assert len(made.valid) == len(made.test) == SIZE // 40
    assert set(made.categories.values()) == set(made.samples())
    assert all(source.strip() == source != "" for source in everything)


@pytest.mark.parametrize("languages", PAIRS[:4], ids="-".join)
def test_held_out_combinations_are_in_no_training_set_of_any_seed_or_size(languages):
    held_out = sources(corpus(*languages).test) | sources(corpus(*languages).valid)
    for seed, size in ((1, SIZE), (2, 2 * SIZE)):
        other = corpus(*languages, seed=seed, size=size)
        assert sources(other.train) != sources(corpus(*languages).train)
        assert not held_out & sources(other.train)
        assert not sources(corpus(*languages).test) & sources(other.valid)


def test_the_names_of_a_held_out_list_are_taught_in_other_company():
    made = corpus()
    cut = re.compile(r", and |, or | and | or |, ")

    def lists(pairs):
        return {frozenset(cut.split(source)) for source, _ in pairs if made.categories[source] == "list"}

    held_out = lists(made.test) | lists(made.valid)
    assert len(held_out) > 20
    assert not held_out & lists(made.train)


@pytest.mark.parametrize("languages", PAIRS, ids="-".join)
def test_held_out_phrases_are_made_of_taught_words(languages):
    made = corpus(*languages)
    taught = {word for pair in made.train for text in pair for word in re.findall(r"[^\W\d]+", text)}
    spaced = [language for language in languages if language[:2] in ("en", "fr", "de", "ru", "cy", "pt")]
    for side, language in enumerate(languages):
        if language in spaced:
            for pair in made.test:
                assert taught.issuperset(re.findall(r"[^\W\d]+", pair[side]))


def test_the_same_arguments_give_the_same_corpus():
    assert phrases("en", "fr", size=SIZE) == corpus()
    assert phrases("en", "fr", seed=1, size=SIZE) != corpus()


@pytest.mark.parametrize("languages", PAIRS, ids="-".join)
def test_sources_can_be_typed(languages):
    assert not [source for source, _ in corpus(*languages).train if INVISIBLE.search(source)]


def test_targets_keep_their_typography():
    made = corpus()
    targets = dict(made.train)
    numbers = [targets[source] for source in targets if made.categories[source] == "number" and len(source) > 7]
    assert any("\u202f" in target for target in numbers)


@pytest.mark.parametrize("languages", PAIRS, ids="-".join)
def test_nothing_of_babels_inside_shows(languages):
    made = corpus(*languages)
    for pair in made.train:
        for text in pair:
            assert not re.search(
                r"\b(length|mass|volume|duration|digital|speed|energy)-[a-z]|[{}\[\]¤]|\bM\d\d\b", text
            )


FRENCH = [
    ("date", (2021, 3, 5), 2, "Friday, March 5, 2021", "vendredi 5 mars 2021"),
    ("date", (2021, 3, 5), 3, "3/5/2021", "05/03/2021"),
    ("time", (15, 4), 0, "3:04 PM", "15:04"),
    ("datetime", (2021, 3, 5, 0, 7), 0, "Mar 5, 2021, 12:07 AM", "5 mars 2021, 00:07"),
    ("interval", (2021, 3, 5, 2021, 3, 9), 0, "Mar 5 \u2013 9, 2021", "5\u20139 mars 2021"),
    ("relative", ("day", -3), 0, "3 days ago", "il y a 3 jours"),
    ("relative", ("month", 1), 0, "in 1 month", "dans 1 mois"),
    ("duration", ("hour", 2, "minute", 30), 0, "2 hours, 30 minutes", "2\u00a0heures et 30 minutes"),
    ("quarter", (2021, 7, 1), 0, "3rd quarter 2021", "3e trimestre 2021"),
    ("list", ("territory", "JP", "FR", "BE"), 1, "Japan, France, or Belgium", "Japon, France ou Belgique"),
]


@pytest.mark.parametrize(("category", "value", "form", "source", "target"), FRENCH)
def test_known_phrases(category, value, form, source, target):
    english, french = Locale.parse("en"), Locale.parse("fr")
    forms = {each.name: each.forms for each in module._categories(english, french)}[category]
    assert list(module._translations(forms[form : form + 1], value, english, french)) == [(source, target)]


def test_two_units_in_arabic_are_two():
    arabic = [source for source, _ in corpus("ar", "fr").train if corpus("ar", "fr").categories[source] == "duration"]
    assert arabic
    for source in arabic:
        assert len(re.findall(r"\d+", source)) <= 2


@settings(max_examples=50, deadline=None)
@given(st.permutations([("territory", "FR", "JP", "BE"), (2021, 3, 5), ("EUR", 12)]), st.randoms())
def test_the_split_ignores_order(values, random):
    for value in values:
        mixed = list(value)
        random.shuffle(mixed)
        assert module._split("x", tuple(mixed)) == module._split("x", value)


def test_about_one_in_twelve_combinations_is_held_out():
    splits = [module._split("date", (year, 1, day)) for year in range(1900, 2100) for day in range(1, 29)]
    for split in ("valid", "test"):
        assert 0.03 < splits.count(split) / len(splits) < 0.05


def test_a_language_may_be_spelled_either_way():
    assert phrases("en", "pt-BR", size=400) == phrases("en", "pt_BR", size=400)


@pytest.mark.parametrize(
    ("languages", "says"),
    [
        (("en", "frr_XX"), "unknown language 'frr_XX'"),
        (("en", "ptt-BR"), "did you mean 'pt_BR'?"),
        (("", "fr"), "unknown language ''"),
        (("fr", "fr"), "both 'fr'"),
        (("en", "aa"), "too few words"),
    ],
)
def test_what_cannot_be_made_is_said_in_a_line(languages, says):
    with pytest.raises(ConfigError) as caught:
        phrases(*languages)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
