"""``regard data``: look at data before anything is trained on it."""

import math
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from regard.cli.parser import Parser, positive
from regard.core.errors import ConfigError, did_you_mean
from regard.data.source import Fault, Row, Rows

if TYPE_CHECKING:
    from regard.tasks.task import Data, Task

USAGE = "regard data check FILE --task T [--against FILE2] [--examples N] [--data.FIELD VALUE ...]"
EPILOG = """\
The fields of the data are those that 'regard train RECIPE --help' shows. Lengths are in tokens of --data.tokenizer,
such as the folder of a run; without it, in those of a tokenizer that is trained on FILE.
"""

LISTED = 20
"""How many faults, or duplicates, are listed; the others are counted."""

LEARNT_FROM = 100_000
"""How many examples the tokenizer is trained on."""

WINDOW = 1024
"""How many examples are encoded at once."""

SHOWN = 64
"""How many tokens of an example are shown."""

BINS, BAR = 10, 40
"""Bars of a histogram, and the characters of the longest."""


def run(argv: list[str]) -> int:
    """Check a file of examples; 1 if there is a malformed row in it."""
    parser = Parser("data", "Look at data before anything is trained on it.", usage=USAGE, epilog=EPILOG)
    parser.add_argument(
        "what", metavar="check", choices=["check"],
        help="show examples, their lengths, duplicates, and every malformed row; exit code 1 if there is one",
    )  # fmt: skip
    parser.add_argument("file", metavar="FILE", help="the examples, in a form that the task reads")
    parser.add_argument("--task", required=True, metavar="T", help="what they are examples of, such as translate")
    parser.add_argument("--against", metavar="FILE2", help="another split, which should have none of the same examples")
    parser.add_argument("--examples", type=positive, default=3, metavar="N", help="how many to show (default: 3)")
    args, fields = parser.parse_known_args(argv)
    data = settings(args.task, fields)
    found = Findings()
    others = numbers(data.rows(args.against), found.faults) if args.against else {}
    sample = list(islice(good(data.rows(args.file)), LEARNT_FROM))
    task = data.learn(row.value for row in sample) if sample else None
    look(task, data.rows(args.file), others, found)
    for line in report(args, task, sample[: args.examples], found):
        sys.stdout.write(f"{line}\n")
    return 1 if found.faults.count else 0


def settings(task: str, fields: list[str]) -> "Data":
    """The data of a task's first recipe, with ``fields`` replaced. Raises ConfigError for a wrong name."""
    from regard.recipes import recipes
    from regard.train.recipe import override

    first: dict[str, Any] = {}
    for recipe in recipes().values():
        made = recipe()
        first.setdefault(made.data.task, made)
    if task not in first:
        raise ConfigError(f"no task '{task}'{did_you_mean(task, first)}; there are {', '.join(first)}")
    return override(first[task], fields, "regard data check").data


