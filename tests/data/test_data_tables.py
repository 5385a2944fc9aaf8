"""Tables: each form against the writer that the rest of the world uses, and every malformed row with its number."""

import csv
import gzip
import io
import json
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regard.core.errors import DataError, MissingExtra
from regard.data.source import Fault, Place, Row, mapped, values
from regard.data.tables import form, table, text

cell = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=8)
quoted = st.text(st.sampled_from('a",\n é\u2028'), max_size=6)


def write(path, data):
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return str(path)


def commas(rows):
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.JSONL", "jsonl"), ("a.ndjson.gz", "jsonl"), ("a.csv", "csv"), ("b/a.v1.parquet", "parquet"),
        ("a.tsv", "tsv"), ("a.txt.gz", "tsv"), ("csv", "tsv"), ("a.b/c", "tsv"), ("hub:a/b.csv:test", "hub"),
    ],
)  # fmt: skip
def test_a_name_says_the_form(name, expected):
    assert form(name) == expected


@given(rows=st.lists(st.tuples(quoted, quoted), min_size=1))
def test_csv_gives_back_what_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    assert list(values(table(write(path, commas([("one", "two"), *rows])), ()))) == [
        {"one": one, "two": two} for one, two in rows
    ]


@given(rows=st.lists(st.dictionaries(cell, cell | st.integers() | st.none() | st.lists(cell)), min_size=1))
def test_jsonl_gives_back_what_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl.gz"
    data = gzip.compress("\n".join(map(json.dumps, rows)).encode())
    assert list(values(table(write(path, data), ()))) == rows


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_parquet_gives_back_what_was_written(tmp_path, compress):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"source": f"a {i}", "translation": {"en": "x", "de": None}, "n": i} for i in range(3000)]
    stream = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows), stream, row_group_size=700)
    path = write(tmp_path / "a.parquet", compress(stream.getvalue()))
    found = list(table(path, ()))
    assert [row.value for row in found] == rows
    assert str(found[2000].place) == f"{path}, row 2001"
    with pytest.raises(DataError, match="not readable as Parquet"):
        list(table(write(tmp_path / "b.parquet", stream.getvalue()[:-9]), ()))
    with pytest.raises(DataError, match="not readable as Parquet"):
        list(table(write(tmp_path / "c.parquet", "a\tb\n"), ()))


def test_a_tsv_with_the_columns_named_has_them_in_any_order(tmp_path):
    named = write(tmp_path / "a.tsv", 'id\ttext\tlabel\n1\t"hi\t0\n2\tho\t1\n')
    assert next(table(named, ("label", "text"))).value == {"id": "1", "text": '"hi', "label": "0"}
    bare = write(tmp_path / "b.tsv", '0\t"hi\n1\tho\n')
    assert list(table(bare, ("label", "text")))[1].value == {"label": "1", "text": "ho"}
    assert "expected 3 columns (id<TAB>text<TAB>label), found 2" in str(
        next(row for row in table(write(tmp_path / "c.tsv", "id\ttext\tlabel\na\tb\n"), ("text",)))
    )


@pytest.mark.parametrize(
    ("data", "good", "numbers", "says"),
    [
        ("a,b\n1,2\n3\n4,5\n", [2, 4], [3], "expected 2 columns (a, b), found 1"),
        ("a,b\n1,2\n\n4,5\n", [2, 4], [3], "found 0"),
        ('a,b\n1,"2\n3"\n4,5,6\n', [2], [4], "found 3"),
        ('a,b\n1,"2"x\n4,5\n', [3], [2], "not readable as CSV"),
        ('a,b\n1,2\n"3,4\n5,6\n', [2], [3], "a quote opens in this row that nothing closes"),
        (b"a,b\n1,\xff\n4,5\n", [3], [2], "not UTF-8"),
        ('a,b\n1,"' + "x" * 200_000 + '"\n4,5\n', [3], [2], "more than 131,072 characters"),
    ],
)
def test_what_is_malformed_in_a_csv_is_reported_where_it_begins(tmp_path, data, good, numbers, says):
    rows = list(table(write(tmp_path / "a.csv", data), ()))
    assert [row.place.number for row in rows if isinstance(row, Row)] == good
    faults = [row for row in rows if isinstance(row, Fault)]
    assert [fault.place.number for fault in faults] == numbers
    assert says in faults[0].message


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("a.csv", "a,b,a\n1,2,3\n", "two columns are called 'a'"),
        ("a.csv", b"\xff,b\n1,2\n", "line 1: not UTF-8"),
        ("a.csv", "a,b\n", "there are no rows"),
        ("a.tsv", "text\tlabel\n", "there are no rows"),
        ("a.jsonl", "", "the file is empty"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_error(tmp_path, name, data, says):
    with pytest.raises(DataError, match=says):
        list(table(write(tmp_path / name, data), ("text", "label")))


def test_a_column_is_picked_by_its_name(tmp_path):
    path = write(tmp_path / "a.csv", "txt,label\nhi,0\n")
    (fault,) = mapped(lambda row: text(row, "text"), table(path, ()))
    assert str(fault) == f"{path}, line 2: missing key 'text'; found txt, label; rename 'txt' to 'text'"
    for wrong, says in (3, "found int"), (None, "found NoneType"), ("\ud800", "surrogate"):
        with pytest.raises(ValueError, match=says):
            text({"text": wrong}, "text")


@pytest.mark.parametrize(("spec", "split"), [("hub:a/b", "train"), ("hub:a/b:test", "test")])
def test_the_hub_is_asked_for_the_split(spec, split, monkeypatch):
    def load_dataset(name, *, split, streaming):
        assert streaming
        yield {"text": f"{split} of {name}"}
        raise ConnectionError("offline\nfor long")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    rows = table(spec, ())
    assert next(rows) == Row(Place(spec, 1, "row"), {"text": f"{split} of a/b"})
    with pytest.raises(DataError, match=f"^{spec}: offline$"):
        next(rows)


def test_a_form_whose_extra_is_not_installed_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"hub:imdb:test.*pip install 'regard\[datasets\]'"):
        list(table("hub:imdb:test", ()))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"regard\[parquet\]"):
        list(table(write(tmp_path / "a.parquet", "PAR1"), ()))
