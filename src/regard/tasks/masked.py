"""Masked language modelling: to say which tokens are hidden in a text, reading what stands before and behind them.

So encoders learn a language before they learn a task (Devlin et al. 2019, section 3.1). Each text is read alone, and
long ones in pieces; of a second text nothing is asked, as Liu et al. 2019 (section 4.2) find no gain in that.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from regard.blocks.packed import pack
from regard.core.errors import ConfigError, InputError
from regard.core.types import Batch
from regard.data.cache import Rows, Tokens
from regard.data.collate import pad, sequences
from regard.data.learn import TokenizerKind, train_tokenizer
from regard.data.loader import plan
from regard.data.split import thinned
from regard.data.tokenize import Tokenizer, parts
from regard.generate.beam import Beam
from regard.generate.decode import Pick, greedy
from regard.objectives.masked import Masked
from regard.objectives.objective import Objective
from regard.objectives.supervise import likelihood
from regard.tasks.language import Language, PlainText
from regard.tasks.task import Scored, check_head, some


@dataclass(frozen=True)
class MaskedText(PlainText):
    """What to learn a language from: as :class:`regard.tasks.language.PlainText`, of which ``separate`` is no matter.

    Attributes:
        tokenizer_kind: of the trained tokenizer; see :func:`regard.data.learn.train_tokenizer`.
        seq_len: tokens that are read at once, special ones included; a longer text is read in pieces.
    """

    task: ClassVar[str] = "masked"

    tokenizer_kind: TokenizerKind = "wordpiece"
    seq_len: int = 128

    def learn(self, examples: Iterable[str]) -> MaskedLanguage:
        """The task, with the tokenizer named, or one trained on these texts; with a mask token."""
        if self.tokenizer:
            return self.made(Tokenizer.load(self.tokenizer))
        sample = thinned((part for each in examples for part in parts(each)), len)
        return self.made(train_tokenizer(self.tokenizer_kind, sample, self.vocab_size, framed=True))

    def made(self, tokenizer: Tokenizer) -> MaskedLanguage:
        """The task with this tokenizer."""
        return MaskedLanguage(self, tokenizer)


DATA = MaskedText


class Pieces:
    """Texts in pieces of at most ``length`` tokens, those of one text as long as each other, but for a token.

    Attributes:
        sizes: [pieces, 1] how many tokens each has.
    """

    def __init__(self, rows: Rows, length: int) -> None:
        lengths = rows.lengths
        counts = -(-lengths // length)
        self.rows, self.texts = rows, np.repeat(np.arange(len(rows)), counts)
        numbers = np.arange(len(self.texts)) - np.repeat(np.cumsum(counts) - counts, counts)
        self.starts, self.ends = (lengths[self.texts] * (numbers + i) // counts[self.texts] for i in (0, 1))
        self.sizes = (self.ends - self.starts)[:, None]

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, number: int) -> Tokens:
        return self.rows[int(self.texts[number])][self.starts[number] : self.ends[number]]

    def document(self, number: int) -> int:
        """Which text piece ``number`` is of."""
        return int(self.texts[number])


class MaskedLanguage(Language):
    """Texts to rows of tokens whose words may be hidden, and hidden tokens to what they were."""

    paper: Objective = Masked()
    """How :meth:`score` hides tokens: as in the paper, also where the model learnt with others hidden."""

    def __init__(self, data: MaskedText, tokenizer: Tokenizer) -> None:
        super().__init__(data, self.extended(tokenizer))
        self.before, self.after = self.around(tokenizer)
        self.start, self.end = [], []  # special tokens go around each piece, and not around each text
        self.room = data.seq_len - len(self.before) - len(self.after)
        if self.room < 1:
            raise ConfigError(f"data.seq_len {data.seq_len} has no room for a token between the special ones")

    @staticmethod
    def around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
        """The special tokens that stand before and behind each piece."""
        return tokenizer.around

    @staticmethod
    def extended(tokenizer: Tokenizer) -> Tokenizer:
        """The tokenizer, with the special tokens that the task needs."""
        return tokenizer.with_mask()

    def configure(self, model: Any) -> Any:
        """As :meth:`Language.configure`, with a head that says hidden tokens, and perhaps which texts follow others."""
        head = "pretrain" if getattr(model, "head", None) == "pretrain" else "masked_lm"
        check_head(model, head, "hidden tokens")
        return super().configure(replace(model, head=head, labels=()))

    def rows(self, corpus: Any) -> Any:
        """The texts in pieces that leave room for the special tokens."""
        return Pieces(corpus.columns["text"], self.room)

    def batch(self, rows: Sequence[Any]) -> Batch:
        """``tokens``, ``valid`` and ``words``: which word each token is of, -1 for special tokens and padding."""
        read = [np.concatenate([self.before, row, self.after]).astype(np.int64) for row in rows]
        begins = self.tokenizer.begins_word
        words = [
            np.concatenate([[-1] * len(self.before), np.cumsum(begins[row]) - begins[row[0]], [-1] * len(self.after)])
            for row in rows
        ]
        return sequences(read, self.tokenizer.pad) | {"words": pad([each.astype(np.int64) for each in words], -1)}

    def lengths(self, values: Sequence[str]) -> list[tuple[int, ...]]:
        """Tokens of each text, with the special tokens that it gets."""
        extra = len(self.before) + len(self.after)
        return [(len(tokens) + extra,) for tokens in self.tokenizer.encode_batch(values)]

    def metrics(self, model: nn.Module, nll: float) -> dict[str, float]:  # noqa: ARG002 - the loss tells it all
        """How well the model expects the hidden tokens: ``log_likelihood`` of one, in nats, and ``perplexity``."""
        return {"log_likelihood": -nll, "perplexity": float(np.exp(min(nll, 700.0)))}

    def score(self, model: nn.Module, examples: Sequence[str], method: Pick | Beam = greedy) -> Scored:  # noqa: ARG002
        """As :meth:`metrics`, on any texts, of which always the same tokens are hidden. Raises InputError for none."""
        some(examples)
        hide = self.paper.fitted(self).prepare
        batches = [hide(batch, torch.Generator().manual_seed(i)) for i, batch in enumerate(self.batches(examples))]
        nll, count = likelihood(model, batches)
        return Scored(self.metrics(model, nll / count), {"log_likelihood": self.note(count)})

    def note(self, count: int) -> str:
        """What was scored."""
        return f"of {count:,} hidden tokens, {Masked().share:.0%} of all"

    @torch.inference_mode()
    def predict(
        self,
        model: Any,
        texts: Sequence[str],
        method: Pick | Beam = greedy,  # noqa: ARG002
        max_tokens: int | None = None,  # noqa: ARG002
    ) -> Iterator[str]:
        """Each text with the likeliest token in the place of each mask, which is written as the tokenizer has it.

        Args:
            model: learnt with this tokenizer.
            texts: any, with masks such as ``[MASK]`` or ``<mask>``.
            method: no matter here, nor ``max_tokens``: all masks are filled at once.

        Raises:
            InputError: a text without a mask, or one that is longer than the model has positions for.
        """
        packed, device = pack(model), next(model.parameters()).device
        rows = [self._masked(number, text, model.config.max_seq_len) for number, text in enumerate(texts, start=1)]
        found = [""] * len(rows)
        for numbers in plan([(len(row),) for row in rows], self.data.max_tokens):
            batch = sequences([rows[i] for i in numbers], self.tokenizer.pad)
            scores = packed(**{name: value.to(device) for name, value in batch.items()}).logits
            hidden = batch["tokens"].eq(self.tokenizer.mask or 0)
            filled = torch.where(hidden, scores.argmax(dim=-1).cpu(), batch["tokens"])
            for i, row in zip(numbers, filled.tolist(), strict=True):
                found[i] = self.tokenizer.decode(row[: len(rows[i])])
        yield from found

    def prompt(self, text: str) -> str:
        """The beginning of a text, with a mask in the place of the token in its middle."""
        tokens = self.tokenizer.encode(super().prompt(text))
        middle = len(tokens) // 2
        before, after = self.tokenizer.decode_batch([tokens[:middle], tokens[middle + 1 :]])
        return f"{before} {self.tokenizer.name('mask')} {after}".strip()

    def _masked(self, number: int, text: str, most: int) -> list[int]:
        """The tokens of a text in which masks are meant."""
        mask = self.tokenizer.name("mask")
        *firsts, last = text.split(mask)
        if not firsts:
            raise InputError(f"text {number} has no {mask} in it, which marks what is to be said")
        row = [*self.before]
        blanks = "" if self.tokenizer.begins_word.all() else None  # else a token holds the blank before it, if any
        for part in self.tokenizer.encode_batch([part.rstrip(blanks) for part in firsts]):
            row += [*part, self.tokenizer.mask or 0]
        row += [*self.tokenizer.encode(last), *self.after]
        if len(row) > most:
            raise InputError(f"text {number} has {len(row)} tokens, the model {most} positions; give it a shorter one")
        return row
