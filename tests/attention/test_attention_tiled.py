"""Attention in tiles: whatever their size, the formula written out; dropout is drawn again for the gradients."""

from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from regard.attention import tiled
from regard.attention.kernel import auto, eager
from regard.attention.kernel import tiled as in_tiles
from regard.attention.mask import EVERYTHING, Causal, Documents
from regard.core.errors import Unsupported
from regard.core.types import Index

B, H, S, D = 3, 4, 6, 2


def inputs(dtype=torch.float64, heads=H, device="cpu"):
    torch.manual_seed(0)
    shapes = [(B, H, S, D), (B, heads, S, D), (B, heads, S, D)]
    return [torch.randn(shape, dtype=dtype, device=device, requires_grad=True) for shape in shapes]


def terms(mask=None, bias=None, dropout=0.0):
    index = Index.over(torch.zeros(B, S, dtype=torch.long), None)
    return {
        "mask": Causal() if mask is None else mask, "bias": bias, "q_index": index, "k_index": index, "scale": 0.5,
        "dropout": dropout,
    }  # fmt: skip


def seeded(kernel, **options):
    def run(*tensors):
        torch.manual_seed(1)
        *qkv, bias = tensors if len(tensors) == 4 else (*tensors, None)
        return kernel(*qkv, **options | {"bias": bias})

    return run


@pytest.mark.parametrize("tile", [1, 2 * S * S, 5 * S * S, 2**19], ids=["heads", "two heads", "rows", "all"])
@pytest.mark.parametrize("mask", [Causal(), EVERYTHING, ~EVERYTHING, Documents(torch.tensor([[0, 0, 1, 1, 2, 2]] * B))])
def test_any_size_of_tile_is_the_formula(monkeypatch, tile, mask):
    monkeypatch.setattr(tiled, "TILE", tile)
    bias = torch.randn(1, H, S, S, dtype=torch.float64, requires_grad=True)
    q, k, v = inputs(heads=2)
    found, expected = (kernel(q, k, v, **terms(mask, bias)) for kernel in (in_tiles, eager))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    slope = torch.randn_like(expected)
    gradients = [torch.autograd.grad(out, (q, k, v, bias), slope) for out in (found, expected)]
    for mine, reference in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, reference, atol=1e-12, rtol=0)


@pytest.mark.parametrize("tile", [S * S, 5 * S * S])
def test_gradients_with_dropout_are_finite_differences(monkeypatch, tile):
    monkeypatch.setattr(tiled, "TILE", tile)
    bias = torch.randn(B, H, S, S, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(seeded(in_tiles, **terms(dropout=0.4)), (*inputs(), bias))


@pytest.mark.parametrize("p", [0.3, 1.0])
def test_dropout_drops_its_share_and_scales_the_rest(p):
    index = Index.over(torch.zeros(1, 512, dtype=torch.long), None)
    q, k = (torch.zeros(1, 2, 512, D, dtype=torch.float64) for _ in range(2))
    v = torch.ones(1, 2, 512, D, dtype=torch.float64)
    options = terms(EVERYTHING, dropout=p) | {"q_index": index, "k_index": index}
    expected = 0.0 if p == 1 else 1.0
    assert in_tiles(q, k, v, **options).mean().item() == pytest.approx(expected, abs=5e-3)


def test_the_seed_decides_what_is_dropped():
    again = [seeded(in_tiles, **terms(dropout=0.4))(*inputs()) for _ in range(2)]
    assert torch.equal(*again)
    assert not torch.equal(again[0], in_tiles(*inputs(), **terms(dropout=0.4)))


def test_gradients_leave_the_random_state_as_it_is():
    out = in_tiles(*inputs(), **terms(dropout=0.4))
    torch.rand(5)
    state = torch.get_rng_state()
    out.sum().backward()
    assert torch.equal(torch.get_rng_state(), state)


def test_recomputed_and_compiled_it_drops_the_same():
    q, k, v = inputs()

    def attend(v):
        return checkpoint(lambda v: in_tiles(q, k, v, **terms(dropout=0.4)), v, use_reentrant=False)

    out = torch.compile(attend, backend="aot_eager", fullgraph=True)(v)
    slope = torch.randn_like(out)
    gradient = torch.autograd.grad(out, v, slope)[0]
    torch.testing.assert_close((gradient * v).sum(), (out * slope).sum())  # it is linear in v


def test_softmax_is_wide_in_bfloat16():
    """Weights that are rounded once differ from float64's by half a place, and those of narrow scores by more."""
    q, k, v = inputs(torch.bfloat16)
    bias = torch.full((1, H, S, S), 300.0)
    torch.testing.assert_close(in_tiles(q, k, v, **terms(bias=bias)), in_tiles(q, k, v, **terms()), atol=1e-2, rtol=0)


def test_under_autocast_all_of_it_is_narrow():
    tensors = [t.detach().requires_grad_() for t in inputs(torch.float32)]
    tensors[2] = tensors[2].detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = in_tiles(*tensors, **terms())
    assert out.dtype == torch.bfloat16
    out.sum().backward()
    assert [t.grad.dtype for t in tensors] == [torch.float32, torch.float32, torch.bfloat16]


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_the_operators_keep_their_promises(dropout):
    bias = torch.randn(1, H, S, S, dtype=torch.float64, requires_grad=True)
    seed = torch.tensor(3) if dropout else None
    checks = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.regard.attend, (*inputs(), bias, None, seed, 0.5, dropout), test_utils=checks)


