"""Classification and multiple choice by a language model as it is: the likeliest words after a prompt are the answer.

A template makes a prompt of each example, and some solved ones may stand before it (Brown et al. 2020, section 2). What
is compared is how likely the model finds each choice after the prompt. Nothing is learnt, and nothing is written.
"""

from __future__ import annotations

import inspect
import random
import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from regard.blocks.packed import pack
from regard.core.errors import ConfigError, InputError, Unsupported, did_you_mean
from regard.core.types import widened
from regard.data.collate import sequences
from regard.data.loader import plan
from regard.data.source import Rows, mapped
from regard.data.tables import table, text
from regard.data.tokenize import Tokenizer
from regard.tasks.classify import Labelled, compared, confusion
from regard.tasks.task import Scored, some

Per = Literal["token", "character", "choice"]

LABEL = "label"
"""The name of the place in a template that the choices are tried at."""

CLASSIFY, CHOOSE = "Input: {text}\nLabel: {label}", "Question: {text}\nAnswer: {label}"
"""Templates where none is given: for classes, and for choices of each question's own."""

BETWEEN = "\n\n"
"""What stands between examples."""

EMPTY = ("N/A", "[MASK]", "")
"""Texts without content, which calibration asks the model about (Zhao et al. 2021, section 5)."""

MAX_TOKENS = 4096
"""Of a batch, padding and choices included."""


class Item(NamedTuple):
    """An example: what a template has places for, the choices as they are written, and the number of the right one."""

    fields: Mapping[str, str]
    choices: tuple[str, ...]
    target: int | None = None


class Asked(NamedTuple):
    """What the model reads of an example: its choices as text, prompt and choices as tokens; after how many shots."""

    words: tuple[str, ...]
    prompt: list[int]
    choices: list[list[int]]
    shots: int


@dataclass(frozen=True)
class Template:
    """How an example is written.

    Attributes:
        text: with a place for each field of an example, ``{text}``, and ``{label}`` at its end.
    """

    text: str = CLASSIFY

    def __post_init__(self) -> None:
        try:
            parts = [*string.Formatter().parse(self.text)]
        except ValueError as error:
            raise ConfigError(
                f"the template {self.text!r:.60} cannot be read ({error}); write {{{{ for a brace"
            ) from None
        for _, name, spec, conversion in parts:
            if spec or conversion:
                raise ConfigError(
                    f"the template {self.text!r:.60} says how to write '{name}'; texts are written as they are, "
                    f"{{{name}}}"
                )
        names = [name for _, name, _, _ in parts if name is not None]
        if names[-1:] != [LABEL] or parts[-1][1] != LABEL or names.count(LABEL) > 1:
            raise ConfigError(f"the template {self.text!r:.60} must have {{{LABEL}}} once, at its end")
        if not self.text.removesuffix(f"{{{LABEL}}}").strip():
            raise ConfigError(f"the template {self.text!r:.60} must have something before {{{LABEL}}}")

    @property
    def names(self) -> list[str]:
        """The fields that it has places for."""
        return [name for _, name, _, _ in string.Formatter().parse(self.text) if name not in (None, LABEL)]

    def prompt(self, fields: Mapping[str, str]) -> str:
        """All before the label, without blanks at the end. Raises ConfigError for a place that is no field."""
        for name in self.names:
            if name not in fields:
                hint = did_you_mean(name, fields)
                raise ConfigError(f"the template has a place for '{name}', an example has {', '.join(fields)}{hint}")
        return self.text.format_map({**fields, LABEL: ""}).rstrip()

    def choice(self, words: str) -> str:
        """The label as it follows a prompt: with the blanks before it."""
        before = self.text.removesuffix(f"{{{LABEL}}}")
        return before[len(before.rstrip()) :] + words

    def whole(self, item: Item) -> str:
        """An example with its right choice."""
        return self.prompt(item.fields) + self.choice(item.choices[item.target or 0])


