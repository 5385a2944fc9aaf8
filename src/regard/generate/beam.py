"""Beam search: the best few answers are kept at every step, and every sentence keeps as many rows while it lasts.

All bookkeeping is in tensors; sentences that are finished leave the batch. Row ``sentence * size + j`` holds
hypothesis j of a sentence, so the beams of a sentence are always neighbours.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from regard.core.errors import ConfigError, InputError
from regard.core.types import Decoding
from regard.generate.decode import NOTHING_LEFT, Generated, align, check_limits, last
from regard.generate.logits import Transform, apply, suppress

Words = Sequence[Sequence[int]]
"""Phrases, each a run of tokens, that one answer must contain."""

BLOCK = 64
"""Candidates are found by the maxima of blocks of the vocabulary, which are read at the speed of memory."""

SLICE = 1 << 20
"""On a CPU so many logits are worked on at a time, to stay in the cache."""


@dataclass(frozen=True)
class Beam:
    """How to search.

    A hypothesis of n new tokens, the stop token included, ranks by the sum of its log-probabilities (after the
    transforms) divided by ``n ** length_penalty``.

    Attributes:
        size: how many hypotheses of a sentence are kept, over all groups.
        length_penalty: 0 ranks by the sum, 1 by the mean; more favours longer answers.
        stopping: when a sentence is finished, once as many answers have ended as are kept. ``"current"``: when the best
            open hypothesis, ranked at the length it has now, does not beat the worst of them (the usual rule; with a
            positive length penalty it may stop too early). ``"exact"``: when no continuation of any length can beat
            it. ``"first"``: at once.
        groups: how many groups the hypotheses form, which are searched one after the other at every step, each away
            from what the groups before it have just chosen (Vijayakumar et al. 2016, section 4).
        diversity: what a token loses in the choice for each time an earlier group chose it at this step (Hamming
            diversity); it steers, and is no part of any score.
    """

    size: int = 4
    length_penalty: float = 1.0
    stopping: Literal["current", "exact", "first"] = "current"
    groups: int = 1
    diversity: float = 0.0

    def __post_init__(self) -> None:
        if self.groups < 1 or self.size < 1 or self.size % self.groups:
            raise ConfigError(f"a beam of size {self.size} does not divide into {self.groups} groups")
        if self.stopping not in ("current", "exact", "first"):
            raise ConfigError(f"stopping is 'current', 'exact' or 'first', not '{self.stopping}'")
        if self.diversity < 0 or (self.diversity and self.groups == 1):
            raise ConfigError(f"diversity={self.diversity}: it must be positive, and needs more than one group")


@torch.inference_mode()
def beam_search(
    decoding: Decoding,
    prompt: Int[Tensor, "B S"],
    valid: Bool[Tensor, "B S"] | None = None,
    *,
    beam: Beam | None = None,
    best: int = 1,
    words: Sequence[Words] | None = None,
    transforms: Sequence[Transform] = (),
    stop: Collection[int] = (),
    min_tokens: int = 0,
    max_tokens: int = 256,
) -> list[list[Generated]]:
    """Search for the highest-ranking answers to each prompt.

    Args:
        decoding: a model ready to be fed, one row a sentence, as ``model.begin(...)`` returns it.
        prompt: at least one token a sentence.
        valid: which of them are real.
        beam: how to search.
        best: how many answers of each sentence to return.
        words: for each sentence the phrases that its answer must contain, by dynamic beam allocation (Post and Vilar
            2018): hypotheses compete with those that have as many of their tokens, each such bank in turn placing its
            best. The beam should be larger than the number of those tokens.
        transforms: applied to the log-probabilities, in order; see :mod:`regard.generate.logits`.
        stop: tokens that end an answer.
        min_tokens: how many tokens an answer has before it may stop.
        max_tokens: how many it has at most.

    Returns:
        For each sentence up to ``best`` answers, best first.

    Raises:
        InputError: an empty prompt, or a sentence that no hypothesis can answer under the constraints.
        ConfigError: options that contradict each other.
    """
    beam = Beam() if beam is None else beam
    _check(beam, best, words, len(prompt), min_tokens, max_tokens)
    device = prompt.device
    stops = torch.tensor(sorted(stop), device=device, dtype=torch.long)
    history = align(prompt, valid)
    phrases = None if words is None else _Phrases.of_words(words, device)
    logits = last(decoding.feed(prompt, valid), valid)[:, None]
    searches = [_Search.start(history, logits, beam.size // beam.groups, phrases) for _ in range(beam.groups)]
    sentences = torch.arange(len(prompt), device=device)
    answers: list[list[Generated]] = [[] for _ in range(len(prompt))]

    for count in range(1, max_tokens + 1):
        active = [*transforms, suppress(stop)] if count <= min_tokens else transforms
        rule = _Rule(beam, count, max_tokens, stops, active)
        searches, parents = _advance(searches, logits, phrases, rule)
        over = torch.stack([search.done for search in searches]).all(dim=0) | (count == max_tokens)
        live = (~over).nonzero()[:, 0]
        if len(live) < len(over):
            finished = _best(searches, over, stops, history.shape[1])
            for sentence, found in zip(sentences[over].tolist(), finished, strict=True):
                answers[sentence] = found[:best]
            if len(live) == 0:
                break
            sentences, parents = sentences[live], parents[live]
            searches = [search.of(live) for search in searches]
            phrases = None if phrases is None else phrases.of(live)
        held = logits.shape[1]
        _reorder(decoding, (live[:, None] * held + parents).flatten(), before=len(over) * held)
        tokens = torch.cat([search.open.tokens[:, :, -1] for search in searches], dim=1)
        logits = decoding.feed(tokens.view(-1, 1)).view(len(live), beam.size, -1)

    for sentence, found in enumerate(answers):
        if not found:
            raise InputError(f"sentence {sentence}: no answer of {max_tokens} tokens or fewer: {NOTHING_LEFT}")
    return answers


@dataclass(frozen=True, eq=False)
class _Hypotheses:
    """n hypotheses for each of L sentences.

    ``score`` is what they rank by, -inf where there is none, and ``logprob`` the model's own. ``progress`` says how
    much of each of P forced phrases has been written.
    """

    tokens: Int[Tensor, "L n S"]
    score: Float[Tensor, "L n"]
    logprob: Float[Tensor, "L n"]
    progress: Int[Tensor, "L n P"]

    def of(self, sentences: Tensor | slice) -> _Hypotheses:
        """Those of some of the sentences."""
        return _Hypotheses(*(each[sentences] for each in self._fields()))

    def among(self, chosen: Int[Tensor, "L m"]) -> _Hypotheses:
        """For each sentence those that stand at ``chosen``."""
        return _Hypotheses(*(_gather(each, chosen) for each in self._fields()))

    def first(self, count: int) -> _Hypotheses:
        """For each sentence the first ``count``."""
        return _Hypotheses(*(each[:, :count] for each in self._fields()))

    def join(self, other: _Hypotheses) -> _Hypotheses:
        """For each sentence these and then the others."""
        return _Hypotheses(*(torch.cat(pair, dim=1) for pair in zip(self._fields(), other._fields(), strict=True)))

    def _fields(self) -> tuple[Tensor, ...]:
        return self.tokens, self.score, self.logprob, self.progress


@dataclass(frozen=True, eq=False)
class _Rule:
    """What holds for every group at this step, in which token number ``count`` is written."""

    beam: Beam
    count: int
    max_tokens: int
    stops: Int[Tensor, "T"]
    transforms: Sequence[Transform]

    def finished(self, open: _Hypotheses, ended: _Hypotheses) -> Bool[Tensor, "L"]:
        """Whether a search can find nothing better: see :attr:`Beam.stopping`."""
        full = ended.score[:, -1] > -inf
        highest = open.score.amax(dim=1)
        hopeless = highest == -inf
        if self.beam.stopping == "first":
            return full | hopeless
        penalty = self.beam.length_penalty
        length = self.max_tokens if self.beam.stopping == "exact" and penalty > 0 else self.count
        return (full & (highest / length**penalty <= ended.score[:, -1])) | hopeless


@dataclass(frozen=True, eq=False)
class _Search:
    """One group's search: its open hypotheses, the best that ended (best first), and whether it is finished."""

    open: _Hypotheses
    ended: _Hypotheses
    done: Bool[Tensor, "L"]

    @classmethod
    def start(cls, history: Tensor, logits: Tensor, width: int, phrases: _Phrases | None) -> _Search:
        """Nothing written yet: one open hypothesis, none ended."""
        zeros = logits.new_zeros((len(history), 1), dtype=torch.promote_types(logits.dtype, torch.float32))
        progress = history.new_zeros(len(history), 1, 0 if phrases is None else phrases.length.shape[1])
        open = _Hypotheses(history[:, None], zeros, zeros, progress)
        nobody = replace(open, score=zeros - inf).among(history.new_zeros(len(history), width))
        return cls(open, nobody, torch.zeros(len(history), dtype=torch.bool, device=history.device))

    def of(self, sentences: Tensor) -> _Search:
        """The same for some of the sentences."""
        return _Search(self.open.of(sentences), self.ended.of(sentences), self.done[sentences])

    def advance(self, proposed: _Hypotheses, parents: Tensor, complete: Tensor, rule: _Rule) -> tuple[_Search, Tensor]:
        """Sort what was proposed, best first, into what has ended and what goes on; also the parents of the latter."""
        width = self.ended.score.shape[1]
        stops = torch.isin(proposed.tokens[:, :, -1], rule.stops)
        ends = stops | (rule.count == rule.max_tokens)

        # Only what ranks among the first may end: the rest is there to fill the places of those that do.
        ending = (ends & complete)[:, :width] & ~self.done[:, None]
        ranked = torch.where(ending, proposed.score[:, :width] / rule.count**rule.beam.length_penalty, -inf)
        older = replace(self.ended, tokens=pad(self.ended.tokens, (0, 1), value=-1))
        newer = replace(proposed.first(width), score=ranked)
        both = older.join(newer)
        ended = both.among(both.score.topk(width, dim=1).indices)

        onward = stops.int().argsort(dim=1, stable=True)[:, :width]
        goes_on = replace(proposed, score=proposed.score.masked_fill(ends, -inf)).among(onward)
        search = _Search(goes_on, ended, self.done | rule.finished(goes_on, ended))
        return search, parents.gather(1, onward)


