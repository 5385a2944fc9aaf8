"""Extractive summarization: the sentences of a document that say most of it (BertSum; Liu & Lapata 2019).

An encoder reads the document with its first special token before each sentence and its last one behind, and a linear
layer scores each sentence where it begins. Which sentences to learn from is found by comparing them with a summary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regard.blocks.packed import pack
from regard.core.types import IGNORE, Batch
from regard.data.notices import notices
from regard.data.pairs import Pair
from regard.data.sentences import sentences
from regard.data.source import Rows
from regard.data.split import Splits
from regard.data.summaries import summaries
from regard.data.tokenize import Tokenizer
from regard.tasks import rouge
from regard.tasks.encoder import (
    WINDOW,
    EncoderTask,
    ExampleText,
    by_length,
    knows_types,
    logits,
)
from regard.tasks.task import Scored, tell_cut

LABELS = "out", "in"
"""Whether a sentence is out of the summary or in it."""


class Read(NamedTuple):
    """As much of a document as the model reads.

    Attributes:
        tokens: with special ones around each sentence.
        types: 0 for the tokens of the first sentence, 1 for those of the second, 0 for those of the third ...
        places: where each sentence begins, of those that are read.
        targets: which of these the summary is best made of.
    """

    tokens: NDArray[np.int32]
    types: NDArray[np.int8]
    places: NDArray[np.int32]
    targets: NDArray[np.int8] = np.empty(0, dtype=np.int8)


@dataclass(frozen=True)
class DocumentText(ExampleText[Pair]):
    """What to learn extracts from. Without ``train``: notices generated from locale data, and their headlines.

    Files are JSONL, CSV, Parquet or TSV (:func:`regard.data.summaries.summaries`), plain or gzipped. The summaries need
    not be made of sentences of the documents.

    Attributes:
        document: the column of the long text.
        summary: the column of the short one.
        columns: the columns of a TSV without a header, in order; document and summary unless given.
        num_sentences: how many sentences an extract has at most.
        block_trigrams: whether an extract has no two sentences with three words in a row in common.
        stemmed: whether ROUGE compares words of four letters and more by their English stems, as many papers do.
        max_len: tokens that are read of a document, special ones included; of longer ones the end is cut off.
    """

    task: ClassVar[str] = "extract"
    embedded: ClassVar[str] = "the notices"
    least: ClassVar[Mapping[str, int]] = {"num_sentences": 1, "max_len": 8, "max_tokens": 1}

    document: str = "document"
    summary: str = "summary"
    columns: tuple[str, ...] = ()
    num_sentences: int = 3
    block_trigrams: bool = True
    stemmed: bool = False
    max_len: int = 512
    max_tokens: int = 4096

    def saved(self, folder: Path) -> Extract:
        """The task, with the tokenizer in ``folder``."""
        return Extract(self, Tokenizer.load(folder))

    def learn(self, examples: Iterable[Pair]) -> Extract:
        """The task, with the tokenizer named, or one trained on these documents."""
        return Extract(self, self.learnt(document for document, _ in examples))

    def generated(self) -> Splits[Pair]:
        """As :func:`regard.data.notices.notices`."""
        return notices()

    def rows(self, spec: str) -> Rows[Pair]:
        """The pairs of a file, and its malformed rows. Raises DataError."""
        return summaries(spec, self.document, self.summary, self.columns)


DATA = DocumentText


class Extract(EncoderTask[Pair, Read]):
    """Documents to rows of tokens, and scores of sentences to extracts."""

    monitor = "rougeL"
    head, what = "tag", "sentences"
    sequences: tuple[str, ...] = ("document",)

    def __init__(self, data: DocumentText, tokenizer: Tokenizer) -> None:
        super().__init__(data, tokenizer, LABELS)

    def encode(self, examples: Sequence[Pair]) -> list[Read]:
        """What the model reads of each document, and which sentences it is to choose."""
        cut = [sentences(document) for document, _ in examples]
        found = []
        for texts, row, (_, summary) in zip(cut, self.frame(cut), examples, strict=True):
            targets = np.zeros(len(texts), dtype=np.int8)
            targets[oracle(texts, summary, self.data.num_sentences, stemmed=self.data.stemmed)] = 1
            found.append(row._replace(targets=targets[: len(row.places)]))
        return found

    def frame(self, texts: Sequence[Sequence[str]]) -> list[Read]:
        """What the model reads of each document, which is given as its sentences; how many are cut is told."""
        before, after = self.tokenizer.around
        tokens = iter(self.tokenizer.encode_batch([*chain.from_iterable(texts)]))
        rows = [[[*before, *next(tokens), *after] for _ in each] for each in texts]
        tell_cut([sum(map(len, each)) for each in rows], self.data.max_len)
        return [framed(each, len(before), after, self.data.max_len) for each in rows]

    def batch(self, examples: Sequence[Read]) -> Batch:
        """As :meth:`inputs`, with ``targets`` [B S]: 1 or 0 where a sentence begins, IGNORE elsewhere."""
        batch = self.inputs(examples, typed=self.typed)
        targets = torch.full_like(batch["tokens"], IGNORE)
        for row, example in zip(targets, examples, strict=True):
            row[torch.from_numpy(example.places).long()] = torch.from_numpy(example.targets).long()
        return batch | {"targets": targets}

    def lengths(self, values: Sequence[Pair]) -> list[tuple[int, ...]]:
        """Tokens of each document, special ones included, before anything is cut off."""
        around = sum(map(len, self.tokenizer.around))
        cut = [sentences(document) for document, _ in values]
        rows = iter(self.tokenizer.encode_batch([*chain.from_iterable(cut)]))
        return [(sum(len(next(rows)) + around for _ in each),) for each in cut]

    def judge(self, model: Any, examples: Sequence[Pair]) -> Scored:
        """ROUGE of the extracts beside the summaries; also of the first sentences, and of the best (:func:`oracle`)."""
        data = self.data
        outputs = [*self.say(model, [document for document, _ in examples])]
        lead, best = list[str](), list[str]()
        for document, summary in examples:
            texts = sentences(document)
            lead.append("\n".join(texts[: data.num_sentences]))
            best.append("\n".join(texts[i] for i in oracle(texts, summary, data.num_sentences, stemmed=data.stemmed)))
        references = [summary for _, summary in examples]
        return rouge.scored(outputs, references, stemmed=data.stemmed, lead=lead, oracle=best)

    def say(self, model: Any, texts: Sequence[str]) -> Iterator[str]:
        """The extract of each text: the sentences that are chosen, in the text's order, a line each.

        Args:
            model: learnt with this tokenizer.
            texts: any.
        """
        for scored in self.scores(model, texts):
            kept = choose(scored, self.data.num_sentences, blocking=self.data.block_trigrams)
            yield "\n".join(scored[place][0] for place in kept)

    def scores(self, model: Any, texts: Sequence[str]) -> Iterator[list[tuple[str, float]]]:
        """The sentences of each text that are read, each with its score, 0 to 1; the same alone as among others."""
        packed, typed = pack(model), knows_types(model.config)

        def shares(rows: Sequence[Read]) -> Tensor:
            return logits(packed, self.inputs(rows, typed=typed)).float().softmax(dim=-1)[..., 1]

        for first in range(0, len(texts), WINDOW):
            cut = [sentences(text) for text in texts[first : first + WINDOW]]
            rows = self.frame(cut)
            found = iter(by_length([row for row in rows if len(row.tokens)], shares, self.data.max_tokens))
            for each, row in zip(cut, rows, strict=True):
                shown = next(found)[torch.from_numpy(row.places).long()].tolist() if len(row.tokens) else []
                yield [*zip(each, shown, strict=False)]


def framed(rows: Sequence[Sequence[int]], start: int, after: Sequence[int], max_len: int) -> Read:
    """The sentences in a row; where they are too many, those that begin early enough, with the last one's end cut off.

    Args:
        rows: tokens of each sentence, with the special ones around it.
        start: how many of these stand before it.
        after: those that stand behind it.
        max_len: how many tokens there may be in all.
    """
    places = np.cumsum([0, *map(len, rows)], dtype=np.int32)[:-1]
    tokens = [token for row in rows for token in row]
    types = np.repeat(np.arange(len(rows), dtype=np.int8) % 2, [len(row) for row in rows])
    if len(tokens) > max_len:
        room = max_len - len(after)
        tokens, types, places = [*tokens[:room], *after], types[:max_len], places[places + start < room]
        types[room:] = (len(places) - 1) % 2
    return Read(np.asarray(tokens, dtype=np.int32), types, places)


def oracle(texts: Sequence[str], summary: str, count: int, *, stemmed: bool = False) -> list[int]:
    """The sentences that together come nearest to a summary, by the sum of ROUGE-1 and ROUGE-2.

    One after another is taken that raises the sum most, until none does (Nallapati et al. 2017; the sum is
    Liu & Lapata's). No two words of different sentences are a run.

    Args:
        texts: the sentences.
        summary: what to come near to.
        count: how many sentences there may be.
        stemmed: whether words are compared by their stems.

    Returns:
        their places, in order.
    """
    reference = rouge.words(summary, stemmed=stemmed)
    bags = [[rouge.ngrams(rouge.words(text, stemmed=stemmed), n) for n in (1, 2)] for text in texts]
    theirs = [rouge.ngrams(reference, n) for n in (1, 2)]
    kept, best, taken = list[int](), 0.0, [Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()]

    def gain(place: int) -> float:
        joined = [ours + new for ours, new in zip(taken, bags[place], strict=True)]
        return sum(
            rouge.overlap((ours & meant).total(), ours.total(), meant.total()).f1
            for ours, meant in zip(joined, theirs, strict=True)
        )

    while len(kept) < count:
        value, place = max(((gain(i), -i) for i in range(len(texts)) if i not in kept), default=(0.0, 0))
        if value <= best:
            break
        best, taken = value, [ours + new for ours, new in zip(taken, bags[-place], strict=True)]
        kept.append(-place)
    return sorted(kept)


def choose(scored: Sequence[tuple[str, float]], count: int, *, blocking: bool) -> list[int]:
    """The places of the ``count`` sentences with the highest scores, in order.

    Args:
        scored: sentences with their scores.
        count: fewer are chosen where there are no more.
        blocking: leave out a sentence that has three words in a row in common with one of a higher score that was
            chosen (Paulus et al. 2018, as Liu & Lapata 2019 use it).
    """
    kept, seen = list[int](), set[tuple[str, ...]]()
    for place in sorted(range(len(scored)), key=lambda i: (-scored[i][1], i)):
        runs = rouge.ngrams(rouge.words(scored[place][0]), 3).keys() if blocking else set[tuple[str, ...]]()
        if len(kept) < count and seen.isdisjoint(runs):
            kept.append(place)
            seen |= runs
    return sorted(kept)
