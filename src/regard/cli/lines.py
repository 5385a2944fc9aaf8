"""Text that comes in line by line, taken as soon as it comes."""

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial

from regard.core.errors import DataError


def read_lines(read: Callable[[int], bytes], name: str, most: int) -> Iterator[list[str]]:
    """The lines of a stream in lists of up to ``most``: as many as have come, so that a slow writer need not wait.

    Endings are dropped; empty lines are kept.

    Args:
        read: returns what has come, at most so many bytes, and waits only for the first of them.
        name: what the stream is called, for the error message.
        most: lines in a list.

    Raises:
        DataError: a line that is not UTF-8, by its number.
    """
    count, rest = 0, b""
    while chunk := read(1 << 16):
        *whole, rest = (rest + chunk).split(b"\n")
        for first in range(0, len(whole), most):
            lines = whole[first : first + most]
            yield [_decode(line, name, count + i) for i, line in enumerate(lines, start=1)]
            count += len(lines)
    if rest:
        yield [_decode(rest, name, count + 1)]


def standard_input(most: int) -> Iterator[list[str]]:
    """The lines of standard input, as :func:`read_lines` has them."""
    return read_lines(partial(os.read, sys.stdin.fileno()), "standard input", most)


def _decode(line: bytes, name: str, number: int) -> str:
    try:
        return line.removesuffix(b"\r").decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        if line.startswith(b"\x1f\x8b"):
            raise DataError(f"{name}: is gzipped; give its text, as 'zcat FILE |' does") from None
        bad = line[error.start]
        raise DataError(f"{name}, line {number}: not UTF-8 text (byte 0x{bad:02x}); convert it to UTF-8") from None