@dataclass(frozen=True, eq=False)
class _Phrases:
    """The forced phrases of each sentence, as one automaton a phrase (Knuth, Morris and Pratt 1977).

    ``wanted`` [L P W] are their tokens, ``length`` [L P]; ``symbols`` [A] all tokens that occur in any, in order.
    ``after`` [L P W+1 A+1] is the progress after each symbol (the last: any other token) at each progress so far, where
    progress counts the tokens of the phrase that have just been written; a phrase once complete remains so.
    """

    wanted: Int[Tensor, "L P W"]
    length: Int[Tensor, "L P"]
    symbols: Int[Tensor, "A"]
    after: Int[Tensor, "L P W1 A1"]

    @classmethod
    def of_words(cls, words: Sequence[Words], device: torch.device) -> _Phrases:
        """The automata; sentences with fewer phrases than others have empty ones, which are complete from the start."""
        symbols = sorted({token for each in words for phrase in each for token in phrase})
        most = max((len(each) for each in words), default=0)
        longest = max((len(phrase) for each in words for phrase in each), default=0)
        wanted = torch.full((len(words), most, longest + 1), -1)
        length = torch.zeros(len(words), most, dtype=torch.long)
        after = torch.zeros(len(words), most, longest + 1, len(symbols) + 1, dtype=torch.long)
        for i, each in enumerate(words):
            for j, phrase in enumerate(each):
                wanted[i, j, : len(phrase)] = torch.tensor(phrase)
                length[i, j] = len(phrase)
                after[i, j, len(phrase)] = len(phrase)
                for done in range(len(phrase)):
                    for token in set(phrase):
                        after[i, j, done, symbols.index(token)] = _overlap(phrase, [*phrase[:done], token])
        return cls(wanted.to(device), length.to(device), torch.tensor(symbols).long().to(device), after.to(device))

    def of(self, sentences: Tensor | slice) -> _Phrases:
        """The same for some of the sentences."""
        return replace(self, wanted=self.wanted[sentences], length=self.length[sentences], after=self.after[sentences])

    def next(self, progress: Int[Tensor, "L n P"]) -> Int[Tensor, "L n P"]:
        """The token that takes each phrase one further; -1 where it is complete."""
        return self.wanted[(*self._places(progress), progress)]

    def advance(self, progress: Int[Tensor, "L n P"], tokens: Int[Tensor, "L n"]) -> Int[Tensor, "L n P"]:
        """The progress after one more token."""
        if not len(self.symbols):
            return progress
        place = torch.searchsorted(self.symbols, tokens).clamp(max=len(self.symbols) - 1)
        symbol = torch.where(self.symbols[place] == tokens, place, len(self.symbols))
        return self.after[(*self._places(progress), progress, symbol[..., None])]

    def complete(self, progress: Int[Tensor, "L n P"]) -> Bool[Tensor, "L n"]:
        """Whether every phrase has been written."""
        return (progress == self.length[:, None]).all(dim=2)

    def _places(self, progress: Tensor) -> tuple[Tensor, Tensor]:
        sentence, phrase = (torch.arange(size, device=progress.device) for size in self.length.shape)
        return sentence[:, None, None], phrase


