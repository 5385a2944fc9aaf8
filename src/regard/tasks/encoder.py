"""What the tasks of encoders share: examples in memory, heads and their labels, rows of like length read together."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor, nn

from regard.checkpoint.files import read_json, replacing
from regard.core.console import quietly
from regard.core.errors import CheckpointError, ConfigError, DataError, InputError, did_you_mean
from regard.core.types import Batch
from regard.data.collate import pad, sequences
from regard.data.learn import TokenizerKind, train_tokenizer
from regard.data.loader import Loader, plan
from regard.data.source import Rows, values
from regard.data.split import Splits, hold_out, original
from regard.data.tokenize import Tokenizer
from regard.generate.beam import Beam
from regard.generate.decode import Pick, greedy
from regard.tasks.task import Prepare, Scored, check_head, some, vocabulary

E = TypeVar("E")
R = TypeVar("R", bound=tuple[Any, ...])
T = TypeVar("T")

LABELS = "labels.json"

WINDOW = 512
"""How many texts wait for each other, so that those of like length are read together."""


@dataclass(frozen=True)
class ExampleText(ABC, Generic[E]):
    """Files of examples, and how much is read of them at once; tasks say what an example is.

    Attributes:
        train: the file to learn from.
        valid: the file to watch training by; None holds out every twentieth example of ``train``, at most 1,000.
        test: the file to report on.
        tokenizer: a tokenizer.json or its folder; None trains one on ``train``.
        tokenizer_kind: of the trained tokenizer; see :func:`regard.data.learn.train_tokenizer`.
        vocab_size: of the trained tokenizer.
        max_len: tokens that are read of an example, special ones included; of longer ones the end is cut off.
        max_tokens: of a batch, padding included.
        num_workers: processes that make batches ahead of time; 0 makes each when it is asked for.
    """

    task: ClassVar[str]
    embedded: ClassVar[str]
    """What the examples are called that there are without files."""

    least: ClassVar[Mapping[str, int]] = {"max_len": 1, "max_tokens": 1}
    """The least that settings may be."""

    train: str | None = None
    valid: str | None = None
    test: str | None = None
    tokenizer: str | None = None
    tokenizer_kind: TokenizerKind = "wordpiece"
    vocab_size: int = 2000
    max_len: int = 128
    max_tokens: int = 2048
    num_workers: int = 0

    def __post_init__(self) -> None:
        check_files(self, self.embedded)
        for name, least in self.least.items():
            if getattr(self, name) < least:
                raise ConfigError(f"data.{name} {getattr(self, name)} must be at least {least}")

    @abstractmethod
    def saved(self, folder: Path) -> EncoderTask[E, Any]:
        """The task, with what its ``save`` wrote to ``folder``."""

    @abstractmethod
    def learn(self, examples: Iterable[E]) -> EncoderTask[E, Any]:
        """The task, with what there is to learn from these examples."""

    @abstractmethod
    def generated(self) -> Splits[E]:
        """What there is to learn from without files."""

    @abstractmethod
    def rows(self, spec: str) -> Rows[E]:
        """The examples of a file, and its malformed rows. Raises DataError."""

    def open(self, folder: Path | None = None) -> Any:
        """The task, with what was saved in ``folder``, or with what this data asks for."""
        return self.saved(folder) if folder else self.learn(self.splits["train"])

    def learnt(self, texts: Iterable[str]) -> Tokenizer:
        """The tokenizer named, or one trained on these texts."""
        if self.tokenizer:
            return Tokenizer.load(self.tokenizer)
        return train_tokenizer(self.tokenizer_kind, texts, self.vocab_size, framed=True)

    @cached_property
    def splits(self) -> Splits[E]:
        """The examples of train, valid and test; the last is empty where no file is named. Raises DataError."""
        return self.generated() if self.train is None else self.from_files()

    def from_files(self) -> Splits[E]:
        """What the files hold, read at once; one example in twenty held out where no file is named for it.

        Raises:
            DataError: as reading does, or there is nothing left to learn from.
        """
        train = self.read(str(self.train))
        valid = self.read(self.valid) if self.valid else []
        if not valid:
            rest, valid = hold_out(train)
            train = [*rest]
        if not train:
            raise DataError(f"{self.train}: one example is too few")
        return {"train": train, "valid": valid, "test": self.read(self.test) if self.test else []}

    def read(self, spec: str) -> list[E]:
        """The examples of a file. Raises DataError."""
        return [*values(self.rows(spec))]


class EncoderTask(ABC, Generic[E, R]):
    """Examples of a file to rows that the model reads, and these to batches; tasks say what rows hold and mean.

    The first field of a row are its tokens.

    Attributes:
        head: the head that the task needs, by its name.
        what: what the head is for, as in "classes".
        labels: what the head's outputs are called, in order.
        typed: whether the model that learns tells the texts of a pair apart.
    """

    head: ClassVar[str]
    what: ClassVar[str]

    def __init__(self, data: Any, tokenizer: Tokenizer, labels: Sequence[str] = ()) -> None:
        self.data, self.tokenizer, self.labels = data, tokenizer, tuple(labels)
        self.typed = False

    @abstractmethod
    def encode(self, examples: Sequence[E]) -> list[R]:
        """What the model reads of all examples, one after another, and what it is to say."""

    @abstractmethod
    def batch(self, examples: Sequence[R]) -> Batch:
        """Rows as a batch."""

    @abstractmethod
    def judge(self, model: Any, examples: Sequence[E]) -> Scored:
        """What the model's answers to one or more examples are worth."""

    @abstractmethod
    def say(self, model: Any, texts: Sequence[str]) -> Iterator[str]:
        """What the model says of each text, in order; the same alone as among others."""

    def score(self, model: Any, examples: Sequence[E], method: Pick | Beam = greedy) -> Scored:  # noqa: ARG002
        """As :meth:`judge`; ``method`` is no matter, as nothing is written. Raises InputError for no examples."""
        some(examples)
        return self.judge(model, examples)

    def predict(
        self,
        model: Any,
        texts: Sequence[str],
        method: Pick | Beam = greedy,  # noqa: ARG002
        max_tokens: int | None = None,  # noqa: ARG002
    ) -> Iterator[str]:
        """As :meth:`say`; ``method`` and ``max_tokens`` are no matter, as nothing is written."""
        return self.say(model, texts)

    def configure(self, model: Any) -> Any:
        """The configuration with the task's head and labels. Raises ConfigError as :func:`with_head`."""
        self.typed = knows_types(model)
        return with_head(model, self.head, self.what, self.data, self.tokenizer, self.labels)

    def inputs(self, rows: Sequence[tuple[Any, ...]], *, typed: bool) -> Batch:
        """``tokens``, ``valid``, and if ``typed`` also ``types``, of rows whose second field these are."""
        batch = sequences([row[0] for row in rows], self.tokenizer.pad)
        return batch | ({"types": pad([row[1] for row in rows], 0)} if typed else {})

    def example(self, value: E) -> Batch:
        """One example as a batch."""
        return self.batch(self.encode([value]))

    def pieces(self, name: str, row: Sequence[int], /) -> list[str]:
        """The text of each token, or the name of each label."""
        return [self.labels[number] for number in row] if name == "targets" else self.tokenizer.pieces(row)

    @cached_property
    def examples(self) -> list[R]:
        """The rows that there are to learn from."""
        return self.encode([*self.data.splits["train"]])

    def loader(self, *, seed: int, prepare: Prepare, rank: int = 0, world: int = 1) -> Loader[R]:
        """The training batches."""
        return loader(self.data, self.examples, self.batch, seed=seed, prepare=prepare, rank=rank, world=world)

    def rows_of(self, example: E) -> int:  # noqa: ARG002 - a task may go by it
        """How many rows an example has."""
        return 1

    def where(self, rows: Sequence[int] | NDArray[np.int64]) -> str:
        """The file, and the number in it of the example that a training batch's first row is of."""
        counts = map(self.rows_of, self.data.splits["train"])
        return whereabouts(self.data, int(rows[0]), counts, self.data.embedded)

    def validation(self) -> Sequence[Batch]:
        """The held-out examples in batches of the same size as training's."""
        return self._validation

    @cached_property
    def _validation(self) -> list[Batch]:
        rows = self.encode(self.data.splits["valid"])
        return [self.batch([rows[i] for i in near]) for near in plan(lengths_of(rows), self.data.max_tokens)]

    def metrics(self, model: nn.Module, nll: float) -> dict[str, float]:  # noqa: ARG002 - what it says tells more
        """As :meth:`score`, on the held-out examples."""
        with quietly():
            return self.score(model, self.data.splits["valid"]).scores

    def show(self, batch: Batch) -> str:
        """The first row of a batch."""
        return repr(self.tokenizer.decode(batch["tokens"][0].tolist()))

    def save(self, folder: Path) -> None:
        """Write the tokenizer, and what else was learnt from the data."""
        self.tokenizer.save(folder)


