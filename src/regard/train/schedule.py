"""Learning rates as functions of the step."""

import math
from dataclasses import dataclass
from typing import Literal

from regard.core.errors import ConfigError


@dataclass(frozen=True)
class Schedule:
    """A linear warm-up to the peak, then one of four ways down.

    Attributes:
        shape: ``inverse_sqrt`` falls with 1 / sqrt(step), ``cosine`` and ``linear`` reach ``final`` at the last
            step, ``constant`` stays.
        lr: the peak, reached at step ``warmup``.
        warmup: steps of the rise.
        final: where ``cosine`` and ``linear`` end, as a share of the peak.
    """

    shape: Literal["inverse_sqrt", "cosine", "linear", "constant"] = "inverse_sqrt"
    lr: float = 1e-3
    warmup: int = 4000
    final: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf or self.warmup < 0:
            raise ConfigError(f"schedule.lr {self.lr} must be above 0, and schedule.warmup {self.warmup} not below it")
        if not 0 <= self.final <= 1:
            raise ConfigError(f"schedule.final {self.final} must be a share of the peak, from 0 to 1")

    def __call__(self, step: int, num_steps: int) -> float:
        """The learning rate of ``step``; steps count from 1 to ``num_steps``."""
        if step < self.warmup:
            return self.lr * step / self.warmup
        if self.shape == "inverse_sqrt":
            return self.lr * math.sqrt(max(self.warmup, 1) / step)
        if self.shape == "constant":
            return self.lr
        done = (step - self.warmup) / max(num_steps - self.warmup, 1)
        left = 1 - done if self.shape == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.lr * (self.final + (1 - self.final) * left)


def vaswani(embed_dim: int, warmup: int = 4000) -> Schedule:
    """The paper's schedule, ``embed_dim^-0.5 * min(step^-0.5, step * warmup^-1.5)`` (2017, equation 3)."""
    return Schedule("inverse_sqrt", lr=(embed_dim * warmup) ** -0.5, warmup=warmup)
