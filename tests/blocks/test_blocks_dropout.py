"""Dropout: how often, how much, independent, and the same after the same seed."""

import math

import pytest
import torch

from regard.blocks.dropout import Dropout
from regard.core.dropout import dropout

N = 1_000_003


@pytest.mark.parametrize("p", [0.05, 0.1, 0.3, 0.5, 0.9])
def test_share_and_scale(p):
    torch.manual_seed(0)
    x = dropout(torch.ones(N, dtype=torch.float64), p)
    assert set(x.unique().tolist()) == {0.0, x.max().item()}
    assert x.max().item() == pytest.approx(1 / (1 - p), rel=1e-4)
    deviation = math.sqrt(p * (1 - p) / N)
    assert abs((x == 0).double().mean().item() - p) < 4 * deviation + 1e-5


def test_neighbours_and_calls_are_independent():
    torch.manual_seed(0)
    a, b = (dropout(torch.ones(N), 0.5) == 0 for _ in range(2))
    for lag in (1, 2, 3, 4, 8):
        assert abs((a[lag:] == a[:-lag]).double().mean().item() - 0.5) < 3e-3
    assert abs((a == b).double().mean().item() - 0.5) < 3e-3


def test_gradient_is_what_was_kept():
    torch.manual_seed(0)
    x = torch.randn(7, 5, 3, requires_grad=True)
    y = dropout(x, 0.4)
    y.sum().backward()
    torch.testing.assert_close(y, x * x.grad)


def test_the_seed_decides():
    def draw():
        torch.manual_seed(5)
        return dropout(torch.ones(33, 7), 0.3)

    assert torch.equal(draw(), draw())


def test_nothing_in_evaluation_and_everything_at_one():
    x = torch.randn(4, 6)
    layer = Dropout(0.5)
    assert torch.equal(layer.eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert not torch.equal(layer.train()(x), x)
    assert not dropout(x, 1.0).any()
    assert dropout(x[:0], 0.5).shape == (0, 6)
