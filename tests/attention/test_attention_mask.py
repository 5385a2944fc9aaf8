"""Masks as values: their algebra, and what each allows, against the papers' definitions spelled out in loops."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from regard.attention.mask import (
    Blocks,
    Causal,
    Documents,
    Everything,
    GlobalTokens,
    Mask,
    Prefix,
    Strided,
    Valid,
    Window,
    dense,
)
from regard.core.types import Index

S = 9
B, H, Q, K = torch.meshgrid(*(torch.arange(n) for n in (2, 3, S, S)), indexing="ij")

simple: st.SearchStrategy[Mask] = st.one_of(
    st.just(Everything()),
    st.just(Causal()),
    st.builds(Window, st.integers(0, 5), st.integers(0, 5)),
    st.builds(Strided, st.integers(1, 4)),
    st.builds(Blocks, st.integers(1, 5)),
    st.builds(Prefix, st.integers(0, S)),
    st.builds(GlobalTokens, st.lists(st.integers(0, S - 1), max_size=3).map(tuple)),
)


def table(mask: Mask) -> Tensor:
    return mask.allows(B, H, Q, K)


@given(simple, simple)
def test_masks_compose_as_sets_of_pairs(a: Mask, b: Mask) -> None:
    assert torch.equal(table(a & b), table(a) & table(b))
    assert torch.equal(table(a | b), table(a) | table(b))
    assert torch.equal(table(~a), ~table(a))
    assert torch.equal(table(~(a & b)), table(~a | ~b))


@given(simple, simple)
def test_equal_masks_have_equal_hashes_and_tables(a: Mask, b: Mask) -> None:
    if a == b:
        assert hash(a) == hash(b)
        assert torch.equal(table(a), table(b))


@pytest.mark.parametrize(
    ("mask", "allows"),
    [
        (Everything(), lambda q, k: True),
        (Causal(), lambda q, k: k <= q),
        (Window(2, 1), lambda q, k: q - 2 <= k <= q + 1),
        (Strided(3), lambda q, k: abs(q - k) in (0, 3, 6)),
        (Blocks(4), lambda q, k: q // 4 == k // 4),
        (Prefix(3) | Causal(), lambda q, k: k < 3 or k <= q),
        (GlobalTokens((0, 5)), lambda q, k: q in (0, 5) or k in (0, 5)),
    ],
    ids=["everything", "causal", "window", "strided", "blocks", "prefix", "global"],
)
def test_each_mask_allows_what_its_paper_says(mask: Mask, allows: Callable[[int, int], bool]) -> None:
    expected = torch.tensor([[allows(q, k) for k in range(S)] for q in range(S)])
    assert torch.equal(dense_table(mask), expected)


def dense_table(mask: Mask) -> Tensor:
    found = dense(mask, Index.count(S), Index.count(S), batch=1, heads=1)
    return torch.ones(S, S, dtype=torch.bool) if found is None else found.expand(1, 1, S, S)[0, 0]


def test_tables_are_values_too() -> None:
    ids = torch.tensor([[0, 0, 1]])
    assert Documents(ids) == Documents(ids.clone())
    assert hash(Documents(ids)) == hash(Documents(ids.clone()))
    assert Documents(ids) != Documents(ids + 1)
    assert Valid(ids == 0) != Documents(ids)


def test_a_table_given_by_place_follows_its_tokens_to_their_orders() -> None:
    valid = torch.tensor([[False, True, True, False, True], [True, True, False, True, False]])
    documents = torch.tensor([[9, 0, 0, 9, 1], [0, 1, 9, 1, 9]])
    index = Index.of(valid)
    mask = Documents.by_place(documents, index)
    seen = dense(mask, index, index, batch=2, heads=1)
    assert seen is not None
    same = (documents[:, :, None] == documents[:, None, :]) & valid[:, None, :] & valid[:, :, None]
    assert torch.equal(seen[:, 0] & valid[:, :, None], same)


@pytest.mark.parametrize("make", [lambda: Window(-1), lambda: Window(0, -1), lambda: Strided(0), lambda: Blocks(0)])
def test_impossible_masks_are_refused(make: Callable[[], Mask]) -> None:
    with pytest.raises(ValueError, match="not"):
        make()