def lengths_of(rows: Sequence[tuple[Any, ...]]) -> list[tuple[int]]:
    """How many tokens each row has."""
    return [(len(row[0]),) for row in rows]


def check_files(data: Any, without: str) -> None:
    """Raise ConfigError where files to watch or report on are named, and none to learn from."""
    if data.train is None and (data.valid or data.test):
        raise ConfigError(f"data.valid and data.test need data.train; without it {without} are all three")


def known_labels(data: Any, of: Callable[[Iterable[T]], Iterable[str]], examples: Iterable[T]) -> tuple[str, ...]:
    """The labels that the data name, or those of the examples, also of such as are held out, in alphabetical order."""
    if data.labels:
        return tuple(data.labels)
    held_out = [] if data.valid or data.train is None else data.splits["valid"]
    return tuple(sorted({*of(examples), *of(held_out)}))


def with_head(model: Any, head: str, what: str, data: Any, tokenizer: Tokenizer, labels: Sequence[str] = ()) -> Any:
    """The configuration with this head for ``what`` and these labels, and the tokenizer's size and special tokens.

    Raises:
        ConfigError: a family without such heads, too few positions, or too small a vocabulary.
    """
    check_head(model, head, what)
    if model.max_seq_len < data.max_len:
        raise ConfigError(
            f"data.max_len {data.max_len} is more than the model's {model.max_seq_len} positions; "
            "raise model.max_seq_len, or lower data.max_len"
        )
    special = {"pad_token": tokenizer.pad, "bos_token": tokenizer.bos, "eos_token": tokenizer.eos}
    return replace(model, head=head, labels=tuple(labels), vocab_size=vocabulary(model, tokenizer), **special)


