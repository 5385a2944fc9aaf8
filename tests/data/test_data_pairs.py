"""Parallel text: every supported form gives the same pairs, and every fault its one clear line."""

import csv
import gzip
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regard.core.errors import DataError
from regard.data.pairs import pairs, read_pairs
from regard.data.source import Fault, read_lines

PAIRS = [("A dog.", "Ein Hund."), ('He said "hi"', "Er sagte „hallo“"), ("snow ☃", "Schnee \u2028 ☃")]
MULTI30K = Path(__file__).parents[3] / "shared/data/multi30k-en-de/train.tsv.gz"


def tsv(pairs):
    return "".join(f"{source}\t{target}\n" for source, target in pairs).encode()


def write(path, data):
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


def fault(spec, read=read_pairs):
    with pytest.raises(DataError) as caught:
        read(spec)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["", "bom"])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("last", [True, False], ids=["", "no-final-newline"])
def test_every_form_gives_the_same_pairs(tmp_path, compress, bom, ending, last):
    def store(name, text):
        data = bom + text.replace(b"\n", ending)
        return write(tmp_path / name, compress(data if last else data.removesuffix(ending)))

    def commas(rows):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows)
        return text.getvalue().encode()

    assert read_pairs(store("a.csv", commas([("source", "target"), *PAIRS]))) == PAIRS
    assert read_pairs(store("b.csv.gz", commas([(0, "target", "source"), *((1, b, a) for a, b in PAIRS)]))) == PAIRS
    assert read_pairs(store("b.tsv", tsv([("target", "source"), *((b, a) for a, b in PAIRS)]))) == PAIRS
    rows = [{"source": source, "target": target} for source, target in PAIRS]
    nested = [{"translation": {"en": source, "de": target}} for source, target in PAIRS]
    assert read_pairs(store("a.tsv", tsv(PAIRS))) == PAIRS
    for name, objects in (("a.jsonl", rows), ("b.jsonl.gz", nested), ("c.ndjson", rows)):
        stored = store(name, "".join(json.dumps(row) + "\n" for row in objects).encode())
        assert read_pairs(stored, ("en", "de")) == PAIRS
    one = store("x.en", "".join(f"{source}\n" for source, _ in PAIRS).encode())
    two = store("x.de", "".join(f"{target}\n" for _, target in PAIRS).encode())
    assert read_pairs(f"{one},{two}") == PAIRS
    assert read_lines(two) == [target for _, target in PAIRS]


text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r")).filter(str.strip)


@given(st.lists(st.tuples(text, text), min_size=1).filter(lambda pairs: not pairs[0][0].startswith("\ufeff")))
def test_text_is_read_as_it_was_written(tmp_path_factory, pairs):
    folder = tmp_path_factory.mktemp("pairs")
    assert read_pairs(write(folder / "a.tsv", tsv(pairs))) == pairs
    rows = (json.dumps({"source": source, "target": target}, ensure_ascii=False) for source, target in pairs)
    assert read_pairs(write(folder / "a.jsonl", "\n".join(rows))) == pairs


def test_a_comma_in_an_existing_name_is_part_of_the_name(tmp_path):
    assert read_pairs(write(tmp_path / "a,b.tsv", tsv(PAIRS))) == PAIRS


def test_plain_lines_keep_the_empty_ones(tmp_path):
    assert read_lines(write(tmp_path / "a.txt", "one\n\nthree\n")) == ["one", "", "three"]


def test_translations_go_the_way_that_is_asked_for(tmp_path):
    lines = ['{"translation": {"en": "a", "fr": "b"}}', '{"translation": {"fr": "d", "en": "c"}}']
    path = write(tmp_path / "A.JSONL", "\n".join(lines))
    assert read_pairs(path, ("en", "fr")) == [("a", "b"), ("c", "d")]
    assert read_pairs(path, ("fr", "en")) == [("b", "a"), ("d", "c")]
    message = fault(path, lambda spec: read_pairs(spec, ("en", "de")))
    assert "line 1: a translation between en and fr, without 'de': name them as data.source and data.target" in message


