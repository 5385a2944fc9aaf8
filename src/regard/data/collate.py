"""Rows of unequal length as one tensor."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from regard.core.types import Batch


def pad(
    rows: Sequence[Sequence[int] | NDArray[np.integer]], value: int, left: bool = False, width: int | None = None
) -> Int[Tensor, "B S"]:
    """Stack rows into one tensor as wide as the longest, filling the rest with ``value``.

    Args:
        rows: B sequences of integers; a row may be empty.
        value: what padding holds.
        left: put the padding before the row instead of after it.
        width: S, where it is not to follow the longest row.
    """
    if width is None:
        width = max((len(row) for row in rows), default=0)
    filled = np.full((len(rows), width), value, dtype=np.int64)
    for line, row in zip(filled, rows, strict=True):
        start = width - len(row) if left else 0
        line[start : start + len(row)] = row
    return torch.from_numpy(filled)


def sequences(rows: Sequence[Sequence[int] | NDArray[np.integer]], fill: int) -> Batch:
    """Rows of tokens as an encoder takes them: ``tokens``, and ``valid`` for which of them are real."""
    tokens = pad(rows, fill)
    lengths = torch.tensor([len(row) for row in rows])
    return {"tokens": tokens, "valid": torch.arange(tokens.shape[1]) < lengths[:, None]}
