"""Optimisers: what a recipe says of them, and torch's fused implementation of it."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from regard.core.errors import ConfigError


@dataclass(frozen=True)
class Optimizer:
    """Adam with the paper's constants (Kingma & Ba 2015; Vaswani et al. 2017, section 5.3), or AdamW.

    Attributes:
        name: ``adamw`` takes weight decay out of the gradient (Loshchilov & Hutter 2019); ``adam`` adds it there.
        betas: how slowly the two moments move.
        eps: added to the root of the second moment.
        weight_decay: on matrices only; biases and norms are left alone.
    """

    name: Literal["adam", "adamw"] = "adam"
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-9
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optimizer.betas {self.betas}: each must be at least 0 and less than 1")
        if not 0 < self.eps < math.inf or not 0 <= self.weight_decay < math.inf:
            raise ConfigError("optimizer.eps must be a number above 0, and optimizer.weight_decay one not below it")


def build_optimizer(optimizer: Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """torch's optimiser over every parameter that is not frozen; the learning rate is set at each step."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": optimizer.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    kind = torch.optim.AdamW if optimizer.name == "adamw" else torch.optim.Adam
    return kind(groups, lr=0.0, betas=optimizer.betas, eps=optimizer.eps, fused=True)
