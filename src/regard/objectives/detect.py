"""Replaced-token detection: to say which tokens a small model has put in the place of others (Clark et al. 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from regard.core.errors import ConfigError
from regard.core.types import IGNORE, Batch, Loss, widened
from regard.objectives.masked import Masked
from regard.objectives.supervise import Supervise


@dataclass(frozen=True)
class Detect(Masked):
    """A generator says hidden tokens and learns from that; the model reads what it drew, and learns which are wrong.

    Of the loss (section 3.1), the detection's is the mean over all tokens, times ``weight``, and the generator's the
    mean over those hidden; there a token counts for as many as one is hidden of, so that the loss does not depend on
    how batches are put together. Draws come with the batch: no gradient goes through them, and the same model always
    draws the same.

    Attributes:
        hidden: as in :class:`Masked`; here all chosen tokens are hidden, and none is random.
        weight: of the detection (lambda).
    """

    hidden: float = 1.0
    random: float = 0.0
    weight: float = 50.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.weight < 1e6:
            raise ConfigError(f"objective.weight {self.weight} must be a number above 0")

    def prepare(self, batch: Batch, rng: torch.Generator) -> Batch:
        """As :meth:`Masked.prepare`, with ``draws`` [B S]: numbers below 1 that tokens are drawn by."""
        made = super().prepare(batch, rng)
        return {**made, "draws": torch.rand(made["tokens"].shape, generator=rng)}

    def loss(self, model: Any, batch: Batch) -> Loss:
        """The loss over all tokens; the part ``nll`` is the detection's. Raises ConfigError without a generator."""
        if not isinstance(getattr(model, "generator", None), nn.Module):
            raise ConfigError("the model has no generator: set model.generator to a share of its size, such as 0.25")
        inputs = {name: value for name, value in batch.items() if name not in ("targets", "draws")}
        guessed = model.guess(**inputs)
        said = Supervise(0.0).over(guessed, batch["targets"])
        chosen = batch["targets"] != IGNORE
        with torch.no_grad():
            drawn = sample(guessed.head(guessed.features[chosen]), batch["draws"][chosen])
        read = batch["tokens"].masked_scatter(chosen, drawn)
        wrong = torch.zeros_like(chosen).masked_scatter(chosen, drawn != batch["targets"][chosen])
        real = batch["valid"]
        scores = model(**inputs | {"tokens": read}).logits[..., 0][real]
        wide = widened(scores)
        missed = F.binary_cross_entropy_with_logits(wide, wrong[real].to(wide.dtype), reduction="sum")
        parts = {"nll": missed.detach(), "generator": said.parts["nll"] / self.share}
        return Loss(self.weight * missed + said.sum / self.share, real.sum(), parts)


OBJECTIVE = Detect


def sample(logits: Float[Tensor, "N V"], draws: Float[Tensor, "N"]) -> Int[Tensor, "N"]:
    """A token for each row, by its probability: the first at which the sum of probabilities passes the draw."""
    sums = widened(logits).softmax(dim=-1).cumsum(dim=-1)
    found = torch.searchsorted(sums, (draws.to(sums.dtype) * sums[:, -1])[:, None], right=True)
    return found[:, 0].clamp(max=logits.shape[1] - 1)
