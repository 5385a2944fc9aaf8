"""Files as streams of rows, each malformed row a fault in its place; gzipped or not, and larger than memory or not."""

import codecs
import gzip
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

from regard.core.errors import DataError, did_you_mean

S = TypeVar("S")
T = TypeVar("T")

_GZIP_MAGIC = b"\x1f\x8b"


class Place(NamedTuple):
    """Where in which file something stands; ``unit`` is what is counted, from 1, where it is not lines."""

    path: str
    number: int
    unit: str = "line"

    def __str__(self) -> str:
        return f"{self.path}, {self.unit} {self.number}"


class Row(NamedTuple, Generic[T]):
    """One example of a file, and where it begins."""

    place: Place
    value: T


@dataclass(frozen=True)
class Fault:
    """What is wrong with one row of a file; as text, the line that an error shows."""

    place: Place
    message: str

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


Rows = Iterator[Row[T] | Fault]
"""What every reader returns. What is wrong with the file as a whole, it raises as DataError."""


def values(rows: Rows[T]) -> Iterator[T]:
    """What the rows hold. Raises DataError at the first fault."""
    for row in rows:
        if isinstance(row, Fault):
            raise DataError(str(row))
        yield row.value


def mapped(parse: Callable[[S], T], rows: Rows[S]) -> Rows[T]:
    """The rows with ``parse`` applied to what they hold; a ValueError that it raises becomes a fault."""
    for row in rows:
        if isinstance(row, Fault):
            yield row
            continue
        try:
            value = parse(row.value)
        except ValueError as error:
            yield Fault(row.place, str(error))
        else:
            yield Row(row.place, value)


def grouped(rows: Rows[T]) -> Rows[list[T]]:
    """Runs of rows, divided by those that hold nothing; a run with a fault in it is left out, its faults are not."""
    run: list[Row[T]] = []
    whole = True
    for row in rows:
        if isinstance(row, Fault):
            yield row
            whole = False
        elif row.value:
            run.append(row)
        else:
            if run and whole:
                yield Row(run[0].place, [each.value for each in run])
            run, whole = [], True
    if run and whole:
        yield Row(run[0].place, [each.value for each in run])


def lines(path: str | Path) -> Rows[str]:
    """A text file's lines without their endings, empty lines included.

    Text is UTF-8 (a byte order mark is dropped), with either line ending. Gzip is known by its content, whatever the
    name. A line that is not UTF-8 is a fault.

    Raises:
        DataError: the file is missing, unreadable, damaged or empty.
    """
    number = 0
    with unzipped(path) as file:
        for number, line in enumerate(file, start=1):  # not splitlines(), which would also break at U+2028 and others
            place = Place(str(path), number)
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                bad = line[error.start]
                yield Fault(place, f"not UTF-8 text (byte 0x{bad:02x}); convert the file to UTF-8")
            else:
                yield Row(place, text.removesuffix("\n").removesuffix("\r"))
    if not number:
        raise DataError(f"{path}: the file is empty")


def documents(path: str | Path) -> Rows[str]:
    """A text file's documents, which blank lines divide; the lines of each joined by line breaks. As :func:`lines`."""
    text = mapped(lambda line: line if line.strip() else "", lines(path))
    return mapped("\n".join, grouped(text))


def whole(path: str | Path) -> Rows[str]:
    """A text file as one row, if it has no faults; its lines as :func:`lines` has them, joined by line breaks."""
    found: list[str] = []
    faults = False
    for row in lines(path):
        if isinstance(row, Fault):
            yield row
            faults = True
        else:
            found.append(row.value)
    if not faults:
        yield Row(Place(str(path), 1), "\n".join(found))


def read_lines(path: str | Path) -> list[str]:
    """All :func:`lines` of a file. Raises DataError, also at the first line that is not UTF-8."""
    return list(values(lines(path)))


def file_names(spec: str) -> list[str]:
    """The files that a name stands for: itself, where there is such a file, else those between its commas."""
    return [spec] if Path(spec).exists() else spec.split(",")


def regular(spec: str | None) -> list[Path]:
    """The files of a name, if all can be read again and again; none if one is missing, a pipe, or on the hub."""
    paths = [Path(name) for name in file_names(spec)] if spec else []
    return paths if all(path.is_file() for path in paths) else []


def open_bytes(path: Path) -> BufferedReader:
    """Open a file or pipe for reading. Raises DataError, with the nearest name where there is none of this one."""
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise DataError(_missing(path)) from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a folder, expected a file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


@contextmanager
def unzipped(path: str | Path) -> Iterator[BufferedReader]:
    """A file's bytes from after its byte order mark, gunzipped where they are gzip; only forward where they are.

    Raises:
        DataError: the file is missing or unreadable, or its gzip data damaged; also while it is read.
    """
    with open_bytes(Path(path)) as file:
        try:
            stream = _gunzipped(file) if file.peek(2).startswith(_GZIP_MAGIC) else file
            if stream.peek(3).startswith(codecs.BOM_UTF8):
                stream.read(3)
            yield stream
        except (EOFError, zlib.error, gzip.BadGzipFile):
            raise DataError(f"{path}: the gzip data is cut off or damaged; copy or download the file again") from None
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _gunzipped(file: BufferedReader) -> BufferedReader:
    unpacked: Any = gzip.GzipFile(fileobj=file)
    return BufferedReader(unpacked)


def _missing(path: Path) -> str:
    if not path.parent.is_dir():
        return f"{path}: no such file (there is no folder {path.parent})"
    return f"{path}: no such file{did_you_mean(path.name, (each.name for each in path.parent.iterdir()))}"
