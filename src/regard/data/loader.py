"""Batches by token budget: little padding, random order, and a state that says exactly what has been seen."""

import atexit
import random
import signal
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from itertools import cycle, islice, pairwise
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray

from regard.core.errors import ConfigError, DataError, InputError, TrainingError
from regard.core.types import Batch

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

Sizes = Sequence[tuple[int, ...]] | NDArray[np.int64]
"""One size for each sequence that an example brings to a batch (source and target); an array is [examples, n]."""

ORDER = 2
"""The version of the order that :func:`plan` gives: runs begun with another are not gone on with."""


_PARENTS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
"""Signals that may be sent to all processes of a job, and that only the parent is to act on."""


class Examples(Protocol[T_co]):
    """What a loader draws from: a list will do, and so will what reads each example from a file."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> T_co: ...


class Subset(Generic[T]):
    """Some of the examples, in the order of ``numbers``."""

    def __init__(self, examples: Examples[T], numbers: NDArray[np.int64]) -> None:
        self.examples = examples
        self.numbers = numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, number: int) -> T:
        return self.examples[int(self.numbers[number])]


def plan(sizes: Sizes, max_tokens: int, rng: random.Random | None = None) -> list[NDArray[np.int64]]:
    """Group examples of like length, so that no batch holds more than ``max_tokens`` once padded.

    An example has one size for each sequence it brings to a batch (source and target); a batch costs its
    number of rows times the sum of the widest of each. An example larger than the budget travels alone.

    Args:
        sizes: the lengths of each example's sequences, in tokens.
        max_tokens: the budget of a batch, padding included.
        rng: shuffles the examples of one length among the batches, and the batches; None leaves both in order.

    Returns:
        the examples' numbers, batch by batch; each occurs once.
    """
    if len(sizes) == 0:
        return []
    table = np.asarray(sizes, dtype=np.int64)
    # Neighbours agree on their total first, then on how it divides; equals lie in random order, or in their own.
    keys = [*table.T[::-1], table.sum(axis=1)]
    order = np.lexsort(keys if rng is None else [noise(rng, len(table)), *keys])
    starts = _starts(table[order], max_tokens)
    batches = [order[start:stop] for start, stop in pairwise([*starts, len(order)])]
    if rng:
        rng.shuffle(batches)
    return batches


def noise(rng: random.Random, count: int) -> NDArray[np.uint64]:
    """Random numbers to sort by. Raw bits are the same in every version of numpy; its shuffles need not be."""
    return np.asarray(np.random.PCG64(rng.getrandbits(64)).random_raw(count))


def _starts(table: NDArray[np.int64], max_tokens: int) -> list[int]:
    """Where each batch begins, when sorted rows are put into the last one as long as they fit.

    Equal rows lie side by side, and are dealt with at once: millions of examples have only thousands of sizes.
    """
    changes = np.flatnonzero((table[1:] != table[:-1]).any(axis=1)) + 1
    runs = [0, *changes.tolist()]
    starts: list[int] = []
    widest: tuple[int, ...] = ()
    for first, stop, size in zip(runs, [*runs[1:], len(table)], map(tuple, table[runs].tolist()), strict=True):
        wider = tuple(map(max, size, widest or size))
        full = starts[-1] + max_tokens // max(sum(wider), 1) if starts else first
        if full >= stop:
            widest = wider
        else:
            starts += range(max(first, full), stop, max(max_tokens // max(sum(size), 1), 1))
            widest = size
    return starts


class Place(NamedTuple):
    """A batch that is to be made.

    Attributes:
        epoch: counted from 0.
        number: which of the epoch's it is.
        rows: its examples' numbers.
    """

    epoch: int
    number: int
    rows: NDArray[np.int64]


class Loader(Generic[T]):
    """An endless stream of batches, epoch after epoch, that can stop and go on at the same place.

    The batches of an epoch are a function of (seed, epoch) alone, so (epoch, index) is the whole state. A digest of the
    data goes with it, so that nobody goes on with other data unawares. How many workers make the batches changes
    nothing about them.

    Several ranks deal the one stream out among them: of each ``world`` batches in turn, rank r takes the r-th. Where an
    epoch does not divide, its last batches go with the first of the next, so none is left out or repeated, all ranks
    take the same number of steps, and a step of ``world`` ranks sees what one rank sees that accumulates over ``world``
    batches. The state is the same on all ranks, and another number of ranks can go on from it.

    Args:
        examples: what to draw from, already tokenised.
        sizes: the lengths of each example's sequences, as in :func:`plan`.
        collate: examples to one batch.
        max_tokens: the budget of a batch, padding included.
        seed: of the order.
        prepare: an objective's corruption of a batch, given a generator seeded by (seed, epoch, index); a function of
            the two alone.
        identity: what else tells these data from others of the same sizes, such as a corpus' key; for the digest.
        num_workers: processes that make batches ahead of time; 0 makes each when it is asked for.
        rank: which of the ranks this is, from 0.
        world: how many ranks there are.

    Attributes:
        place: of the batch that was given last, or None before the first.

    Raises:
        InputError: there is no example.
        ConfigError: a negative number of workers, or a rank that is not among ``world``.
    """

    def __init__(
        self,
        examples: Examples[T],
        sizes: Sizes,
        collate: Callable[[list[T]], Batch],
        *,
        max_tokens: int,
        seed: int = 0,
        prepare: Callable[[Batch, torch.Generator], Batch] | None = None,
        identity: str = "",
        num_workers: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if len(examples) == 0:
            raise InputError("there are no examples to make batches of")
        if num_workers < 0:
            raise ConfigError(f"num_workers {num_workers} must be at least 0")
        if not 0 <= rank < world:
            raise ConfigError(f"rank {rank} must be one of 0 to {world - 1}")
        self.examples = examples
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.collate = collate
        self.max_tokens = max_tokens
        self.seed = seed
        self.prepare = prepare
        self.num_workers = num_workers
        self.rank = rank
        self.world = world
        digest = xxhash.xxh3_64(identity.encode(), seed=ORDER)
        digest.update(np.ascontiguousarray(self.sizes).data)
        self.digest = digest.intdigest()
        self.epoch = 0
        self.index = 0
        self.place: Place | None = None

    def __iter__(self) -> Iterator[Batch]:
        """The batches not yet seen, without end."""
        turns = self._turns()
        if self.num_workers:
            made = in_processes(lambda turn: self._batch(turn[0]), turns, self.num_workers)
        else:
            made = ((turn, self._batch(turn[0])) for turn in turns)
        with closing(made):
            for (self.place, last), batch in made:
                self.epoch, self.index = last.epoch, last.number + 1
                yield batch

    def _turns(self) -> Iterator[tuple[Place, Place]]:
        """The places of this rank, each with the last one of the round among the ranks."""
        places = self._places()
        while True:
            dealt = list(islice(places, self.world))
            yield dealt[self.rank], dealt[-1]

    def _places(self) -> Iterator[Place]:
        """All batches from where the stream stands, without end."""
        epoch, index = self.epoch, self.index
        while True:
            batches = plan(self.sizes, self.max_tokens, random.Random(f"{self.seed}:{epoch}"))
            for number in range(index, len(batches)):
                yield Place(epoch, number, batches[number])
            epoch, index = epoch + 1, 0

    def _batch(self, place: Place) -> Batch:
        batch = self.collate([self.examples[i] for i in place.rows.tolist()])
        if self.prepare is None:
            return batch
        seed = random.Random(f"{self.seed}:{place.epoch}:{place.number}").getrandbits(63)
        return self.prepare(batch, torch.Generator().manual_seed(seed))

    @property
    def even(self) -> bool:
        """Whether most examples are as long as the longest, as the rows of a language model are."""
        return bool((np.median(self.sizes, axis=0) == self.sizes.max(axis=0)).all())

    def state(self) -> dict[str, int]:
        """Where the stream stands: the next batch is number ``index`` of ``epoch``."""
        return {"epoch": self.epoch, "index": self.index, "digest": self.digest}

    def restore(self, state: dict[str, int]) -> None:
        """Go on from a place that :meth:`state` gave; takes effect at the next ``iter``. Raises DataError elsewhere."""
        if missing := self.state().keys() - state.keys():
            raise DataError(f"the run's training.json lacks loader.{min(missing)}; begin a new run")
        if state["digest"] != self.digest:
            raise DataError("the training data are not those that the run began with; restore them, or begin a new run")
        self.epoch, self.index = state["epoch"], state["index"]


def in_processes(
    make: Callable[[T], Batch], requests: Iterator[T], count: int
) -> Generator[tuple[T, Batch], None, None]:
    """``(request, make(request))`` for each request, in order, made by ``count`` forked processes.

    Each process makes one batch ahead, no more. Where ``make`` fails there it is called here, so that its exception is
    itself, with its own traceback. The processes end with the generator, and with this process, however it ends.

    Args:
        make: a function of the request alone.
        requests: an endless stream.
        count: at least 1.

    Raises:
        TrainingError: a process was killed.
    """
    workers: list[_Worker[T]] = []
    try:
        for request in islice(requests, count):
            workers.append(_Worker(make))
            workers[-1].ask(request)
        for worker in cycle(workers):
            answer = worker.answer()
            worker.ask(next(requests))
            yield answer
    finally:
        for worker in workers:
            worker.end()


class _Worker(Generic[T]):
    """A process that makes a batch when asked. It holds nothing, so it may be killed at any time.

    Requests and batches go through a pipe. The worker ends when this end closes, as it does when this process dies.
    """

    request: T

    def __init__(self, make: Callable[[T], Batch]) -> None:
        context = get_context("fork")  # examples and functions need no pickling, and mapped files are shared
        self.make = make
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(make, theirs, self.pipe), daemon=True)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENTS)  # which the process inherits
        try:
            self.process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        atexit.register(self.end)  # before multiprocessing's own, which would wait for it

    def ask(self, request: T) -> None:
        self.request = request
        with suppress(BrokenPipeError):  # the answer will tell
            self.pipe.send(request)

    def answer(self) -> tuple[T, Batch]:
        try:
            arrays = self.pipe.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            raise TrainingError(
                f"a process that makes batches ended (exit code {self.process.exitcode}), perhaps for want of memory; "
                "use fewer workers"
            ) from None
        if arrays is None:
            return self.request, self.make(self.request)
        return self.request, {name: torch.from_numpy(array) for name, array in arrays.items()}

    def end(self) -> None:
        atexit.unregister(self.end)
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(make: Callable[[T], Batch], pipe: Connection, parents: Connection) -> None:
    """What a worker does until its parent is gone."""
    parents.close()
    torch.set_num_threads(1)  # torch's threads do not survive a fork
    with suppress(EOFError, ConnectionError):
        while True:
            request = pipe.recv()
            try:
                answer = {name: value.numpy() for name, value in make(request).items()}
            except Exception:
                answer = None
            pipe.send(answer)
