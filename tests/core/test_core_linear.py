"""The linear layer: whichever kernel computes it, torch's answer and gradients."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from regard.core import linear
from regard.core.linear import Linear


@pytest.fixture(autouse=True)
def any_size(monkeypatch):
    monkeypatch.setattr(linear, "LARGE", 1)


def pair(dtype=torch.float32, **options):
    torch.manual_seed(0)
    ours, theirs = Linear(12, 20, dtype=dtype, **options), nn.Linear(12, 20, dtype=dtype, **options)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(12,), (0, 12), (5, 12), (2, 3, 12), (4, 2, 3, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_it_is_torchs(bias, shape, dtype):
    x = torch.randn(shape).to(dtype).requires_grad_()
    ours, theirs = pair(dtype, bias=bias)
    slope = torch.randn(*shape[:-1], 20).to(dtype)
    answers, gradients = [], []
    for layer in (ours, theirs):
        answers.append(layer(x))
        gradients.append(torch.autograd.grad(answers[-1], (x, *layer.parameters()), slope))
    torch.testing.assert_close(*answers)
    torch.testing.assert_close(*gradients)


def kernel(layer, x):
    return layer(x).grad_fn.name()


def test_which_kernel_computes():
    ours, _ = pair()
    x = torch.randn(5, 12)
    assert "regard_linear" in kernel(ours, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert "regard_linear" not in kernel(ours, x)
    assert "regard_linear" not in kernel(ours.double(), x.double())


def test_small_layers_are_left_to_torch(monkeypatch):
    monkeypatch.setattr(linear, "LARGE", 5 * 12 * 20 + 1)
    assert "regard_linear" not in kernel(pair()[0], torch.randn(5, 12))
    assert "regard_linear" in kernel(pair()[0], torch.randn(6, 12))


def test_its_jacobian_is_torchs():
    ours, theirs = pair()
    x = torch.randn(3, 12)
    torch.testing.assert_close(torch.func.jacrev(ours)(x), torch.func.jacrev(theirs)(x))


def test_the_operator_keeps_its_promises():
    tensors = [torch.randn(shape, requires_grad=True) for shape in ((5, 12), (20, 12), (20,))]
    torch.library.opcheck(torch.ops.regard.linear, tuple(tensors))


def test_gradients_of_gradients():
    ours, theirs = pair()
    x = torch.randn(5, 12, requires_grad=True)
    found = []
    for layer in (ours, theirs):
        slope = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)[0]
        found.append(torch.autograd.grad(slope.square().sum(), (x, layer.weight)))
    torch.testing.assert_close(*found)


def test_a_view_may_be_its_input():
    ours, theirs = pair()
    x = torch.randn(12, 3, 5).permute(1, 2, 0)
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours(x[:, :1].expand(3, 4, 12)), theirs(x[:, :1].expand(3, 4, 12)))


def test_operations_are_counted():
    counts = []
    for layer in pair():
        with FlopCounterMode(display=False) as counter:
            layer(torch.randn(5, 12, requires_grad=True)).sum().backward()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] > 0


def test_compiled_it_is_the_same():
    ours, theirs = pair()
    x = torch.randn(5, 12, requires_grad=True)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), theirs(x))
    compiled(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.autograd.grad(theirs(x).sum(), x)[0])
