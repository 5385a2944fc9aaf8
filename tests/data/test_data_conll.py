"""Tagged sentences: what was written comes back, whatever stands around it."""

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regard.data.conll import Sentence, sentences
from regard.data.source import Fault, Row, values

WIKIANN = Path(__file__).parents[3] / "shared/data/wikiann-en/train.conll.gz"

word = st.text(st.characters(categories=["L", "N", "P", "S"]), min_size=1, max_size=4).filter(
    lambda text: not text.startswith("-DOCSTART-")
)
tagged = st.lists(st.lists(st.tuples(word, st.sampled_from(["O", "B-PER"])), min_size=1), min_size=1)


def write(path, data):
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


@given(found=tagged, columns=st.sampled_from([2, 4]), divider=st.sampled_from("\t "), more=st.booleans())
def test_sentences_come_back(tmp_path_factory, found, columns, divider, more):
    middle = ["NN"] * (columns - 2)
    blocks = ["".join(divider.join([token, *middle, tag]) + "\n" for token, tag in sentence) for sentence in found]
    start, first = (divider.join([token, *middle, "O"]) + "\n\n" for token in ("-DOCSTART-", "first"))
    data = start + first + "\n# id = 7 of a set\n".join(blocks) + "\n" * more
    path = write(tmp_path_factory.mktemp("conll") / "a.conll", gzip.compress(data.encode()))
    expected = [Sentence(*zip(*sentence, strict=True)) for sentence in found]
    assert list(values(sentences(path))) == [Sentence(("first",), ("O",)), *expected]


def test_a_word_that_is_a_hash_is_no_comment(tmp_path):
    spaced = write(
        tmp_path / "a", "# a comment\n# another one here\nNo. O\n# O\n1 O\n\n# O\n\n# sent_id = 3\n# O\nx O\n"
    )
    assert [row.value.words for row in sentences(spaced)] == [("No.", "#", "1"), ("#",), ("#", "x")]
    tabbed = write(tmp_path / "b", "#\tO\n\n# text\n#\tO\nx\tO\n")
    assert [row.value.words for row in sentences(tabbed)] == [("#",), ("#", "x")]


def test_every_malformed_line_is_reported_and_its_sentence_left_out(tmp_path):
    data = b"a\tX\tO\nb\tX\tO\n\nc\tO\nd\tX\tO\ne\tX\tY\tO\n\n\tX\tO\n\nf\tX\t\n\n\xff\tX\tO\n\n\ng\tX\tO\n"
    rows = list(sentences(write(tmp_path / "a", data)))
    assert [(row.place.number, row.value) for row in rows if isinstance(row, Row)] == [
        (1, Sentence(("a", "b"), ("O", "O"))),
        (15, Sentence(("g",), ("O",))),
    ]
    says = ["found 2", "found 4", "the word is empty", "the tag is empty", "not UTF-8"]
    faults = [row for row in rows if isinstance(row, Fault)]
    assert [fault.place.number for fault in faults] == [4, 6, 8, 10, 12]
    assert all(text in fault.message for text, fault in zip(says, faults, strict=True))
    (fault,) = sentences(write(tmp_path / "b", "word\n"))
    assert fault.message == "expected 2 columns, the first a word and the last its tag; found 1"


@pytest.mark.skipif(not WIKIANN.exists(), reason="the WikiANN files are not beside this checkout")
def test_wikiann_is_read_whole():
    found = list(values(sentences(WIKIANN)))
    assert len(found) == 20_000
    assert {tag for sentence in found for tag in sentence.tags} == {
        "O", *(f"{place}-{kind}" for place in "BI" for kind in ("PER", "ORG", "LOC")),
    }  # fmt: skip
