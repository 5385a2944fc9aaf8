"""Parallel text: pairs of a source and a target, from a table or from two aligned files."""

from collections.abc import Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

from regard.core.errors import DataError
from regard.data.source import Fault, Row, Rows, lines, mapped, values
from regard.data.tables import json_object, table, text

Pair = tuple[str, str]

_COLUMNS = ("source", "target")


def pairs(spec: str | Path, languages: Pair = _COLUMNS) -> Rows[Pair]:
    """Parallel text as rows of (source, target), in file order; neither side is empty or has a line break.

    Args:
        spec: one of

            - ``train.en,train.de``: two aligned files, line for line;
            - a table (:func:`regard.data.tables.table`) with the columns ``source`` and ``target``, or with a column
              ``translation`` that holds ``{"en": ..., "de": ...}``; a TSV needs no header.
        languages: the keys of source and target in a ``translation``.

    Raises:
        DataError: a file that is missing, unreadable, damaged or empty.
        MissingExtra: what reads this form is not installed.
    """
    if "," in str(spec) and not Path(spec).exists():
        return _aligned(str(spec))
    return mapped(partial(_pair, languages), table(spec, _COLUMNS))


def read_pairs(spec: str | Path, languages: Pair = _COLUMNS) -> list[Pair]:
    """All :func:`pairs` of a file. Raises DataError, also at the first malformed row, naming the file and the line."""
    return list(values(pairs(spec, languages)))


def _aligned(spec: str) -> Rows[Pair]:
    names = spec.split(",")
    if len(names) != 2:
        raise DataError(f"{spec}: expected one file, or two aligned files with a comma between; found {len(names)}")
    sides = [mapped(_filled, lines(name)) for name in names]
    for count, (source, target) in enumerate(zip_longest(*sides)):
        if source is None or target is None:
            yield _unequal(names, count, source or target, sides)
            return
        faults = [row for row in (source, target) if isinstance(row, Fault)]
        yield from faults
        if isinstance(source, Row) and isinstance(target, Row):
            yield Row(source.place, (source.value, target.value))


def _unequal(names: Sequence[str], count: int, extra: Any, sides: Sequence[Rows[str]]) -> Fault:
    """The fault of two files of which one has only ``count`` lines, and the other ``extra`` and what is left."""
    longer = count + 1 + sum(1 for side in sides for _ in side)
    one, two = (longer if name == extra.place.path else count for name in names)
    return Fault(
        extra.place,
        f"{names[0]} has {one} lines but {names[1]} has {two}: aligned files need as many lines each",
    )


def _filled(line: str) -> str:
    if not line.strip():
        raise ValueError("the line is empty")
    return line


def _pair(languages: Pair, row: dict[str, Any]) -> Pair:
    source, target = _sides(languages, row)
    for side, value in zip(_COLUMNS, (source, target), strict=True):
        if not value.strip():
            raise ValueError(f"the {side} is empty")
        if "\n" in value:
            raise ValueError(f"'{side}' has a line break in it; an example is one line")
    return source, target


def _sides(languages: Pair, row: dict[str, Any]) -> Pair:
    if "translation" not in row or _COLUMNS[0] in row:
        return text(row, _COLUMNS[0]), text(row, _COLUMNS[1])
    row = json_object(row["translation"])
    if missing := [key for key in languages if key not in row]:
        raise ValueError(
            f"a translation between {' and '.join(row) or 'no languages'}, without '{missing[0]}': "
            "name them as data.source and data.target"
        )
    return text(row, languages[0]), text(row, languages[1])
