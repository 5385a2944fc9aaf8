"""Masked language modelling: how much is chosen, what becomes of it, and that nothing else is touched."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regard.core.errors import ConfigError
from regard.core.types import IGNORE
from regard.objectives.masked import Masked, choose

MASK, SIZE = 4, 1000


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def many(rows=400, length=100):
    """Rows of tokens between two special ones, the last ten of each padding."""
    tokens = torch.randint(10, SIZE, (rows, length), generator=rng(1))
    words = torch.arange(length).expand(rows, -1) // 3
    words = words.where((torch.arange(length) > 0) & (torch.arange(length) < length - 10), -1)
    return {"tokens": tokens, "words": words, "valid": torch.ones_like(tokens, dtype=torch.bool)}


@pytest.mark.parametrize("whole_words", [False, True])
def test_shares_are_the_papers(whole_words):
    batch = many()
    made = Masked(mask_token=MASK, vocab_size=SIZE, whole_words=whole_words).prepare(batch, rng())
    chosen = made["targets"] != IGNORE
    assert "words" not in made
    assert not chosen[batch["words"] < 0].any()
    assert torch.equal(made["targets"][chosen], batch["tokens"][chosen])
    assert torch.equal(made["tokens"][~chosen], batch["tokens"][~chosen])
    count = int(chosen.sum())
    assert count / int((batch["words"] >= 0).sum()) == pytest.approx(0.15, abs=0.004)
    hidden = made["tokens"] == MASK
    kept = chosen & (made["tokens"] == batch["tokens"])
    spread = 4 * (0.8 * 0.2 / count) ** 0.5  # four standard deviations of a share
    assert int(hidden.sum()) / count == pytest.approx(0.8, abs=spread)
    assert int(kept.sum()) / count == pytest.approx(0.1 + 0.1 / SIZE, abs=spread)
    other = made["tokens"][chosen & ~hidden & ~kept]
    assert len(other.unique()) > 0.4 * len(other)


def test_whole_words_are_chosen_whole():
    batch = many()
    made = Masked(mask_token=MASK, vocab_size=SIZE, whole_words=True).prepare(batch, rng())
    for chosen, words in zip(made["targets"] != IGNORE, batch["words"], strict=True):
        picked = words[chosen].unique()
        assert torch.equal(chosen, torch.isin(words, picked))


def test_it_is_a_function_of_the_generator_and_another_draw_hides_others():
    objective, batch = Masked(mask_token=MASK, vocab_size=SIZE), many()
    one, again, other = (objective.prepare(batch, rng(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["targets"], other["targets"])


@given(st.data())
def test_as_many_places_are_chosen_as_units_allow(data):
    rows = data.draw(st.lists(st.lists(st.integers(1, 4), max_size=8), min_size=1, max_size=4))
    share = data.draw(st.floats(0.05, 0.95))
    length = max(sum(row) for row in rows) + 1
    units = torch.full((len(rows), length), -1)
    for line, sizes in zip(units, rows, strict=True):
        spread = [unit for unit, size in enumerate(sizes) for _ in range(size)]
        line[: len(spread)] = torch.tensor(spread, dtype=torch.long)
    chosen = choose(units, share, rng(data.draw(st.integers(0, 9))))
    for line, taken, sizes in zip(units, chosen, rows, strict=True):
        assert not taken[line < 0].any()
        assert torch.equal(taken & (line >= 0), torch.isin(line, line[taken].unique()) & (line >= 0))
        wanted = max(share * sum(sizes), 1)
        if sizes:
            assert int(taken.sum()) >= 1
            assert abs(int(taken.sum()) - wanted) < max(sizes)


@pytest.mark.parametrize("wrong", [{"share": 0.0}, {"share": 1.0}, {"hidden": -0.1}, {"hidden": 0.8, "random": 0.3}])
def test_shares_that_cannot_be(wrong):
    with pytest.raises(ConfigError, match="must be"):
        Masked(**wrong)
