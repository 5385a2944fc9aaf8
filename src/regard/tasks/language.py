"""Language modelling: to go on with a text, learnt from files of plain text or from Python's language reference."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from regard.blocks.packed import pack
from regard.core.errors import ConfigError, DataError, InputError
from regard.core.types import IGNORE, Batch
from regard.data.cache import Corpus, tokenised
from regard.data.learn import TokenizerKind, train_tokenizer
from regard.data.loader import Loader, plan
from regard.data.pack import Document, Stream, packed
from regard.data.source import Rows, documents, file_names, mapped, regular, values, whole
from regard.data.split import EVERY, MOST, Reread, Splits, hold_out, original, reread, thinned
from regard.data.tables import form, table, text
from regard.data.tokenize import Tokenizer, parts
from regard.generate.beam import Beam
from regard.generate.decode import Pick, check_limits, greedy
from regard.generate.front import ends, generate, numbered
from regard.objectives.supervise import likelihood
from regard.tasks.task import Prepare, Scored, decodes, some, vocabulary

WRITTEN = 100
"""How many tokens an answer has unless more or fewer are asked for."""


BEGINNING = 8
"""How many words of a text a model is asked to go on with."""


@dataclass(frozen=True)
class PlainText:
    """What to learn to write from. Without ``train``: the reference of the Python language, as Python carries it.

    Files are JSONL, CSV or Parquet (:func:`regard.data.tables.table`), else plain text in UTF-8; plain or gzipped; of
    several, write commas between. Those to learn from need not fit into memory, if each text does, several times over:
    they are tokenised once, into a cache (:mod:`regard.data.cache`). What comes from the hub or through a pipe is kept
    in memory.

    Attributes:
        train: the files to learn from.
        valid: the files to watch training by; None holds out every twentieth text of ``train``, at most 1,000, or of
            fewer than twenty texts the last twentieth of each.
        test: the files to report on.
        text: the column of the text, in tables.
        documents: what one text is in a file of plain text: the whole of it, or what stands between blank lines.
        separate: whether texts that share a row are kept apart; else later ones see earlier ones, as in GPT-3.
        tokenizer: a tokenizer.json or its folder; None trains one on ``train``, or if that has more than 25 million
            characters, on every second text of it (or part of a long one), every fourth ..., as it takes.
        tokenizer_kind: of the trained tokenizer; see :func:`regard.data.learn.train_tokenizer`.
        vocab_size: of the trained tokenizer.
        seq_len: tokens in a row; a longer text is cut.
        max_tokens: of a batch.
        num_workers: processes that make batches ahead of time; 0 makes each when it is asked for.
    """

    task: ClassVar[str] = "language"

    train: str | None = None
    valid: str | None = None
    test: str | None = None
    text: str = "text"
    documents: Literal["file", "paragraph"] = "file"
    separate: bool = True
    tokenizer: str | None = None
    tokenizer_kind: TokenizerKind = "bpe"
    vocab_size: int = 2000
    seq_len: int = 256
    max_tokens: int = 4096
    num_workers: int = 0

    def __post_init__(self) -> None:
        if self.train is None and (self.valid or self.test):
            raise ConfigError("data.valid and data.test need data.train; without it Python's reference is all three")
        for name in ("seq_len", "max_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"data.{name} {getattr(self, name)} must be at least 1")

    def open(self, folder: Path | None = None) -> "Language":
        """The task, with the tokenizer in ``folder``, or with the one that this data asks for."""
        return self.made(Tokenizer.load(folder)) if folder else self.learn(self.splits["train"])

    def learn(self, examples: Iterable[str]) -> "Language":
        """The task, with the tokenizer named, or one trained on these texts."""
        if self.tokenizer:
            return self.made(Tokenizer.load(self.tokenizer))
        sample = thinned((part for each in examples for part in parts(each)), len)
        return self.made(train_tokenizer(self.tokenizer_kind, sample, self.vocab_size))

    def made(self, tokenizer: Tokenizer) -> "Language":
        """The task with this tokenizer."""
        return Language(self, tokenizer)

    @cached_property
    def splits(self) -> Splits[str]:
        """The texts of train, valid and test; the last is empty where no file is named. Raises DataError."""
        train = self.texts
        if self.valid:
            valid = self.read(self.valid)
        else:
            train, valid = hold_out_ends(train) if self.few else hold_out(train)
        if not valid:
            raise DataError(f"{self.train}: too short to hold some of it out; name another file as data.valid")
        return {"train": train, "valid": valid, "test": self.read(self.test) if self.test else []}

    @cached_property
    def texts(self) -> list[str] | Reread[str]:
        """All that ``train`` holds. Raises DataError."""
        return python_reference() if self.train is None else reread(self.train, self.stream)

    @cached_property
    def few(self) -> bool:
        """Whether ``train`` has too few texts to hold out whole ones."""
        return sum(1 for _ in islice(self.texts, EVERY)) < EVERY

    @property
    def reading(self) -> str:
        """What decides, beside the bytes of ``train``, which texts are learnt from."""
        forms = [form(path.name) for path in regular(self.train)]
        return repr((forms, self.text, self.documents, None if self.valid else (EVERY, MOST)))

    def read(self, spec: str) -> list[str]:
        """The texts of the files. Raises DataError."""
        return [*self.stream(spec)]

    def stream(self, spec: str) -> Iterator[str]:
        """The texts of the files, one by one, without those that are blank. Raises DataError, also if all are."""
        found = False
        for each in values(self.rows(spec)):
            if each.strip():
                found = True
                yield each
        if not found:
            raise DataError(f"{spec}: there is no text but blanks in it")

    def rows(self, spec: str) -> Rows[str]:
        """The texts of the files, and the rows that are no text. Raises DataError."""
        return chain.from_iterable(map(self._rows, file_names(spec)))

    def _rows(self, name: str) -> Rows[str]:
        if form(name) != "tsv":
            return mapped(lambda row: text(row, self.text), table(name, [self.text]))
        return documents(name) if self.documents == "paragraph" else whole(name)


DATA = PlainText


def python_reference() -> list[str]:
    """What ``help()`` knows: the chapters of the reference of this Python, each paragraph once, without the tables."""
    from pydoc_data.topics import topics

    seen: set[str] = set()
    texts = []
    for topic in topics.values():
        new = [each for each in topic.split("\n\n") if each not in seen and "+--" not in each]
        seen.update(new)
        texts.append("\n\n".join(new))
    return [text for text in texts if text.strip()]


def hold_out_ends(texts: Iterable[str]) -> tuple[Reread[str], list[str]]:
    """What to learn from and what to validate by, which alone is kept: the last lines of each text, one in twenty.

    A text of fewer lines is cut within them: some corpora are one long line.
    """

    def cut() -> Iterator[tuple[str, str]]:
        for each in texts:
            lines = each.splitlines(keepends=True)
            last = lines[len(lines) - len(lines) // EVERY :]
            end = len(each) - (sum(map(len, last)) if last else len(each) // EVERY)
            yield each[:end], each[end:]

    return Reread(lambda: (first for first, _ in cut())), [last for _, last in cut() if last]


class Language:
    """Texts to rows of tokens, and beginnings to what follows."""

    monitor = "log_likelihood"
    sequences: tuple[str, ...] = ("text",)

    def __init__(self, data: PlainText, tokenizer: Tokenizer) -> None:
        self.data = data
        self.tokenizer = tokenizer
        self.start = [] if tokenizer.bos is None else [tokenizer.bos]
        self.end = [tokenizer.eos]

    def configure(self, model: Any) -> Any:
        """The configuration with the tokenizer's size and special tokens. Raises ConfigError if it is too small."""
        self.check_positions(model)
        special = {"pad_token": self.tokenizer.pad, "bos_token": self.tokenizer.bos, "eos_token": self.tokenizer.eos}
        head = {"head": "causal_lm", "labels": ()} if decodes(model) else {}
        return replace(model, vocab_size=vocabulary(model, self.tokenizer), **special, **head)

    def check_positions(self, model: Any) -> None:
        """Raise ConfigError where a row has more tokens than a model of this configuration has positions."""
        if model.max_seq_len < self.data.seq_len:
            raise ConfigError(
                f"data.seq_len {self.data.seq_len} is more than the model's {model.max_seq_len} positions; "
                "raise model.max_seq_len, or lower data.seq_len"
            )

    def encode(self, texts: Iterable[str], sources: Sequence[Path] = ()) -> Corpus:
        """The tokens of each text, between its start, if there is one, and its end; cached, if they are of files."""
        return tokenised(
            ((each,) for each in texts),
            self.tokenizer,
            sources,
            columns=self.sequences,
            reading=self.data.reading,
            start=self.start,
            end=self.end,
        )

    def rows(self, corpus: Corpus) -> Stream:
        """The texts end to end, cut into rows: of each is read start, t1, t2 ..., and to be said t1, t2 ... end."""
        return Stream(corpus.columns["text"], self.data.seq_len)

    def cut(self, texts: Iterable[str]) -> Stream:
        """As :meth:`rows`, of any texts."""
        return self.rows(self.encode(texts))

    def batch(self, rows: Sequence[Sequence[Document]]) -> Batch:
        """Rows as one; ``documents`` only where a row holds several texts, as attention is faster without.

        The model is not told of padding: it lies behind every row, where no causal query sees it.
        """
        made = packed(rows, self.tokenizer.pad)
        del made["valid"]
        if not self.data.separate or all(len(row) == 1 for row in rows):
            del made["documents"]
        return made

    def lengths(self, values: Sequence[str]) -> list[tuple[int, ...]]:
        """Tokens of each text, with the special tokens that it gets."""
        return [(len(self.start) + len(tokens) + 1,) for tokens in self.tokenizer.encode_batch(values)]

    def example(self, value: str) -> Batch:
        """One text as a batch of the rows that it is cut into."""
        rows = self.cut([value])
        return self.batch([rows[i] for i in range(len(rows))])

    def pieces(self, _name: str, row: Sequence[int], /) -> list[str]:
        """The text of each token; of every field, as all hold tokens."""
        return self.tokenizer.pieces(row)

    @cached_property
    def corpus(self) -> Corpus:
        """The texts to learn from, as tokens."""
        return self.encode(self.data.splits["train"], regular(self.data.train))

    def loader(self, *, seed: int, prepare: Prepare, rank: int = 0, world: int = 1) -> Loader[Any]:
        """The training batches."""
        rows = self.rows(self.corpus)
        return Loader(
            rows,
            rows.sizes,
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
        """The files, and the number in them of the text that a training batch begins in."""
        number = self.rows(self.corpus).document(int(rows[0]))
        if not self.data.valid and not self.data.few:
            number = original(number)
        return f"{self.data.train or 'the reference of Python'}, text {number + 1}"

    def validation(self) -> Sequence[Batch]:
        """The held-out rows in batches of the same size as training's."""
        return self._validation

    @cached_property
    def _validation(self) -> list[Batch]:
        return self.batches(self.data.splits["valid"])

    def batches(self, texts: Sequence[str]) -> list[Batch]:
        """Texts as batches, always the same."""
        rows = self.cut(texts)
        return [self.batch([rows[i] for i in chosen]) for chosen in plan(rows.sizes, self.data.max_tokens)]

    def metrics(self, model: nn.Module, nll: float) -> dict[str, float]:  # noqa: ARG002 - the loss tells it all
        """How well the model expects the held-out texts; see :meth:`score`."""
        count = sum(int((batch["targets"] != IGNORE).sum()) for batch in self.validation())
        return surprise(nll * count, count, self.data.splits["valid"])

    def score(self, model: nn.Module, examples: Sequence[str], method: Pick | Beam = greedy) -> Scored:  # noqa: ARG002
        """How well the model, which learnt with this tokenizer, expects any texts; it is not asked for answers.

        Returns:
            ``log_likelihood`` of a token, in nats, the end of each text included; ``perplexity``, its exponential
            turned round; and ``bits_per_byte`` of UTF-8, which compares models whatever their tokens.

        Raises:
            InputError: there are no texts.
        """
        some(examples)
        return Scored(surprise(*likelihood(model, self.batches(examples)), examples))

    def predict(
        self, model: Any, texts: Sequence[str], method: Pick | Beam = greedy, max_tokens: int | None = None
    ) -> Iterator[str]:
        """What follows each text, in order, as it becomes known.

        Args:
            model: a model that learnt with this tokenizer.
            texts: beginnings.
            method: how to choose: ``greedy``, ``sample(seed)`` or ``Beam(...)``.
            max_tokens: of an answer; 100 unless given; never more than the model has positions for.

        Raises:
            InputError: a text leaves the model no position to write at.
            ConfigError: ``max_tokens`` leaves nothing to write.
        """
        if max_tokens is not None:
            check_limits(0, max_tokens)
        fast: Any = pack(model)
        device = next(model.parameters()).device
        for number, row in enumerate(self.tokenizer.encode_batch(texts), start=1):
            prompt = [*self.start, *row]
            room = model.config.max_seq_len - len(prompt)
            if room < 1 or not prompt:
                raise InputError(
                    f"text {number} has {len(prompt)} tokens, the model {model.config.max_seq_len} positions; "
                    f"give it {'a shorter one' if prompt else 'one that is not empty'}"
                )
            (answer,) = generate(
                fast,
                torch.tensor([prompt], device=device),
                inputs={name: value.to(device) for name, value in self.inputs(prompt).items()},
                method=numbered(method, [number - 1]),
                stop=ends(model, self.tokenizer.eos),
                max_tokens=min(max_tokens or WRITTEN, room),
            )
            yield self.tokenizer.decode(answer.tokens)

    def inputs(self, prompt: Sequence[int]) -> Batch:  # noqa: ARG002
        """What a model is told of a prompt before it reads it: nothing."""
        return {}

    def prompt(self, text: str) -> str:
        """What :meth:`predict` may be asked of a text, to see how the model does: its beginning."""
        words = " ".join(text.split()[:BEGINNING])
        tokens = self.tokenizer.encode(words)
        most = self.data.seq_len // 2
        return words if len(tokens) <= most else self.tokenizer.decode(tokens[:most])

    def show(self, batch: Batch) -> str:
        """The first row of a batch."""
        return repr(self.tokenizer.decode(batch["tokens"][0].tolist()))

    def save(self, folder: Path) -> None:
        """Write the tokenizer."""
        self.tokenizer.save(folder)


def surprise(nll: float, count: int, texts: Sequence[str]) -> dict[str, float]:
    """What ``nll``, in nats over ``count`` targets, says of ``texts``: a token's share, and a byte's of UTF-8."""
    return {
        "log_likelihood": -nll / count,
        "perplexity": math.exp(min(nll / count, 700)),
        "bits_per_byte": nll / math.log(2) / sum(len(text.encode()) for text in texts),
    }
