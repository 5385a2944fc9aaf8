"""Is the run well? What ails it is named once, when it first shows in the log: what, where, and what to do."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any, TypeVar

from regard.train.watch import Record

T = TypeVar("T")

LINES, VALIDATIONS = 20, 4
"""How many lines of the log are looked back on, and how many validations."""

VANISHED = 1e-3
"""A block's gradient norm over the largest block's. Blocks of healthy models differ by a factor of ten or so. A
thousandth is less than bfloat16 resolves (2 ** -8), and under SGD the block would learn a thousand times as slowly."""

EXPLODED = 100.0
"""A step's gradient norm over the usual one; those of batches that are merely unlike differ by a factor of ten."""

SHARP, FLAT = 0.01, 0.999
"""Shares of the largest entropy. Below the first, a head gives 99.9 % of its weight to one token wherever it looks, and
its softmax passes no gradient (Zhai et al. 2023); above the second, it averages whatever it sees."""

DEAD = 0.5
"""The share of a feed-forward's units that are zero for every token; a few dead units are usual with ReLU."""

WORSE = 0.01
"""By how much of its best value held-out loss must have risen: less is noise."""

STARVED = 0.3
"""The share of a step's time that the model waits for data."""


@dataclass
class Past:
    """The last of a log.

    Attributes:
        lines: on training.
        validations: each with the training ``loss`` of the line before it, if there was one.
    """

    lines: list[Record] = field(default_factory=list)
    validations: list[Record] = field(default_factory=list)

    def take(self, record: Record) -> None:
        """One record more."""
        if "valid_loss" in record:
            before = {"loss": self.lines[-1]["loss"]} if self.lines else {}
            self.validations = [*self.validations, {**record, **before}][-VALIDATIONS:]
        elif "loss" in record:
            self.lines = [*self.lines, record][-LINES:]


def vanishing(past: Past) -> str | None:
    """Blocks that get next to no gradient, in three lines running."""
    found = [line["grad_norms"] for line in past.lines if line.get("grad_norms")][-3:]
    if len(found) < 3:
        return None
    faint = [_faint(norms) for norms in found]
    names = [name for name in faint[-1] if all(name in each for each in faint)]
    if not names:
        return None
    ratio = min(found[-1][name] for name in names) / max(_blocks(found[-1]).values())
    return (
        f"the gradient of {_list(names)} is {ratio:.1g} of the largest block's; try norm_order pre, a longer "
        "schedule.warmup, or fewer layers"
    )


def _blocks(norms: Mapping[str, float]) -> dict[str, float]:
    return {name: norm for name, norm in norms.items() if "blocks." in name}


def _faint(norms: Mapping[str, float]) -> list[str]:
    blocks = _blocks(norms)
    largest = max(blocks.values(), default=0.0)
    return [name for name, norm in blocks.items() if norm < VANISHED * largest]


def exploding(past: Past) -> str | None:
    """A step whose gradient is out of all proportion to those before."""
    usual = [line["grad_norm"] for line in past.lines][:-1]
    if len(usual) < 5 or "grad_norm_max" not in past.lines[-1]:
        return None
    most, middle = past.lines[-1]["grad_norm_max"], median(usual)
    if not 0 < EXPLODED * middle < most:
        return None
    norms = past.lines[-1].get("grad_norms") or {}
    where = f", and is largest in {max(norms, key=norms.__getitem__)}" if norms else ""
    return (
        f"the gradient's norm rose to {most:.3g}, {most / middle:,.0f} times what it was{where}; lower schedule.lr, "
        "lengthen schedule.warmup, or lower clip_norm"
    )


def collapsed(past: Past) -> str | None:
    """Heads that look at a single token each, twice running, or layers whose heads average everything for longer."""
    found = [each["attention_entropy"] for each in past.validations if "attention_entropy" in each]
    sharp = _lasting(found[-2:], 2, _sharp)
    if sharp:
        return (
            f"{_list(sharp)} gives all its weight to one token, whatever it reads; lower schedule.lr, lengthen "
            "schedule.warmup, or raise model.attn_dropout"
        )
    flat = _lasting(found, VALIDATIONS, _flat)
    if flat:
        return f"all heads of {_list(flat)} average whatever they see; train longer, or raise schedule.lr"
    return None