def _overlap(phrase: Sequence[int], written: Sequence[int]) -> int:
    # How much of the phrase the end of what is written already holds.
    sizes = range(min(len(phrase), len(written)), 0, -1)
    return next((size for size in sizes if list(phrase[:size]) == list(written[-size:])), 0)


def _advance(
    searches: list[_Search], logits: Float[Tensor, "L N V"], phrases: _Phrases | None, rule: _Rule
) -> tuple[list[_Search], Int[Tensor, "L N"]]:
    # One group after the other, as each looks at what those before it chose.
    advanced: list[_Search] = []
    parents: list[Tensor] = []
    taken = logits.new_empty(len(logits), 0, dtype=torch.long)
    for group, search in enumerate(searches):
        width = search.open.score.shape[1]
        offset = group * width if rule.count > 1 else 0
        proposed, parent = _propose(logits[:, offset : offset + width], search.open, taken, phrases, rule)
        complete = proposed.score > -inf
        if phrases is not None:
            complete &= phrases.complete(proposed.progress)
        new, chosen = search.advance(proposed, parent, complete, rule)
        advanced.append(new)
        parents.append(chosen + offset)
        # A group that is finished still has its rows, as its sentence has, but sways nobody.
        taken = torch.cat([taken, new.open.tokens[:, :, -1].masked_fill(search.done[:, None], -1)], dim=1)
    return advanced, torch.cat(parents, dim=1)


