"""Normalisation layers, each ``[... E] -> [... E]``. Statistics are taken in float32 at least."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.core.types import widened

NormName = Literal["layer", "rms", "scale", "batch"]


class RMSNorm(nn.Module):
    """Divide by the root mean square, times a learned gain (Zhang & Sennrich 2019, equation 4)."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def reset_parameters(self) -> None:
        """Set the gain to 1."""
        nn.init.ones_(self.weight)

    def forward(self, x: Float[Tensor, "*S E"]) -> Float[Tensor, "*S E"]:
        wide = widened(x)
        scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.gain(scaled, x.dtype)

    def gain(self, scaled: Float[Tensor, "*S E"], dtype: torch.dtype) -> Float[Tensor, "*S E"]:
        """Rounded to the type of the input, then times the gain, as published models do it."""
        return scaled.to(dtype) * self.weight


class UnitRMSNorm(RMSNorm):
    """RMSNorm whose gain is 1 + weight, so that weight decay pulls it to the identity (Gemma Team 2024, its code).

    The gain is applied before rounding.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__(dim, eps)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the gain to 1."""
        nn.init.zeros_(self.weight)

    def gain(self, scaled: Float[Tensor, "*S E"], dtype: torch.dtype) -> Float[Tensor, "*S E"]:
        return (scaled * (1 + self.weight.to(scaled.dtype))).to(dtype)


class ScaleNorm(nn.Module):
    """Divide by the length, times one learned scalar, sqrt(E) at first (Nguyen & Salazar 2019, equation 5)."""

    def __init__(self, dim: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.dim = dim
        self.weight = nn.Parameter(torch.full((1,), dim**0.5))

    def reset_parameters(self) -> None:
        """Set the length to sqrt(E)."""
        nn.init.constant_(self.weight, self.dim**0.5)

    def forward(self, x: Float[Tensor, "*S E"]) -> Float[Tensor, "*S E"]:
        wide = widened(x)
        return (wide / wide.norm(dim=-1, keepdim=True).clamp(min=self.eps)).to(x.dtype) * self.weight


class BatchNorm(nn.BatchNorm1d):
    """Statistics over all places of the batch in training, running ones in evaluation (Ioffe & Szegedy 2015).

    Training statistics count padding too: train it on packed or equally long rows. In evaluation a row's answer
    does not depend on its neighbours.
    """

    def forward(self, x: Float[Tensor, "*S E"]) -> Float[Tensor, "*S E"]:
        return super().forward(x.flatten(0, -2)).view_as(x)


NORMS: dict[str, Callable[..., nn.Module]] = {
    "layer": nn.LayerNorm,
    "rms": RMSNorm,
    "scale": ScaleNorm,
    "batch": BatchNorm,
}


def norm(name: NormName, dim: int, eps: float) -> nn.Module:
    """The norm called ``name`` for ``dim`` features."""
    return NORMS[name](dim, eps=eps)
