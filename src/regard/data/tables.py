"""Tables as rows by column name: CSV, TSV, JSONL, Parquet, and the Hugging Face hub's data sets."""

import csv
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from gzip import GzipFile
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from regard.core.errors import DataError, MissingExtra, nearest
from regard.data.source import Fault, Place, Row, Rows, lines, mapped, unzipped

HUB = "hub:"

_FORMS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".parquet": "parquet"}
_BATCH = 1024


def table(spec: str | Path, columns: Sequence[str]) -> Rows[dict[str, Any]]:
    """The rows of a table, in order, each by the names of its columns.

    Args:
        spec: one of

            - ``train.csv``: commas between cells, a header, quotes around cells that need them (RFC 4180);
            - ``train.jsonl`` or ``train.ndjson``: an object a line;
            - ``train.parquet``, which needs the ``parquet`` extra;
            - ``hub:NAME`` or ``hub:NAME:SPLIT`` (``train`` unless named), which needs the ``datasets`` extra;
            - any other file: tabs between the cells; nothing is quoted or escaped.

            Files may be gzipped, and have names that end in ``.gz`` then.
        columns: the names of the last form's columns, in order; a first line that has them all among its cells is a
            header, and goes before them.

    Raises:
        DataError: the file is missing, unreadable, damaged, or without rows.
        MissingExtra: what reads this form is not installed.
    """
    rows = _read(str(spec), columns)
    first = next(rows, None)
    if first is None:
        raise DataError(f"{spec}: there are no rows")
    yield first
    yield from rows


def form(spec: str) -> str:
    """How :func:`table` reads a file: ``hub``, ``jsonl``, ``csv``, ``parquet``, or ``tsv``, which is any other text."""
    suffix = Path(spec.lower().removesuffix(".gz")).suffix
    return "hub" if spec.startswith(HUB) else _FORMS.get(suffix, "tsv")


def text(row: Mapping[str, Any], column: str) -> str:
    """What a row holds in a column. Raises ValueError, with the nearest name, for none, and where that is not text."""
    if column not in row:
        close = nearest(column, row)
        rename = f"; rename '{close[0]}' to '{column}'" if close else ""
        raise ValueError(f"missing key '{column}'; found {', '.join(row) or 'no keys'}{rename}")
    value = row[column]
    if not isinstance(value, str):
        raise ValueError(f"'{column}' should be text, found {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"'{column}' holds half of a surrogate pair (an escape such as \\ud800), which is not text"
        ) from None
    return value


def json_object(value: Any) -> dict[str, Any]:
    """The value, where it is a JSON object. Raises ValueError for any other."""
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {type(value).__name__}")
    return value


def _read(spec: str, columns: Sequence[str]) -> Rows[dict[str, Any]]:
    readers: dict[str, Callable[[str], Rows[dict[str, Any]]]] = {
        "hub": _hub, "jsonl": _jsonl, "csv": _csv, "parquet": _parquet, "tsv": partial(_tsv, columns),
    }  # fmt: skip
    return readers[form(spec)](spec)


def _jsonl(path: str) -> Rows[dict[str, Any]]:
    return mapped(_parse_json, lines(path))


def _tsv(columns: Sequence[str], path: str) -> Rows[dict[str, str]]:
    rows = lines(path)
    first = next(rows)  # there is one, or an error
    cells = first.value.split("\t") if isinstance(first, Row) else []
    if set(columns) <= set(cells):
        yield from mapped(partial(_parse_cells, cells), rows)
    else:
        yield from mapped(partial(_parse_cells, columns), chain([first], rows))


def _parse_cells(names: Sequence[str], line: str) -> dict[str, str]:
    cells = line.split("\t")
    if len(cells) != len(names):
        hint = "; a file of JSON objects has a name that ends in .jsonl" if line.startswith("{") else ""
        raise ValueError(f"expected {len(names)} columns ({'<TAB>'.join(names)}), found {len(cells)}{hint}")
    return dict(zip(names, cells, strict=True))


def _parse_json(line: str) -> dict[str, Any]:
    try:
        return json_object(json.loads(line))
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("not readable as JSON (nested too deep)") from None


_CSV_ERRORS = {
    "unexpected end of data": "a quote opens in this row that nothing closes",
    "field larger than field limit": (
        "a cell of more than 131,072 characters; close its quote, or keep texts this long as JSONL or Parquet"
    ),
}


class _Lines:
    """Lines as the csv module takes them; at a fault it raises, and goes on with the next line afterwards."""

    def __init__(self, rows: Rows[str]) -> None:
        self.rows = rows
        self.number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        row = next(self.rows)
        self.number = row.place.number
        if isinstance(row, Fault):
            raise _Unreadable(row.message)
        return row.value + "\n"


class _Unreadable(Exception):
    """A line that is no text; the message says why."""


def _csv(path: str) -> Rows[dict[str, str]]:
    records = _records(path)
    header = next(records)  # there is one, or an error
    if isinstance(header, Fault):
        raise DataError(str(header))
    names = header.value
    if twice := [name for name in names if names.count(name) > 1]:
        raise DataError(f"{path}: two columns are called '{twice[0]}'")
    yield from mapped(partial(_parse_record, names), records)


def _records(path: str) -> Rows[list[str]]:
    source = _Lines(lines(path))
    reader = csv.reader(source, strict=True)
    while True:
        place = Place(path, source.number + 1)
        try:
            yield Row(place, next(reader))
        except StopIteration:
            return
        except _Unreadable as error:
            yield Fault(Place(path, source.number), str(error))
        except csv.Error as error:
            yield Fault(place, _CSV_ERRORS.get(str(error).partition(" (")[0], f"not readable as CSV ({error})"))


def _parse_record(names: Sequence[str], cells: list[str]) -> dict[str, str]:
    if len(cells) != len(names):
        raise ValueError(f"expected {len(names)} columns ({', '.join(names)}), found {len(cells)}")
    return dict(zip(names, cells, strict=True))


def _parquet(path: str) -> Rows[dict[str, Any]]:
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise MissingExtra(f"{path}: reading Parquet", "parquet") from None
    with unzipped(path) as stream, TemporaryFile() as seekable:
        if isinstance(stream.raw, GzipFile):  # Parquet is read from its end
            shutil.copyfileobj(stream, seekable)
        try:
            file = ParquetFile(seekable if seekable.tell() else stream)
            rows = (row for batch in file.iter_batches(_BATCH) for row in batch.to_pylist())
            for number, row in enumerate(rows, start=1):
                yield Row(Place(path, number, "row"), row)
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path}: not readable as Parquet ({_headline(error)})") from None


def _hub(spec: str) -> Rows[dict[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError:
        raise MissingExtra(f"{spec}: reading the hub's data sets", "datasets") from None
    name, _, split = spec.removeprefix(HUB).partition(":")
    try:
        for number, row in enumerate(load_dataset(name, split=split or "train", streaming=True), start=1):
            yield Row(Place(spec, number, "row"), row)
    except Exception as error:  # the library raises no narrower type
        raise DataError(f"{spec}: {_headline(error)}") from None


def _headline(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
