"""Learning rates as functions of the step."""

import math
from dataclasses import dataclass
from typing import Literal

from regard.core.errors import ConfigError
from regard.core.serial import check_fields

Shape = Literal[
    "constant",
    "linear",
    "cosine",
    "cosine_restarts",
    "step",
    "exponential",
    "cyclical",
    "inverse_sqrt",
    "warmup_stable_decay",
]


@dataclass(frozen=True)
class Schedule:
    """A linear warm-up to the peak, then one of nine ways on.

    Attributes:
        shape: ``constant`` stays. ``linear``, ``cosine`` and ``exponential`` reach ``final`` at the last step.
            ``cosine_restarts`` falls to ``final`` in each period, and begins the next at the peak (Loshchilov & Hutter
            2017). ``step`` drops after each period. ``cyclical`` falls to ``final`` and rises again in each period
            (Smith 2017, "triangular", from its peak on: a warm-up of half a period is its first rise).
            ``inverse_sqrt`` falls with 1 / sqrt(step). ``warmup_stable_decay`` stays, then falls linearly to ``final``
            over the last period (Hu et al. 2024, section 4).
        lr: the peak, reached at step ``warmup``.
        warmup: steps of the rise.
        final: the rate that is fallen to, as a share of the peak; ``constant`` and ``inverse_sqrt`` have none.
        period: steps; of ``cosine_restarts``, the first.
        factor: what a period's end multiplies: the rate of ``step``; the frequency of ``cosine_restarts``, so that with
            0.5 each period is twice as long as the one before it.
    """

    shape: Shape = "inverse_sqrt"
    lr: float = 1e-3
    warmup: int = 4000
    final: float = 0.0
    period: int = 1000
    factor: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self)
        if not 0 < self.lr < math.inf or self.warmup < 0:
            raise ConfigError(f"schedule.lr {self.lr} must be above 0, and schedule.warmup {self.warmup} not below it")
        if not 0 <= self.final <= 1:
            raise ConfigError(f"schedule.final {self.final} must be a share of the peak, from 0 to 1")
        if self.shape == "exponential" and self.final == 0:
            raise ConfigError("schedule.final 0 is never reached by exponential decay; name a share above it")
        if self.period < 1:
            raise ConfigError(f"schedule.period {self.period} must be at least 1")
        if not 0 < self.factor <= 1:
            raise ConfigError(f"schedule.factor {self.factor} must be above 0 and at most 1")

    def __call__(self, step: int, num_steps: int) -> float:
        """The learning rate of ``step``; steps count from 1 to ``num_steps``."""
        if step < self.warmup:
            return self.lr * step / self.warmup
        if self.shape == "inverse_sqrt":
            return self.lr * math.sqrt(max(self.warmup, 1) / step)
        passed, total = step - self.warmup, max(num_steps - self.warmup, 1)
        if self.shape == "step":
            return self.lr * max(self.factor ** (passed // self.period), self.final)
        if self.shape == "exponential":
            return self.lr * self.final ** (passed / total)
        return self.lr * (self.final + (1 - self.final) * self._left(passed, total))

    def _left(self, passed: int, total: int) -> float:
        """How much of the way from ``final`` to the peak is left, ``passed`` steps after the peak."""
        match self.shape:
            case "linear":
                return 1 - passed / total
            case "cosine":
                return _half_cosine(passed / total)
            case "cosine_restarts":
                return _half_cosine(self._phase(passed))
            case "cyclical":
                return abs(1 - 2 * (passed % self.period) / self.period)
            case "warmup_stable_decay":
                return min(1.0, (total - passed) / min(self.period, total))
        return 1.0

    def _phase(self, passed: int) -> float:
        """The share of the present period that is over."""
        length = float(self.period)
        if self.factor == 1:
            return passed % length / length
        begun = 0.0
        while passed >= begun + length:
            begun, length = begun + length, length / self.factor
        return (passed - begun) / length


def _half_cosine(done: float) -> float:
    return (1 + math.cos(math.pi * done)) / 2


def vaswani(embed_dim: int, warmup: int = 4000) -> Schedule:
    """The paper's schedule, ``embed_dim^-0.5 * min(step^-0.5, step * warmup^-1.5)`` (2017, equation 3)."""
    return Schedule("inverse_sqrt", lr=(embed_dim * warmup) ** -0.5, warmup=warmup)
