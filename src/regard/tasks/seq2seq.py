"""What the tasks of encoder-decoders share: pairs from files of any size, a source to read, a target to write."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from regard.blocks.packed import pack
from regard.core.console import console, quietly
from regard.core.errors import ConfigError, DataError, InputError
from regard.core.types import IGNORE, Batch
from regard.data.cache import Corpus, tokenised
from regard.data.collate import pad, sequences
from regard.data.learn import train_tokenizer
from regard.data.loader import Loader, Subset, plan
from regard.data.pack import Integers
from regard.data.pairs import Pair
from regard.data.source import regular, values
from regard.data.split import EVERY, MOST, Splits, hold_out, original, reread, thinned
from regard.data.tables import form
from regard.data.tokenize import Tokenizer
from regard.generate.beam import Beam
from regard.generate.decode import Pick, check_limits, greedy
from regard.generate.front import generate, numbered
from regard.generate.logits import Transform
from regard.tasks.task import Prepare, Scored, some, tell_cut, vocabulary

Example = tuple[Integers, ...]
"""A source and a target as tokens, without special tokens."""

WINDOW = 512
"""How many sources wait for each other, so that those of like length are answered together."""


def splits(data: Any, embedded: Callable[[], Splits[Pair]]) -> Splits[Pair]:
    """The pairs of the data's files, one in twenty held out where none is named for it, or else what is ``embedded``.

    Those to learn from are read anew in each pass; the last are empty where no file is named. Raises DataError.
    """
    if data.train is None:
        return embedded()
    train = reread(data.train, lambda spec: values(data.rows(spec)))
    train, valid = (train, read(data, data.valid)) if data.valid else hold_out(train)
    if next(iter(train), None) is None:
        raise DataError(f"{data.train}: {len(valid)} pair is too few to train on and hold some out")
    return {"train": train, "valid": valid, "test": read(data, data.test) if data.test else []}


def read(data: Any, spec: str) -> list[Pair]:
    """The pairs of a file. Raises DataError, also at a malformed row."""
    return [*values(data.rows(spec))]


def reading(data: Any, *settings: object) -> str:
    """What decides, beside the bytes of ``train``, which pairs are learnt from."""
    forms = [form(path.name) for path in regular(data.train)]
    return repr((forms, *settings, None if data.valid else (EVERY, MOST)))


def learnt(data: Any, examples: Iterable[Pair]) -> Tokenizer:
    """The tokenizer that the data name, or one trained on both sides of these pairs, or of some of very many."""
    if data.tokenizer:
        return Tokenizer.load(data.tokenizer)
    texts = (text for pair in thinned(examples, lambda pair: sum(map(len, pair))) for text in pair)
    return train_tokenizer(data.tokenizer_kind, texts, data.vocab_size)


class Seq2Seq:
    """Pairs of texts to batches, and sources to what the model writes; tasks say how that compares with the targets.

    Attributes:
        beam: how answers are searched for unless somebody says otherwise.
        embedded: what there is to learn from without files.
        positions: how many tokens the model has room for on either side.
        before, after: the special tokens that belong around a source, <s> and </s> in BART; ``frame`` is how many.
        start: the token that the decoder starts from.
    """

    monitor = "exact_match"
    sequences: tuple[str, ...] = ("source", "target")
    beam = Beam()
    embedded = "what is embedded"

    def __init__(self, data: Any, tokenizer: Tokenizer) -> None:
        self.data = data
        self.tokenizer = tokenizer
        self.positions = data.max_len
        self.start = tokenizer.pad if tokenizer.bos is None else tokenizer.bos  # Marian's vocabularies have no <s>
        self.before, after = tokenizer.around
        self.after = after or [tokenizer.eos]
        self.frame = len(self.before) + len(self.after)
        self.extra = np.array([self.frame, 1])  # special tokens of source and target

    def room_in(self, positions: int) -> int | None:  # noqa: ARG002 - a task may go by it
        """How many tokens a model with so many positions reads of a source, without special tokens.

        None: all, and one too long is an error.
        """
        return None

    @property
    def room(self) -> int | None:
        """As :meth:`room_in`, of the model that learns."""
        return self.room_in(self.positions)

    @property
    def limits(self) -> tuple[int, int]:
        """How many tokens, with special tokens, source and target may have to be learnt from."""
        most = min(self.data.max_len, self.positions)
        return most, most

    @property
    def overlong(self) -> tuple[str, str]:
        """What is wrong with a pair beyond :attr:`limits`, and what to raise for it to be learnt from."""
        return f"a side has {self.limits[0]:,} tokens or more", "data.max_len and model.max_seq_len"

    def limit(self, length: int) -> int:  # noqa: ARG002 - a task may go by it
        """How many tokens the answer to a source of ``length`` tokens may have."""
        return self.limits[1]

    @property
    def least(self) -> int:
        """How many tokens an answer has at least."""
        return 0

    @property
    def rules(self) -> Sequence[Transform]:
        """What holds for the tokens of every answer."""
        return ()

    def compared(self, outputs: list[str], pairs: Sequence[Pair]) -> Scored:
        """How answers to the sources of pairs compare with their targets; here, how many are the same."""
        hits = sum(output == target for output, (_, target) in zip(outputs, pairs, strict=True))
        return Scored({"exact_match": hits / len(pairs)}, {"exact_match": f"{hits:,} of {len(pairs):,}"}, outputs)

    def configure(self, model: Any) -> Any:
        """The configuration with the tokenizer's size and special tokens. Raises ConfigError if it has too few rows.

        From then on, no pair reaches the model that is longer than its positions.
        """
        self.positions = model.max_seq_len
        return writing(model, self.tokenizer, self.start)

    def encode(self, pairs: Sequence[Pair]) -> list[Example]:
        """Tokens of both sides of each pair."""
        sides = [self.tokenizer.encode_batch([pair[side] for pair in pairs]) for side in (0, 1)]
        return list(zip(*sides, strict=True))

    def sources(self, rows: Sequence[Integers]) -> Batch:
        """``tokens`` (what is read of each source, with the special tokens that belong around it) and ``valid``."""
        framed = [np.concatenate([self.before, row[: self.room], self.after]).astype(np.int64) for row in rows]
        return sequences(framed, self.tokenizer.pad)

    def _ended(self, rows: Sequence[Integers], fill: int) -> Tensor:
        """The rows, each closed by the end token and then filled."""
        lengths = [len(row) for row in rows]
        table = pad(rows, fill, width=max(lengths) + 1)
        table[torch.arange(len(rows)), torch.tensor(lengths)] = self.tokenizer.eos
        return table

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Sources, and targets shifted: the decoder reads start, t1, t2 ... and is to say t1, t2 ... end.

        The decoder is not told of its padding: it lies behind every target, where no causal query sees it, and
        without it attention takes its fastest way.
        """
        targets = [target for _, target in examples]
        return {
            **self.sources([source for source, _ in examples]),
            "decoder_tokens": F.pad(pad(targets, self.tokenizer.pad), (1, 0), value=self.start),
            "targets": self._ended(targets, IGNORE),
        }

    def lengths(self, values: Sequence[Pair]) -> list[tuple[int, ...]]:
        """Tokens of source and target, with the special tokens that each gets, before anything is cut off."""
        return [*sizes(self.encode(values), self.frame)]

    def example(self, value: Pair) -> Batch:
        """One pair as a batch."""
        return self.batch(self.encode([value]))

    def pieces(self, _name: str, row: Sequence[int], /) -> list[str]:
        """The text of each token; of every field, as all hold tokens."""
        return self.tokenizer.pieces(row)

    @cached_property
    def corpus(self) -> Corpus:
        """The pairs to learn from, as tokens without special tokens."""
        pairs, files = self.data.splits["train"], regular(self.data.train)
        return tokenised(pairs, self.tokenizer, files, columns=self.sequences, reading=self.data.reading)

    def read_of(self, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """[pairs, 2] how much is read of pairs of these sizes."""
        return sizes if self.room is None else np.minimum(sizes, [self.room, np.iinfo(np.int64).max])

    @property
    def kept(self) -> NDArray[np.int64]:
        """The numbers of the pairs that are short enough. Raises DataError if there is none."""
        numbers = np.flatnonzero((self.read_of(self.corpus.sizes) + self.extra <= self.limits).all(axis=1))
        if len(numbers) == 0:
            what, settings = self.overlong
            raise DataError(f"{self.data.train}: of every pair {what}; raise {settings}")
        return numbers

    def loader(self, *, seed: int, prepare: Prepare, rank: int = 0, world: int = 1) -> Loader[Example]:
        """The training batches; pairs longer than ``limits`` are left out, and those and what is cut counted aloud.

        Raises DataError if all are left out.
        """
        kept, sizes = self.kept, self.corpus.sizes
        if left := len(self.corpus) - len(kept):
            console().print(f"{left:,} of {len(self.corpus):,} pairs are left out: {self.overlong[0]}")
        if self.room is not None:
            tell_cut(sizes[kept, 0], self.room)
        return Loader(
            Subset(self.corpus, kept),
            self.read_of(sizes[kept]) + self.extra,
            self.batch,
            max_tokens=self.data.max_tokens,
            seed=seed,
            prepare=prepare,
            identity=self.corpus.key,
            num_workers=self.data.num_workers,
            rank=rank,
            world=world,
        )

    def where(self, rows: Sequence[int] | NDArray[np.int64]) -> str:
        """The file, and the number in it of the first of a training batch's pairs."""
        number = int(self.kept[rows[0]])
        if self.data.train and not self.data.valid:
            number = original(number)
        return f"{self.data.train or self.embedded}, pair {number + 1}"

    def validation(self) -> Sequence[Batch]:
        """The validation pairs in batches of the same size as training's. Raises DataError for one that is too long."""
        return self._validation

    @cached_property
    def _validation(self) -> list[Batch]:
        examples = self.encode(self.data.splits["valid"])
        read = self.read_of(np.array(sizes(examples, self.frame)) - self.extra) + self.extra
        for number, size in enumerate(read.max(axis=1).tolist()):
            if size > self.positions:
                file, place = self.data.valid, number
                if not file:  # held out as :func:`hold_out` does
                    file, place = self.data.train or self.embedded, number * EVERY
                raise DataError(
                    f"{file}, pair {place + 1}, which validates: has {size} tokens, more than the model's "
                    f"{self.positions} positions; shorten it, or raise model.max_seq_len"
                )
        return [self.batch([examples[i] for i in rows]) for rows in plan(read, self.data.max_tokens)]

    def metrics(self, model: nn.Module, nll: float) -> dict[str, float]:  # noqa: ARG002 - the answers tell more
        """Greedy answers to the first ``num_scored`` validation pairs, scored."""
        pairs = self.data.splits["valid"][: self.data.num_scored]
        with quietly():
            outputs = [*self.predict(model, [source for source, _ in pairs], method=greedy)]
        return self.compared(outputs, pairs).scores

    def score(self, model: Any, examples: Sequence[Pair], method: Pick | Beam | None = None) -> Scored:
        """Answer the sources and compare with the targets. Raises InputError for no pairs, or a source too long."""
        some(examples)
        return self.compared([*self.predict(model, [source for source, _ in examples], method)], examples)

    def predict(
        self, model: Any, sources: Sequence[str], method: Pick | Beam | None = None, max_tokens: int | None = None
    ) -> Iterator[str]:
        """The answer to each source, in order, as they become known.

        Sources are answered together with others of like length, some hundreds at a time; what is answered together
        changes nothing about the answer.

        Args:
            model: an encoder-decoder that learnt with this tokenizer.
            sources: any texts.
            method: how to search: ``greedy``, ``sample(seed)`` or ``Beam(...)``; the task's own beam unless given.
            max_tokens: of an answer; :meth:`limit` unless given; never more than the model has positions for.

        Raises:
            InputError: a source is longer than the model has positions for; those of earlier windows are answered.
            ConfigError: ``max_tokens`` leaves nothing to write.
        """
        if max_tokens is not None:
            check_limits(0, max_tokens)
        packed, positions = pack(model), model.config.max_seq_len
        room = self.room_in(positions)  # and not that of the model that learnt: a run may be opened without it
        for first in range(0, len(sources), WINDOW):
            rows = self.tokenizer.encode_batch(sources[first : first + WINDOW])
            if room is not None:
                tell_cut([len(row) for row in rows], room)
                rows = [row[:room] for row in rows]
            for number, row in enumerate(rows, start=first + 1):
                if (length := len(row) + self.frame) > positions:
                    raise InputError(
                        f"text {number} has {length} tokens, more than the model's {positions} positions; split it"
                    )
            yield from self._answer(packed, rows, first, method or self.beam, max_tokens)

    def _answer(
        self, model: Any, rows: Sequence[Sequence[int]], first: int, method: Pick | Beam, max_tokens: int | None
    ) -> list[str]:
        budget = self.data.max_tokens // (method.size if isinstance(method, Beam) else 1)
        device = next(model.parameters()).device
        # Only sources with the same limit go together, so that neighbours change nothing about an answer.
        limits = [min(max_tokens or self.limit(len(row) + self.frame), model.config.max_seq_len - 1) for row in rows]
        outputs = [""] * len(rows)
        for most in sorted(set(limits)):
            same = [i for i, each in enumerate(limits) if each == most]
            for places in plan([(len(rows[i]) + self.frame,) for i in same], budget):
                batch = [same[place] for place in places]
                inputs = self.sources([rows[i] for i in batch])
                answers = generate(
                    model,
                    torch.full((len(batch), 1), self.start, device=device),
                    inputs={name: value.to(device) for name, value in inputs.items()},
                    method=numbered(method, [first + i for i in batch]),
                    transforms=self.rules,
                    stop=[self.tokenizer.eos],
                    min_tokens=min(self.least, most),
                    max_tokens=most,
                )
                for i, answer in zip(batch, answers, strict=True):
                    outputs[i] = self.tokenizer.decode(answer.tokens)
        return outputs

    def show(self, batch: Batch) -> str:
        """The first source of a batch, and what the decoder reads of its target."""
        source, target = (self.tokenizer.decode(batch[name][0].tolist()) for name in ("tokens", "decoder_tokens"))
        return f"{source!r} to {target!r}"

    def save(self, folder: Path) -> None:
        """Write the tokenizer."""
        self.tokenizer.save(folder)


def writing(model: Any, tokenizer: Tokenizer, start: int) -> Any:
    """The configuration of an encoder-decoder that writes from this token, with the tokenizer's size and others.

    Raises ConfigError if it has too few rows, or does not write about what it has read.
    """
    if not hasattr(model, "num_decoder_layers"):
        raise ConfigError(f"{type(model).__name__} has no decoder that reads an encoder; transformer, t5 and bart have")
    special: dict[str, Any] = {"pad_token": tokenizer.pad, "bos_token": start, "eos_token": tokenizer.eos}
    own: dict[str, Any] = {
        "start_token": start, "first_token": None, "last_token": None, "head": "seq2seq_lm", "labels": (),
    }  # fmt: skip
    special |= {name: value for name, value in own.items() if name in vars(model)}
    return replace(model, vocab_size=vocabulary(model, tokenizer), **special)


def sizes(examples: Sequence[Example], frame: int = 1) -> list[tuple[int, int]]:
    """Lengths of source and target in a batch, with the ``frame`` special tokens of one and the other's end token."""
    return [(len(source) + frame, len(target) + 1) for source, target in examples]