def _lasting(found: Sequence[Any], count: int, names: Callable[[Any], list[str]]) -> list[str]:
    """What ``names`` finds in each of the last ``count``."""
    if len(found) < count:
        return []
    rest = [names(each) for each in found[-count:-1]]
    return [name for name in names(found[-1]) if all(name in each for each in rest)]


def _sharp(entropy: Mapping[str, Sequence[float]]) -> list[str]:
    return [f"{path} head {i}" for path, heads in entropy.items() for i, share in enumerate(heads) if share < SHARP]


def _flat(entropy: Mapping[str, Sequence[float]]) -> list[str]:
    return [path for path, heads in entropy.items() if min(heads) > FLAT]


def dead(past: Past) -> str | None:
    """Feed-forwards most of whose units never fire, at several validations running: early on, many come back."""
    found = [each["dead_units"] for each in past.validations if "dead_units" in each]
    names = _lasting(found, VALIDATIONS, _silent)
    if not names:
        return None
    most = max(found[-1][name] for name in names)
    return (
        f"{most:.0%} of the inner units of {_list(names)} are zero for every token; lower schedule.lr, lengthen "
        "schedule.warmup, or take model.activation gelu"
    )


def _silent(shares: Mapping[str, float]) -> list[str]:
    return [path for path, share in shares.items() if share > DEAD]


def overfitting(past: Past) -> str | None:
    """Held-out loss that rises from validation to validation, while the training loss falls."""
    known = [each for each in past.validations if "loss" in each]
    held_out = [each.get("valid_nll", each["valid_loss"]) for each in known]
    if len(known) < VALIDATIONS:
        return None
    rising = all(after > before for before, after in pairwise(held_out))
    if not rising or held_out[-1] < (1 + WORSE) * held_out[0] or known[-1]["loss"] >= known[0]["loss"]:
        return None
    return (
        f"the held-out loss has risen from {held_out[0]:.3g} to {held_out[-1]:.3g} since step "
        f"{known[0]['step']:,}, while the training loss falls; set patience (best/ keeps what was before), "
        "raise model.dropout, or find more data"
    )


def starving(past: Past) -> str | None:
    """A model that waits for its data."""
    shares = [line["waiting"] for line in past.lines if "waiting" in line][-5:]
    if len(shares) < 5 or median(shares) <= STARVED:
        return None
    return (
        f"{median(shares):.0%} of the time goes into waiting for batches; give the loader more workers, or prepare "
        "the data beforehand"
    )


DETECTORS: Mapping[str, Callable[[Past], str | None]] = {
    "vanishing gradients": vanishing,
    "exploding gradients": exploding,
    "collapsed attention": collapsed,
    "dead units": dead,
    "overfitting": overfitting,
    "a starving model": starving,
}
"""What can ail a run, and what tells it from the last lines of the log and from the last validations."""


class Health:
    """Reads a run's log as it is written, and names each illness once.

    Args:
        log: what stands in it already. So a resumed run goes on where it was, and says nothing twice.
    """

    def __init__(self, log: Iterable[Record] = ()) -> None:
        self.past = Past()
        self.said: set[str] = set()
        for record in log:
            self._keep(record)

    def examine(self, record: Record) -> list[Record]:
        """What the log's next line shows for the first time: records of their own, to be logged after it."""
        self._keep(record)
        found: list[Record] = []
        for kind, detect in DETECTORS.items():
            message = None if kind in self.said else detect(self.past)
            if message:
                self.said.add(kind)
                found.append({"step": record["step"], "health": kind, "message": message, "seconds": record["seconds"]})
        return found

    def _keep(self, record: Record) -> None:
        if "health" in record:
            self.said.add(record["health"])
        else:
            self.past.take(record)


class Waiting:
    """How long batches let the model wait."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock, self.seconds = clock, 0.0

    def over(self, batches: Iterator[T]) -> Iterator[T]:
        """The same batches; the time until each is there is added up."""
        while True:
            began = self.clock()
            batch = next(batches, None)
            self.seconds += self.clock() - began
            if batch is None:
                return
            yield batch

    def taken(self) -> float:
        """Seconds since this was last asked."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds


def _list(names: Sequence[str], most: int = 3) -> str:
    """Some names as a reader wants them: a, b, c and 4 more."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
