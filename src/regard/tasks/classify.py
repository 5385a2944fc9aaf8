"""Classification of texts, and of pairs of texts: sentiment, topic, whether one follows from the other.

An encoder reads the whole text, and a linear layer over what it makes of the first token scores the classes (Devlin et
al. 2019, section 4.1). Of a decoder it is the last token (Radford et al. 2018, section 3.2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regard.blocks.packed import pack
from regard.core.errors import ConfigError, DataError, did_you_mean
from regard.core.types import Batch
from regard.data.phrases import phrases
from regard.data.source import Rows, mapped
from regard.data.split import Splits
from regard.data.tables import table, text
from regard.data.tokenize import UNCUT, Tokenizer
from regard.tasks.encoder import (
    WINDOW,
    EncoderTask,
    ExampleText,
    by_length,
    check_known,
    frame,
    known_labels,
    knows_types,
    load_labels,
    logits,
    numbers,
    save_labels,
    sides,
)
from regard.tasks.task import Scored

LANGUAGES = ("de", "en", "es", "fr", "it", "nl", "pl", "pt")
"""Those that there is to tell apart without data."""


class Labelled(NamedTuple):
    """One text, or two that belong together, and its class."""

    texts: tuple[str, ...]
    label: str


class Example(NamedTuple):
    """What the model reads, which of the texts each token is of, and the number of the class."""

    tokens: NDArray[np.int32]
    types: NDArray[np.int8]
    target: int


@dataclass(frozen=True)
class LabelledText(ExampleText[Labelled]):
    """What to learn classes from. Without ``train``: phrases generated from locale data; the class is their language.

    Files are JSONL, CSV, Parquet or TSV (:func:`regard.data.tables.table`), plain or gzipped.

    Attributes:
        text: the column of the text.
        pair: the column of a second text, where examples are pairs.
        label: the column of the class.
        columns: the columns of a TSV without a header, in order; label, text and pair unless given.
        labels: the classes, in order; those of ``train`` in alphabetical order unless given.
    """

    task: ClassVar[str] = "classify"
    embedded: ClassVar[str] = "the phrases"

    text: str = "text"
    pair: str | None = None
    label: str = "label"
    columns: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.labels)) < len(self.labels):
            raise ConfigError("data.labels names a class twice")

    def saved(self, folder: Path) -> Classify:
        """The task, with the tokenizer and classes in ``folder``."""
        return Classify(self, Tokenizer.load(folder), load_labels(folder))

    def learn(self, examples: Iterable[Labelled]) -> Classify:
        """The task, with the tokenizer named, or one trained on these texts, and their classes. Raises DataError."""
        examples = [*examples]
        labels = known_labels(self, lambda some: {example.label for example in some}, examples)
        if len(labels) < 2:
            raise DataError(f"{self.train}: all examples are of the class '{labels[0]}'; there must be two or more")
        return Classify(self, self.learnt(text for example in examples for text in example.texts), labels)

    def generated(self) -> Splits[Labelled]:
        """As :func:`languages`."""
        return languages()

    def rows(self, spec: str) -> Rows[Labelled]:
        """The examples of a file, and its malformed rows. Raises DataError."""
        columns = self.columns or (self.label, self.text, *([self.pair] if self.pair else []))
        return mapped(self._example, table(spec, columns))

    def _example(self, row: dict[str, Any]) -> Labelled:
        texts = tuple(text(row, name) for name in (self.text, self.pair) if name)
        if not all(each.strip() for each in texts):
            raise ValueError("the text is empty")
        label = row.get(self.label)
        found = str(label) if isinstance(label, int) else text(row, self.label)  # JSON may number its classes
        if self.labels and found not in self.labels:
            raise ValueError(
                f"the class '{found}' is none of {', '.join(self.labels)}{did_you_mean(found, self.labels)}"
            )
        return Labelled(texts, found)


DATA = LabelledText


def languages() -> Splits[Labelled]:
    """Phrases as people type them in several languages, each with its language; none that is the same in two."""
    split: dict[str, list[Labelled]] = {}
    for name in ("train", "valid", "test"):
        found = [
            Labelled((source,), language)
            for language in LANGUAGES
            for source, _ in getattr(phrases(language, "fr" if language == "en" else "en", size=4000), name)
        ]
        counts = Counter(example.texts for example in found)
        split[name] = [example for example in found if counts[example.texts] == 1]
    return {"train": split["train"], "valid": split["valid"], "test": split["test"]}


class Classify(EncoderTask[Labelled, Example]):
    """Texts to rows of tokens, and scores to classes."""

    monitor = "accuracy"
    head, what = "classify", "classes"
    sequences: tuple[str, ...] = ("text",)

    def __init__(self, data: LabelledText, tokenizer: Tokenizer, labels: tuple[str, ...]) -> None:
        super().__init__(data, tokenizer, labels)

    def encode(self, examples: Sequence[Labelled]) -> list[Example]:
        """What the model reads of each. Raises DataError for a class that was not there to learn from."""
        targets = numbers((example.label for example in examples), self.labels, "class")
        framed = frame(self.tokenizer, [example.texts for example in examples], self.data.max_len)
        return [Example(*row, target) for row, target in zip(framed, targets, strict=True)]

    def inputs(self, rows: Sequence[tuple[Any, ...]], *, typed: bool) -> Batch:
        """``tokens``, ``valid``, and ``types`` of pairs, for models that know types."""
        return super().inputs(rows, typed=typed and self.data.pair is not None)

    def batch(self, examples: Sequence[Example]) -> Batch:
        """As :meth:`inputs`, with ``targets`` [B]: the numbers of the classes."""
        targets = torch.tensor([example.target for example in examples])
        return {**self.inputs(examples, typed=self.typed), "targets": targets}

    def lengths(self, values: Sequence[Labelled]) -> list[tuple[int, ...]]:
        """Tokens of each example, special ones included, before anything is cut off."""
        return [(len(tokens),) for tokens, _ in frame(self.tokenizer, [value.texts for value in values], UNCUT)]

    def judge(self, model: Any, examples: Sequence[Labelled]) -> Scored:
        """Accuracy and macro F1."""
        outputs = [label for label, _ in self.classes(model, [example.texts for example in examples])]
        table = self.confusion(examples, outputs)
        return Scored(compared(table), {"accuracy": f"{int(table.trace()):,} of {len(examples):,}"}, outputs)

    def confusion(self, examples: Sequence[Labelled], outputs: Sequence[str]) -> NDArray[np.int64]:
        """[true class, said class] how often each was said of each. Raises DataError for a class that is not known."""
        true, said = (numbers(some, self.labels, "class") for some in ((each.label for each in examples), outputs))
        return confusion(true, said, len(self.labels))

    def say(self, model: Any, texts: Sequence[str]) -> Iterator[str]:
        """The class of each text, in order; of a pair, write both texts with a tab between.

        Args:
            model: learnt with this tokenizer and these classes.
            texts: any.

        Raises:
            InputError: a text that is no pair where pairs were learnt from, or that is one where not.
        """
        for label, _ in self.classes(model, [sides(each, self.data.pair) for each in texts]):
            yield label

    def classes(self, model: Any, texts: Sequence[tuple[str, ...]]) -> Iterator[tuple[str, dict[str, float]]]:
        """The likeliest class of each text or pair, and the share of each class; the same alone as among others.

        Raises CheckpointError for a model of other classes.
        """
        check_known(self.labels, model.config)
        packed, typed = pack(model), knows_types(model.config)

        def shares(rows: Sequence[tuple[Any, ...]]) -> Tensor:
            return logits(packed, self.inputs(rows, typed=typed)).float().softmax(dim=-1)

        for first in range(0, len(texts), WINDOW):
            framed = frame(self.tokenizer, texts[first : first + WINDOW], self.data.max_len)
            for row in by_length(framed, shares, self.data.max_tokens):
                yield self.labels[int(row.argmax())], dict(zip(self.labels, row.tolist(), strict=True))

    def show(self, batch: Batch) -> str:
        """The first text of a batch, and its class."""
        text = self.tokenizer.decode(batch["tokens"][0].tolist())
        return f"{text!r}: {self.labels[int(batch['targets'][0])]}"

    def save(self, folder: Path) -> None:
        """Write the tokenizer and the classes."""
        super().save(folder)
        save_labels(self.labels, folder)


def confusion(true: Sequence[int], said: Sequence[int], count: int) -> NDArray[np.int64]:
    """[true class, said class] how often each was said of each."""
    table = np.zeros((count, count), dtype=np.int64)
    np.add.at(table, (np.asarray(true), np.asarray(said)), 1)
    return table


def compared(table: NDArray[np.int64]) -> dict[str, float]:
    """Accuracy, and the mean over the classes of F1, those left out that neither occur nor are said."""
    hits, of_each = table.diagonal(), table.sum(axis=0) + table.sum(axis=1)
    occurring = of_each > 0
    return {
        "accuracy": float(hits.sum() / table.sum()),
        "macro_f1": float((2 * hits[occurring] / of_each[occurring]).mean()),
    }
