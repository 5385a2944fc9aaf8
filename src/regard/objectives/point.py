"""Pointing: to say at which places of a text something begins and ends (Vinyals et al. 2015, section 2.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.core.types import Batch, Loss, widened


@dataclass(frozen=True)
class Point:
    """Cross-entropy of each pointer over the places of its row that it may point at (Devlin et al. 2019, section 4.2).

    The model's logits are [B S P], a score of each place for each pointer; ``batch["targets"]`` is [B P], where each is
    to point, and ``batch["choices"]`` [B S] where they may.
    """

    def fitted(self, task: Any) -> Self:  # noqa: ARG002
        """The objective as it is: the data decide nothing about it."""
        return self

    def prepare(self, batch: Batch, rng: torch.Generator) -> Batch:  # noqa: ARG002
        """The batch as it is: nothing is corrupted."""
        return batch

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """The loss over all pointers of all rows."""
        inputs = {name: value for name, value in batch.items() if name not in ("targets", "choices")}
        output = model(**inputs)
        scores = pointers(output.logits, batch["choices"]).log_softmax(dim=-1)
        nll = -scores.gather(2, batch["targets"][..., None]).sum()
        count = torch.tensor(batch["targets"].numel(), device=nll.device)
        return Loss(nll, count, {"nll": nll.detach()}).plus(output.penalty)


OBJECTIVE = Point


def pointers(logits: Float[Tensor, "B S P"], choices: Bool[Tensor, "B S"]) -> Float[Tensor, "B P S"]:
    """Each pointer's scores of the places of its row, -inf where it may not point; in float32 at least."""
    wide = widened(logits).mT
    return wide.masked_fill(~choices[:, None], -torch.inf)
