"""Squared error: to say numbers, as near to the right ones as can be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import nn

from regard.core.types import Batch, Loss, widened
from regard.objectives.supervise import squared_error


@dataclass(frozen=True)
class SquaredError:
    """The squared difference between the model's logits and ``batch["targets"]``, both [B N]: N numbers for a row."""

    def fitted(self, task: Any) -> Self:  # noqa: ARG002
        """As it is: the task decides nothing about it."""
        return self

    def prepare(self, batch: Batch, rng: torch.Generator) -> Batch:  # noqa: ARG002
        """The batch as it is: nothing is corrupted."""
        return batch

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """The loss over all numbers of all rows. Raises InputError where there is none."""
        inputs = {name: value for name, value in batch.items() if name != "targets"}
        output = model(**inputs)
        said = widened(output.logits)
        return squared_error(said, batch["targets"].to(said.dtype)).plus(output.penalty)


OBJECTIVE = SquaredError
