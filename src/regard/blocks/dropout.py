"""Dropout with cheap randomness: on a CPU, torch's own spends a tenth of a training step drawing it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def dropout(x: Tensor, p: float) -> Tensor:
    """Zero each element with probability ``p`` and scale the others by ``1 / (1 - p)`` (Srivastava et al. 2014).

    On a CPU each element takes 16 random bits, a quarter of one draw of the generator, six times as fast as a draw
    for each; so p is rounded to a multiple of 2^-16, and the scale with it.
    """
    if p in (0, 1) or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p)
    dropped = min(round(p * 65536), 65535)
    draws = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = draws.view(torch.int16)[: x.numel()] >= dropped - 32768
    return x * kept.view(x.shape).to(x.dtype).mul_(65536 / (65536 - dropped))


class Dropout(nn.Module):
    """:func:`dropout` while training. ``p`` is the probability of zero."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training and self.p else x

    def extra_repr(self) -> str:
        return f"p={self.p}"
