"""Optimisers against their papers' algorithms, written out."""

import pytest
import torch
from torch import nn

from regard import zoo
from regard.core.errors import ConfigError
from regard.models.transformer import TransformerConfig
from regard.train.optimize import Optimizer, build_optimizer

TINY = TransformerConfig(
    vocab_size=20, embed_dim=8, ffn_dim=12, num_heads=2, num_encoder_layers=2, num_decoder_layers=3, positions="t5"
)


def adam(weight, gradients, lr, optimizer):
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


def sgd(weight, gradients, lr, optimizer):
    """Sutskever et al. 2013, equations 1 to 4, with the rate outside the velocity."""
    velocity = torch.zeros_like(weight)
    for gradient in gradients:
        g = gradient + optimizer.weight_decay * weight
        velocity = optimizer.momentum * velocity + g
        weight = weight - lr * (g + optimizer.momentum * velocity if optimizer.nesterov else velocity)
    return weight


def rmsprop(weight, gradients, lr, optimizer):
    """Tieleman & Hinton 2012, lecture 6.5, with momentum."""
    velocity = v = torch.zeros_like(weight)
    for gradient in gradients:
        g = gradient + optimizer.weight_decay * weight
        v = optimizer.betas[1] * v + (1 - optimizer.betas[1]) * g**2
        velocity = optimizer.momentum * velocity + g / (v.sqrt() + optimizer.eps)
        weight = weight - lr * velocity
    return weight


def adafactor(weight, gradients, lr, optimizer):
    """Shazeer & Stern 2018, algorithms 4 and 5, with a decoupled decay."""

    def rms(x):
        return x.square().mean().sqrt()

    v = rows = columns = 0
    for t, g in enumerate(gradients, start=1):
        keep = 1 - t**-0.8
        if g.ndim == 2:
            rows = keep * rows + (1 - keep) * (g**2).sum(1, keepdim=True)
            columns = keep * columns + (1 - keep) * (g**2).sum(0, keepdim=True)
            v = rows * columns / rows.sum()
        else:
            v = keep * v + (1 - keep) * g**2
        step = g / v.sqrt()
        size = max(1e-3, rms(weight)) * min(lr, t**-0.5)
        weight = weight - lr * optimizer.weight_decay * weight - size * step / max(1, rms(step))
    return weight


PAPERS = {"adam": adam, "adamw": adam, "sgd": sgd, "rmsprop": rmsprop, "adafactor": adafactor}


def stepped(optimizer, model, steps=5, lr=0.01):
    """The weights before, the gradients fed, and the model's weights after."""
    rng = torch.Generator().manual_seed(0)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    gradients = {
        key: [torch.randn(value.shape, generator=rng, dtype=value.dtype) for _ in range(steps)]
        for key, value in before.items()
    }
    engine = build_optimizer(optimizer, model)
    for t in range(steps):
        for group in engine.param_groups:
            group["lr"] = lr * group["scale"]
        for key, parameter in model.named_parameters():
            parameter.grad = gradients[key][t].clone()
        engine.step()
    return before, gradients, dict(model.named_parameters())


@pytest.mark.parametrize("name", PAPERS)
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("variant", [{}, {"momentum": 0.0, "nesterov": False}, {"nesterov": False}])
def test_equals_the_algorithm(name, decay, variant):
    torch.manual_seed(0)
    optimizer = Optimizer(name, weight_decay=decay, **variant)
    before, gradients, after = stepped(optimizer, nn.Linear(4, 3).double())
    for key, weight in after.items():
        rule = optimizer if weight.ndim >= 2 else Optimizer(name, **variant)
        expected = PAPERS[name](before[key], gradients[key], 0.01, rule)
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-12)


def test_muon_orthogonalises_the_blocks_matrices_and_leaves_the_rest_to_adamw():
    model = zoo.build(TINY, seed=0)
    matrices = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    before, gradients, after = stepped(Optimizer("muon", weight_decay=0.1), model, steps=1)
    for key, weight in after.items():
        if key in matrices:
            step = (before[key] * (1 - 0.01 * 0.1) - weight) / (0.01 * 0.2 * max(weight.shape) ** 0.5)
            sizes = torch.linalg.svdvals(step)
            assert sizes.min() > 0.3, key
            assert sizes.max() < 1.6, key
        else:
            rule = Optimizer("adamw", weight_decay=0.1 if weight.ndim >= 2 else 0.0)
            expected = adam(before[key].double(), [g.double() for g in gradients[key]], 0.01, rule)
            torch.testing.assert_close(weight.double(), expected, rtol=0, atol=1e-6)
    assert len(matrices) == 2 * 6 + 3 * 10


def test_lower_layers_take_shorter_steps():
    plain, decayed = zoo.build(TINY, seed=0), zoo.build(TINY, seed=0)
    before, _, full = stepped(Optimizer("sgd"), plain)
    _, _, short = stepped(Optimizer("sgd", layer_decay=0.5), decayed)
    scale = {"decoder.blocks.2": 2, "decoder.blocks.0": 8, "encoder.blocks.1": 2, "encoder.blocks.0": 4,
             "encoder_embed": 16}  # fmt: skip
    for part, share in scale.items():
        names = [name for name in before if name.startswith(part)]
        assert names
        for name in names:
            torch.testing.assert_close(share * (short[name] - before[name]), full[name] - before[name])


def test_frozen_parameters_are_left_out():
    model = nn.Linear(4, 3)
    model.weight.requires_grad_(False)
    engine = build_optimizer(Optimizer(), model)
    assert [p for group in engine.param_groups for p in group["params"]] == [model.bias]


def test_nothing_to_train():
    with pytest.raises(ConfigError, match="no matrix of a block"):
        build_optimizer(Optimizer("muon"), nn.Linear(4, 3))
    with pytest.raises(ConfigError, match="every parameter of the model is frozen"):
        build_optimizer(Optimizer(), nn.Linear(4, 3).requires_grad_(False))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"eps": 0.0}, "eps"),
        ({"momentum": 1.0}, "momentum"),
        ({"layer_decay": 0.0}, "layer_decay"),
        ({"name": "adamv"}, "name: 'adamv' is not one of .*did you mean 'adam"),
    ],
)
def test_wrong_values(wrong, message):
    with pytest.raises(ConfigError, match=message):
        Optimizer(**wrong)
