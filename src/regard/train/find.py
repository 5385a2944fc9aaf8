"""What to begin with: how much to put into a batch, and the learning rate; found by steps that are not kept."""

import math
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from regard.core.errors import TrainingError
from regard.core.types import Batch
from regard.data.loader import Loader, plan
from regard.room import free
from regard.train.fit import Run, default_device
from regard.train.memory import settle_memory
from regard.train.precision import resolve
from regard.train.recipe import Recipe, fitted
from regard.train.schedule import Schedule

LOWEST, HIGHEST = 1e-6, 10.0
"""Rates between which the right one is looked for."""

FALLEN = 0.9
"""The loss has stopped falling where it has done this share of its fall."""

ENOUGH = 0.95
"""A batch is large enough that trains with this share of the highest throughput."""

SMALLEST = 256
"""Tokens of the smallest batch that is tried."""

FINE = 16
"""The largest batch that fits is found to within one part in so many."""


@dataclass(frozen=True)
class Rise(Schedule):
    """From ``lr`` to ``top``, each step the same factor above the one before (Smith 2017, section 3.3)."""

    top: float = HIGHEST

    def __call__(self, step: int, num_steps: int) -> float:
        """The learning rate of ``step``; steps count from 1 to ``num_steps``."""
        return self.lr * (self.top / self.lr) ** ((step - 1) / max(num_steps - 1, 1))


@dataclass(frozen=True)
class Rates:
    """What a rising rate has done to the loss.

    Attributes:
        points: each step's rate and loss.
        smooth: the same, each loss the mean of its neighbourhood.
        steepest: the rate at which the smooth loss falls most, per factor of the rate.
        flat: the rate at which nine tenths of its fall are done.
        diverged: the rate from which all that was learnt is lost; None where it did not come to that.
    """

    points: Sequence[tuple[float, float]]
    smooth: Sequence[tuple[float, float]]
    steepest: float
    flat: float
    diverged: float | None

    @property
    def proposed(self) -> float:
        """The peak to begin with: the geometric mean of ``steepest`` and ``flat``, to two digits.

        A rate at the first wastes some steps, one at the second is the most that these steps could bear; a warm-up
        and a fall of the rate let a run bear what lies between.
        """
        return float(f"{math.sqrt(self.steepest * self.flat):.2g}")


@dataclass(frozen=True)
class Size:
    """A batch of so many tokens, ``data.max_tokens``: how fast it trains, and the seconds of a step."""

    max_tokens: int
    tokens_per_second: float
    seconds: float


@dataclass(frozen=True)
class Sizes:
    """What batches of growing size have done to the throughput.

    Attributes:
        tried: by rising size.
        largest: what fits into the GPU's memory; None without a GPU, or where all data fit.
    """

    tried: Sequence[Size]
    largest: int | None

    @property
    def proposed(self) -> int:
        """The smallest size within 5 % of the highest throughput: a larger one takes memory, and steps, for nothing."""
        best = max(size.tokens_per_second for size in self.tried)
        return next(size.max_tokens for size in self.tried if size.tokens_per_second >= ENOUGH * best)


@contextmanager
def passing(recipe: Recipe) -> Iterator[Run]:
    """A run of the recipe that leaves nothing behind: no file, and the random state as it was."""
    settle_memory()
    with torch.random.fork_rng(), TemporaryDirectory() as folder:
        torch.manual_seed(recipe.seed)
        task = recipe.data.open()
        settled = replace(
            fitted(recipe, task),
            precision=resolve(recipe.precision, default_device()),
            average=0.0,
            unfreeze_every=0,
        )
        yield Run(settled, task, Path(folder))


def find_rate(recipe: Recipe, steps: int = 100) -> Rates:
    """Train ``steps`` steps with a rate that rises from 1e-6 to 10, until the loss is well above where it began.

    That is the range test of Smith (2017, "Cyclical learning rates for training neural networks", section 3.3), with
    the training loss in place of the accuracy and a rate that rises exponentially.

    Raises:
        TrainingError: the loss falls at no rate.
    """
    schedule = Rise("constant", lr=LOWEST, warmup=0)
    points: list[tuple[float, float]] = []
    with passing(replace(recipe, schedule=schedule, num_steps=steps)) as run:
        batches = iter(run.loader)
        for _ in range(steps):
            try:
                run.step(batches)
            except TrainingError:  # the loss is not finite
                break
            line = run.summary()
            points.append((line["lr"], line["loss"]))
            if points[-1][1] > 2 * points[0][1]:
                break
    return read_rates(points)


