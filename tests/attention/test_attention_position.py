"""Position schemes against their papers' formulas and against transformers' implementations."""

import math

import pytest
import torch
import torch.utils.checkpoint

from regard.attention.attention import Attention
from regard.attention.position import (
    ALiBi,
    Learned,
    Rotary,
    ShawRelative,
    Sinusoidal,
    Sinusoidal2D,
    T5Buckets,
    alibi_slopes,
    sinusoid_table,
    sinusoids,
)
from regard.core.errors import InputError
from regard.core.types import Context, Index

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("dim", [6, 8])
def test_sinusoids_are_the_papers_formula(dim: int) -> None:
    at = torch.arange(50, dtype=torch.float64)
    interleaved, half = sinusoids(at, dim, "interleaved"), sinusoids(at, dim, "half")
    for position in (0, 1, 49):
        for i in range(dim // 2):
            angle = position / 10000 ** (2 * i / dim)
            assert interleaved[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-12)
            assert interleaved[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-12)
            assert half[position, i].item() == pytest.approx(math.sin(angle), abs=1e-12)
            assert half[position, dim // 2 + i].item() == pytest.approx(math.cos(angle), abs=1e-12)


def test_sinusoids_of_an_odd_width_end_with_a_sine() -> None:
    at = torch.arange(5, dtype=torch.float64)
    assert sinusoids(at, 5, "interleaved").shape == sinusoids(at, 5, "half").shape == (5, 5)
    assert torch.equal(sinusoids(at, 5, "interleaved")[:, 0], at.sin())


@pytest.mark.parametrize("rotary_dim", [4, 8])
def test_rotary_equals_the_reference(rotary_dim: int) -> None:
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    torch.manual_seed(0)
    q, k = torch.randn(2, 2, 3, 7, 8, dtype=torch.float64)
    index = Index.count(7, start=4)
    frequency = 10000.0 ** (-torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim)
    angle = (torch.arange(4, 11, dtype=torch.float64)[:, None] * frequency).repeat(1, 2)[None]
    expected = apply_rotary_pos_emb(q[..., :rotary_dim], k[..., :rotary_dim], angle.cos(), angle.sin())
    scheme = Rotary(8, rotary_dim=rotary_dim)
    for ours, theirs, given in zip((scheme.rotate(q, index), scheme.rotate(k, index)), expected, (q, k), strict=True):
        torch.testing.assert_close(ours[..., :rotary_dim], theirs, rtol=0, atol=1e-12)
        assert torch.equal(ours[..., rotary_dim:], given[..., rotary_dim:])


def test_rotary_scores_depend_on_distance_alone() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64).expand(2, 1, 1, 6, 8)
    scheme = Rotary(8)
    scores = [scheme.rotate(q, at) @ scheme.rotate(k, at).mT for at in (Index.count(6), Index.count(6, start=100))]
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=1e-10)


@pytest.mark.parametrize("heads", [1, 4, 8, 12, 20])
def test_alibi_slopes_equal_the_reference(heads: int) -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    theirs = build_alibi_tensor(torch.ones(1, 2, dtype=torch.long), heads, torch.float32)[:, 0, 1]
    torch.testing.assert_close(alibi_slopes(heads).float(), theirs, rtol=1e-6, atol=0)


def test_alibi_is_minus_slope_times_distance() -> None:
    bias = ALiBi(2).bias(torch.zeros(1, 2, 3, 4), Index.count(3), Index.count(3))
    assert bias[0, 0, 2].tolist() == pytest.approx([-2 / 16, -1 / 16, 0])


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (8, 20)])
def test_t5_buckets_equal_the_reference(bidirectional: bool, buckets: int, furthest: int) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = torch.arange(-300, 301)[None]
    theirs = T5Attention._relative_position_bucket(distance, bidirectional, buckets, furthest)
    scheme = T5Buckets(2, num_buckets=buckets, max_distance=furthest, bidirectional=bidirectional)
    assert torch.equal(scheme.buckets(distance), theirs)


def test_shaw_adds_the_dot_product_with_the_vector_of_the_clipped_distance() -> None:
    torch.manual_seed(0)
    scheme = ShawRelative(4, max_distance=2).double()
    q = torch.randn(1, 2, 6, 4, dtype=torch.float64)
    bias = scheme.bias(q, Index.count(6), Index.count(6))
    for i, j in ((0, 5), (3, 2), (5, 0), (2, 2)):
        vector = scheme.weight[max(-2, min(2, j - i)) + 2]
        torch.testing.assert_close(bias[0, :, i, j], q[0, :, i] @ vector / 2, rtol=0, atol=1e-12)


def test_two_dimensional_sinusoids_hold_rows_then_columns() -> None:
    at = torch.tensor([[[3, 5], [0, 7]]])
    index = Index(torch.arange(2)[None], at, padded=False)
    table = Sinusoidal2D(8).embed(torch.zeros(1, 2, 8, dtype=torch.float64), index)[0]
    rows, columns = (sinusoids(at[0, :, axis].double(), 4, "interleaved") for axis in (0, 1))
    assert torch.equal(table, torch.cat([rows, columns], dim=-1))


@pytest.mark.parametrize("scheme", [Sinusoidal(4, 5), Learned(4, 5)], ids=["sinusoidal", "learned"])
def test_positions_beyond_the_last_are_refused_but_padding_does_not_count(scheme: Sinusoidal | Learned) -> None:
    with pytest.raises(InputError, match="position 5"):
        scheme.embed(torch.zeros(1, 6, 4), Index.count(6))
    valid = torch.tensor([[True, False, True, True, True, True]])
    assert scheme.embed(torch.zeros(1, 6, 4), Index.of(valid)).shape == (1, 6, 4)


def test_what_tracing_makes_is_not_kept() -> None:
    class Embed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.positions = Sinusoidal(6, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.positions.embed(x, Index.count(x.shape[1]))

    sinusoid_table.cache_clear()
    x = torch.zeros(1, 3, 6)
    exported = torch.export.export(Embed(), (x,)).module()
    ours = Embed()(x)
    assert type(ours) is torch.Tensor
    assert torch.equal(exported(x), ours)
    sinusoid_table.cache_clear()


def test_shaw_scores_have_the_attentions_scale() -> None:
    torch.manual_seed(0)
    q, index = torch.randn(1, 2, 3, 4), Index.count(3)
    plain, scaled = ShawRelative(4, 2), ShawRelative(4, 2, scale=1.0)
    scaled.load_state_dict(plain.state_dict())
    torch.testing.assert_close(scaled.bias(q, index, index), 2 * plain.bias(q, index, index))


def test_far_tokens_are_told_apart_in_bfloat16() -> None:
    q, k = Index.count(1, start=999), Index.count(1000)
    bias = ALiBi(1).bias(torch.zeros(1, 1, 1, 2, dtype=torch.bfloat16), q, k)[0, 0, 0]
    assert bool((bias.diff() > 0).all())
    t = torch.randn(1, 1, 1000, 64)
    exact = Rotary(64).rotate(t.bfloat16().double(), k)
    assert (Rotary(64).rotate(t.bfloat16(), k) - exact).abs().max() <= exact.abs().max() * 2**-8


def test_t5_buckets_survive_recomputation() -> None:
    torch.manual_seed(0)
    module = Attention(8, 2, positions=T5Buckets(2))
    x = torch.randn(1, 5, 8, requires_grad=True)
    ctx = Context(Index.count(5))
    out = torch.utils.checkpoint.checkpoint(lambda x: module(module(x, ctx), ctx), x, use_reentrant=False)
    out.square().sum().backward()
    assert module.positions.weight.grad is not None
