"""Pairs of texts: to say whether the second goes on with the first, while saying hidden tokens of both.

Next-sentence prediction, of Devlin et al. 2019 (section 3.1), and sentence-order prediction, of Lan et al. 2020
(section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from regard.core.errors import ConfigError
from regard.core.types import IGNORE, Batch, Loss, widened
from regard.objectives.masked import Masked
from regard.objectives.supervise import Supervise


class Text(NamedTuple):
    """Some tokens, and whether each begins a word."""

    tokens: Int[Tensor, "S"]
    begins: Bool[Tensor, "S"]

    def part(self, start: int, end: int) -> Text:
        """The tokens from ``start`` up to ``end``."""
        return Text(self.tokens[start:end], self.begins[start:end])


@dataclass(frozen=True)
class Pair(Masked):
    """Each row's text is cut in two, anywhere between words, with a separator between: types 0 and 1.

    In half of the rows the second part is another, as long as the right one: of another row's text (``random``), or
    the first part, which has changed places with it (``swapped``). The loss is that of :class:`Masked`, plus the mean
    over the rows of the cross-entropy of which it was: 0 the right one, 1 another. Of this mean a row has the share
    that its text has of all tokens, so that the loss does not depend on which rows share a batch.

    Attributes:
        other: what stands in the place of the right part.
        separator: the id between the parts; the data know it, and what follows.
        pad_token: the id that fills short rows.
        length: the most tokens of a row, whose last ones make room for the separator.
    """

    other: Literal["random", "swapped"] = "random"
    separator: int = -1
    pad_token: int = 0
    length: int = 0

    def fitted(self, task: Any) -> Self:
        """With the tokenizer's tokens, and the length of a row. Raises ConfigError for one without a mask token."""
        found = super().fitted(task)
        tokenizer, length = task.tokenizer, task.data.seq_len
        return replace(found, separator=tokenizer.eos, pad_token=tokenizer.pad, length=length)

    def prepare(self, batch: Batch, rng: torch.Generator) -> Batch:
        """As :meth:`Masked.prepare`, with ``types``; and ``follows``: 0, 1, or IGNORE for a text of one word.

        ``places`` is how many tokens a row has that may be hidden.
        """
        read = [
            (tokens[real], words[real] >= 0, self._text(tokens[words >= 0], words[words >= 0], int(real.sum())))
            for tokens, words, real in zip(batch["tokens"], batch["words"], batch["valid"], strict=True)
        ]
        pairs = self.pairs([text for _, _, text in read], rng)
        rows = [self._row(*row[:2], *pair[:2]) for row, pair in zip(read, pairs, strict=True)]
        fills = {"tokens": self.pad_token, "words": -1, "types": 0}
        made = {
            name: pad_sequence([row[name] for row in rows], batch_first=True, padding_value=fill)
            for name, fill in fills.items()
        }
        lengths = torch.tensor([len(row["tokens"]) for row in rows])
        made["valid"] = torch.arange(made["tokens"].shape[1]) < lengths[:, None]
        made["follows"] = torch.tensor([label for *_, label in pairs])
        made["places"] = (made["words"] >= 0).sum(dim=1)
        return super().prepare(made, rng)

    def _text(self, tokens: Tensor, words: Tensor, length: int) -> Text:
        """The text of a row, short enough for one more token in the row."""
        begins = words.diff(prepend=words[:1] - 1) != 0
        return Text(tokens, begins).part(0, len(tokens) - max(length + 1 - self.length, 0))

    def pairs(self, texts: Sequence[Text], rng: torch.Generator) -> list[tuple[Text, Text, int]]:
        """Each text in two parts, of which the second may be another, and the label. One word stays alone."""
        cuts = [cut(text, rng) for text in texts]
        wrong = (torch.rand(len(texts), generator=rng) < 0.5).tolist()
        found = []
        for number, (text, place) in enumerate(zip(texts, cuts, strict=True)):
            first, second = text.part(0, place), text.part(place, len(text.tokens))
            others = [each for i, each in enumerate(texts) if cuts[i] and i != number]
            label = int(wrong[number] and (self.other == "swapped" or bool(others))) if place else IGNORE
            if label == 1 and self.other == "swapped":
                first, second = second, first
            elif label == 1:
                second = somewhere(others[draw(len(others), rng)], len(second.tokens), rng)
            found.append((first, second, label))
        return found

    def _row(self, tokens: Tensor, inside: Tensor, first: Text, second: Text) -> dict[str, Tensor]:
        """The parts between the special tokens of a row, as a row."""
        places = inside.nonzero()[:, 0].tolist()
        before, after = tokens[: places[0]], tokens[places[-1] + 1 :]
        middle = [tokens.new_tensor([self.separator])] if len(first.tokens) else []
        begun = torch.cat([first.begins, second.begins]).cumsum(0) - 1
        words = [begun[: len(first.tokens)], begun[len(first.tokens) :]]
        none = torch.full_like(tokens, -1)
        opened = len(before) + len(first.tokens) + len(middle)
        read = torch.cat([before, first.tokens, *middle, second.tokens, after])
        return {
            "tokens": read,
            "words": torch.cat([none[: len(before)], words[0], none[: len(middle)], words[1], none[: len(after)]]),
            "types": (torch.arange(len(read)) >= opened).long() if middle else torch.zeros_like(read),
        }

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """The loss of hidden tokens and of pairs. Raises ConfigError for a model that does not tell pairs apart."""
        inputs = {name: value for name, value in batch.items() if name not in ("targets", "follows", "places")}
        output = model(**inputs)
        if "follows" not in output.others:
            raise ConfigError("the model does not say whether texts follow each other: set model.head to pretrain")
        said = Supervise(0.0).over(output, batch["targets"])
        scores = output.others["follows"]
        wide = widened(scores)
        missed = F.cross_entropy(wide, batch["follows"], reduction="none")
        pairs = (self.share * batch["places"] * missed).sum()
        return Loss(said.sum + pairs, said.count, {**said.parts, "follows": pairs.detach()})


OBJECTIVE = Pair


def cut(text: Text, rng: torch.Generator) -> int:
    """A place where a word begins that is not the first; 0 where there is none."""
    places = text.begins[1:].nonzero()[:, 0] + 1
    return int(places[draw(len(places), rng)]) if len(places) else 0


def somewhere(text: Text, length: int, rng: torch.Generator) -> Text:
    """So many tokens of a text, from any word on behind which there are enough; from its beginning if there is none."""
    starts = text.begins[: max(len(text.tokens) - length, 0) + 1].nonzero()[:, 0]
    start = int(starts[draw(len(starts), rng)])
    return text.part(start, start + length)


def draw(count: int, rng: torch.Generator) -> int:
    """A number below ``count``."""
    return int(torch.randint(count, (), generator=rng))
