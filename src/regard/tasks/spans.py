"""Span corruption as a task: to say what was taken out of a text (Raffel et al. 2020, section 3.1.4).

So encoder-decoders learn a language before they learn a task.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch

from regard.core.errors import InputError
from regard.data.learn import TokenizerKind
from regard.data.tokenize import Tokenizer
from regard.generate.beam import Beam
from regard.generate.decode import Pick, greedy
from regard.generate.front import generate, numbered
from regard.objectives.spans import Spans
from regard.tasks.language import Language
from regard.tasks.masked import MaskedLanguage, MaskedText
from regard.tasks.seq2seq import writing

SENTINELS = tuple(f"<extra_id_{number}>" for number in range(100))
"""What the sentinels are called in published vocabularies, which have so many."""


@dataclass(frozen=True)
class SpanText(MaskedText):
    """What to learn a language from: as :class:`regard.tasks.masked.MaskedText`.

    Attributes:
        tokenizer_kind: of the trained tokenizer, which gets a hundred sentinels beside its ``vocab_size``.
    """

    task: ClassVar[str] = "spans"

    tokenizer_kind: TokenizerKind = "unigram"

    def made(self, tokenizer: Tokenizer) -> SpanLanguage:
        """The task with this tokenizer."""
        return SpanLanguage(self, tokenizer)


DATA = SpanText


class SpanLanguage(MaskedLanguage):
    """Texts to rows of tokens of which spans may be taken out, and texts with gaps to texts without.

    Attributes:
        sentinels: the ids that stand for gaps.
        start_token: the id that the decoder reads first.
    """

    def __init__(self, data: MaskedText, tokenizer: Tokenizer) -> None:
        super().__init__(data, tokenizer)
        self.sentinels = tokenizer.add(SENTINELS)
        usual = Spans()
        taken, _ = usual.counts(data.seq_len)
        self.paper = replace(usual, span=max(usual.span, taken / len(SENTINELS)))  # longer where sentinels would end
        self.start_token = tokenizer.pad if tokenizer.bos is None else tokenizer.bos

    @staticmethod
    def extended(tokenizer: Tokenizer) -> Tokenizer:
        """The tokenizer, with sentinels."""
        tokenizer.add(SENTINELS)
        return tokenizer

    def configure(self, model: Any) -> Any:
        """As :func:`regard.tasks.seq2seq.writing`. Raises ConfigError for a model with too few positions, too."""
        self.check_positions(model)
        return writing(model, self.tokenizer, self.start_token)

    def note(self, count: int) -> str:
        """What was scored."""
        return f"of {count:,} tokens of what was taken out, with sentinels and ends"

    @torch.inference_mode()
    def predict(
        self, model: Any, texts: Sequence[str], method: Pick | Beam = greedy, max_tokens: int | None = None
    ) -> Iterator[str]:
        """Each text with its gaps filled, which are written as sentinels, in order: ``<extra_id_0>`` and so on.

        Args:
            model: learnt with this tokenizer.
            texts: any with gaps.
            method: how to choose: ``greedy``, ``sample(seed)`` or ``Beam(...)``.
            max_tokens: of what fills the gaps of a text; as many as the text has, and 16 more, unless given.

        Raises:
            InputError: a text without a gap, with gaps in another order, or longer than the model has positions for.
        """
        device, most = next(model.parameters()).device, model.config.max_seq_len
        for number, text in enumerate(texts, start=1):
            parts, gaps = self._parts(number, text)
            row = [*self.before, *(token for part in parts for token in part), *self.after]
            if len(row) > most:
                raise InputError(
                    f"text {number} has {len(row)} tokens, the model {most} positions; give it a shorter one"
                )
            (answer,) = generate(
                model,
                torch.tensor([[self.start_token]], device=device),
                inputs={"tokens": torch.tensor([row], device=device)},
                method=numbered(method, [number - 1]),
                stop=[self.tokenizer.eos],
                max_tokens=min(max_tokens or len(row) + 16, most - 1),
            )
            said = self._said(answer.tokens)
            filled = [said.get(part[0], []) if part and part[0] in gaps else part for part in parts]
            yield self.tokenizer.decode([token for part in filled for token in part])

    def prompt(self, text: str) -> str:
        """The beginning of a text, with a gap in the place of the word in its middle."""
        words = Language.prompt(self, text).split()
        return " ".join([*words[: len(words) // 2], SENTINELS[0], *words[len(words) // 2 + 1 :]])

    def _parts(self, number: int, text: str) -> tuple[list[list[int]], set[int]]:
        """The tokens of a text, those of gaps apart, and the sentinels of the gaps."""
        names = re.findall(r"<extra_id_\d+>", text)
        if not names or names != list(SENTINELS[: len(names)]):
            raise InputError(
                f"text {number} has no gaps that are called {SENTINELS[0]}, {SENTINELS[1]} and so on, in order"
            )
        texts = self.tokenizer.encode_batch(re.split(r" ?<extra_id_\d+>", text))
        parts = [texts[0]]
        for sentinel, each in zip(self.sentinels, texts[1:], strict=False):
            parts += [[sentinel], each]
        return parts, set(self.sentinels[: len(names)])

    def _said(self, tokens: Sequence[int]) -> dict[int, list[int]]:
        """What an answer has behind each sentinel."""
        known, said = set(self.sentinels), dict[int, list[int]]()
        current: list[int] = []
        for token in tokens:
            if token in known:
                current = said[token] = []
            elif token != self.tokenizer.eos:
                current.append(token)
        return said
