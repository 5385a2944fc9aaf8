"""Tagged sentences in the files of the CoNLL shared tasks."""

from pathlib import Path
from typing import NamedTuple

from regard.data.source import Fault, Row, Rows, grouped, lines, mapped

Columns = list[str]


class Sentence(NamedTuple):
    """Words, and as many tags."""

    words: tuple[str, ...]
    tags: tuple[str, ...]


def sentences(path: str | Path) -> Rows[Sentence]:
    """The tagged sentences of a file: a word a line, an empty line between sentences.

    The first column is the word, the last its tag, as in CoNLL-2003 (Tjong Kim Sang and De Meulder 2003). Columns are
    divided by tabs if the first word's line has one, else by spaces, and every line has as many as that one. Lines
    that begin with ``-DOCSTART-`` are left out, and so are comments: lines before a sentence's first word that begin
    with ``#`` and have another number of columns.

    Raises:
        DataError: the file is missing, unreadable, damaged or empty.
    """
    return mapped(_sentence, grouped(_words(lines(path))))


def _sentence(rows: list[Columns]) -> Sentence:
    return Sentence(tuple(row[0] for row in rows), tuple(row[-1] for row in rows))


def _words(rows: Rows[str]) -> Rows[Columns]:
    """Each word's columns, and an empty row for each end of a sentence."""
    divider, width, inside = "", 0, False
    for row in rows:
        if isinstance(row, Fault):
            yield row
            continue
        line = row.value
        if not line.strip() or line.startswith("-DOCSTART-"):
            inside = False
            yield Row(row.place, [])
            continue
        if not divider and ("\t" in line or not line.startswith("#")):
            divider = "\t" if "\t" in line else " "
            width = max(2, len(_split(line, divider)))
        columns = _split(line, divider)
        if line.startswith("#") and not inside and len(columns) != width:
            continue
        inside = True
        wrong = _wrong(columns, width)
        yield Fault(row.place, wrong) if wrong else Row(row.place, columns)


def _split(line: str, divider: str) -> Columns:
    return line.split("\t") if divider == "\t" else [cell for cell in line.split(" ") if cell]


def _wrong(columns: Columns, width: int) -> str:
    """What is wrong with a word's columns; nothing where nothing is."""
    if len(columns) != width:
        return f"expected {width} columns, the first a word and the last its tag; found {len(columns)}"
    if not columns[0].strip():
        return "the word is empty"
    return "" if columns[-1].strip() else "the tag is empty"
