"""Regression: one or more numbers from a text or a pair of texts, such as how alike two sentences are.

An encoder reads the whole text, and a linear layer over what it makes of the first token says the numbers (Devlin et
al. 2019, section 4.1, for STS-B). It learns them less their mean and divided by their standard deviation.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regard import zoo
from regard.blocks.packed import pack
from regard.checkpoint.files import read_json, replacing
from regard.core.errors import CheckpointError, ConfigError
from regard.core.types import Batch
from regard.data.numerals import numerals
from regard.data.source import Rows, mapped
from regard.data.split import Splits
from regard.data.tables import table, text
from regard.data.tokenize import UNCUT, Tokenizer
from regard.tasks.encoder import (
    WINDOW,
    EncoderTask,
    ExampleText,
    by_length,
    frame,
    knows_types,
    logits,
    sides,
)
from regard.tasks.task import Scored

SCALE = "scale.json"


class Measured(NamedTuple):
    """One text, or two that belong together, and its numbers."""

    texts: tuple[str, ...]
    numbers: tuple[float, ...]


class Example(NamedTuple):
    """What the model reads, which of the texts each token is of, and the numbers as it is to say them."""

    tokens: NDArray[np.int32]
    types: NDArray[np.int8]
    targets: NDArray[np.float64]


@dataclass(frozen=True)
class Scale:
    """What the numbers are less, and divided by, as the model says them; one of each for each number."""

    mean: tuple[float, ...]
    deviation: tuple[float, ...]

    @classmethod
    def of(cls, rows: Sequence[Sequence[float]]) -> Scale:
        """That of these numbers; a number that is always the same is divided by 1."""
        table = np.asarray(rows, dtype=np.float64)
        deviation = table.std(axis=0)
        return cls(tuple(table.mean(axis=0).tolist()), tuple(np.where(deviation > 0, deviation, 1.0).tolist()))

    def down(self, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        """[B N] as the model says them."""
        return (numbers - self.mean) / self.deviation

    def up(self, said: NDArray[np.float64]) -> NDArray[np.float64]:
        """[B N] as they are."""
        return said * self.deviation + self.mean


@dataclass(frozen=True)
class MeasuredText(ExampleText[Measured]):
    """What to learn numbers from. Without ``train``: English numerals; the number is what they are worth.

    Files are JSONL, CSV, Parquet or TSV (:func:`regard.data.tables.table`), plain or gzipped.

    Attributes:
        text: the column of the text.
        pair: the column of a second text, where examples are pairs.
        numbers: the columns of the numbers.
        columns: the columns of a TSV without a header, in order; numbers, text and pair unless given.
    """

    task: ClassVar[str] = "regress"
    embedded: ClassVar[str] = "the numerals"

    text: str = "text"
    pair: str | None = None
    numbers: tuple[str, ...] = ("number",)
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.numbers or len(set(self.numbers)) < len(self.numbers):
            raise ConfigError("data.numbers must name the columns of the numbers, each once")

    def saved(self, folder: Path) -> Regress:
        """The task, with the tokenizer and the scale in ``folder``."""
        return Regress(self, Tokenizer.load(folder), load_scale(folder, len(self.numbers)))

    def learn(self, examples: Iterable[Measured]) -> Regress:
        """The task, with the tokenizer named, or one trained on these texts, and the scale of their numbers."""
        examples = [*examples]
        scale = Scale.of([example.numbers for example in examples])
        return Regress(self, self.learnt(text for example in examples for text in example.texts), scale)

    def generated(self) -> Splits[Measured]:
        """As :func:`worth`."""
        return worth()

    def rows(self, spec: str) -> Rows[Measured]:
        """The examples of a file, and its malformed rows. Raises DataError."""
        columns = self.columns or (*self.numbers, self.text, *([self.pair] if self.pair else []))
        return mapped(self._example, table(spec, columns))

    def _example(self, row: dict[str, Any]) -> Measured:
        texts = tuple(text(row, name) for name in (self.text, self.pair) if name)
        if not all(each.strip() for each in texts):
            raise ValueError("the text is empty")
        return Measured(texts, tuple(number(row, name) for name in self.numbers))


DATA = MeasuredText


def worth() -> Splits[Measured]:
    """Numerals, each with what it is worth."""
    made = numerals()

    def of(found: Iterable[tuple[str, int]]) -> list[Measured]:
        return [Measured((words,), (float(value),)) for words, value in found]

    return {"train": of(made["train"]), "valid": of(made["valid"]), "test": of(made["test"])}


def number(row: dict[str, Any], column: str) -> float:
    """The number in a column, which may be written as text. Raises ValueError for what is none, or not finite."""
    value = row.get(column)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        value = text(row, column)
    try:
        found = float(value)
    except ValueError:
        raise ValueError(f"'{column}' should be a number, found '{value:.40}'") from None
    if not math.isfinite(found):
        raise ValueError(f"'{column}' should be a finite number, found {found}")
    return found


class Regress(EncoderTask[Measured, Example]):
    """Texts to rows of tokens, and what the model says to numbers."""

    monitor = "r2"
    head, what = "classify", "numbers"
    sequences: tuple[str, ...] = ("text",)

    def __init__(self, data: MeasuredText, tokenizer: Tokenizer, scale: Scale) -> None:
        super().__init__(data, tokenizer, data.numbers)
        self.scale = scale

    def encode(self, examples: Sequence[Measured]) -> list[Example]:
        """What the model reads of each, and what it is to say."""
        targets = self.scale.down(np.array([example.numbers for example in examples], dtype=np.float64))
        framed = frame(self.tokenizer, [example.texts for example in examples], self.data.max_len)
        return [Example(*row, target) for row, target in zip(framed, targets, strict=True)]

    def inputs(self, rows: Sequence[tuple[Any, ...]], *, typed: bool) -> Batch:
        """``tokens``, ``valid``, and ``types`` of pairs, for models that know types."""
        return super().inputs(rows, typed=typed and self.data.pair is not None)

    def batch(self, examples: Sequence[Example]) -> Batch:
        """As :meth:`inputs`, with ``targets`` [B N]: the numbers as the model is to say them."""
        targets = torch.from_numpy(np.stack([example.targets for example in examples])).float()
        return {**self.inputs(examples, typed=self.typed), "targets": targets}

    def lengths(self, values: Sequence[Measured]) -> list[tuple[int, ...]]:
        """Tokens of each example, special ones included, before anything is cut off."""
        return [(len(tokens),) for tokens, _ in frame(self.tokenizer, [value.texts for value in values], UNCUT)]

    def pieces(self, name: str, row: Sequence[int], /) -> list[str]:
        """The text of each token, or the numbers as they are."""
        return written(self.scale.up(np.asarray(row))) if name == "targets" else self.tokenizer.pieces(row)

    def judge(self, model: Any, examples: Sequence[Measured]) -> Scored:
        """How near what the model says comes to the numbers of any examples (:func:`compared`).

        Of several numbers these are means over them, with those of each: ``pearson/width``.
        """
        said = np.stack([*self.numbers(model, [example.texts for example in examples])])
        true = np.array([example.numbers for example in examples])
        each = [compared(said[:, i], true[:, i]) for i in range(true.shape[1])]
        scores = {name: float(np.mean([found[name] for found in each])) for name in each[0]}
        if len(each) > 1:
            named = zip(self.data.numbers, each, strict=True)
            scores |= {f"{metric}/{name}": value for name, found in named for metric, value in found.items()}
        return Scored(scores, {}, ["\t".join(written(row)) for row in said])

    def say(self, model: Any, texts: Sequence[str]) -> Iterator[str]:
        """The numbers of each text, in order, with tabs between; of a pair, write both texts with a tab between.

        Args:
            model: learnt with this tokenizer and this scale.
            texts: any.

        Raises:
            InputError: a text that is no pair where pairs were learnt from, or that is one where not.
        """
        for row in self.numbers(model, [sides(each, self.data.pair) for each in texts]):
            yield "\t".join(written(row))

    def numbers(self, model: Any, texts: Sequence[tuple[str, ...]]) -> Iterator[NDArray[np.float64]]:
        """[N] the numbers of each text or pair; the same alone as among others."""
        packed, typed = pack(model), knows_types(model.config)

        def said(rows: Sequence[tuple[Any, ...]]) -> Tensor:
            return logits(packed, self.inputs(rows, typed=typed)).double()

        for first in range(0, len(texts), WINDOW):
            framed = frame(self.tokenizer, texts[first : first + WINDOW], self.data.max_len)
            for row in by_length(framed, said, self.data.max_tokens):
                yield self.scale.up(row.numpy())

    def show(self, batch: Batch) -> str:
        """The first text of a batch, and its numbers."""
        text = self.tokenizer.decode(batch["tokens"][0].tolist())
        return f"{text!r}: {', '.join(written(self.scale.up(batch['targets'][0].double().numpy())))}"

    def save(self, folder: Path) -> None:
        """Write the tokenizer and the scale."""
        super().save(folder)
        with replacing(folder) as staged:
            found = {"mean": self.scale.mean, "deviation": self.scale.deviation}
            (staged / SCALE).write_text(json.dumps(found) + "\n", encoding="utf-8")


def load_scale(folder: Path, count: int) -> Scale:
    """The scale of ``count`` numbers that a run was learnt with. Raises CheckpointError."""
    match read_json(folder / SCALE):
        case {"mean": list(mean), "deviation": list(deviation)} if (
            all([*map(type, row)] == [float] * count and all(map(math.isfinite, row)) for row in (mean, deviation))
            and min(deviation) > 0
        ):
            return Scale(tuple(mean), tuple(deviation))
    raise CheckpointError(f"{folder / SCALE}: expected {count} numbers as 'mean', and as many above 0 as 'deviation'")


def published(folder: str | Path, *, pair: bool = False) -> tuple[Regress, Any]:
    """A checkpoint that says numbers, published or ours, and the task that asks it; numbers are as the model says them.

    Args:
        folder: with its tokenizer. A published one has ``"problem_type": "regression"`` in its configuration, or one
            label.
        pair: whether it reads pairs of texts.

    Raises:
        CheckpointError: no such checkpoint, one without a tokenizer, or a damaged one.
        ConfigError: one that says no numbers.
    """
    place = zoo.checkpoint_folder(folder)
    model: Any = zoo.load(place)
    labels = getattr(model.config, "labels", ())
    asked = read_json(place / "config.json").get("problem_type") == "regression"
    if getattr(model.config, "head", None) != "classify" or not (asked or len(labels) == 1):
        raise ConfigError(f"{folder}: its head says no numbers: it has {len(labels)} classes; the task 'classify' has")
    data = MeasuredText(
        tokenizer=str(place), numbers=labels, pair="pair" if pair else None, max_len=model.config.max_seq_len
    )
    return Regress(data, Tokenizer.load(place), Scale((0.0,) * len(labels), (1.0,) * len(labels))), model


def written(numbers: Iterable[float]) -> list[str]:
    """Each number with six digits that count."""
    return [f"{number:.6g}" for number in numbers]


def compared(said: NDArray[np.float64], true: NDArray[np.float64]) -> dict[str, float]:
    """How near numbers come to others.

    Returns:
        ``pearson``, the correlation, and ``spearman``, that of their ranks (of equals the mean): 0 where one side is
        always the same; ``rmse``, the root of the mean squared error; and ``r2``, the share of the variance that is
        explained: 1 where all are right, 0 for as good as the mean, and where there is no variance.
    """
    errors, spread = np.square(said - true).sum(), np.square(true - true.mean()).sum()
    explained = 1 - errors / spread if spread else float(errors == 0)
    return {
        "pearson": correlation(said, true),
        "spearman": correlation(ranks(said), ranks(true)),
        "rmse": float(np.sqrt(errors / len(true))),
        "r2": float(explained),
    }


def correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Pearson's; 0 where one side is always the same."""
    if (a == a[0]).all() or (b == b[0]).all():
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    return float((a / np.linalg.norm(a)) @ (b / np.linalg.norm(b)))


def ranks(numbers: NDArray[np.float64]) -> NDArray[np.float64]:
    """The place of each among all, from 1; of equals the mean."""
    _, which, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[which]
