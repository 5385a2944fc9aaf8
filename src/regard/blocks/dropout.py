"""Dropout as a layer."""

from torch import Tensor, nn

from regard.core.dropout import dropout


class Dropout(nn.Module):
    """:func:`~regard.core.dropout.dropout` while training. ``p`` is the probability of zero."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p) if self.training and self.p else x

    def extra_repr(self) -> str:
        return f"p={self.p}"
