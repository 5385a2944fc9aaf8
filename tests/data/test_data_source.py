"""Streams of rows: what a file holds comes in order, and every fault in its place."""

import gzip
import itertools
import os
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regard.core.errors import DataError
from regard.data.source import (
    Fault,
    Place,
    Row,
    documents,
    file_names,
    grouped,
    lines,
    mapped,
    read_lines,
    regular,
    values,
    whole,
)

PLACES = [Place("a.txt", number) for number in range(1, 100)]
faulty = st.lists(st.integers(0, 5) | st.just("bad")).map(
    lambda found: [
        Fault(place, "bad") if value == "bad" else Row(place, value)
        for place, value in zip(PLACES, found, strict=False)
    ]
)


def test_names_and_what_can_be_read_again(tmp_path):
    one, two, pipe = tmp_path / "a,b.txt", tmp_path / "c.txt", tmp_path / "pipe"
    one.touch()
    two.touch()
    os.mkfifo(pipe)
    assert file_names(str(one)) == [str(one)]
    assert file_names(f"{two},{pipe}") == [str(two), str(pipe)]
    assert regular(str(one)) == [one]
    assert regular(f"{two},{two}") == [two, two]
    for name in (pipe, tmp_path / "none", "hub:a/b"):
        assert regular(f"{two},{name}") == []
    assert regular(None) == []


def faults(rows):
    return [row for row in rows if isinstance(row, Fault)]


@given(rows=faulty)
def test_parsing_keeps_places_and_faults(rows):
    def parse(value):
        if value == 3:
            raise ValueError("three")
        return value * 10

    parsed = list(mapped(parse, iter(rows)))
    assert [row.place for row in parsed] == [row.place for row in rows]
    for before, after in zip(rows, parsed, strict=True):
        if isinstance(before, Fault):
            assert after is before
        elif before.value == 3:
            assert after == Fault(before.place, "three")
        else:
            assert after == Row(before.place, before.value * 10)


@given(rows=faulty)
def test_what_raises_stops_where_what_reports_has_its_first_fault(rows):
    taken, stopped = [], None
    try:
        for value in values(iter(rows)):
            taken.append(value)
    except DataError as error:
        stopped = str(error)
    assert stopped == next((str(fault) for fault in faults(rows)), None)
    assert taken == [row.value for row in itertools.takewhile(lambda row: isinstance(row, Row), rows)]


@given(rows=faulty)
def test_groups_are_the_runs_without_faults(rows):
    groups = list(grouped(iter(rows)))
    assert faults(groups) == faults(rows)
    divided = itertools.groupby(rows, lambda row: isinstance(row, Row) and not row.value)
    runs = [list(run) for empty, run in divided if not empty]
    whole = [run for run in runs if not faults(run)]
    assert [row for row in groups if isinstance(row, Row)] == [
        Row(run[0].place, [row.value for row in run]) for run in whole
    ]


@pytest.mark.parametrize("compress", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_every_line_that_is_not_text_is_reported(tmp_path, compress):
    path = tmp_path / "a.txt"
    path.write_bytes(compress(b"\xef\xbb\xbfone\r\n\xff\n\nthree\xc3\nfour"))
    rows = list(lines(path))
    assert [row.place.number for row in rows] == [1, 2, 3, 4, 5]
    assert [row.value for row in rows if isinstance(row, Row)] == ["one", "", "four"]
    assert [str(fault) for fault in faults(rows)] == [
        f"{path}, line 2: not UTF-8 text (byte 0xff); convert the file to UTF-8",
        f"{path}, line 4: not UTF-8 text (byte 0xc3); convert the file to UTF-8",
    ]
    with pytest.raises(DataError, match="line 2"):
        read_lines(path)


def test_documents_are_divided_by_blank_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\n\na\nb \n \t\n\nc\n\n\xff\nlost\n\nd")
    rows = list(documents(path))
    assert [(row.place.number, row.value) for row in rows if isinstance(row, Row)] == [
        (3, "a\nb "),
        (7, "c"),
        (12, "d"),
    ]
    assert [row.place.number for row in faults(rows)] == [9]


def test_a_whole_file_is_one_row_unless_it_has_faults(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\r\n\nb\n")
    assert list(whole(path)) == [Row(Place(str(path), 1), "a\n\nb")]
    path.write_bytes(b"a\n\xff\nb\n\xff")
    assert [row.place.number for row in faults(whole(path))] == [2, 4]
    assert not any(isinstance(row, Row) for row in whole(path))


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_a_file_is_never_held_whole(tmp_path, packed):
    path = tmp_path / "large.txt"
    with gzip.open(path, "wb", compresslevel=1) if packed else path.open("wb") as file:
        for _ in range(50):
            file.write(b"%0999d\n" % 0 * 100)  # 5 MB in all
    tracemalloc.start()
    try:
        assert sum(1 for _ in lines(path)) == 5000
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