def knows_types(model: Any) -> bool:
    """Whether a configuration's models tell the texts of a pair apart."""
    return getattr(model, "num_types", 1) > 1


def frame(
    tokenizer: Tokenizer, texts: Sequence[tuple[str, ...]], max_len: int
) -> list[tuple[NDArray[np.int32], NDArray[np.int8]]]:
    """Of each text or pair the tokens with the special ones around them, and which of the texts each is of."""
    sides: list[str | tuple[str, str]] = [each[0] if len(each) == 1 else (each[0], each[1]) for each in texts]
    return [
        (np.asarray(encoding.ids, dtype=np.int32), np.asarray(encoding.type_ids, dtype=np.int8))
        for encoding in tokenizer.frame(sides, max_len)
    ]


def sides(text: str, pair: str | None) -> tuple[str, ...]:
    """A text by itself, or if it is a ``pair``, the two that have a tab between. Raises InputError if it is not."""
    found = tuple(text.split("\t")) if pair else (text,)
    if len(found) != (2 if pair else 1):
        raise InputError(f"{text!r:.60}: expected two texts with a tab between, found {len(found)}")
    return found


def numbers(labels: Iterable[str], known: Sequence[str], what: str) -> list[int]:
    """The number of each label. Raises DataError for one that was not there to learn from."""
    places = {label: number for number, label in enumerate(known)}
    found = []
    for label in labels:
        if label not in places:
            raise DataError(
                f"the {what} '{label}' is none of those learnt, {', '.join(known)}{did_you_mean(label, places)}; "
                "data.labels may name more"
            )
        found.append(places[label])
    return found


def loader(
    data: Any, rows: Sequence[R], batch: Callable[[Sequence[R]], Batch], *, seed: int, prepare: Prepare, rank: int,
    world: int,
) -> Loader[R]:  # fmt: skip
    """The training batches of rows in memory, the first field of which are its tokens; all fields identify the data."""
    digest = xxhash.xxh3_64()
    for row in rows:
        for field in row:
            digest.update(np.asarray(field).tobytes())
    return Loader(
        rows,
        lengths_of(rows),
        batch,
        max_tokens=data.max_tokens,
        seed=seed,
        prepare=prepare,
        identity=digest.hexdigest(),
        num_workers=data.num_workers,
        rank=rank,
        world=world,
    )


def whereabouts(data: Any, row: int, counts: Iterable[int], what: str) -> str:
    """The file, and the number in it of the example that a row to learn from is of.

    Args:
        data: what is learnt from.
        row: its number.
        counts: how many rows each example has.
        what: what the embedded examples are called.
    """
    number = next(number for number, end in enumerate(accumulate(counts)) if end > row)
    if data.train and not data.valid:
        number = original(number)
    return f"{data.train or what}, example {number + 1}"


@torch.inference_mode()
def by_length(rows: Sequence[R], run: Callable[[list[R]], Tensor], max_tokens: int) -> list[Tensor]:
    """What ``run`` makes of each row, in order, on the CPU; those of like length are run together.

    A row's first field are its tokens.
    """
    found = [torch.empty(0)] * len(rows)
    for near in plan(lengths_of(rows), max_tokens):
        for i, made in zip(near, run([rows[i] for i in near]).cpu(), strict=True):
            found[i] = made
    return found


def logits(model: Any, batch: Batch) -> Tensor:
    """The model's scores of a batch, wherever the model is."""
    device = next(model.parameters()).device
    scores: Tensor = model(**{name: value.to(device) for name, value in batch.items()}).logits
    return scores


def save_labels(labels: Sequence[str], folder: Path) -> None:
    """Write what :func:`load_labels` reads."""
    with replacing(folder) as staged:
        (staged / LABELS).write_text(json.dumps(labels, ensure_ascii=False) + "\n", encoding="utf-8")


def load_labels(folder: Path) -> tuple[str, ...]:
    """The labels that a run was learnt with. Raises CheckpointError."""
    found = read_json(folder / LABELS)
    if not isinstance(found, list) or not found or not all(isinstance(label, str) for label in found):
        raise CheckpointError(f"{folder / LABELS}: expected a list of labels")
    return tuple(found)


def check_known(labels: tuple[str, ...], config: Any) -> None:
    """Raise CheckpointError unless these labels, which a task goes by, are those of a model's configuration."""
    if labels != config.labels:
        raise CheckpointError(
            f"{LABELS}: its {len(labels)} labels are not the {len(config.labels)} that the model learnt, in order: "
            f"{', '.join(config.labels)}"
        )
