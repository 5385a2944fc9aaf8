"""Rows of unequal length as one tensor."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor


def pad(rows: Sequence[Sequence[int]], value: int, left: bool = False) -> Int[Tensor, "B S"]:
    """Stack rows into one tensor as wide as the longest, filling the rest with ``value``.

    Args:
        rows: B sequences of integers; a row may be empty.
        value: what padding holds.
        left: put the padding before the row instead of after it.
    """
    width = max((len(row) for row in rows), default=0)
    gaps = [[value] * (width - len(row)) for row in rows]
    filled = [[*gap, *row] if left else [*row, *gap] for row, gap in zip(rows, gaps, strict=True)]
    return torch.tensor(filled, dtype=torch.long).view(len(rows), width)
