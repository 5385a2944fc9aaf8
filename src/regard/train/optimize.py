"""Optimisers: what a recipe says of them, and torch's implementations of it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from regard.blocks.residual import Stack
from regard.core.errors import ConfigError
from regard.core.serial import check_fields
from regard.train.freeze import depths
from regard.train.parallel import cuts, is_cut

WHOLE = ("adafactor", "muon")
"""Those whose step on a matrix is more than steps on its parts."""

OptimizerName = Literal["sgd", "rmsprop", "adam", "adamw", "adafactor", "muon"]


@dataclass(frozen=True)
class Optimizer:
    """Adam with the paper's constants (Kingma & Ba 2015; Vaswani et al. 2017, section 5.3), or another.

    Attributes:
        name: ``sgd`` with momentum; ``rmsprop`` (Tieleman & Hinton 2012) and ``adam`` scale by the gradient's second
            moment; ``adamw`` takes weight decay out of the gradient (Loshchilov & Hutter 2019), where the three before
            add it; ``adafactor`` keeps that moment as rows and columns, and scales steps by the size of the weights
            (Shazeer & Stern 2018); ``muon`` orthogonalises the steps of the blocks' matrices (Jordan et al. 2024), as
            long as those of AdamW (Liu et al. 2025, section 2.2), which takes the rest.
        betas: how slowly Adam's two moments move, and the second of them RMSProp's.
        eps: added to the root of the second moment, except by Adafactor.
        weight_decay: on matrices only; biases and norms are left alone.
        momentum: of ``sgd``, ``rmsprop`` and ``muon``.
        nesterov: whether ``sgd`` and ``muon`` look ahead by their momentum (Nesterov 1983).
        layer_decay: what the learning rate shrinks by from each block to the one below it (Howard & Ruder 2018,
            section 3.2); see :func:`regard.train.freeze.depths`. 1 = one rate for all.
    """

    name: OptimizerName = "adam"
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-9
    weight_decay: float = 0.0
    momentum: float = 0.9
    nesterov: bool = True
    layer_decay: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optimizer.betas {self.betas}: each must be at least 0 and less than 1")
        if not 0 < self.eps < math.inf or not 0 <= self.weight_decay < math.inf:
            raise ConfigError("optimizer.eps must be a number above 0, and optimizer.weight_decay one not below it")
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"optimizer.momentum {self.momentum} must be at least 0 and less than 1")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"optimizer.layer_decay {self.layer_decay} must be above 0 and at most 1")


def build_optimizer(optimizer: Optimizer, model: nn.Module) -> torch.optim.Optimizer:
    """torch's optimiser over every parameter that is not frozen.

    The learning rate is set at each step: that of a group is the schedule's times the group's ``scale``.

    Raises:
        ConfigError: every parameter is frozen; or ``muon`` has no matrix.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise ConfigError("every parameter of the model is frozen: there is nothing to train")
    if optimizer.name in WHOLE and any(map(is_cut, trained)):
        raise ConfigError(f"optimizer.name {optimizer.name} needs whole matrices: set the fields of parallel to 1")
    depth = depths(model)
    if optimizer.name == "muon":
        return _muon(optimizer, model, trained, depth)
    groups = _groups(optimizer, trained, depth)
    match optimizer.name:
        case "sgd":  # not fused: that wants every momentum at once, and unfreezing brings them one by one
            looks_ahead = optimizer.nesterov and optimizer.momentum > 0
            return torch.optim.SGD(groups, lr=0.0, momentum=optimizer.momentum, nesterov=looks_ahead)
        case "rmsprop":
            return torch.optim.RMSprop(
                groups, lr=0.0, alpha=optimizer.betas[1], eps=optimizer.eps, momentum=optimizer.momentum
            )
        case "adafactor":
            return torch.optim.Adafactor(groups, lr=0.0)
        case "adam":
            return torch.optim.Adam(groups, lr=0.0, betas=optimizer.betas, eps=optimizer.eps, fused=True)
    return _adamw(optimizer, groups)


def _groups(
    optimizer: Optimizer, parameters: Iterable[nn.Parameter], depth: Mapping[nn.Parameter, int]
) -> list[dict[str, Any]]:
    """The parameters by depth, where that matters; matrices, which alone decay, before vectors; and by their layout."""
    found: dict[tuple[int, bool, int], list[nn.Parameter]] = {}
    for parameter in parameters:
        level = depth[parameter] if optimizer.layer_decay < 1 else 0
        found.setdefault((level, parameter.ndim < 2, cuts(parameter)), []).append(parameter)
    return [
        {
            "params": members,
            "weight_decay": 0.0 if is_vector else optimizer.weight_decay,
            "scale": optimizer.layer_decay**level,
        }
        for (level, is_vector, _), members in sorted(found.items())
    ]


def _adamw(optimizer: Optimizer, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=0.0, betas=optimizer.betas, eps=optimizer.eps, fused=True)


def _muon(
    optimizer: Optimizer, model: nn.Module, trained: list[nn.Parameter], depth: Mapping[nn.Parameter, int]
) -> torch.optim.Optimizer:
    inner = {
        module.weight
        for stack in model.modules()
        if isinstance(stack, Stack)
        for module in stack.modules()
        if isinstance(module, nn.Linear)
    }
    hidden = [parameter for parameter in trained if parameter in inner]
    rest = [parameter for parameter in trained if parameter not in inner]
    if not hidden:
        raise ConfigError("optimizer.name muon: no matrix of a block is trained; choose another, such as adamw")
    muon = torch.optim.Muon(
        _groups(optimizer, hidden, depth),
        lr=0.0,
        momentum=optimizer.momentum,
        nesterov=optimizer.nesterov,
        adjust_lr_fn="match_rms_adamw",
    )
    return Pair(muon, _adamw(optimizer, _groups(optimizer, rest, depth))) if rest else muon


class Pair(torch.optim.Optimizer):
    """Two optimisers as one, each over its own parameters; their groups and their state are also this one's."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        super().__init__([*first.param_groups, *second.param_groups], {})
        self.first, self.second = first, second
        self._share()

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of each."""
        self.first.step(closure)
        self.second.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up both states."""
        super().load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        count = len(self.first.param_groups)
        self.first.param_groups, self.second.param_groups = self.param_groups[:count], self.param_groups[count:]
        self.first.state = self.second.state = self.state
