"""Mixtures of experts: many feed-forward networks, of which a router picks a few for each token."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from regard.core.errors import ConfigError
from regard.core.linear import Linear
from regard.core.types import Context, Index, widened


class MixtureOfExperts(nn.Module):
    """Each token goes to its ``top_k`` experts, whose outputs are weighted by the router's probabilities.

    Sources: Shazeer et al. 2017, section 2.1; the choice without noise and the renormalised weights of Jiang et al.
    2024, section 2.1. For training, add :func:`load_balance` of the router's logits, in ``ctx.routers``, to the loss.

    Args:
        embed_dim: E.
        num_experts: X, how many experts.
        top_k: how many of them serve a token.
        expert: makes one expert.

    Raises:
        ConfigError: more choices than experts, or none.
    """

    def __init__(self, embed_dim: int, num_experts: int, top_k: int, expert: Callable[[], nn.Module]) -> None:
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ConfigError(f"a token goes to 1 to {num_experts} experts, not {top_k}")
        self.top_k = top_k
        self.router = Linear(embed_dim, num_experts, bias=False)
        self.experts = nn.ModuleList(expert() for _ in range(num_experts))

    def forward(self, x: Float[Tensor, "B S E"], ctx: Context | None = None) -> Float[Tensor, "B S E"]:
        """[B S E] each place on its own; the router's logits are recorded where the context asks for them."""
        flat = x.flatten(0, -2)
        logits = self.router(flat)
        if ctx is not None and ctx.routers is not None:
            ctx.routers.logits[ctx.path] = logits.view(*x.shape[:-1], -1)
        share, chosen = widened(logits).softmax(-1).topk(self.top_k, dim=-1)
        share = share / share.sum(-1, keepdim=True)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            if torch.compiler.is_compiling():  # how many tokens an expert serves is a size that no graph can have
                weight = torch.where(chosen == number, share, 0.0).sum(-1, keepdim=True)
                out = out + (expert(flat) * weight).to(x.dtype)
            else:
                rows, slot = _served(chosen, number, len(self.experts))
                out = out.index_add(0, rows, (expert(flat[rows]) * share[rows, slot, None]).to(x.dtype))
        return out.view_as(x)

    def extra_repr(self) -> str:
        return f"top_k={self.top_k}"


def _served(chosen: Int[Tensor, "N k"], number: int, count: int) -> tuple[Tensor, Tensor]:
    """The rows that an expert serves, and which of their choices it is. On meta, each serves as many as another."""
    if not chosen.is_meta:
        rows, slot = (chosen == number).nonzero(as_tuple=True)
        return rows, slot
    rows = chosen.new_empty((chosen.numel() + count - 1 - number) // count)
    return rows, rows


def load_balance(
    logits: Float[Tensor, "*N X"], top_k: int, valid: Bool[Tensor, "*N"] | None = None
) -> Float[Tensor, ""]:
    """Number of experts times the dot product of how often and how surely each is chosen; ``top_k`` when balanced.

    Source: Fedus et al. 2022, section 2.2, for ``top_k`` choices a token, as Mixtral's published code has it: one sum
    over all tokens of all layers.

    Args:
        logits: of the routers, for any number of tokens and layers.
        top_k: how many experts serve a token.
        valid: which tokens count; all unless given.
    """
    chance = widened(logits).softmax(-1)
    chosen: Int[Tensor, "*N k"] = chance.topk(top_k, dim=-1).indices
    load = F.one_hot(chosen, logits.shape[-1]).sum(-2).to(chance.dtype)
    real = torch.ones_like(chance[..., :1]) if valid is None else valid[..., None].to(chance.dtype)
    places = tuple(range(logits.ndim - 1))
    count = real.sum()
    return logits.shape[-1] * ((load * real).sum(places) / count * ((chance * real).sum(places) / count)).sum()


def imbalance(
    decoder: nn.Module, num_layers: int, logits: Sequence[Float[Tensor, "B S X"]], index: Index
) -> Float[Tensor, ""]:
    """:func:`load_balance` of a decoder's experts for a batch.

    Args:
        decoder: whose.
        num_layers: how many layers it has, in all.
        logits: of the routers that have run.
        index: which places are tokens.

    Raises:
        ConfigError: not all layers are here, as in the stages of a pipeline.
    """
    if len(logits) < num_layers:
        raise ConfigError(
            "experts are balanced over all layers, and stages of a pipeline do not see each other's: "
            "set parallel.pipeline to 1, or the model's balance to 0"
        )
    top_k = next(part.top_k for part in decoder.modules() if isinstance(part, MixtureOfExperts))
    each = torch.stack(list(logits))
    valid = (index.order >= 0).expand(each.shape[:-1]) if index.padded else None
    return load_balance(each, top_k, valid)
