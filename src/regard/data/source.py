"""Text from files: parallel pairs (TSV, JSONL, two aligned files) and plain lines; gzipped or not."""

import gzip
import json
import zlib
from collections.abc import Callable
from functools import partial
from io import BufferedReader
from pathlib import Path
from typing import Any

from regard.core.errors import DataError, did_you_mean

Pair = tuple[str, str]

_GZIP_MAGIC = b"\x1f\x8b"
_JSONL_SUFFIXES = (".jsonl", ".ndjson")
_KEYS = ("source", "target")


def read_pairs(spec: str | Path, languages: Pair = ("source", "target")) -> list[Pair]:
    """Read parallel text as (source, target) pairs, in file order.

    Text is UTF-8 (a byte order mark is dropped), one example a line, with either line ending. Gzip is known by its
    content, whatever the name.

    Args:
        spec: one of

            - ``train.jsonl`` or ``train.ndjson``: objects with the keys ``source`` and ``target``, or the form
              ``{"translation": {"en": ..., "de": ...}}``;
            - ``train.en,train.de``: two aligned files, line for line;
            - any other file: two columns with a tab between them; nothing is quoted or escaped.
        languages: the keys of source and target in a ``translation``.

    Raises:
        DataError: a file that is missing, unreadable, empty or malformed, naming the file and the line.
    """
    if "," in str(spec) and not Path(spec).exists():
        return _read_aligned(str(spec))
    path = Path(spec)
    name = path.name.lower().removesuffix(".gz")
    parse = partial(_parse_json, languages) if name.endswith(_JSONL_SUFFIXES) else _parse_columns
    return [_parse_line(parse, line, path, number) for number, line in enumerate(read_lines(path), start=1)]


def read_lines(path: str | Path) -> list[str]:
    """Read a text file's lines without their endings, empty lines included; same files as :func:`read_pairs`.

    Raises:
        DataError: the file is missing, unreadable, empty, or not UTF-8.
    """
    path = Path(path)
    data = _read_bytes(path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: not UTF-8 text (byte 0x{data[error.start]:02x}); convert the file to UTF-8"
        ) from None
    if not text:
        raise DataError(f"{path}: the file is empty")
    lines = text.split("\n")  # not splitlines(), which would also break at U+2028, form feeds and other characters
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


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


def _read_bytes(path: Path) -> bytes:
    with open_bytes(path) as file:
        try:
            data = file.read()
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    if not data.startswith(_GZIP_MAGIC):
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, OSError, zlib.error):
        raise DataError(f"{path}: the gzip data is cut off or damaged; copy or download the file again") from None


def _missing(path: Path) -> str:
    if not path.parent.is_dir():
        return f"{path}: no such file (there is no folder {path.parent})"
    return f"{path}: no such file{did_you_mean(path.name, (each.name for each in path.parent.iterdir()))}"


def _read_aligned(spec: str) -> list[Pair]:
    names = spec.split(",")
    if len(names) != 2:
        raise DataError(f"{spec}: expected one file, or two aligned files with a comma between; found {len(names)}")
    source_path, target_path = map(Path, names)
    sources, targets = read_lines(source_path), read_lines(target_path)
    if len(sources) != len(targets):
        raise DataError(
            f"{source_path} has {len(sources)} lines but {target_path} has {len(targets)}: "
            "aligned files need as many lines each"
        )
    for path, lines in ((source_path, sources), (target_path, targets)):
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                raise DataError(f"{path}, line {number}: the line is empty")
    return list(zip(sources, targets, strict=True))


def _parse_line(parse: Callable[[str], Pair], line: str, path: Path, number: int) -> Pair:
    try:
        pair = parse(line)
    except ValueError as error:
        raise DataError(f"{path}, line {number}: {error}") from None
    for side, text in zip(_KEYS, pair, strict=True):
        if not text.strip():
            raise DataError(f"{path}, line {number}: the {side} is empty")
    return pair


def _parse_columns(line: str) -> Pair:
    columns = line.split("\t")
    if len(columns) != 2:
        hint = "; a file of JSON objects has a name that ends in .jsonl" if line.startswith("{") else ""
        raise ValueError(f"expected 2 columns (source<TAB>target), found {len(columns)}{hint}")
    return columns[0], columns[1]


def _parse_json(languages: Pair, line: str) -> Pair:
    row = _object(_loads(line))
    if "translation" not in row or _KEYS[0] in row:
        return _string(row, _KEYS[0]), _string(row, _KEYS[1])
    row = _object(row["translation"])
    if missing := [key for key in languages if key not in row]:
        raise ValueError(
            f"a translation between {' and '.join(row) or 'no languages'}, without '{missing[0]}': "
            "name them as data.source and data.target"
        )
    return _string(row, languages[0]), _string(row, languages[1])


def _loads(line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not valid JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise ValueError("not readable as JSON (nested too deep)") from None


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, found {type(value).__name__}")
    return value


def _string(row: dict[str, Any], key: str) -> str:
    if key not in row:
        raise ValueError(f"missing key '{key}'{did_you_mean(key, row)}; found {', '.join(row) or 'no keys'}")
    value = row[key]
    if not isinstance(value, str):
        raise ValueError(f"'{key}' should be text, found {type(value).__name__}")
    if "\n" in value or "\r" in value:
        raise ValueError(f"'{key}' has a line break in it; an example is one line")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise ValueError(f"'{key}' holds half of a surrogate pair (an escape such as \\ud800), which is not text")
    return value