def _propose(
    logits: Float[Tensor, "L n V"], open: _Hypotheses, taken: Int[Tensor, "L T"], phrases: _Phrases | None, rule: _Rule
) -> tuple[_Hypotheses, Int[Tensor, "L m"]]:
    # A CPU reads logits that are still in its cache several times as fast: a few sentences at a time, all the way.
    size = max(1, SLICE // logits[0].numel()) if logits.is_cpu else len(logits)
    parts = []
    for start in range(0, len(logits), size):
        few = slice(start, start + size)
        few_phrases = None if phrases is None else phrases.of(few)
        parts.append(_choose(logits[few], open.of(few), taken[few], few_phrases, rule))
    parent, token, score, logprob = (torch.cat(part) for part in zip(*parts, strict=True))
    older = open.among(parent)
    progress = older.progress if phrases is None else phrases.advance(older.progress, token)
    return _Hypotheses(torch.cat([older.tokens, token[..., None]], dim=2), score, logprob, progress), parent


def _choose(
    logits: Float[Tensor, "L n V"], open: _Hypotheses, taken: Int[Tensor, "L T"], phrases: _Phrases | None, rule: _Rule
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    # The best continuations of each sentence, best first: their parents, tokens, scores and log-probabilities.
    L, n, V = logits.shape
    model = logits.flatten(0, 1).log_softmax(dim=-1, dtype=open.score.dtype)
    logprobs = apply(rule.transforms, open.tokens.flatten(0, 1), model).view(L, n, V)
    steered = logprobs
    if taken.shape[1] and rule.beam.diversity:
        cost = (taken >= 0).to(logprobs.dtype) * -rule.beam.diversity
        index = taken.clamp(min=0)[:, None].expand(-1, n, -1)
        steered = logprobs.scatter_add(2, index, cost[:, None].expand(-1, n, -1))

    # Each open hypothesis may end in as many ways as there are stop tokens: so many more leave enough to go on.
    width = rule.beam.size // rule.beam.groups
    key, parent, token = _top(steered, open.score, width * max(2, len(rule.stops) + 1))
    if phrases is not None:
        key, parent, token = _with_words(steered, open, phrases, key, parent, token)
    flat = parent * V + token
    score = open.score.gather(1, parent) + logprobs.flatten(1).gather(1, flat)
    logprob = open.logprob.gather(1, parent) + model.view(L, -1).gather(1, flat)
    return parent, token, torch.where(key > -inf, score, -inf), logprob


def _top(
    logprobs: Float[Tensor, "L n V"], score: Float[Tensor, "L n"], count: int
) -> tuple[Float[Tensor, "L m"], Int[Tensor, "L m"], Int[Tensor, "L m"]]:
    # The best of a set lie in the blocks with the best maxima: exact, and only the maxima look at every element.
    L, n, V = logprobs.shape
    blocks = pad(logprobs, (0, -V % BLOCK), value=-inf).view(L, -1, BLOCK)
    each = blocks.shape[1] // n
    maxima = (blocks.amax(dim=-1).view(L, n, each) + score[..., None]).flatten(1)
    which = maxima.topk(min(count, n * each), dim=1).indices
    inside = blocks.gather(1, which[..., None].expand(-1, -1, BLOCK)) + score.gather(1, which // each)[..., None]
    key, place = inside.flatten(1).topk(min(count, inside[0].numel()), dim=1)
    block = which.gather(1, place // BLOCK)
    parent, token = block // each, (block % each * BLOCK + place % BLOCK).clamp(max=V - 1)
    short = count - key.shape[1]
    return pad(key, (0, short), value=-inf), pad(parent, (0, short)), pad(token, (0, short))


def _with_words(
    logprobs: Tensor, open: _Hypotheses, phrases: _Phrases, key: Tensor, parent: Tensor, token: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    # Add to the candidates what takes any phrase further, and the best of every hypothesis; order them by banks.
    _, n, V = logprobs.shape
    more = torch.cat([phrases.next(open.progress), logprobs.argmax(dim=2, keepdim=True)], dim=2)
    rows = torch.arange(n, device=parent.device)[:, None].expand_as(more)
    gained = logprobs.gather(2, more.clamp(min=0)) + open.score[..., None]
    key = torch.cat([key, gained.masked_fill(more < 0, -inf).flatten(1)], dim=1)
    parent, token = torch.cat([parent, rows.flatten(1)], dim=1), torch.cat([token, more.flatten(1).clamp(min=0)], dim=1)
    flat = parent * V + token
    again = (flat[:, :, None] == flat[:, None]).tril(-1).any(dim=2)
    key = key.masked_fill(again, -inf)

    key, order = key.sort(dim=1, descending=True, stable=True)
    parent, token = parent.gather(1, order), token.gather(1, order)
    order = _by_banks(key, phrases.advance(_gather(open.progress, parent), token).sum(dim=2))
    return key.gather(1, order), parent.gather(1, order), token.gather(1, order)


def _by_banks(key: Float[Tensor, "L m"], bank: Int[Tensor, "L m"]) -> Int[Tensor, "L m"]:
    # Candidates come best first. Each bank places its best, the fullest bank before the others; then each its second,
    # and so on: banks share the beam evenly, and what one cannot fill falls to the rest.
    same = bank[:, :, None] == bank[:, None]
    turn = same.tril(-1).sum(dim=2)
    order = turn * (bank.amax() + 1) - bank
    return order.masked_fill(key == -inf, torch.iinfo(order.dtype).max).argsort(dim=1, stable=True)


def _best(searches: Iterable[_Search], chosen: Tensor, stops: Tensor, skip: int) -> list[list[Generated]]:
    # The answers of the chosen sentences over all groups, best first, each once.
    first, *others = [search.ended.of(chosen) for search in searches]
    for other in others:
        first = first.join(other)
    ranked = first.among(first.score.argsort(dim=1, descending=True, stable=True))
    stop = set(stops.tolist())
    found = []
    columns = ranked.tokens[:, :, skip:].tolist(), ranked.score.tolist(), ranked.logprob.tolist()
    for hypotheses in zip(*columns, strict=True):
        answers: dict[tuple[int, ...], Generated] = {}
        for padded, score, logprob in zip(*hypotheses, strict=True):
            tokens = [token for token in padded if token >= 0]
            if score > -inf:
                answers.setdefault(
                    tuple(tokens), Generated(tokens, logprob, "stop" if tokens[-1] in stop else "length")
                )
        found.append(list(answers.values()))
    return found


def _reorder(decoding: Decoding, rows: Int[Tensor, "N"], before: int) -> None:
    # A permutation that changes nothing would still cost a copy of every cache.
    if len(rows) != before or not torch.equal(rows, torch.arange(before, device=rows.device)):
        decoding.reorder(rows)


def _gather(values: Tensor, index: Int[Tensor, "L m"]) -> Tensor:
    # values [L n] or [L n X], chosen along the second dimension.
    if values.dim() == 2:
        return values.gather(1, index)
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))


def _check(beam: Beam, best: int, words: Sequence[Words] | None, batch: int, min_tokens: int, max_tokens: int) -> None:
    check_limits(min_tokens, max_tokens)
    if not 1 <= best <= beam.size:
        raise ConfigError(f"best={best}: a beam of size {beam.size} has between 1 and {beam.size} answers")
    if words is None:
        return
    if beam.groups > 1:
        raise ConfigError("forced words and diverse groups cannot be combined: use one group")
    if len(words) != batch:
        raise InputError(f"forced words for {len(words)} sentences, but there are {batch} prompts")
    if not all(phrase for each in words for phrase in each):
        raise InputError("a forced phrase must have at least one token")
