"""Position-wise feed-forward networks: plain, gated, and mixtures of experts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from regard.core.dropout import dropout
from regard.core.errors import ConfigError, did_you_mean
from regard.core.linear import Linear
from regard.core.types import Context

ActivationName = Literal["relu", "gelu", "gelu_tanh", "leaky_relu", "silu", "tanh"]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


class FeedForward(nn.Module):
    """``down(act(up(x)))``, or ``down(act(gate(x)) * up(x))`` when gated.

    Sources: Vaswani et al. 2017, section 3.3; gated: Shazeer 2020, section 2.

    Args:
        embed_dim: E.
        ffn_dim: F, the inner width.
        activation: between the two projections.
        gated: whether a second projection gates the first.
        bias: whether the projections have biases.
        dropout: after the activation, in training.

    Raises:
        ConfigError: an unknown activation.
    """

    def __init__(
        self,
        embed_dim: int,
        ffn_dim: int,
        *,
        activation: ActivationName = "relu",
        gated: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            known = ", ".join(ACTIVATIONS)
            raise ConfigError(f"no activation '{activation}'; there are {known}{did_you_mean(activation, ACTIVATIONS)}")
        self.activation, self.dropout = activation, dropout
        self.up = Linear(embed_dim, ffn_dim, bias=bias)
        self.gate = Linear(embed_dim, ffn_dim, bias=bias) if gated else None
        self.down = Linear(ffn_dim, embed_dim, bias=bias)

    def forward(self, x: Float[Tensor, "*S E"], ctx: Context | None = None) -> Float[Tensor, "*S E"]:
        """[... E] each place on its own; the context is not looked at."""
        del ctx
        act = ACTIVATIONS[self.activation]
        inner = act(self.up(x)) if self.gate is None else act(self.gate(x)) * self.up(x)
        return self.down(dropout(inner, self.dropout) if self.training and self.dropout else inner)

    def extra_repr(self) -> str:
        return f"activation={self.activation}, dropout={self.dropout}"


class MixtureOfExperts(nn.Module):
    """Each token goes to its ``top_k`` experts, whose outputs are weighted by the router's probabilities.

    Sources: Shazeer et al. 2017, section 2.1; the choice without noise and the renormalised weights of Jiang et al.
    2024, section 2.1. For training, add :func:`load_balance` of ``ctx.weights['....router']`` to the loss.

    Args:
        embed_dim: E.
        num_experts: how many experts.
        top_k: how many of them serve a token.
        expert: makes one expert.
    """

    def __init__(self, embed_dim: int, num_experts: int, top_k: int, expert: Callable[[], nn.Module]) -> None:
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ConfigError(f"a token goes to 1 to {num_experts} experts, not {top_k}")
        self.top_k = top_k
        self.router = Linear(embed_dim, num_experts, bias=False)
        self.experts = nn.ModuleList(expert() for _ in range(num_experts))

    def forward(self, x: Float[Tensor, "B S E"], ctx: Context | None = None) -> Float[Tensor, "B S E"]:
        """[B S E] each place on its own; the router's logits are recorded when weights are."""
        flat = x.flatten(0, -2)
        logits = self.router(flat)
        if ctx is not None and ctx.weights is not None:
            ctx.weights[f"{ctx.path}.router"] = logits
        share, chosen = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1).topk(self.top_k, dim=-1)
        share = (share / share.sum(-1, keepdim=True)).to(x.dtype)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            rows, slot = (chosen == number).nonzero(as_tuple=True)
            out = out.index_add(0, rows, expert(flat[rows]) * share[rows, slot, None])
        return out.view_as(x)


def load_balance(logits: Float[Tensor, "N X"], top_k: int) -> Float[Tensor, ""]:
    """Number of experts times the dot product of how often and how surely each is chosen; 1 when balanced.

    Source: Fedus et al. 2022, section 2.2, for ``top_k`` choices a token.
    """
    chance = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1)
    chosen: Int[Tensor, "N k"] = chance.topk(top_k, dim=-1).indices
    load = F.one_hot(chosen, logits.shape[-1]).sum(1).to(chance.dtype).mean(0) / top_k
    return logits.shape[-1] * (load * chance.mean(0)).sum()