def test_a_missing_file_is_named_with_its_nearest_neighbour(tmp_path):
    write(tmp_path / "train.tsv", tsv(PAIRS))
    message = fault(str(tmp_path / "trian.tsv"))
    assert "trian.tsv: no such file" in message
    assert "'train.tsv'" in message
    assert "there is no folder" in fault(str(tmp_path / "nowhere" / "train.tsv"))
    assert "is a folder" in fault(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "data", "line", "says"),
    [
        ("a.tsv", b"a\tb\nc\n", 2, "expected 2 columns (source<TAB>target), found 1"),
        ("a.tsv", b"a\tb\nc\td\te\n", 2, "found 3"),
        ("a.tsv", b"a\tb\n\nc\td\n", 2, "found 1"),
        ("a.tsv", b"a\tb\n\tc\n", 2, "the source is empty"),
        ("a.tsv", b"a\t \nb\tc\n", 1, "the target is empty"),
        ("a.tsv", b"a\tb\nc\td\ne\tf\xff\n", 3, "not UTF-8 text (byte 0xff)"),
        ("a.tsv", "a\tb\n".encode("utf-16"), 1, "not UTF-8"),
        ("a.jsonl", b'{"source": "a", "target": "b"}\n{"source": "a" "target"}\n', 2, "not valid JSON"),
        (
            "a.jsonl",
            b'{"source": "a", "traget": "b"}\n',
            1,
            "missing key 'target'; found source, traget; rename 'traget' to 'target'",
        ),
        ("a.jsonl", b'["a", "b"]\n', 1, "expected a JSON object, found list"),
        ("a.jsonl", b'{"source": "a", "target": 3}\n', 1, "'target' should be text, found int"),
        ("a.jsonl", b'{"source": "a", "target": ""}\n', 1, "the target is empty"),
        ("a.jsonl", b'{"source": "a", "target": "\\ud800"}\n', 1, "half of a surrogate pair"),
        ("a.jsonl", b'{"source": "a", "target": "b\\nc"}\n', 1, "'target' has a line break in it"),
        ("a.jsonl", b"[" * 200_000, 1, "nested too deep"),
        ("a.tsv", b'{"source": "a", "target": "b"}\n', 1, "has a name that ends in .jsonl"),
    ],
)
def test_a_fault_names_file_and_line(tmp_path, name, data, line, says):
    path = write(tmp_path / name, data)
    message = fault(path)
    assert message.startswith(f"{path}, line {line}: ")
    assert says in message


@pytest.mark.parametrize("data", [b"", gzip.compress(b""), b"\xef\xbb\xbf"], ids=["plain", "gzip", "bom"])
def test_an_empty_file_is_a_fault(tmp_path, data):
    path = write(tmp_path / "a.tsv", data)
    assert fault(path) == f"{path}: the file is empty"
    assert fault(path, read_lines) == f"{path}: the file is empty"


@given(st.data())
def test_damaged_gzip_is_a_fault(tmp_path_factory, data):
    whole = gzip.compress(tsv(PAIRS), mtime=0)
    path = tmp_path_factory.mktemp("gzip") / "a.tsv.gz"
    cut = data.draw(st.integers(2, len(whole) - 1))
    assert "cut off or damaged" in fault(write(path, whole[:cut]))
    checksum = len(whole) - 8
    assert "cut off or damaged" in fault(write(path, whole[:checksum] + bytes(8)))


def test_aligned_files_need_as_many_lines(tmp_path):
    one, two = write(tmp_path / "a.en", "a\nb\n"), write(tmp_path / "a.de", "a\nb\nc\n")
    message = fault(f"{one},{two}")
    assert f"{one} has 2 lines but {two} has 3" in message
    blank = write(tmp_path / "b.de", "a\n\n")
    assert f"{blank}, line 2: " in fault(f"{one},{blank}")
    assert "a.ed: no such file (did you mean 'a.en'?)" in fault(f"{tmp_path / 'a.ed'},{two}")
    assert "found 3" in fault(f"{one},{two},{two}")


def test_every_malformed_row_is_reported(tmp_path):
    path = write(tmp_path / "a.tsv", b"a\tb\nc\nd\te\n\xff\t\xff\n\tf\ng\th\n")
    rows = list(pairs(path))
    assert [row.place.number for row in rows if isinstance(row, Fault)] == [2, 4, 5]
    assert [row.value for row in rows if not isinstance(row, Fault)] == [("a", "b"), ("d", "e"), ("g", "h")]
    one, two = write(tmp_path / "a.en", b"a\n\nc\nd\n"), write(tmp_path / "a.de", b"\nb\n\xff\n")
    assert [str(row).removeprefix(str(tmp_path)) for row in pairs(f"{one},{two}")] == [
        "/a.de, line 1: the line is empty",
        "/a.en, line 2: the line is empty",
        "/a.de, line 3: not UTF-8 text (byte 0xff); convert the file to UTF-8",
        f"/a.en, line 4: {one} has 4 lines but {two} has 3: aligned files need as many lines each",
    ]


def test_a_cell_with_a_line_break_is_no_pair(tmp_path):
    path = write(tmp_path / "a.csv", 'source,target\n"a\nb",c\nd,e\n')
    assert fault(path) == f"{path}, line 2: 'source' has a line break in it; an example is one line"
    assert [row.value for row in pairs(path) if not isinstance(row, Fault)] == [("d", "e")]


@pytest.mark.skipif(not MULTI30K.exists(), reason="the Multi30k files are not beside this checkout")
def test_multi30k_is_read_whole():
    pairs = read_pairs(MULTI30K)
    assert len(pairs) == 29_000
    assert pairs[0][0] == "Two young, White males are outside near many bushes."
    assert pairs[0][1] == "Zwei junge weiße Männer sind im Freien in der Nähe vieler Büsche."
