"""Greedy decoding and sampling: an iterator of steps over a :class:`~regard.core.types.Decoding`.

Rows finish independently, and a finished row leaves the computation, so that cost follows the rows still being written.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from regard.core.errors import ConfigError, InputError
from regard.core.types import Decoding, widened
from regard.generate.logits import Transform, apply, suppress

NOTHING_LEFT = "transforms forbid every one, or the model's scores are not numbers"

Finish = Literal["stop", "length"]
"""Why writing ended: at a stop token (or stop string), or because ``max_tokens`` were written."""

Pick = Callable[[Float[Tensor, "N V"], Int[Tensor, "N"], int], Int[Tensor, "N"]]
"""(logits, which rows of the batch these are, how many tokens they have written) -> the next token of each."""


@dataclass(frozen=True)
class Generated:
    """What was written after one prompt.

    Attributes:
        tokens: the new tokens, with the stop token if one was written.
        score: the sum of their log-probabilities under the model's own distribution: no transform changes it, however
            much transforms changed the choice.
        finish: why it ended.
    """

    tokens: list[int]
    score: float
    finish: Finish


@dataclass(frozen=True, eq=False)
class Step:
    """One new token for every row that is still being written.

    Attributes:
        rows: [N] which rows of the batch.
        tokens: [N] the new token of each.
        logprobs: [N] its log-probability under the model's own distribution.
        stopped: [N] whether the row ends here.
    """

    rows: Int[Tensor, "N"]
    tokens: Int[Tensor, "N"]
    logprobs: Float[Tensor, "N"]
    stopped: Bool[Tensor, "N"]


def greedy(logits: Float[Tensor, "N V"], rows: Int[Tensor, "N"], count: int) -> Int[Tensor, "N"]:
    """Pick the most likely token of each row."""
    del rows, count
    return logits.argmax(dim=-1)


def sample(seed: int | Sequence[int]) -> Pick:
    """Pick a token at random, in proportion to its probability.

    A row's randomness is a function of its seed and of how many tokens it has written, and of nothing else: the row
    yields the same sample alone, in any batch and in any place.

    Args:
        seed: one for each row; a single number s gives the rows s, s + 1, s + 2 and so on.

    Raises:
        ConfigError: a seed that has more than 63 bits.
    """
    if not all(-(2**63) <= each < 2**63 for each in ([seed] if isinstance(seed, int) else seed)):
        raise ConfigError(f"seed {seed} must fit in 64 bits")

    def pick(logits: Tensor, rows: Tensor, count: int) -> Tensor:
        if not isinstance(seed, int) and int(rows.max()) >= len(seed):
            raise InputError(
                f"{len(seed)} seeds for {int(rows.max()) + 1} rows or more: give one for each, or one number"
            )
        seeds = rows + seed if isinstance(seed, int) else torch.tensor(seed, device=rows.device)[rows]
        return _inverse_cdf(logits, uniform(seeds, count))

    return pick


def uniform(seeds: Int[Tensor, "N"], count: int) -> Float[Tensor, "N"]:
    """Number ``count`` of the stream of each seed, in [0, 1), in float64: SplitMix64 (Steele et al. 2014, figure 16).

    It has no state to keep in step with rows, and gives the same numbers on every device. 48 bits are used, so that
    the product with any positive total stays below that total.
    """
    bits = _mix(_mix(seeds) + _signed(0x9E3779B97F4A7C15 * (count + 1)))
    return _shift(bits, 16).double() * 2.0**-48


@torch.inference_mode()
def decode(
    decoding: Decoding,
    prompt: Int[Tensor, "B S"],
    valid: Bool[Tensor, "B S"] | None = None,
    *,
    pick: Pick = greedy,
    transforms: Sequence[Transform] = (),
    stop: Collection[int] = (),
    until: Callable[[Step], Bool[Tensor, "N"]] | None = None,
    min_tokens: int = 0,
    max_tokens: int = 256,
) -> Iterator[Step]:
    """Write after each prompt, one token at a time, until every row has finished.

    Args:
        decoding: a model ready to be fed, as ``model.begin(...)`` returns it.
        prompt: at least one token a row.
        valid: which of them are real: prompts of unequal length may be padded on either side.
        pick: ``greedy``, ``sample(seed)``, or any other choice from logits.
        transforms: applied to the logits before the choice, in order; see :mod:`regard.generate.logits`.
        stop: tokens that end a row.
        until: says after every step which rows have enough, where that is not a matter of single tokens.
        min_tokens: how many tokens a row writes before it may stop.
        max_tokens: how many it writes at most.

    Raises:
        InputError: a row of the prompt has no token, or none can follow: transforms forbid all, or scores are NaN.
        ConfigError: the limits contradict each other.
    """
    check_limits(min_tokens, max_tokens)
    tokens = align(prompt, valid)
    rows = torch.arange(len(prompt), device=prompt.device)
    stops = torch.tensor(sorted(stop), device=prompt.device, dtype=torch.long)
    logits = last(decoding.feed(prompt, valid), valid)
    for count in range(max_tokens):
        active = [*transforms, suppress(stop)] if count < min_tokens else transforms
        logits = widened(logits)
        shaped = apply(active, tokens, logits)
        new = pick(shaped, rows, count)
        total = logits.logsumexp(dim=1)
        possible = (shaped.gather(1, new[:, None])[:, 0] > -inf) & total.isfinite()
        if not bool(possible.all()):
            raise InputError(f"row {int(rows[~possible][0])}: no token can follow: {NOTHING_LEFT}")
        logprobs = logits.gather(1, new[:, None])[:, 0] - total
        step = Step(rows, new, logprobs, torch.isin(new, stops))
        if until is not None:
            enough = until(step)
            step = Step(rows, new, logprobs, step.stopped | enough if count + 1 >= min_tokens else step.stopped)
        yield step
        live = (~step.stopped).nonzero()[:, 0]
        if len(live) == 0 or count + 1 == max_tokens:
            return
        tokens = torch.cat([tokens, new[:, None]], dim=1)
        if len(live) < len(rows):
            decoding.reorder(live)
            rows, tokens = rows[live], tokens[live]
        logits = decoding.feed(tokens[:, -1:])[:, -1]


def collect(steps: Iterable[Step], batch: int) -> list[Generated]:
    """Run the steps to their end; what each of the ``batch`` rows wrote."""
    tokens: list[list[int]] = [[] for _ in range(batch)]
    scores = [0.0] * batch
    finish: list[Finish] = ["length"] * batch
    for step in steps:
        columns = (step.rows, step.tokens, step.logprobs, step.stopped)
        for row, token, logprob, stopped in zip(*(column.tolist() for column in columns), strict=True):
            tokens[row].append(token)
            scores[row] += logprob
            if stopped:
                finish[row] = "stop"
    return [Generated(*each) for each in zip(tokens, scores, finish, strict=True)]


def align(prompt: Int[Tensor, "B S"], valid: Bool[Tensor, "B S"] | None) -> Int[Tensor, "B S"]:
    """The prompt as tokens so far: real tokens at the right, -1 before them. Raises InputError where there is none."""
    if prompt.numel() == 0:
        raise InputError(f"a prompt of shape {tuple(prompt.shape)} has no token: begin with the model's start token")
    if valid is None:
        return prompt
    empty = (~valid.any(dim=1)).nonzero()[:, 0].tolist()
    if empty:
        raise InputError(f"row {empty[0]} of the prompt has no valid token: begin with the model's start token")
    order = valid.int().argsort(dim=1, stable=True)
    return torch.where(valid, prompt, -1).gather(1, order)


def last(logits: Float[Tensor, "B S V"], valid: Bool[Tensor, "B S"] | None) -> Float[Tensor, "B V"]:
    """The logits after the last real token of each row."""
    if valid is None:
        return logits[:, -1]
    places = torch.arange(valid.shape[1], device=valid.device)
    return logits[torch.arange(len(valid), device=valid.device), torch.where(valid, places, -1).amax(dim=1)]


def check_limits(min_tokens: int, max_tokens: int) -> None:
    """Raises ConfigError unless 0 <= min_tokens <= max_tokens, and there is something to write."""
    if not 0 <= min_tokens <= max_tokens or max_tokens < 1:
        raise ConfigError(f"min_tokens={min_tokens} and max_tokens={max_tokens} leave no length to write")


def check_writes(model: object) -> None:
    """Raise InputError for a model that cannot ``begin``: one of hidden states, or with a head for something else."""
    if not hasattr(model, "begin"):
        raise InputError(f"this {type(model).__name__} does not write: it has no head that says next tokens")


def _inverse_cdf(logits: Tensor, at: Tensor) -> Tensor:
    # Summed in float64: over a large vocabulary float32 would lose the rarest tokens.
    mass = logits.softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
    # From the right: a token of probability zero adds no mass and is never met. Past the end lies only NaN.
    return torch.searchsorted(mass, at[:, None] * mass[:, -1:], right=True)[:, 0].clamp(max=logits.shape[1] - 1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift(z, 31)


def _shift(z: Tensor, bits: int) -> Tensor:
    # torch shifts the sign in; an unsigned shift brings in zeros.
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value
