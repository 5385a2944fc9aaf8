"""Text that comes in line by line, taken as soon as it comes."""

import io
from collections.abc import Iterator
from typing import BinaryIO

from regard.core.errors import DataError


def read_lines(stream: BinaryIO, name: str, most: int) -> Iterator[list[str]]:
    """Lines of ``stream``, in lists of up to ``most``: as many as have come, so that a slow writer is answered at once.

    Endings are dropped; empty lines are kept.

    Raises:
        DataError: a line that is not UTF-8, by its number in ``name``.
    """
    count, rest = 0, b""
    reader = io.BufferedReader(stream) if isinstance(stream, io.RawIOBase) else stream
    while chunk := reader.read1(1 << 16):  # type: ignore[attr-defined] - every buffered reader has it
        *whole, rest = (rest + chunk).split(b"\n")
        for first in range(0, len(whole), most):
            lines = whole[first : first + most]
            yield [_decode(line, name, count + i) for i, line in enumerate(lines, start=1)]
            count += len(lines)
    if rest:
        yield [_decode(rest, name, count + 1)]


def _decode(line: bytes, name: str, number: int) -> str:
    try:
        return line.removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        bad = line[error.start]
        raise DataError(f"{name}, line {number}: not UTF-8 text (byte 0x{bad:02x}); convert it to UTF-8") from None
