"""What is learnt from and what is held out of it, where neither files nor tokens need fit into memory."""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import islice
from typing import Generic, TypedDict, TypeVar

from regard.core.console import told
from regard.data.source import regular

T = TypeVar("T")

EVERY, MOST = 20, 1000
"""One example in so many validates, where no file for it is named; at most so many do."""

SAMPLE = 25_000_000
"""The most characters that a tokenizer learns from, in half a gigabyte of memory: some four million words."""


class Reread(Generic[T]):
    """Examples that each pass reads anew, so that none need be kept.

    Args:
        read: begins a pass.
    """

    def __init__(self, read: Callable[[], Iterator[T]]) -> None:
        self.read = read

    def __iter__(self) -> Iterator[T]:
        return self.read()

    def __len__(self) -> int:
        """How many there are; it takes a pass to know."""
        return self._count

    @cached_property
    def _count(self) -> int:
        return sum(1 for _ in self)


class Splits(TypedDict, Generic[T]):
    """Examples to learn from, to watch training by, and to report on; the last are none where no file is named."""

    train: list[T] | Reread[T]
    valid: list[T]
    test: list[T]


def reread(spec: str, read: Callable[[str], Iterator[T]]) -> list[T] | Reread[T]:
    """What ``read`` finds in files: anew in each pass or, where they can be read only once, kept in memory."""
    return Reread(lambda: read(spec)) if regular(spec) else [*read(spec)]


def hold_out(examples: Iterable[T]) -> tuple[Reread[T], list[T]]:
    """The examples to learn from and those to validate by: one in twenty, at most 1,000, which alone are kept."""

    def rest() -> Iterator[T]:
        return (example for i, example in enumerate(examples) if i % EVERY or i >= EVERY * MOST)

    return Reread(rest), [*islice(examples, 0, EVERY * MOST, EVERY)]


def original(number: int) -> int:
    """Where among all examples one stands that is learnt from: ``number`` and those held out before it, from 0."""
    return number + min(number // (EVERY - 1) + 1, MOST)


def thinned(examples: Iterable[T], size: Callable[[T], int], most: int = SAMPLE) -> list[T]:
    """Texts spread evenly over all: every n-th, for the least n of 1, 2, 4, 8 ... with which they fit.

    Args:
        examples: read once; no more than fit are ever kept.
        size: of an example, in characters.
        most: how many characters they may have; the first example is always kept.
    """
    kept: list[T] = []
    total, every = 0, 1
    for i, example in enumerate(told(examples, size, "reading, to learn a tokenizer")):
        if i % every:
            continue
        kept.append(example)
        total += size(example)
        while total > most and len(kept) > 1:
            kept, every = kept[::2], 2 * every
            total = sum(map(size, kept))
    return kept
