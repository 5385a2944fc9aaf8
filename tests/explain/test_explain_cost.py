import pytest
import torch
from torch import nn

from regard.core.errors import Unsupported
from regard.explain.cost import example, memory, parts


class Tower(nn.Module):
    """Three like layers, then a head tied to nothing; every cost is known by hand."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.last = nn.Linear(8, 5, bias=False)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).relu()
        return self.last(x)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_linear_costs_equal_the_closed_formula(device):
    model = Tower().to(device)
    whole = parts(model, x=torch.zeros(2, 7, 8, device=device))
    assert whole.parameters == 3 * (8 * 8 + 8) + 8 * 5
    assert whole.flops == 2 * 14 * (3 * 8 * 8 + 8 * 5)
    layer, last = whole.parts
    assert (layer.name, layer.times, layer.parameters, layer.flops) == ("layers.0-2", 3, 72, 2 * 14 * 64)
    assert (last.kind, last.shape, last.flops) == ("Linear", (2, 7, 5), 2 * 14 * 40)
    assert not model.last._forward_hooks


def test_layers_that_differ_are_not_folded():
    model = Tower()
    model.layers[1] = nn.Linear(8, 8, bias=False)
    assert [part.name for part in parts(model, x=torch.zeros(1, 8)).parts] == [
        "layers.0",
        "layers.1",
        "layers.2",
        "last",
    ]


def test_attention_flops_equal_the_closed_formula():
    class Attend(nn.Module):
        def forward(self, q, k):
            return nn.functional.scaled_dot_product_attention(q, k, k)

    q, k = torch.zeros(2, 4, 6, 16, device="meta"), torch.zeros(2, 4, 9, 16, device="meta")
    assert parts(Attend(), q=q, k=k).flops == 2 * (2 * 2 * 4 * 6 * 9 * 16)


def test_tied_parameters_count_where_they_come_first():
    model = Tower()
    model.layers[2].weight = model.layers[0].weight
    whole = parts(model, x=torch.zeros(1, 8))
    assert whole.parameters == 2 * 64 + 3 * 8 + 40
    assert [(part.parameters, part.tied) for part in whole.parts] == [(72, 0), (8, 64), (40, 0)]
    assert whole.parts[0].times == 2


def test_memory_counts_shared_weights_once_and_what_the_backward_pass_needs():
    model = Tower()
    model.layers[2].weight = model.layers[0].weight
    weights = 4 * (2 * 64 + 3 * 8 + 40)
    cost = memory(model, x=torch.zeros(10, 8))
    assert cost.weights == weights
    assert cost.training == 4 * weights
    # relu's result is what the next product needs: three of them, and the input.
    assert cost.activations == 4 * 4 * 10 * 8


def test_memory_of_half_precision():
    cost = memory(Tower().bfloat16(), x=torch.zeros(1, 8, dtype=torch.bfloat16))
    assert cost.weights == 2 * 256
    assert cost.training == (2 + 2 + 8) * 256


def test_example_needs_a_model_of_tokens():
    with pytest.raises(Unsupported, match="Tower takes no tokens"):
        example(Tower(), 4)
