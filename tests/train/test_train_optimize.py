"""Adam and AdamW against their papers' algorithms, written out."""

import pytest
import torch
from torch import nn

from regard.core.errors import ConfigError
from regard.train.optimize import Optimizer, build_optimizer


def by_the_paper(weight, gradients, lr, optimizer):
    """Kingma & Ba 2015, algorithm 1; Loshchilov & Hutter 2019, algorithm 2."""
    (beta1, beta2), decay = optimizer.betas, optimizer.weight_decay
    m = v = torch.zeros_like(weight)
    for t, gradient in enumerate(gradients, start=1):
        g = gradient + decay * weight if optimizer.name == "adam" else gradient
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        step = lr * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + optimizer.eps)
        weight = weight - step - (lr * decay * weight if optimizer.name == "adamw" else 0)
    return weight


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_equals_the_algorithm(name, decay):
    torch.manual_seed(0)
    model = nn.Linear(4, 3).double()
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    optimizer = Optimizer(name, weight_decay=decay)
    engine = build_optimizer(optimizer, model)
    gradients = {key: [torch.randn_like(value) for _ in range(5)] for key, value in before.items()}
    for t in range(5):
        for group in engine.param_groups:
            group["lr"] = 0.01
        for key, parameter in model.named_parameters():
            parameter.grad = gradients[key][t].clone()
        engine.step()
    undecayed = Optimizer(name)
    for key, parameter in model.named_parameters():
        rule = optimizer if parameter.ndim >= 2 else undecayed
        torch.testing.assert_close(parameter, by_the_paper(before[key], gradients[key], 0.01, rule), rtol=0, atol=1e-12)


def test_frozen_parameters_are_left_out():
    model = nn.Linear(4, 3)
    model.weight.requires_grad_(False)
    engine = build_optimizer(Optimizer(), model)
    assert [p for group in engine.param_groups for p in group["params"]] == [model.bias]


def test_wrong_values():
    with pytest.raises(ConfigError, match="betas"):
        Optimizer(betas=(0.9, 1.0))
    with pytest.raises(ConfigError, match="eps"):
        Optimizer(eps=0.0)