class Listing:
    """Lines of which the first few are kept, and all are counted."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.count = 0

    def add(self, line: str) -> None:
        """One more."""
        self.count += 1
        if len(self.lines) < LISTED:
            self.lines.append(line)

    def under(self, title: str) -> Iterator[str]:
        """How many there were, and the lines."""
        yield from ("", f"{title}: {self.count:,}", *(f"  {line}" for line in self.lines))
        if self.count > LISTED:
            yield f"  ... and {self.count - LISTED:,} more"


@dataclass
class Findings:
    """What one pass over a file finds; the lengths are how often each occurs, for each sequence of an example."""

    num_examples: int = 0
    faults: Listing = field(default_factory=Listing)
    repeats: Listing = field(default_factory=Listing)
    shared: Listing = field(default_factory=Listing)
    lengths: tuple[Counter[int], ...] = ()


def good(rows: Rows[Any]) -> Iterator[Row[Any]]:
    """The rows without the faults."""
    return (row for row in rows if isinstance(row, Row))


def numbers(rows: Rows[Any], faults: Listing) -> dict[int, int]:
    """Where in a file each example is first, by its hash: 64 bits, too many for two examples to share them."""
    seen: dict[int, int] = {}
    for row in rows:
        if isinstance(row, Fault):
            faults.add(str(row))
        else:
            seen.setdefault(hash(row.value), row.place.number)
    return seen


def look(task: "Task | None", rows: Rows[Any], others: Mapping[int, int], found: Findings) -> None:
    """Put down all that is to be found in the rows; ``others`` are the examples of another split."""
    seen: dict[int, int] = {}
    while window := list(islice(rows, WINDOW)):
        values = []
        for row in window:
            if isinstance(row, Fault):
                found.faults.add(str(row))
                continue
            values.append(row.value)
            key, (_, number, unit) = hash(row.value), row.place
            if key in seen:
                found.repeats.add(f"{unit} {number} is {unit} {seen[key]} again")
            if key in others:
                found.shared.add(f"{unit} {number} is {unit} {others[key]} there")
            seen.setdefault(key, number)
        found.num_examples += len(values)
        if task and values:
            found.lengths = found.lengths or tuple(Counter() for _ in task.sequences)
            for lengths in task.lengths(values):
                for counter, length in zip(found.lengths, lengths, strict=True):
                    counter[length] += 1


def report(args: Namespace, task: "Task | None", sample: Sequence[Row[Any]], found: Findings) -> Iterator[str]:
    """What was found, line by line."""
    yield from (args.file, f"examples: {found.num_examples:,}")
    yield from found.faults.under("malformed rows")
    if task:
        yield from ("", "tokens between bars; those that carry loss in [brackets]")
        for row in sample:
            yield f"  {row.place.unit} {row.place.number}"
            yield from (f"    {line}" for line in example(task, row.value))
        for name, lengths in zip(task.sequences, found.lengths, strict=True):
            yield ""
            yield from histogram(name, lengths)
    yield from found.repeats.under("duplicates")
    if args.against:
        yield from found.shared.under(f"in {args.against} as well")


def example(task: "Task", value: Any) -> Iterator[str]:
    """What a model reads of one example, and what it is to say: "_" stands for a place without loss."""
    from regard.core.types import IGNORE

    batch = task.example(value)
    tokens = batch["tokens"][0].tolist()
    yield f"tokens   {'│'.join(visible(task.pieces('tokens', tokens[:SHOWN])))}{rest(tokens)}"
    if "targets" not in batch:  # drawn anew whenever a batch is made
        return
    targets = batch["targets"][:1].flatten().tolist()
    said = targets[:SHOWN]
    pieces = iter(visible(task.pieces("targets", [token for token in said if token != IGNORE])))
    marked = ("_" if token == IGNORE else f"[{next(pieces)}]" for token in said)
    yield f"targets  {''.join(marked)}{rest(targets)}"


def visible(pieces: Sequence[str]) -> list[str]:
    """The pieces with line breaks and what else cannot be printed as escapes."""
    return ["".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in piece) for piece in pieces]


def rest(row: Sequence[int]) -> str:
    """How many tokens of a row are not shown."""
    return f" ... and {len(row) - SHOWN} more" if len(row) > SHOWN else ""


def histogram(name: str, lengths: Counter[int]) -> Iterator[str]:
    """How long examples are: percentiles, and a bar for each of up to ten spans of lengths."""
    low, high = min(lengths), max(lengths)
    shares = ", ".join(f"{share} % up to {percentile(lengths, share)}" for share in (50, 90, 99))
    yield f"{name}: {low} to {high} tokens; {shares}"
    step = math.ceil((high - low + 1) / BINS)
    spans = [range(first, min(first + step, high + 1)) for first in range(low, high + 1, step)]
    counts = [sum(lengths[length] for length in span) for span in spans]
    labels = [f"{span[0]}-{span[-1]}" if len(span) > 1 else str(span[0]) for span in spans]
    for label, count in zip(labels, counts, strict=True):
        bar = "█" * math.ceil(BAR * count / max(counts))
        yield f"  {label:>{max(map(len, labels))}} {count:>{len(f'{max(counts):,}')},} {bar}".rstrip()


def percentile(lengths: Counter[int], share: int) -> int:
    """The smallest length that ``share`` of a hundred examples do not exceed."""
    below = 0
    for length in sorted(lengths):
        below += lengths[length]
        if 100 * below >= share * lengths.total():
            return length
    raise ValueError("no lengths")
