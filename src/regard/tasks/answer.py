"""Extractive question answering: the part of a passage that answers a question, or that there is none.

An encoder reads question and passage as a pair of texts; two scores of each place say where the answer begins and ends
(Devlin et al. 2019, sections 4.2 and 4.3). A passage that is too long is read in windows that overlap.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, chain
from operator import attrgetter
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regard.blocks.packed import pack
from regard.core.errors import ConfigError, DataError, InputError
from regard.core.types import Batch
from regard.data.collate import pad
from regard.data.facts import facts
from regard.data.source import Rows
from regard.data.split import EVERY, MOST, Splits
from regard.data.squad import Answer, Question, questions
from regard.data.tokenize import Tokenizer
from regard.objectives.point import pointers
from regard.tasks.encoder import (
    EncoderTask,
    ExampleText,
    by_length,
    knows_types,
    logits,
)
from regard.tasks.task import Scored

NOWHERE = 0
"""The place that stands for no answer: that of the first token, which is of neither text."""

OUTSIDE = -1
"""Where an answer begins that is of no passage."""

READ = 128
"""How many windows are read between two answers at least."""


class Window(NamedTuple):
    """As much of a passage as the model reads at once, with its question.

    Attributes:
        tokens: with the special ones.
        types: which of the two texts each is of.
        choices: where an answer may begin or end: in the passage, and at the first token, for none, and at words.
        offsets: [S, 2] the characters of the passage that each token covers.
        start, end: the places of the answer's first and last token; both NOWHERE if it is not in this window.
        words: the places of the words before the question that are answers by themselves (:attr:`Answering.words`).
    """

    tokens: NDArray[np.int32]
    types: NDArray[np.int8]
    choices: NDArray[np.bool_]
    offsets: NDArray[np.int32]
    start: int = NOWHERE
    end: int = NOWHERE
    words: tuple[int, ...] = ()


class Found(NamedTuple):
    """An answer: what it says ("" for none), where in the passage it begins, its score, and its share of all found.

    A word that is of no passage begins at OUTSIDE.
    """

    text: str
    start: int
    score: float
    share: float = 1.0


@dataclass(frozen=True)
class QuestionText(ExampleText[Question]):
    """What to learn answers from. Without ``train``: questions on what people speak and pay with, from locale data.

    Files are those of SQuAD, version 1.1 or 2.0 (:func:`regard.data.squad.questions`), plain or gzipped.

    Attributes:
        valid: the file to watch training by; None holds out every twentieth passage of ``train``, until there are 1,000
            questions.
        no_answer: whether a passage may have no answer (Rajpurkar et al. 2018); if not, the best one is always given.
        max_len: tokens of a window, with question and special tokens.
        stride: tokens of a passage that a window has in common with the one before.
        max_question: tokens of a question; the end of a longer one is cut off.
        max_answer: tokens of an answer that is given.
    """

    task: ClassVar[str] = "answer"
    embedded: ClassVar[str] = "the facts"
    least: ClassVar[Mapping[str, int]] = dict.fromkeys(
        ("max_len", "stride", "max_question", "max_answer", "max_tokens"), 1
    )

    no_answer: bool = False
    max_len: int = 384
    stride: int = 128
    max_question: int = 64
    max_answer: int = 30
    max_tokens: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_len - self.max_question - 8 <= self.stride:
            raise ConfigError(
                f"data.max_len {self.max_len} leaves a passage {self.max_len - self.max_question - 8} tokens beside a "
                f"question, which must be more than data.stride {self.stride}"
            )

    def saved(self, folder: Path) -> Answering:
        """The task, with the tokenizer in ``folder``."""
        return Answering(self, Tokenizer.load(folder))

    def learn(self, examples: Iterable[Question]) -> Answering:
        """The task, with the tokenizer named, or one trained on these questions and passages."""
        asked = [*examples]
        passages = dict.fromkeys(question.context for question in asked)
        return Answering(self, self.learnt(chain(passages, (question.question for question in asked))))

    def generated(self) -> Splits[Question]:
        """As :func:`regard.data.facts.facts`."""
        return facts()

    @cached_property
    def splits(self) -> Splits[Question]:
        """The questions of train, valid and test, no passage in two of one file; the last is empty where none is named.

        Raises DataError.
        """
        return self.generated() if self.train is None else self.apart(attrgetter("context"), "passage")

    def apart(self, key: Callable[[Question], str], what: str) -> Splits[Question]:
        """As :meth:`from_files`, but what is the same by ``key`` is held out together or not at all.

        Raises DataError, also if all is one ``what``.
        """
        if self.valid:
            return self.from_files()
        groups = dict[str, list[Question]]()
        for each in self.read(str(self.train)):
            groups.setdefault(key(each), []).append(each)
        train, valid = list[Question](), list[Question]()
        for number, group in enumerate(groups.values()):
            (train if number % EVERY or len(valid) >= MOST else valid).extend(group)
        if not train:
            raise DataError(f"{self.train}: one {what} is too few")
        return {"train": train, "valid": valid, "test": self.read(self.test) if self.test else []}

    def rows(self, spec: str) -> Rows[Question]:
        """The questions of a file, and its malformed rows. Raises DataError."""
        return questions(spec)


DATA = QuestionText


class Answering(EncoderTask[Question, Window]):
    """Questions on passages to windows, and scores of places to answers.

    Attributes:
        words: answers that need not be in a passage. They stand before each question, where they are pointed at.
    """

    monitor = "f1"
    head, what = "answer", "answers"
    sequences: tuple[str, ...] = ("question", "passage")
    words: tuple[str, ...] = ()

    def text(self, each: Question) -> str:
        """What the model reads of a question beside the passage."""
        return each.question

    def windows(self, question: str, passage: str, answer: Answer | None = None) -> list[Window]:
        """What the model reads to answer a question, and where the answer is in it, if it is known."""
        data, asked = self.data, " ".join([*self.words, question])
        read = self.tokenizer.overlapping(asked, passage, data.max_question, data.max_len, data.stride)
        return [located(window_of(encoding, self.words), answer) for encoding in read]

    def marked(self, each: Question) -> list[Window]:
        """The windows of a question, with its first answer."""
        return self.windows(self.text(each), each.context, each.answers[0] if each.answers else None)

    def encode(self, examples: Sequence[Question]) -> list[Window]:
        """The windows of all questions, one after another, each with its first answer."""
        return [window for each in examples for window in self.marked(each)]

    def batch(self, examples: Sequence[Window]) -> Batch:
        """As :meth:`inputs`, with ``choices`` and ``targets`` [B 2]: the places of the first and the last token."""
        return {
            **self.inputs(examples, typed=self.typed),
            "choices": choices(examples),
            "targets": torch.tensor([[window.start, window.end] for window in examples]),
        }

    def lengths(self, values: Sequence[Question]) -> list[tuple[int, ...]]:
        """Tokens of each question and passage, without special tokens."""
        sides = [
            self.tokenizer.encode_batch(texts)
            for texts in zip(*((self.text(each), each.context) for each in values), strict=True)
        ]
        return [(len(question), len(passage)) for question, passage in zip(*sides, strict=True)]

    def pieces(self, name: str, row: Sequence[int], /) -> list[str]:
        """The text of each token, or the number of each place."""
        return [str(place) for place in row] if name == "targets" else self.tokenizer.pieces(row)

    def where(self, rows: Sequence[int] | NDArray[np.int64]) -> str:
        """The file, and the name of the question that a training batch's first window is of."""
        ends = accumulate(len(self.marked(each)) for each in self.data.splits["train"])
        asked = next(each for each, end in zip(self.data.splits["train"], ends, strict=True) if end > rows[0])
        return f"{self.data.train or self.data.embedded}, question {asked.id}"

    def judge(self, model: Any, examples: Sequence[Question]) -> Scored:
        """F1 and exact match, 0 to 100."""
        pairs = [(self.text(each), each.context) for each in examples]
        return self.compare([best[0].text for best in self.answers(model, pairs)], examples)

    def compare(self, outputs: list[str], examples: Sequence[Question]) -> Scored:
        """What answers to these questions are worth."""
        return compared(outputs, [[answer.text for answer in each.answers] for each in examples])

    def say(self, model: Any, texts: Sequence[str]) -> Iterator[str]:
        """The answer to each question, which stands before its passage with a tab between; empty where there is none.

        Args:
            model: learnt with this tokenizer.
            texts: questions, each with its passage.

        Raises:
            InputError: a text without a tab.
        """
        pairs = []
        for text in texts:
            question, tab, passage = text.partition("\t")
            if not tab:
                raise InputError(f"{text!r:.60}: expected a question and its passage, with a tab between")
            pairs.append((question, passage))
        for best in self.answers(model, pairs):
            yield best[0].text

    def answers(self, model: Any, pairs: Sequence[tuple[str, str]], count: int = 5) -> Iterator[list[Found]]:
        """The ``count`` best answers to each question on its passage, the best first; the same alone as among others.

        The score of an answer is the sum of those of its first and last token. Where there may be none, the answer ""
        has the least score that any window gives its first place.
        """
        packed, typed = pack(model), knows_types(model.config)

        def scores(windows: Sequence[Window]) -> Tensor:
            made = logits(packed, self.inputs(windows, typed=typed))
            return pointers(made, choices(windows).to(made.device)).float()

        waiting, ends = list[Window](), list[int]()
        for number, (question, passage) in enumerate(pairs):
            waiting += self.windows(question, passage)
            ends.append(len(waiting))
            if len(waiting) < READ and number + 1 < len(pairs):
                continue
            rows = by_length(waiting, scores, self.data.max_tokens)
            read = [row[:, : len(window.tokens)].numpy() for row, window in zip(rows, waiting, strict=True)]
            first = number + 1 - len(ends)
            for i, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
                yield self._best(waiting[start:end], read[start:end], pairs[first + i][1], count)
            waiting, ends = [], []

    def _best(
        self, windows: Sequence[Window], scores: Sequence[NDArray[np.float32]], passage: str, count: int
    ) -> list[Found]:
        spans, words = dict[tuple[int, int], float](), dict[str, float]()
        for window, (starts, ends) in zip(windows, scores, strict=True):
            for score, first, last in likeliest(starts, ends, self.data.max_answer, count, window.words):
                span = int(window.offsets[first, 0]), int(window.offsets[last, 1])
                spans[span] = max(score, spans.get(span, -np.inf))
            for word, place in zip(self.words, window.words, strict=True):
                words[word] = max(float(starts[place] + ends[place]), words.get(word, -np.inf))
        found = [Found(passage[start:end], start, score) for (start, end), score in spans.items()]
        found += [Found(word, OUTSIDE, score) for word, score in words.items()]
        if self.data.no_answer or not found:
            found.append(Found("", 0, float(min(row[0, NOWHERE] + row[1, NOWHERE] for row in scores))))
        found = sorted(found, key=lambda each: -each.score)[:count]
        shares = np.exp(np.array([each.score for each in found]) - found[0].score)
        return [each._replace(share=float(share / shares.sum())) for each, share in zip(found, shares, strict=True)]


