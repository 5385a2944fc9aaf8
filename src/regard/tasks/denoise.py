"""Denoising as a task: to say a text that was spoilt, all of it, as it was (Lewis et al. 2020, section 2).

So encoder-decoders learn a language, and to copy, before they learn a task.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from regard.blocks.packed import pack
from regard.data.learn import TokenizerKind
from regard.data.tokenize import Tokenizer
from regard.generate.beam import Beam
from regard.generate.decode import Pick, greedy
from regard.generate.front import generate, numbered
from regard.objectives.denoise import Denoise
from regard.tasks.masked import MaskedLanguage, MaskedText
from regard.tasks.seq2seq import writing

MORE = 16
"""How many tokens a text may have more than it has when it is spoilt, unless somebody says otherwise."""


@dataclass(frozen=True)
class SpoiltText(MaskedText):
    """What to learn a language from: as :class:`regard.tasks.masked.MaskedText`."""

    task: ClassVar[str] = "denoise"

    tokenizer_kind: TokenizerKind = "bpe"

    def made(self, tokenizer: Tokenizer) -> Restored:
        """The task with this tokenizer."""
        return Restored(self, tokenizer)


DATA = SpoiltText


class Restored(MaskedLanguage):
    """Texts to rows of tokens which may be spoilt, and spoilt texts to what they were."""

    paper = Denoise()

    @staticmethod
    def around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
        """As the tokenizer has it, but with an end always, as it is to be said."""
        before, after = tokenizer.around
        return before, after or [tokenizer.eos]

    def configure(self, model: Any) -> Any:
        """As :func:`regard.tasks.seq2seq.writing`. Raises ConfigError for a model with too few positions, too."""
        self.check_positions(model)
        return writing(model, self.tokenizer, self.tokenizer.eos)

    def note(self, count: int) -> str:
        """What was scored."""
        return f"of {count:,} tokens, special ones included"

    @torch.inference_mode()
    def predict(
        self, model: Any, texts: Sequence[str], method: Pick | Beam = greedy, max_tokens: int | None = None
    ) -> Iterator[str]:
        """Each text as it was: masks, written as the tokenizer has them, stand where any number of words may be.

        Args:
            model: learnt with this tokenizer.
            texts: any, with masks such as ``<mask>``.
            method: how to choose: ``greedy``, ``sample(seed)`` or ``Beam(...)``.
            max_tokens: of an answer; as many as the text has, and MORE, unless given.

        Raises:
            InputError: a text without a mask, or one that is longer than the model has positions for.
        """
        packed: Any = pack(model)
        device, most = next(model.parameters()).device, model.config.max_seq_len
        for number, text in enumerate(texts, start=1):
            row = self._masked(number, text, most)
            (answer,) = generate(
                packed,
                torch.tensor([[self.tokenizer.eos]], device=device),
                inputs={"tokens": torch.tensor([row], device=device)},
                method=numbered(method, [number - 1]),
                stop=[self.tokenizer.eos],
                max_tokens=min(max_tokens or len(row) + MORE, most - 1),
            )
            yield self.tokenizer.decode(answer.tokens)
