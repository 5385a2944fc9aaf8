"""Tagging: a tag for each word, such as which words name a person, a place or a date.

An encoder reads a sentence, and a linear layer over each word's first token scores the tags (Devlin et al. 2019,
section 5.3). Of a decoder it is the word's last token, the first that has seen the whole word.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regard.blocks.packed import pack
from regard.core.types import IGNORE, Batch
from regard.data.collate import sequences
from regard.data.conll import Sentence, sentences
from regard.data.phrases import phrases
from regard.data.source import Rows, mapped
from regard.data.split import Splits
from regard.data.tokenize import Tokenizer
from regard.tasks.encoder import (
    WINDOW,
    EncoderTask,
    ExampleText,
    by_length,
    check_known,
    known_labels,
    load_labels,
    logits,
    numbers,
    save_labels,
)
from regard.tasks.task import Scored, decodes

SCHEME = re.compile(r"O|[BIES](-.*)?")
"""A tag that says where in a span its word is."""

KINDS = ("currency", "date", "languages", "number", "territories", "time", "unit")
"""What there is to find without data."""


class Span(NamedTuple):
    """What one name, date ... takes: its kind, its first word, and the word after its last."""

    kind: str
    start: int
    end: int


class Piece(NamedTuple):
    """As much of a sentence as the model reads at once.

    Attributes:
        tokens: with the special ones around them.
        places: where the token stands at which each word's tag is said.
        targets: the number of each word's tag.
    """

    tokens: NDArray[np.int32]
    places: NDArray[np.int32]
    targets: NDArray[np.int32]


@dataclass(frozen=True)
class TaggedText(ExampleText[Sentence]):
    """What to learn tags from. Without ``train``: phrases of several kinds, generated from locale data, to tell apart.

    Files are those of the CoNLL shared tasks (:func:`regard.data.conll.sentences`), plain or gzipped.

    Attributes:
        labels: the tags, in order; those of ``train`` in alphabetical order unless given. ``B-`` is added of each kind
            that has ``I-`` only, as spans are read with it.
        max_len: tokens that are read at once, special ones included; longer sentences are read in pieces.
    """

    task: ClassVar[str] = "tag"
    embedded: ClassVar[str] = "the phrases"
    least: ClassVar[Mapping[str, int]] = {"max_len": 8, "max_tokens": 1}

    labels: tuple[str, ...] = ()

    def saved(self, folder: Path) -> Tag:
        """The task, with the tokenizer and tags in ``folder``."""
        return Tag(self, Tokenizer.load(folder), load_labels(folder))

    def learn(self, examples: Iterable[Sentence]) -> Tag:
        """The task, with the tokenizer named, or one trained on these sentences, and with their tags."""
        examples = [*examples]
        labels = begun(known_labels(self, lambda some: {tag for example in some for tag in example.tags}, examples))
        return Tag(self, self.learnt(" ".join(example.words) for example in examples), labels)

    def generated(self) -> Splits[Sentence]:
        """As :func:`mixed_phrases`."""
        return mixed_phrases()

    def rows(self, spec: str) -> Rows[Sentence]:
        """The sentences of a file, each span of which begins with ``B-``; and its malformed rows. Raises DataError."""
        return mapped(lambda sentence: sentence._replace(tags=whole(sentence.tags)), sentences(spec))


DATA = TaggedText


def mixed_phrases() -> Splits[Sentence]:
    """English phrases of several kinds in a row, with words between them, each phrase tagged by its kind."""
    corpus, rng = phrases("en", "fr", size=20_000), random.Random(0)
    made = {}
    for name in ("train", "valid", "test"):
        found = [source for source, _ in getattr(corpus, name)]
        rng.shuffle(found)
        groups = [found[i : i + 1 + i % 4] for i in range(0, len(found) - 4, 4)]
        made[name] = [_mixed([(phrase, corpus.categories[phrase]) for phrase in group], rng) for group in groups]
    return {"train": made["train"], "valid": made["valid"], "test": made["test"]}


def _mixed(group: Sequence[tuple[str, str]], rng: random.Random) -> Sentence:
    words, tags = list[str](), list[str]()
    for phrase, kind in group:
        between = rng.choice(("and", "then", "before", "of", "as said", "in short", "about")).split()
        words += [*between, *phrase.split()]
        tags += [*["O"] * len(between), f"B-{kind}", *[f"I-{kind}"] * (len(phrase.split()) - 1)]
    return Sentence(tuple(words), tuple(tags))


class Tag(EncoderTask[Sentence, Piece]):
    """Words to rows of tokens, and scores to tags."""

    monitor = "f1"
    head, what = "tag", "tags"
    sequences: tuple[str, ...] = ("sentence",)

    def __init__(self, data: TaggedText, tokenizer: Tokenizer, labels: tuple[str, ...]) -> None:
        super().__init__(data, tokenizer, labels)
        self.decoding = False  # until a configuration says so

    def configure(self, model: Any) -> Any:
        """The configuration with these tags. Raises ConfigError as :func:`regard.tasks.encoder.with_head`."""
        self.decoding = decodes(model)
        return super().configure(model)

    def encode(self, examples: Sequence[Sentence]) -> list[Piece]:
        """The pieces of all sentences, one after another. Raises DataError for a tag that is not known."""
        found = []
        for example, cuts in zip(examples, self.cut([example.words for example in examples]), strict=True):
            targets = np.asarray(numbers(example.tags, self.labels, "tag"), dtype=np.int32)
            ends = accumulate(len(places) for _, places in cuts)
            found += [Piece(*cut, targets[end - len(cut[1]) : end]) for cut, end in zip(cuts, ends, strict=True)]
        return found

    def cut(self, texts: Sequence[Sequence[str]]) -> list[list[tuple[NDArray[np.int32], NDArray[np.int32]]]]:
        """For each sentence its pieces: tokens, and where that token of each word stands at which its tag is said.

        As many words go into a piece as fit; one that is longer than a whole piece loses its end.
        """
        before, after = self.tokenizer.around
        most = self.data.max_len - len(after)
        found = []
        for words in self.tokenizer.encode_words(texts):
            rows, places = [[*before]], [list[int]()]
            for word in words:
                if len(rows[-1]) + len(word) > most and places[-1]:
                    rows.append([*before])
                    places.append([])
                kept = word[: most - len(before)]
                places[-1].append(len(rows[-1]) + (len(kept) - 1 if self.decoding else 0))
                rows[-1] += kept
            found.append(
                [
                    (np.asarray([*row, *after], dtype=np.int32), np.asarray(at, dtype=np.int32))
                    for row, at in zip(rows, places, strict=True)
                ]
            )
        return found

    def batch(self, examples: Sequence[Piece]) -> Batch:
        """``tokens``, ``valid``, and ``targets`` [B S]: a tag at one token of each word, IGNORE elsewhere."""
        batch = sequences([piece.tokens for piece in examples], self.tokenizer.pad)
        targets = torch.full_like(batch["tokens"], IGNORE)
        for row, piece in zip(targets, examples, strict=True):
            row[torch.from_numpy(piece.places).long()] = torch.from_numpy(piece.targets).long()
        return batch | {"targets": targets}

    def lengths(self, values: Sequence[Sentence]) -> list[tuple[int, ...]]:
        """Tokens of each sentence, special ones included, as if it were read at once."""
        extra = sum(map(len, self.tokenizer.around))
        return [(sum(map(len, words)) + extra,) for words in self.tokenizer.encode_words([v.words for v in values])]

    def rows_of(self, example: Sentence) -> int:
        """How many pieces a sentence has."""
        return len(self.cut([example.words])[0])

    def judge(self, model: Any, examples: Sequence[Sentence]) -> Scored:
        """Precision, recall and F1 of spans, and accuracy of tags."""
        words = [example.words for example in examples]
        said = [*self.tags(model, words)]
        return Scored(*compared([example.tags for example in examples], said), [*map(marked, words, said)])

    def say(self, model: Any, texts: Sequence[str]) -> Iterator[str]:
        """Each text with a tag behind the words that have one, as in ``Anna/B-PER lives in Rome/B-LOC``.

        Args:
            model: learnt with this tokenizer and these tags.
            texts: any; words are what stands between blanks.
        """
        words = [tuple(text.split()) for text in texts]
        yield from map(marked, words, self.tags(model, words))

    def tags(self, model: Any, texts: Sequence[Sequence[str]]) -> Iterator[tuple[str, ...]]:
        """The likeliest tags of the words of each text, in order; the same alone as among others.

        They make whole spans: what goes on follows what it goes on from (:func:`likeliest`). Raises CheckpointError for
        a model of other tags.
        """
        check_known(self.labels, model.config)
        self.decoding = decodes(model.config)
        packed, rules = pack(model), Rules.of(self.labels)

        def read(pieces: Sequence[tuple[Any, ...]]) -> Tensor:
            return logits(packed, sequences([piece[0] for piece in pieces], self.tokenizer.pad)).float()

        for first in range(0, len(texts), WINDOW):
            cut = self.cut(texts[first : first + WINDOW])
            said = iter(by_length([*chain.from_iterable(cut)], read, self.data.max_tokens))
            for pieces in cut:
                scores = np.concatenate([next(said).numpy()[places] for _, places in pieces])
                yield tuple(self.labels[number] for number in likeliest(scores, rules))

    def save(self, folder: Path) -> None:
        """Write the tokenizer and the tags."""
        super().save(folder)
        save_labels(self.labels, folder)


class Rules(NamedTuple):
    """Which tags may begin a sentence, end it, and follow each other ([before, after])."""

    first: NDArray[np.bool_]
    last: NDArray[np.bool_]
    after: NDArray[np.bool_]

    @classmethod
    def of(cls, labels: Sequence[str]) -> Rules:
        """What makes whole spans: ``I-`` and ``E-`` follow ``B-`` or ``I-`` of their kind, and nothing else does.

        Where there is no ``E-`` of a kind, ``B-`` and ``I-`` may end it; where there is no ``B-``, as in published
        labels that have ``I-`` alone, that begins it.
        """
        marks = [(tag[0], tag[2:]) if SCHEME.fullmatch(tag) else ("S", tag) for tag in labels]
        started, ended = ({kind for mark, kind in marks if mark == which} for which in ("B", "E"))

        def fits(before: tuple[str, str], after: tuple[str, str]) -> bool:
            goes_on = after[0] in ("I", "E")
            open_kind = before[1] if before[0] in ("B", "I") else None
            begins = not goes_on or (after[0] == "I" and after[1] not in started)
            return (goes_on and open_kind == after[1]) or (begins and open_kind not in ended)

        outside = ("O", "")
        return cls(
            np.array([fits(outside, mark) for mark in marks]),
            np.array([fits(mark, outside) for mark in marks]),
            np.array([[fits(before, after) for after in marks] for before in marks]),
        )


def likeliest(scores: NDArray[np.float32], rules: Rules) -> list[int]:
    """The tags with the highest sum of scores [words, tags] that the rules allow (Viterbi 1967).

    Where they allow none, as where a sentence is too short for a span, it is that which breaks them least often.
    """
    broken = np.float32(-1e6)
    steps = np.where(rules.after, np.float32(0), broken)
    best = scores[0] + np.where(rules.first, 0, broken) if len(scores) else scores.sum(axis=0)
    come_from = []
    for row in scores[1:]:
        ways = best[:, None] + steps
        come_from.append(ways.argmax(axis=0))
        best = ways.max(axis=0) + row
    path = [int((best + np.where(rules.last, 0, broken)).argmax())] if len(scores) else []
    for places in reversed(come_from):
        path.append(int(places[path[-1]]))
    return path[::-1]


def begun(labels: tuple[str, ...]) -> tuple[str, ...]:
    """The tags, and behind them the ``B-`` of each kind that has ``I-`` only."""
    return tuple(dict.fromkeys([*labels, *(f"B-{tag[2:]}" for tag in labels if tag.startswith("I-"))]))


def whole(tags: Sequence[str]) -> tuple[str, ...]:
    """The same spans, each of which begins with ``B-``, also where ``I-`` began it (Ramshaw & Marcus 1995)."""
    found = list(tags)
    for span in spans(tags):
        if found[span.start] == f"I-{span.kind}":
            found[span.start] = f"B-{span.kind}"
    return tuple(found)


def marked(words: Sequence[str], tags: Sequence[str]) -> str:
    """A text with a tag behind the words that have one."""
    return " ".join(word if tag == "O" else f"{word}/{tag}" for word, tag in zip(words, tags, strict=True))


def spans(tags: Sequence[str]) -> list[Span]:
    """The spans that tags mark: ``B-`` begins one, ``I-`` goes on, or begins one where there is none of its kind.

    ``E-`` and ``S-`` end one, where tags have them. So the program that scored the CoNLL shared tasks reads tags (Tjong
    Kim Sang & Buchholz 2000), whichever of the usual schemes they are of. A tag of none, such as a part of speech, is a
    span of its own.
    """
    found = list[Span]()
    start, before = 0, "O"
    open_kind: str | None = None
    for place, tag in enumerate([*tags, "O"]):
        mark, kind = (tag[0], tag[2:]) if SCHEME.fullmatch(tag) else ("S", tag)
        inside = mark in ("I", "E") and before not in ("O", "E", "S") and kind == open_kind
        if open_kind is not None and not inside:
            found.append(Span(open_kind, start, place))
            open_kind = None
        if mark != "O" and not inside:
            start, open_kind = place, kind
        before = mark
    return found


def compared(true: Sequence[Sequence[str]], said: Sequence[Sequence[str]]) -> tuple[dict[str, float], dict[str, str]]:
    """Micro-averaged precision, recall and F1 of whole spans (Tjong Kim Sang & De Meulder 2003, section 2.4).

    Returns:
        these and the accuracy of single tags; and how many spans there are, were said, and are right.
    """
    hits = found = meant = right = words = 0
    for a, b in zip(true, said, strict=True):
        theirs, ours = set(spans(a)), set(spans(b))
        hits, found, meant = hits + len(theirs & ours), found + len(ours), meant + len(theirs)
        right, words = right + sum(map(str.__eq__, a, b)), words + len(a)
    scores = {
        "f1": 2 * hits / max(found + meant, 1),
        "precision": hits / max(found, 1),
        "recall": hits / max(meant, 1),
        "accuracy": right / max(words, 1),
    }
    return scores, {"f1": f"{hits:,} of {meant:,} spans, {found:,} said"}
