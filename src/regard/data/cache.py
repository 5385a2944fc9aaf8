"""A corpus larger than memory: tokenised once, into files that are mapped and never read whole.

A cache is a folder named by the digest of everything that decides its content: the bytes of the source files, the
tokenizer, and how the one is cut into the other. So it is never stale, two runs on the same data share it, and any of
them may be deleted at any time: the next run makes it anew.
"""

import fcntl
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import xxhash
from numpy.typing import NDArray

from regard.checkpoint.files import replacing, settle
from regard.core.console import told
from regard.core.errors import CheckpointError, DataError
from regard.data.source import open_bytes
from regard.data.tokenize import Tokenizer

Tokens = NDArray[np.integer[Any]]

VERSION = 1
"""Of the files; a cache with another number has another name."""

CHARACTERS = 1 << 20
"""How much text is encoded at once: enough to keep all cores busy, and some tens of megabytes while it lasts."""

_ABOUT = "corpus.json"
_OFFSETS = np.dtype("<i8")


class Rows:
    """Rows of tokens, laid end to end: row i is ``tokens[offsets[i] : offsets[i + 1]]``, a view, not a copy.

    Args:
        tokens: of all rows.
        offsets: where each row begins, and last where the last one ends.
    """

    def __init__(self, tokens: Tokens, offsets: NDArray[np.int64]) -> None:
        self.tokens = tokens
        self.offsets = offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> Tokens:
        row = range(len(self))[number]
        return self.tokens[self.offsets[row] : self.offsets[row + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Of each row, in tokens."""
        return np.diff(self.offsets)


class Corpus:
    """Examples of one or more rows of tokens each (source and target, say), mapped from files or in memory.

    Attributes:
        columns: the rows by name.
        key: a digest of everything that decided what they hold; empty for one in memory.
    """

    def __init__(self, columns: dict[str, Rows], key: str) -> None:
        self.columns = columns
        self.key = key

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, number: int) -> tuple[Tokens, ...]:
        return tuple(rows[number] for rows in self.columns.values())

    @property
    def sizes(self) -> NDArray[np.int64]:
        """[examples, columns] the length of each row, in tokens, as :func:`regard.data.loader.plan` takes it."""
        return np.stack([rows.lengths for rows in self.columns.values()], axis=1)


def tokenised(
    texts: Iterable[tuple[str, ...]],
    tokenizer: Tokenizer,
    sources: Sequence[Path],
    *,
    columns: Sequence[str] = ("text",),
    reading: str = "",
    start: Sequence[int] = (),
    end: Sequence[int] = (),
    folder: Path | None = None,
) -> Corpus:
    """The tokens of ``texts``: from the cache, or encoded into it now, in bounded memory.

    Texts that come from no files have no name in the cache, and their tokens are kept in memory.
    A build that is cut short leaves nothing that is taken for whole; while one process builds, others wait for it.

    Args:
        texts: one text for each column; drawn from only where there is no cache yet, so a generator costs nothing.
        tokenizer: what encodes them, without special tokens.
        sources: the files that the texts come from, whose bytes are part of the cache's name; none for other texts.
        columns: what the texts of an example are called.
        reading: whatever else decides which texts come out of these files: their form, what is held out.
        start: tokens that open each row.
        end: tokens that close each row, as a language model wants it.
        folder: where caches lie; :func:`cache_folder` unless given.

    Raises:
        DataError: a source is missing, or changes meanwhile; there is no text; or the cache cannot be written.
    """
    kind = np.dtype("<u2" if len(tokenizer) <= 1 << 16 else "<u4")
    if not sources:
        return _in_memory(columns, kind, _encoded(texts, tokenizer, [*start], [*end]))
    before = _stamps(sources)
    key = _key(sources, tokenizer, [*columns], reading, [*start], [*end])
    place = (folder or cache_folder()) / key
    if (found := _opened(place)) is not None:
        return found
    try:
        with _alone(place):
            settle(place)
            if _opened(place) is None:
                steady = _steady(texts, sources, before)
                _build(place, columns, kind, _encoded(steady, tokenizer, [*start], [*end]))
    except (CheckpointError, OSError) as error:
        reason = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) else error
        raise DataError(
            f"{reason}; tokenised text is kept there: set XDG_CACHE_HOME to a folder of yours with space"
        ) from None
    built = _opened(place)
    if built is None:
        raise DataError(f"{place}: the tokenised corpus vanished or was damaged just after it was written")
    return built


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/regard/corpora``; without that variable, or where it is relative, below ``~/.cache``."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "regard" / "corpora"


def _key(sources: Sequence[Path], tokenizer: Tokenizer, *said: object) -> str:
    digest = xxhash.xxh3_128(json.dumps([VERSION, tokenizers.__version__, *said]).encode())
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer.save(scratch)
        for path in (*sources, *sorted(Path(scratch).iterdir())):
            digest.update(_digest(path))
    return digest.hexdigest()


def _digest(path: Path) -> bytes:
    """XXH3 of a file's bytes, at the speed of the disk."""
    digest, buffer = xxhash.xxh3_128(), memoryview(bytearray(1 << 20))
    with open_bytes(path) as file:
        try:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    return digest.digest()


def _stamps(sources: Sequence[Path]) -> list[tuple[int, int]]:
    """What changes when a file does."""
    stamps = []
    for path in sources:
        with open_bytes(path) as file:
            status = os.fstat(file.fileno())
        stamps.append((status.st_size, status.st_mtime_ns))
    return stamps


def _steady(
    texts: Iterable[tuple[str, ...]], sources: Sequence[Path], before: list[tuple[int, int]]
) -> Iterator[tuple[str, ...]]:
    """The texts; raises DataError at their end if a source is no longer as it was when its digest was taken."""
    yield from texts
    for path, stamp, then in zip(sources, _stamps(sources), before, strict=True):
        if stamp != then:
            raise DataError(f"{path}: changed while it was being tokenised; start again")


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Hold the right to build this cache; a killed process lets go of it by itself."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _opened(place: Path) -> Corpus | None:
    """The corpus in a folder, or None where there is none or not the whole of it."""
    try:
        about = json.loads((place / _ABOUT).read_text(encoding="utf-8"))
        columns = {}
        for name, count in about["tokens"].items():
            tokens = _mapped(place / f"{name}.tokens", np.dtype(about["dtype"]), count)
            columns[name] = Rows(tokens, _mapped(place / f"{name}.offsets", _OFFSETS, about["rows"] + 1))
    except (OSError, ValueError, KeyError):
        return None
    return Corpus(columns, place.name)


def _mapped(path: Path, kind: np.dtype[Any], count: int) -> NDArray[Any]:
    """A file as an array that is read as it is used. Raises ValueError unless it has just so many entries."""
    if path.stat().st_size != count * kind.itemsize:
        raise ValueError(f"{path} does not hold {count} entries")
    if count == 0:
        return np.empty(0, kind)  # no system maps an empty file
    return np.memmap(path, kind, mode="r").view(np.ndarray)  # three times as fast to take rows from


def _encoded(
    texts: Iterable[tuple[str, ...]], tokenizer: Tokenizer, start: list[int], end: list[int]
) -> Iterator[list[list[list[int]]]]:
    """The rows of each column, for about ``CHARACTERS`` of text at a time. Raises DataError where there is no text."""
    batch = None
    for batch in told(_batches(texts), _characters, "tokenising"):
        sides = [_tokens(side, tokenizer) for side in zip(*batch, strict=True)]
        yield [[start + row + end for row in side] for side in sides]
    if batch is None:
        raise DataError("there is no text to tokenise")


def _characters(examples: Iterable[Iterable[str]]) -> int:
    return sum(len(text) for example in examples for text in example)


def _tokens(texts: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """The tokens of each text. One of many megabytes would need a hundred times the memory if it were not cut."""
    rest = iter(tokenizer.encode_batch([text for text in texts if len(text) < CHARACTERS]))
    return [next(rest) if len(text) < CHARACTERS else tokenizer.encode_long(text) for text in texts]


def _in_memory(names: Sequence[str], kind: np.dtype[Any], parts: Iterable[list[list[list[int]]]]) -> Corpus:
    """The corpus of ``parts``, which are as :func:`_encoded` gives them."""
    flat = [[(_flat(side, kind), [*map(len, side)]) for side in part] for part in parts]
    columns = {}
    for name, sides in zip(names, zip(*flat, strict=True), strict=True):
        tokens, lengths = zip(*sides, strict=True)
        columns[name] = Rows(np.concatenate(tokens), np.cumsum([0, *chain.from_iterable(lengths)]))
    return Corpus(columns, key="")


def _flat(rows: Iterable[Iterable[int]], kind: np.dtype[Any]) -> Tokens:
    """The rows end to end."""
    return np.fromiter(chain.from_iterable(rows), kind)


def _build(place: Path, names: Sequence[str], kind: np.dtype[Any], parts: Iterable[list[list[list[int]]]]) -> None:
    """Write the files; ``parts`` are as :func:`_encoded` gives them."""
    rows = 0
    with replacing(place) as staged:
        with ExitStack() as files:
            columns = [files.enter_context(closing(_Column(staged, name, kind))) for name in names]
            for part in parts:
                rows += len(part[0])
                for column, side in zip(columns, part, strict=True):
                    column.add(side)
        counts = {name: column.count for name, column in zip(names, columns, strict=True)}
        about = {"rows": rows, "dtype": kind.str, "tokens": counts}
        (staged / _ABOUT).write_text(json.dumps(about) + "\n", encoding="utf-8")


class _Column:
    """The two files of a column being written."""

    def __init__(self, folder: Path, name: str, kind: np.dtype[Any]) -> None:
        self.tokens = (folder / f"{name}.tokens").open("wb")
        self.offsets = (folder / f"{name}.offsets").open("wb")
        self.kind, self.count = kind, 0
        self.offsets.write(np.zeros(1, _OFFSETS).data)

    def add(self, rows: Sequence[Sequence[int]]) -> None:
        ends = self.count + np.cumsum([len(row) for row in rows], dtype=_OFFSETS)
        self.tokens.write(_flat(rows, self.kind).data)
        self.offsets.write(ends.data)
        self.count = int(ends[-1])

    def close(self) -> None:
        self.tokens.close()
        self.offsets.close()


def _batches(texts: Iterable[tuple[str, ...]]) -> Iterator[list[tuple[str, ...]]]:
    """Examples in order, about ``CHARACTERS`` of text at a time."""
    batch, size = [], 0
    for example in texts:
        batch.append(example)
        size += 1 + sum(map(len, example))
        if size >= CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
