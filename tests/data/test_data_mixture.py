"""Mixtures: shares that are kept, and a stream that is one, wherever it stops and whoever makes it."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.core.errors import ConfigError, DataError
from regard.data.loader import Loader
from regard.data.mixture import Joined, Mixture, shares

COUNTS = (90, 30, 10)


def collate(rows):
    members, numbers = zip(*rows, strict=True)
    assert len(set(members)) == 1
    return {"tokens": torch.tensor(numbers), "member": torch.tensor(members)}


def part(count, seed=3):
    rng = random.Random(count)
    return Loader(range(count), [(rng.randint(1, 9),) for _ in range(count)], collate, max_tokens=20, seed=seed)


def mixture(seed=3, counts=COUNTS, **options):
    return Mixture([part(count, seed) for count in counts], collate, seed=seed, **options)


def take(stream, count):
    return [{name: value.tolist() for name, value in batch.items()} for batch in itertools.islice(stream, count)]


sizes = st.lists(st.integers(1, 10**9), min_size=1, max_size=8)


@given(sizes, st.floats(1, 1e6))
def test_shares_are_the_formula(sizes, temperature):
    powers = [size ** (1 / temperature) for size in sizes]
    assert shares(sizes, temperature) == pytest.approx([power / sum(powers) for power in powers])


@given(sizes)
def test_shares_go_from_proportional_to_equal(sizes):
    assert shares(sizes, 1) == pytest.approx(np.array(sizes) / sum(sizes))
    assert shares(sizes, 1e12) == pytest.approx(np.full(len(sizes), 1 / len(sizes)))
    assert shares(sizes, 3, [2.0] * len(sizes)) == pytest.approx(np.full(len(sizes), 1 / len(sizes)))


@pytest.mark.parametrize("options", [{"temperature": 1}, {"temperature": 5}, {"weights": (1, 2, 7)}])
def test_draws_come_by_their_shares(options):
    stream = mixture(**options)
    drawn = np.concatenate([stream.draws(epoch) for epoch in range(400)])
    found = np.bincount(drawn, minlength=3) / len(drawn)
    spread = np.sqrt(stream.shares * (1 - stream.shares) / len(drawn))
    assert (abs(found - stream.shares) < 4 * spread).all()


def test_each_data_set_comes_epoch_after_epoch():
    stream = mixture(temperature=5)
    seen = {member: [] for member in range(3)}
    for batch in take(stream, 300):
        seen[batch["member"][0]] += batch["tokens"]
    for member, count in enumerate(COUNTS):
        passes = [seen[member][first : first + count] for first in range(0, len(seen[member]), count)]
        assert len(passes) > 2
        assert all(sorted(each) == list(range(count)) for each in passes[:-1])
        assert passes[0] != passes[1]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 150), st.integers(0, 5), st.sampled_from([1.0, 3.0]))
def test_resume_sees_exactly_what_was_left(stop, seed, temperature):
    whole = take(mixture(seed, temperature=temperature), 160)
    first = mixture(seed, temperature=temperature)
    seen = take(first, stop)
    second = mixture(seed, temperature=temperature)
    second.restore(first.state())
    assert seen + take(second, 160 - stop) == whole


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_deal_out_one_stream_and_another_number_goes_on(world):
    whole = take(mixture(), 90)
    ranks = [mixture(rank=rank, world=world) for rank in range(world)]
    dealt = [take(rank, 12) for rank in ranks]
    union = [batch for turn in zip(*dealt, strict=True) for batch in turn]
    assert union == whole[: 12 * world]
    assert all(rank.state() == ranks[0].state() for rank in ranks)
    alone = mixture()
    alone.restore(ranks[0].state())
    assert union + take(alone, 90 - len(union)) == whole


def disturb(batch, rng):
    return batch | {"noise": torch.rand(len(batch["tokens"]), generator=rng)}


@pytest.mark.parametrize(("before", "after"), [(2, 0), (0, 3)])
def test_workers_change_nothing(before, after):
    whole = take(mixture(prepare=disturb), 60)
    first = mixture(prepare=disturb, num_workers=before)
    seen = take(first, 31)
    second = mixture(prepare=disturb, num_workers=after)
    second.restore(first.state())
    assert seen + take(second, 29) == whole


def test_places_number_the_examples_of_all():
    stream = mixture(temperature=5)
    joined = stream.examples
    assert isinstance(joined, Joined)
    for batch in itertools.islice(stream, 50):
        found = [joined.find(int(row)) for row in stream.place.rows]
        assert found == list(zip(batch["member"].tolist(), batch["tokens"].tolist(), strict=True))
    assert Counter(member for member, _ in joined) == dict(enumerate(COUNTS))


def test_nobody_goes_on_with_other_data():
    with pytest.raises(DataError, match="not those that the run began with"):
        mixture(counts=(90, 30, 11)).restore(mixture().state())


@pytest.mark.parametrize("options", [{"temperature": 0.5}, {"weights": (1, 2)}, {"weights": (1, 2, 0)}])
def test_shares_that_are_none(options):
    with pytest.raises(ConfigError, match="must be"):
        mixture(**options)


def test_the_order_stays_what_it_is():
    """Runs begun with this release go on with the next."""
    assert mixture().draws(0)[:12].tolist() == [2, 2, 0, 0, 1, 1, 1, 2, 0, 0, 0, 0]
