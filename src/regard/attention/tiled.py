"""Exact attention on a CPU, a few heads at a time: what stands between its products stays in the processor's cache.

The weights are not kept for the gradients but computed again, as in FlashAttention (Dao et al. 2022, section 3.1), but
a row of scores is never divided: this is the plain formula.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from regard.core.dropout import kept

TILE = 2**19
"""So many scores are held at once, 2 MB in float32, or those of one head if they are more."""


def tiled_attention(
    q: Float[Tensor, "B H Q D"],
    k: Float[Tensor, "B H K D"],
    v: Float[Tensor, "B H K D"],
    bias: Float[Tensor, "R H Q K"] | None,
    floor: Float[Tensor, "R Hm Q K"] | None,
    scale: float,
    dropout: float,
) -> Float[Tensor, "B H Q D"]:
    """[B H Q D] ``softmax(q k^T * scale + bias + floor) v``, differentiable once; softmax in float32 at least.

    Args:
        q, k, v: queries, keys and values, of one type.
        bias: added to the scores.
        floor: 0 where a query may see a key, else below all scores; where it may see none, its output is 0.
        scale: of the scores.
        dropout: on the weights.
    """
    # Drawn here, the seed is torch's to repeat when it recomputes; what follows from it is not.
    seed = torch.randint(2**62, (), device="cpu") if dropout else None
    return _attend(q, k, v, bias, floor, seed, scale, dropout)


class _Tile:
    """Some heads of some rows: ``weights`` are those of softmax, ``kept`` what dropout multiplies them by."""

    def __init__(
        self, q: Tensor, k: Tensor, draw: "_Draw", bias: Tensor | None, floor: Tensor | None, blind: Tensor | None
    ) -> None:
        scores = (q @ k.mT).to(torch.promote_types(q.dtype, torch.float32))
        for extra in (bias, floor):
            if extra is not None:
                scores += extra
        self.weights = scores.softmax(dim=-1)
        if blind is not None:
            self.weights.masked_fill_(blind, 0.0)
        self.kept = draw(scores)
        self.used = self.drop(self.weights).to(q.dtype)

    def drop(self, values: Tensor) -> Tensor:
        """What dropout leaves of what belongs to the weights."""
        return values if self.kept is None else values * self.kept


class _Draw:
    """What dropout multiplies tile after tile by, the same each time after the same seed."""

    def __init__(self, seed: Tensor | None, dropout: float) -> None:
        self.dropout = dropout
        self.generator = None if seed is None else torch.Generator().manual_seed(int(seed))

    def __call__(self, scores: Tensor) -> Tensor | None:
        if self.generator is None:
            return None
        return kept(scores.shape, self.dropout, scores.dtype, self.generator)


def _tiles(q: Tensor, k: Tensor, *extras: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """The place of each tile, and its part of each of these."""
    rows, heads, queries = q.shape[:3]
    whole = [None if extra is None else extra.expand(rows, heads, -1, -1) for extra in extras]
    together = max(1, TILE // max(1, queries * k.shape[2]))
    high, wide = max(1, together // heads), min(together, heads)
    for row, head in itertools.product(range(0, rows, high), range(0, heads, wide)):
        at = slice(row, row + high), slice(head, head + wide)
        yield at, *[None if extra is None else extra[at] for extra in whole]


def _blind(floor: Tensor | None) -> Tensor | None:
    """[R Hm Q 1] the queries that see nothing, if there are any."""
    if floor is None or not floor.numel():
        return None
    blind = floor.amax(dim=-1, keepdim=True) < 0
    return blind if blind.any() else None


@torch.library.custom_op("regard::attend", mutates_args=(), device_types="cpu")
def _attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, floor: Tensor | None, seed: Tensor | None, scale: float,
    dropout: float,
) -> Tensor:  # fmt: skip
    """The outputs."""
    out, draw = torch.empty_like(q), _Draw(seed, dropout)
    with torch.autocast("cpu", enabled=False):
        for at, *extras in _tiles(q, k, bias, floor, _blind(floor)):
            out[at] = _Tile(q[at] * scale, k[at], draw, *extras).used @ v[at]
    return out


@torch.library.custom_op("regard::attend_backward", mutates_args=(), device_types="cpu")
def _attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, floor: Tensor | None, seed: Tensor | None,
    scale: float, dropout: float, learns: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The gradients of queries, keys, values and, where it ``learns``, bias (else an empty one)."""
    grad_q, grad_k, grad_v, grad_bias = _likes(q, k, v, bias if learns else None)
    sums, draw = grad_bias.zero_().to(torch.promote_types(grad_bias.dtype, torch.float32)), _Draw(seed, dropout)
    with torch.autocast("cpu", enabled=False):
        for at, *extras in _tiles(q, k, bias, floor, _blind(floor)):
            tile = _Tile(q[at] * scale, k[at], draw, *extras)
            grad_v[at] = tile.used.mT @ grad[at]
            slope = tile.drop((grad[at] @ v[at].mT).to(tile.weights.dtype))
            slope = torch._softmax_backward_data(slope, tile.weights, -1, tile.weights.dtype)
            if learns:
                into = sums[at] if len(sums) > 1 else sums[:, at[1]]
                into += slope.sum_to_size(into.shape)
            slope = slope.to(q.dtype)
            grad_q[at] = (slope @ k[at]).mul_(scale)
            grad_k[at] = (slope.mT @ q[at]).mul_(scale)
    return grad_q, grad_k, grad_v, grad_bias.copy_(sums)


def _likes(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Room for the gradients of these."""
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), (
        q.new_empty(0) if bias is None else torch.empty_like(bias)
    )  # fmt: skip


@_attend.register_fake
def _(q: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(q)


@_attend_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    del grad
    return _likes(q, k, v, bias if rest[-1] else None)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    del output
    *tensors, ctx.scale, ctx.dropout = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    learns = ctx.needs_input_grad[3]
    *grads, grad_bias = _attend_backward(grad, *ctx.saved_tensors, ctx.scale, ctx.dropout, learns)
    return *grads, grad_bias if learns else None, None, None, None, None


_attend.register_autograd(_gradients, setup_context=_keep)


@register_flop_formula(torch.ops.regard.attend)
def _flops(q: tuple[int, ...], k: tuple[int, ...], *_: Any, **__: Any) -> int:
    return 4 * torch.Size(q).numel() * k[2]


@register_flop_formula(torch.ops.regard.attend_backward)
def _flops_backward(grad: tuple[int, ...], q: tuple[int, ...], k: tuple[int, ...], *_: Any, **__: Any) -> int:
    del grad
    return 10 * torch.Size(q).numel() * k[2]
