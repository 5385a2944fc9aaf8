"""Batches: within budget, every example once, little padding, and a state that is the whole state."""

import itertools
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.core.errors import DataError, InputError
from regard.data.loader import Loader, plan

sizes = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=60)


@settings(max_examples=60, deadline=None)
@given(sizes, st.integers(20, 200), st.one_of(st.none(), st.integers(0, 9)))
def test_every_example_once_and_within_budget(sizes, budget, seed):
    batches = plan(sizes, budget, None if seed is None else random.Random(seed))
    assert sorted(itertools.chain(*batches)) == list(range(len(sizes)))
    for batch in batches:
        padded = len(batch) * (max(sizes[i][0] for i in batch) + max(sizes[i][1] for i in batch))
        assert padded <= budget or len(batch) == 1


def likely_sizes(count=4000):
    rng = random.Random(1)
    lengths = [min(60, 3 + int(rng.lognormvariate(2.5, 0.5))) for _ in range(count)]
    return [(n, max(2, n + rng.randint(-4, 4))) for n in lengths]


def test_little_padding_yet_random_order():
    sizes = likely_sizes()
    batches = plan(sizes, 2000, random.Random(0))
    padded = sum(len(b) * (max(sizes[i][0] for i in b) + max(sizes[i][1] for i in b)) for b in batches)
    assert sum(map(sum, sizes)) / padded > 0.9
    lengths = [sum(sizes[b[0]]) for b in batches]
    ascending = sum(a < b for a, b in itertools.pairwise(lengths)) / len(lengths)
    assert 0.4 < ascending < 0.6
    assert {frozenset(b) for b in batches} != {frozenset(b) for b in plan(sizes, 2000, random.Random(1))}


def collate(rows):
    return {"tokens": torch.tensor(rows)}


def loader(seed=3, prepare=None, count=300):
    sizes = likely_sizes(count)
    return Loader(range(count), sizes, collate, max_tokens=400, seed=seed, prepare=prepare)


def take(stream, count):
    return [batch["tokens"].tolist() for batch in itertools.islice(stream, count)]


@pytest.mark.parametrize("stop", [0, 1, 17, 60])
def test_resume_sees_exactly_what_was_left(stop):
    whole = take(loader(), 80)
    first = loader()
    seen = take(first, stop)
    second = loader()
    second.restore(first.state())
    assert seen + take(second, 80 - stop) == whole


def test_epochs_differ_and_seeds_differ():
    stream = loader()
    batches = len(plan(stream.sizes, 400))
    epochs = take(stream, 2 * batches)
    one, two = epochs[:batches], epochs[batches:]
    assert sorted(itertools.chain(*one)) == sorted(itertools.chain(*two)) == list(range(300))
    assert one != two
    assert take(loader(seed=4), 5) != take(loader(seed=3), 5)


def test_preparation_is_a_function_of_the_place():
    def noise(batch, rng):
        return {"tokens": torch.rand(batch["tokens"].shape, generator=rng)}

    whole = take(loader(prepare=noise), 30)
    resumed = loader(prepare=noise)
    resumed.restore(resumed.state() | {"epoch": 0, "index": 12})
    assert take(resumed, 18) == whole[12:]
    assert whole[0] != whole[1]


def test_nobody_goes_on_with_other_data():
    state = loader().state()
    with pytest.raises(DataError, match="not those that the run began with"):
        loader(count=299).restore(state)


def test_no_examples():
    with pytest.raises(InputError, match="no examples"):
        Loader([], [], collate, max_tokens=10)
