"""Batches by token budget: little padding, random order, and a state that says exactly what has been seen."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np
import torch
import xxhash

from regard.core.errors import DataError, InputError
from regard.core.types import Batch

T = TypeVar("T")


def plan(sizes: Sequence[tuple[int, ...]], max_tokens: int, rng: random.Random | None = None) -> list[list[int]]:
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
    order = list(range(len(sizes)))
    if rng:
        rng.shuffle(order)
    # Neighbours agree on their total first, then on how it divides: the sort is stable, so equals stay shuffled.
    order.sort(key=lambda i: (sum(sizes[i]), sizes[i]))
    batches: list[list[int]] = [[]]
    widest: tuple[int, ...] = ()
    for i in order:
        wider = tuple(map(max, sizes[i], widest or sizes[i]))
        if batches[-1] and sum(wider) * (len(batches[-1]) + 1) > max_tokens:
            batches.append([])
            wider = sizes[i]
        batches[-1].append(i)
        widest = wider
    if rng:
        rng.shuffle(batches)
    return [batch for batch in batches if batch]


class Loader(Generic[T]):
    """An endless stream of batches, epoch after epoch, that can stop and go on at the same place.

    The batches of an epoch are a function of (seed, epoch) alone, so (epoch, index) is the whole state. A digest of the
    sizes goes with it, so that nobody goes on with other data unawares.

    Args:
        examples: what to draw from, already tokenised.
        sizes: the lengths of each example's sequences, as in :func:`plan`.
        collate: examples to one batch.
        max_tokens: the budget of a batch, padding included.
        seed: of the order.
        prepare: an objective's corruption of a batch, given a generator seeded by (seed, epoch, index).

    Raises:
        InputError: there is no example.
    """

    def __init__(
        self,
        examples: Sequence[T],
        sizes: Sequence[tuple[int, ...]],
        collate: Callable[[list[T]], Batch],
        *,
        max_tokens: int,
        seed: int = 0,
        prepare: Callable[[Batch, torch.Generator], Batch] | None = None,
    ) -> None:
        if not examples:
            raise InputError("there are no examples to make batches of")
        self.examples = examples
        self.sizes = sizes
        self.collate = collate
        self.max_tokens = max_tokens
        self.seed = seed
        self.prepare = prepare
        self.digest = xxhash.xxh3_64_intdigest(np.array(sizes, dtype=np.int64).data)
        self.epoch = 0
        self.index = 0

    def __iter__(self) -> Iterator[Batch]:
        """The batches not yet seen, without end."""
        while True:
            batches = plan(self.sizes, self.max_tokens, random.Random(f"{self.seed}:{self.epoch}"))
            while self.index < len(batches):
                batch = self._batch(batches[self.index])
                self.index += 1
                yield batch
            self.epoch, self.index = self.epoch + 1, 0

    def _batch(self, rows: list[int]) -> Batch:
        batch = self.collate([self.examples[i] for i in rows])
        if self.prepare is None:
            return batch
        seed = random.Random(f"{self.seed}:{self.epoch}:{self.index}").getrandbits(63)
        return self.prepare(batch, torch.Generator().manual_seed(seed))

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