class Prompting:
    """A language model that is asked by prompts.

    Args:
        model: reads text one way, as GPT-2 does.
        tokenizer: that the model learnt with.
        template: how examples are written.
        shots: solved examples that stand before each question, the same before all: as many of the first as there are
            positions for.
        per: what the log-probability of a choice is divided by: the number of its tokens (Brown et al. 2020, section
            2.4), of its characters, or by nothing.
        calibrate: whether the shares of the choices are divided by those that the model gives them after texts without
            content (Zhao et al. 2021, section 5).
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer,
        template: Template,
        shots: Sequence[Item] = (),
        *,
        per: Per = "token",
        calibrate: bool = False,
    ) -> None:
        if not hasattr(model, "begin") or "decoder_tokens" in inspect.signature(model.forward).parameters:
            raise ConfigError(f"{type(model).__name__} does not go on with a text; gpt2 and other decoders do")
        if per not in get_args(Per):
            raise ConfigError(f"per must be one of {', '.join(get_args(Per))}, not '{per}'")
        self.model, self.tokenizer, self.template, self.per, self.calibrate = model, tokenizer, template, per, calibrate
        self.packed: Any = pack(model)
        self.max_len: int = model.config.max_seq_len
        self.device: torch.device = next(model.parameters()).device
        self.start = [] if tokenizer.bos is None else [tokenizer.bos]
        solved = [template.whole(shot) + BETWEEN for shot in shots]
        self.shots = [*tokenizer.encode_batch(solved[:1]), *self._after(BETWEEN, solved[1:])]

    def _after(self, text: str, endings: Sequence[str]) -> list[list[int]]:
        """The tokens of each ending of a text: as it is cut there, where some tokenizers put no blank before it.

        Where an ending's first letters would change the text's last token, it is cut by itself.
        """
        known, *whole = self.tokenizer.encode_batch([text, *(text + ending for ending in endings)])
        alone = self.tokenizer.encode_batch(endings)
        return [row[len(known) :] if row[: len(known)] == known else own for row, own in zip(whole, alone, strict=True)]

    def asked(self, item: Item, shots: int | None = None) -> Asked:
        """What the model reads of an example, after as many shots as there are positions for beside it, or ``shots``.

        Raises:
            InputError: there are too few positions for the example alone, or a choice has no token.
            ConfigError: the template has a place that is no field.
        """
        text = self.template.prompt(item.fields)
        first, later = *self.tokenizer.encode_batch([text]), *self._after(BETWEEN, [text])
        choices = self._after(text, [self.template.choice(words) for words in item.choices])
        if [] in choices:
            raise InputError(f"the choice {item.choices[choices.index([])]!r:.60} has no token")
        size = len(self.start) + max(len(first), len(later)) + max(map(len, choices))
        if size > self.max_len:
            raise InputError(f"{text!r:.60} and a choice have {size} tokens, the model {self.max_len} positions")
        ends = np.cumsum([len(shot) for shot in self.shots])
        most = int(np.searchsorted(ends, self.max_len - size, side="right"))
        count = most if shots is None else min(most, shots)
        return Asked(item.choices, later if count else first, choices, count)

    def shares(self, asked: Sequence[Asked]) -> list[NDArray[np.float64]]:
        """The share of each choice of each example; the same alone as among others."""
        found = [softmax(scores) for scores in self.scores(asked)]
        if not self.calibrate:
            return found
        keys = [(each.words, each.shots) for each in asked]
        bias = {key: self.bias(*key) for key in dict.fromkeys(keys)}
        told = [share / bias[key] for share, key in zip(found, keys, strict=True)]
        return [share / share.sum() for share in told]

    def bias(self, choices: tuple[str, ...], shots: int) -> NDArray[np.float64]:
        """The mean share of each choice after texts without content, and after so many shots, or as many as fit."""
        items = (Item(dict.fromkeys(self.template.names, each), choices) for each in EMPTY)
        empty = [self.asked(item, shots) for item in items]
        return np.array([softmax(scores) for scores in self.scores(empty)]).mean(axis=0)

    def scores(self, asked: Sequence[Asked]) -> list[NDArray[np.float64]]:
        """How likely each choice of each example is: its log-probability, divided as :attr:`per` says."""
        found = [np.empty(0)] * len(asked)
        for count in {each.shots for each in asked}:
            places = [i for i, each in enumerate(asked) if each.shots == count]
            for i, logprobs in self._totals([asked[i] for i in places], places, count):
                found[i] = np.array(logprobs) / [
                    self._size(*each) for each in zip(asked[i].words, asked[i].choices, strict=True)
                ]
        return found

    @torch.inference_mode()
    def _totals(self, asked: Sequence[Asked], places: Sequence[int], count: int) -> Iterator[tuple[int, list[float]]]:
        """The log-probabilities of each example's choices after the first ``count`` shots, with the example's place.

        What caches hold of the shots is shared by all examples, and what they hold of an example by all of its choices.
        """
        before = [*self.start, *chain.from_iterable(self.shots[:count])]
        decoding = self._begun(before)
        for numbers in plan([(len(each.prompt) + sum(map(len, each.choices)),) for each in asked], MAX_TOKENS):
            batch = [asked[i] for i in numbers]
            decoding.reorder(torch.zeros(len(batch), dtype=torch.long, device=self.device))
            told = self._logprobs(decoding, batch)
            for i, each in zip(numbers, batch, strict=True):
                yield places[i], told[: len(each.choices)]
                told = told[len(each.choices) :]
            decoding.reorder(torch.zeros(1, dtype=torch.long, device=self.device))
            try:
                decoding.truncate(len(before))
            except Unsupported:  # a window has moved past the shots
                decoding = self._begun(before)

    def _begun(self, before: Sequence[int]) -> Any:
        """What has read the shots."""
        decoding = self.packed.begin(max_len=self.max_len)
        if before:
            decoding.feed(torch.tensor([before], device=self.device))
        return decoding

    def _logprobs(self, decoding: Any, batch: Sequence[Asked]) -> list[float]:
        """The sum over the tokens of each choice of each example; the rows were fed what stands before the prompts."""
        rows = torch.arange(len(batch), device=self.device)
        tokens, valid = self._rows([each.prompt for each in batch])
        after = decoding.feed(tokens, valid)[rows, valid.sum(dim=1) - 1]
        owners = rows.repeat_interleave(torch.tensor([len(each.choices) for each in batch], device=self.device))
        decoding.reorder(owners)
        tokens, valid = self._rows([choice for each in batch for choice in each.choices])
        logits = torch.cat([after[owners][:, None], decoding.feed(tokens, valid)[:, :-1]], dim=1)
        total: list[float] = said(logits, tokens).masked_fill(~valid, 0).sum(dim=1).tolist()
        return total

    def _rows(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        batch = sequences(rows, self.tokenizer.pad)
        return batch["tokens"].to(self.device), batch["valid"].to(self.device)

    def _size(self, words: str, tokens: Sequence[int]) -> int:
        return {"token": len(tokens), "character": len(words), "choice": 1}[self.per]

    def predict(self, items: Sequence[Item]) -> list[int]:
        """The number of the likeliest choice of each example; of equals, the first. Raises as :meth:`asked`."""
        return [int(share.argmax()) for share in self.shares([self.asked(item) for item in items])]

    def score(self, items: Sequence[Item]) -> Scored:
        """Accuracy, and where all examples have the same choices macro F1. Raises as :meth:`asked`; also for none."""
        some(items)
        asked = [self.asked(item) for item in items]
        found, true = [int(share.argmax()) for share in self.shares(asked)], [item.target or 0 for item in items]
        hits = sum(a == b for a, b in zip(found, true, strict=True))
        scores = {"accuracy": hits / len(items)}
        if len({item.choices for item in items}) == 1:
            scores = compared(confusion(true, found, len(items[0].choices)))
        fewest, most = (pick(each.shots for each in asked) for pick in (min, max))
        after = f"after {fewest} examples" if fewest == most else f"after {fewest} to {most} examples"
        notes = {"accuracy": f"{hits:,} of {len(items):,}, {after}"}
        return Scored(scores, notes, [item.choices[number] for item, number in zip(items, found, strict=True)])


def said(logits: Float[Tensor, "B S V"], tokens: Tensor) -> Float[Tensor, "B S"]:
    """The log-probability of each token, in float32 at least."""
    return widened(logits).log_softmax(dim=-1).gather(2, tokens[..., None])[..., 0]


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The share of each."""
    found: NDArray[np.float64] = np.exp(scores - scores.max())
    return found / found.sum()