def choices(windows: Sequence[Window]) -> Tensor:
    """[B S] where answers may begin or end, False where rows are padded."""
    return pad([window.choices.astype(np.int8) for window in windows], 0).bool()


def window_of(encoding: Any, words: Sequence[str] = ()) -> Window:
    """A window, with no answer marked in it; these words stand before its question."""
    sides = np.array([-1 if side is None else side for side in encoding.sequence_ids])
    offsets = np.asarray(encoding.offsets, dtype=np.int32)
    begins = [0, *accumulate(len(word) + 1 for word in words)][: len(words)]
    covers = [np.flatnonzero((sides == 0) & (offsets[:, 0] <= at) & (at < offsets[:, 1])) for at in begins]
    spoken = tuple(int(places[0]) for places in covers)
    inside = sides == 1
    inside[[NOWHERE, *spoken]] = True
    return Window(
        np.asarray(encoding.ids, dtype=np.int32),
        np.asarray(encoding.type_ids, dtype=np.int8),
        inside,
        offsets,
        words=spoken,
    )


def located(window: Window, answer: Answer | None) -> Window:
    """The window, with the answer marked if all of it is there."""
    if answer is None:
        return window
    first, last = answer.start, answer.start + len(answer.text)
    inside = window.choices.copy()
    inside[[NOWHERE, *window.words]] = False
    places = np.flatnonzero(inside)
    covered = places[(window.offsets[places, 1] > first) & (window.offsets[places, 0] < last)]
    if not len(covered) or window.offsets[covered[0], 0] > first or window.offsets[covered[-1], 1] < last:
        return window
    return window._replace(start=int(covered[0]), end=int(covered[-1]))