def read_rates(points: Sequence[tuple[float, float]]) -> Rates:
    """What the rates and losses of a range test tell. Raises TrainingError where the loss falls at no rate."""
    reach = max(len(points) // 25, 1)
    windows = [points[max(i - reach, 0) : i + reach + 1] for i in range(len(points))]
    losses = [sum(loss for _, loss in window) / len(window) for window in windows]
    rates = [rate for rate, _ in points]
    first, lowest = (losses[0], min(losses)) if losses else (0.0, 0.0)
    if not lowest < 0.99 * first:
        raise TrainingError(
            f"in {len(points)} steps the loss fell at no rate from {LOWEST:g} to {HIGHEST:g}; try more --steps"
        )
    flat = next(i for i, loss in enumerate(losses) if loss <= first - FALLEN * (first - lowest))
    falls = [before - after for before, after in pairwise(losses[: flat + 1])]
    lost = (rate for rate, loss in zip(rates[flat:], losses[flat:], strict=True) if loss > first)
    return Rates(
        points, [*zip(rates, losses, strict=True)], rates[falls.index(max(falls))], rates[flat], next(lost, None)
    )


def find_size(recipe: Recipe, seconds: float = 2.0) -> Sizes:
    """Train with batches of 256 tokens, 512 and so on, each for some seconds.

    It ends where all data are one batch, where the memory does, or where two doublings have gained less than 5 %. On a
    GPU the largest that fits is found too: by doubling until it does not, then by halving the gap.
    """
    tried: list[Size] = []
    largest = None
    with passing(replace(recipe, schedule=Schedule("constant", lr=LOWEST, warmup=0))) as run:
        longest = int(run.loader.sizes.sum(axis=1).max())
        everything = int(run.loader.sizes.sum())
        size = max(SMALLEST, 2 ** math.ceil(math.log2(longest)))
        before = held()
        while held() - before < available() and fits(run, size):  # a doubled batch takes as much again
            tried.append(measure(run, size, seconds))
            if size >= everything or no_faster(tried):
                break
            size *= 2
        if not tried:
            raise TrainingError(f"a batch of {size} tokens, the smallest that is tried, exceeds the memory")
        if run.device.type == "cuda":
            largest = grown(lambda size: fits(run, size), tried[-1].max_tokens, everything)
    return Sizes(tried, largest)


def no_faster(tried: Sequence[Size]) -> bool:
    """Whether the last two doublings gained too little to go on."""
    speeds = [size.tokens_per_second for size in tried]
    return len(speeds) > 2 and max(speeds[-2:]) * ENOUGH < max(speeds[:-2])


def measure(run: Run, size: int, seconds: float) -> Size:
    """Take steps of batches of ``size`` tokens for so many seconds, two at least."""
    run.loader.max_tokens = size
    batches = iter(run.loader)
    run.step(batches)  # kernels are compiled
    run.summary()
    steps = 0
    while steps < 2 or run.progress.window["seconds"] < seconds:
        run.step(batches)
        steps += 1
    each = run.progress.window["seconds"] / steps
    return Size(size, run.summary()["tokens_per_second"], each)


def fits(run: Run, size: int) -> bool:
    """Whether the hardest batches of this size can be trained with; always so on a CPU, which swaps instead."""
    run.loader.max_tokens = size
    try:
        for batch in hardest(run.loader):
            run.step(iter([batch]))
    except torch.OutOfMemoryError:
        run.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        return False
    return True


def hardest(loader: Loader[Any]) -> list[Batch]:
    """The batch with most places, and the one with the longest example."""
    batches = plan(loader.sizes, loader.max_tokens)
    fullest = max(batches, key=lambda rows: len(rows) * int(loader.sizes[rows].max(axis=0).sum()))
    made = [loader.collate([loader.examples[i] for i in rows.tolist()]) for rows in (fullest, batches[-1])]
    return [loader.prepare(batch, torch.Generator().manual_seed(0)) if loader.prepare else batch for batch in made]


def grown(fits: Callable[[int], bool], size: int, most: int) -> int | None:
    """The largest size that fits, to within a sixteenth, from one that does; None where ``most`` does too."""
    good = size
    while fits(2 * good):
        good *= 2
        if good >= most:
            return None
    bad = 2 * good
    while bad - good > max(good // FINE, 1):
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def held() -> int:
    """The most bytes that this process has held."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def available() -> float:
    """Bytes that can be had without swapping; endless where nobody knows."""
    known = free(torch.device("cpu"))
    return math.inf if known is None else known