def test_operations_are_counted():
    with FlopCounterMode(display=False) as counter:
        in_tiles(*inputs(), **terms()).sum().backward()
    product = 2 * B * H * S * S * D
    assert counter.get_total_flops() == (2 + 5) * product  # the scores a second time


def test_compiled_it_is_the_same():
    compiled = torch.compile(lambda *qkv: in_tiles(*qkv, **terms()), backend="aot_eager", fullgraph=True)
    q, k, v = inputs()
    torch.testing.assert_close(compiled(q, k, v), in_tiles(q, k, v, **terms()))
    compiled(q, k, v).sum().backward()
    expected = torch.autograd.grad(in_tiles(q, k, v, **terms()).sum(), q)[0]
    torch.testing.assert_close(q.grad, expected)


def test_it_is_for_cpus():
    with pytest.raises(Unsupported, match="tiled kernel is for the caches of a CPU"):
        in_tiles(*inputs(device="meta"), **terms())


@pytest.mark.parametrize(("dtype", "dropout"), [(torch.bfloat16, 0.0), (torch.float32, 0.1)])
def test_long_rows_are_tiled_where_sdpa_is_slow(dtype, dropout):
    index = Index.over(torch.zeros(1, 256, dtype=torch.long), None)
    q = torch.randn(1, 1, 256, D, dtype=dtype, requires_grad=True)
    options = terms(dropout=dropout) | {"q_index": index, "k_index": index}
    assert "regard_attend" in auto(q, q, q, **options).grad_fn.name()


def test_compiled_for_any_size_it_is_one_graph():
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    @partial(torch.compile, backend=backend, dynamic=True, fullgraph=True)
    def attend(q, index):
        return auto(q, q, q, **terms() | {"q_index": index, "k_index": index})

    for rows, length in ((5, 100), (7, 200), (9, 700)):  # no two sizes alike
        q = torch.randn(rows, 2, length, D, dtype=torch.bfloat16)
        index = Index.over(torch.zeros(rows, length, dtype=torch.long), None)
        expected = eager(q, q, q, **terms() | {"q_index": index, "k_index": index})
        torch.testing.assert_close(attend(q, index), expected, rtol=0.02, atol=0.02)
    assert len(graphs) == 1


def test_transforms_of_functions_do_without_it():
    q, index = torch.randn(1, 2, 200, D), Index.over(torch.zeros(1, 200, dtype=torch.long), None)
    options = terms() | {"q_index": index, "k_index": index}
    narrow = q.to(torch.bfloat16)
    found, expected = (
        torch.func.grad(lambda q, kernel=kernel: kernel(q, q, q, **options).float().square().sum())(narrow)
        for kernel in (auto, eager)
    )
    torch.testing.assert_close(found, expected)