def drawn(items: Sequence[Item], count: int, seed: int) -> list[Item]:
    """``count`` of the examples, in the order that the seed draws them in. Raises ConfigError where there are fewer."""
    if not 0 <= count <= len(items):
        raise ConfigError(
            f"shots {count} must lie between 0 and {len(items)}, the examples that there are to draw from"
        )
    return random.Random(seed).sample(items, count)


def classes(examples: Iterable[Labelled], labels: Mapping[str, str]) -> list[Item]:
    """Examples of classes, each written by its words. Raises InputError for a class that has none."""
    numbers, choices = {label: number for number, label in enumerate(labels)}, tuple(labels.values())
    found = []
    for each in examples:
        if each.label not in numbers:
            hint = did_you_mean(each.label, labels)
            raise InputError(f"the class '{each.label}' is none of {', '.join(labels)}{hint}")
        found.append(Item(fields(each.texts), choices, numbers[each.label]))
    return found


def fields(texts: Sequence[str]) -> dict[str, str]:
    """One text, or two of a pair, by the names that templates have for them."""
    return dict(zip(("text", "pair"), texts, strict=False))


def questions(spec: str) -> Rows[Item]:
    """Multiple choice, as JSONL or Parquet. Raises DataError.

    Columns are ``text``, ``choices`` (a list of texts) and ``label`` (the right one of them, or its number from 0).
    """
    return mapped(_question, table(spec, ("text", "choices", LABEL)))


def _question(row: Mapping[str, Any]) -> Item:
    choices, label = row.get("choices"), row.get(LABEL)
    if not isinstance(choices, (list, tuple)) or not all(isinstance(each, str) and each for each in choices):
        raise ValueError(f"'choices' should be a list of texts, found {choices!r:.60}")
    if isinstance(label, str) and label in choices:
        label = choices.index(label)
    if type(label) is not int or not 0 <= label < len(choices):
        raise ValueError(f"'label' should be one of the choices, or its number from 0, found {label!r:.40}")
    return Item({"text": text(row, "text")}, tuple(choices), label)
