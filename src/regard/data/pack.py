"""Several documents in one row, none of which sees another: nearly every place of a batch holds a token.

A document is here a pair of equally long sequences: the tokens that a model reads, and what it is to say at each of
them (``IGNORE`` for nothing). :func:`next_tokens` makes one of a text. A row is a list of documents, whatever put them
together: :class:`Packs` puts whole examples into rows, :class:`Stream` cuts a corpus, laid end to end, into rows.
:func:`packed` collates rows of either kind.
"""

import random
from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from itertools import chain, pairwise
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from regard.core.errors import InputError
from regard.core.types import IGNORE, Batch
from regard.data.cache import Rows
from regard.data.collate import pad
from regard.data.loader import Examples, noise

T = TypeVar("T")

Integers = Sequence[int] | NDArray[np.integer[Any]]
Document = tuple[Integers, Integers]
"""What is read and what is to be said, place by place."""

WINDOW = 4096
"""How many examples are packed together: enough to fill rows, few enough to keep the order random."""


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Put items into rows of a capacity: the longest first, each into the fullest row that has room for it.

    No two of the rows would fit into one, and there are at most 11/9 of the fewest possible, and four more.

    Source: best-fit decreasing (Johnson et al. 1974); for packing sequences, Krell et al. 2021.

    Returns:
        the items' numbers, row by row; each occurs once.

    Raises:
        InputError: an item is longer than a row.
    """
    _check_fit(lengths, capacity)
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # what is free in each row, and its number; sorted
    for item in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = bisect_left(room, (lengths[item], 0))
        if place == len(room):
            rows.append([])
            free, row = capacity, len(rows) - 1
        else:
            free, row = room.pop(place)
        rows[row].append(item)
        insort(room, (free - lengths[item], row))
    return rows


def _check_fit(lengths: Integers, capacity: int) -> None:
    too_long = np.flatnonzero(np.asarray(lengths) > capacity)
    if len(too_long):
        first = int(too_long[0])
        raise InputError(
            f"example {first + 1} has {lengths[first]} tokens, more than a row's {capacity}; leave it out, or cut it"
        )


class Packs(Generic[T]):
    """Whole examples in rows of at most ``capacity`` tokens; item i is the list of the examples in row i.

    Which examples share a row is a function of the seed: they are shuffled, and each ``WINDOW`` of them is packed by
    :func:`best_fit`. As none sees another, it need not change with the epoch; the loader shuffles the rows.

    Args:
        examples: what to pack.
        lengths: of each, in tokens.
        capacity: of a row, in tokens.
        seed: of the order.

    Attributes:
        sizes: [rows, 1] how many tokens each row holds, for the loader.

    Raises:
        InputError: an example is longer than a row.
    """

    def __init__(self, examples: Examples[T], lengths: NDArray[np.int64], capacity: int, *, seed: int = 0) -> None:
        _check_fit(lengths, capacity)
        order = np.argsort(noise(random.Random(seed), len(lengths)), kind="stable")
        members, counts = [order[:0]], [0]
        for first in range(0, len(order), WINDOW):
            window = order[first : first + WINDOW]
            rows = best_fit(lengths[window].tolist(), capacity)
            members.append(window[list(chain.from_iterable(rows))])
            counts += map(len, rows)
        self.examples = examples
        self.members = Rows(np.concatenate(members), np.cumsum(counts))
        filled = np.cumsum([0, *lengths[self.members.tokens]])
        self.sizes = np.diff(filled[self.members.offsets])[:, None]

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, number: int) -> list[T]:
        return [self.examples[i] for i in self.members[number].tolist()]


class Stream:
    """A corpus laid end to end and cut into rows of ``length`` tokens, as GPT is trained (Radford et al. 2018).

    Item i is the list of the documents, or parts of them, in row i. Each token of the corpus but the last is read once.
    A row looks one token beyond its end, so that cutting costs no target; none crosses from one document to the next.

    Args:
        rows: the documents, each closed by an end token if the model is to learn to stop.
        length: of a row.

    Attributes:
        sizes: [rows, 1] how many tokens each row holds: ``length``, but for the last.

    Raises:
        InputError: there are not two tokens.
    """

    def __init__(self, rows: Rows, length: int) -> None:
        self.rows = rows
        self.total = len(rows.tokens) - 1
        if self.total < 1:
            raise InputError("there is nothing to predict: the corpus has fewer than two tokens")
        self.starts = np.arange(0, self.total, length)
        self.sizes = np.diff(self.starts, append=self.total)[:, None]

    def __len__(self) -> int:
        return len(self.starts)

    def document(self, number: int) -> int:
        """Which document row ``number`` begins in."""
        return int(np.searchsorted(self.rows.offsets, self.starts[number], side="right")) - 1

    def __getitem__(self, number: int) -> list[Document]:
        tokens, offsets = self.rows.tokens, self.rows.offsets
        begin = int(self.starts[number])
        stop = begin + int(self.sizes[number, 0])
        ends = set(offsets[slice(*np.searchsorted(offsets, (begin, stop), side="right"))].tolist())
        documents: list[Document] = []
        for first, last in pairwise(sorted({begin, stop} | ends)):
            said = tokens[first + 1 : last + 1].astype(np.int64)
            if last in ends:
                said[-1] = IGNORE
            documents.append((tokens[first:last], said))
        return documents


def next_tokens(tokens: NDArray[np.integer[Any]]) -> Document:
    """A text as a document: at each token but the last, the next is to be said."""
    return tokens[:-1], tokens[1:]


def packed(rows: Sequence[Sequence[Document]], pad_token: int, width: int | None = None) -> Batch:
    """Collate rows of documents.

    Args:
        rows: B rows.
        pad_token: what fills a row; ``valid`` marks it.
        width: S, where it is not to follow the longest row.

    Returns:
        [B S] each: ``tokens``, ``valid``, ``documents`` (numbered from 0 in each row, padding -1; models derive from it
        both the mask and coordinates that begin anew), and ``targets``.
    """
    documents = pad([np.arange(len(row)).repeat([len(read) for read, _ in row]) for row in rows], -1, width=width)
    return {
        "tokens": pad([_joined(read for read, _ in row) for row in rows], pad_token, width=width),
        "valid": documents >= 0,
        "documents": documents,
        "targets": pad([_joined(said for _, said in row) for row in rows], IGNORE, width=width),
    }


def _joined(parts: Iterable[Integers]) -> NDArray[np.int64]:
    return np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])