def likeliest(
    starts: NDArray[np.float32], ends: NDArray[np.float32], longest: int, count: int, words: Sequence[int] = ()
) -> list[tuple[float, int, int]]:
    """The best spans of at most ``longest`` places: score, first and last place. None begins at NOWHERE or a word."""
    beyond = np.full(longest - 1, -np.inf, dtype=ends.dtype)
    table = starts[:, None] + np.lib.stride_tricks.sliding_window_view(np.concatenate([ends, beyond]), longest)
    table[[NOWHERE, *words]] = -np.inf
    best = np.argpartition(-table, min(count, table.size - 1), axis=None)[:count].tolist()
    spans = [(float(table.flat[i]), i // longest, i // longest + i % longest) for i in best]
    return sorted((span for span in spans if np.isfinite(span[0])), key=lambda span: (-span[0], *span[1:]))


def compared(outputs: list[str], references: Sequence[Sequence[str]]) -> Scored:
    """Exact match and F1 of words, of each output with the reference nearest to it, 0 to 100 (Rajpurkar et al. 2016).

    No answer is right where there are no references.
    """
    pairs = [(output, known or [""]) for output, known in zip(outputs, references, strict=True)]
    exact = [max(normalised(output) == normalised(each) for each in known) for output, known in pairs]
    overlap = [max(overlapping(output, each) for each in known) for output, known in pairs]
    scores = {"f1": 100 * sum(overlap) / len(pairs), "exact_match": 100 * sum(exact) / len(pairs)}
    return Scored(scores, {"exact_match": f"{sum(exact):,} of {len(pairs):,}"}, outputs)


def normalised(text: str) -> str:
    """In lower case, without punctuation, articles and needless blanks, as SQuAD's own program compares answers."""
    bare = "".join(char for char in text.lower() if char not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def overlapping(output: str, reference: str) -> float:
    """F1 of the words that two answers have in common; of two where one is empty, whether both are."""
    ours, theirs = normalised(output).split(), normalised(reference).split()
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))
