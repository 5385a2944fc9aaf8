"""Batches: within budget, every example once, little padding, and a state that is the whole state."""

import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.core.errors import ConfigError, DataError, InputError, TrainingError
from regard.data.loader import Loader, Subset, plan

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


def loader(seed=3, prepare=None, count=300, **options):
    sizes = likely_sizes(count)
    return Loader(range(count), sizes, collate, max_tokens=400, seed=seed, prepare=prepare, **options)


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


def reference(sizes, budget):
    """The grouping, one example at a time."""
    batches, widest = [[]], ()
    for i in sorted(range(len(sizes)), key=lambda i: (sum(sizes[i]), sizes[i])):
        wider = tuple(map(max, sizes[i], widest or sizes[i]))
        if batches[-1] and sum(wider) * (len(batches[-1]) + 1) > budget:
            batches.append([])
            wider = sizes[i]
        batches[-1].append(i)
        widest = wider
    return batches


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=60), st.integers(1, 60))
def test_groups_as_one_by_one(sizes, budget):
    assert [batch.tolist() for batch in plan(sizes, budget)] == reference(sizes, budget)


@given(sizes, st.integers(20, 200), st.integers(0, 9))
def test_shuffling_moves_examples_among_equals_only(sizes, budget, seed):
    def grouped(batches):
        return sorted([sizes[i] for i in batch] for batch in batches)

    assert grouped(plan(sizes, budget, random.Random(seed))) == grouped(reference(sizes, budget))


def test_the_order_stays_what_it_is():
    """Runs begun with this release go on with the next; who changes the order changes ``ORDER``."""
    batches = plan([(1 + i % 3,) for i in range(12)], 8, random.Random("3:0"))
    assert [batch.tolist() for batch in batches] == [[2, 8], [11, 5], [7, 10, 4, 1], [0, 6, 9, 3]]


def noise(batch, rng):
    return {"tokens": batch["tokens"], "noise": torch.rand(batch["tokens"].shape, generator=rng)}


def both(stream, count):
    return [{name: t.tolist() for name, t in batch.items()} for batch in itertools.islice(stream, count)]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_workers_change_nothing(workers):
    whole = both(loader(prepare=noise), 60)
    assert both(loader(prepare=noise, num_workers=workers), 60) == whole


@pytest.mark.parametrize(("before", "after"), [(2, 0), (0, 3), (3, 1)])
def test_resume_with_other_workers(before, after):
    whole = both(loader(prepare=noise), 50)
    first = loader(prepare=noise, num_workers=before)
    seen = both(first, 23)
    second = loader(prepare=noise, num_workers=after)
    second.restore(first.state())
    assert seen + both(second, 27) == whole


def test_the_state_counts_what_was_seen_not_what_was_made():
    first, second = loader(), loader(num_workers=2)
    for _ in zip(range(40), first, second, strict=False):
        assert first.state() == second.state()


class Odd(InputError):
    """An error that does not survive pickling."""

    def __init__(self, number, place):
        super().__init__(f"example {number} in {place}")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_exception_surfaces_as_itself_in_its_turn(workers):
    bad = next(itertools.islice(loader(), 7, 8))["tokens"].tolist()

    def fail(batch, rng):
        if batch["tokens"].tolist() == bad:
            raise Odd(bad[0], "here")
        return batch

    stream = iter(loader(prepare=fail, num_workers=workers))
    assert len(list(itertools.islice(stream, 7))) == 7
    with pytest.raises(Odd, match=f"^example {bad[0]} in here$"):
        next(stream)


def children():
    return {process.pid for process in multiprocessing.active_children()}


def test_no_worker_outlives_its_stream():
    before = children()
    stream = iter(loader(num_workers=2))
    next(stream)
    assert len(children() - before) == 2
    stream.close()
    assert children() == before


def test_a_killed_worker_is_an_error():
    before = children()
    stream = iter(loader(num_workers=2))
    next(stream)
    for pid in children() - before:
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(TrainingError, match=r"exit code -9.*fewer workers"):
        take(stream, 5)


def test_workers_leave_signals_to_their_parent():
    before = children()
    stream = iter(loader(num_workers=2))
    next(stream)
    for pid in children() - before:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGINT)
    assert len(take(stream, 20)) == 20
    stream.close()


def test_each_worker_is_one_batch_ahead():
    made = multiprocessing.get_context("fork").Value("i", 0)

    def count(batch, rng):
        with made.get_lock():
            made.value += 1
        return batch

    stream = iter(loader(prepare=count, num_workers=2))
    for taken in range(1, 12):
        next(stream)
        assert made.value <= taken + 2
    stream.close()


SCRIPT = """
import multiprocessing, signal, sys, time
import torch
from regard.data.loader import Loader
stream = iter(Loader(range(99), [(1,)] * 99, lambda rows: {"x": torch.tensor(rows)}, max_tokens=9, num_workers=3))
next(stream)
print(*[process.pid for process in multiprocessing.active_children()], flush=True)
if sys.argv[1] == "wait":
    time.sleep(60)
"""


def gone(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"


@pytest.mark.parametrize("ending", ["wait", "exit"])
def test_no_worker_outlives_its_parent(ending):
    with subprocess.Popen([sys.executable, "-c", SCRIPT, ending], stdout=subprocess.PIPE, text=True) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 3
        if ending == "wait":
            process.kill()
        assert process.wait(timeout=30) == (-signal.SIGKILL if ending == "wait" else 0)
    deadline = time.monotonic() + 30
    while not all(map(gone, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(map(gone, pids))


@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_share_out_one_stream(world):
    whole = both(loader(prepare=noise), 12 * world)
    ranks = [loader(prepare=noise, rank=rank, world=world, num_workers=rank % 2) for rank in range(world)]
    dealt = [both(stream, 12) for stream in ranks]
    assert [dealt[i % world][i // world] for i in range(12 * world)] == whole
    assert len({str(stream.state()) for stream in ranks}) == 1
    # Another number of ranks goes on where these stopped.
    after = loader(prepare=noise)
    after.restore(ranks[0].state())
    assert both(after, 3) == both(loader(prepare=noise), 12 * world + 3)[-3:]


def test_a_batch_goes_to_the_rank_of_its_number_in_the_first_epoch():
    batches = plan(likely_sizes(300), 400, random.Random("3:0"))
    mine = take(loader(rank=1, world=3), len(batches) // 3)
    assert mine == [batch.tolist() for batch in batches[1::3]][: len(mine)]


@pytest.mark.parametrize("wrong", [{"num_workers": -1}, {"rank": 2, "world": 2}, {"rank": -1}, {"world": 0}])
def test_wrong_numbers(wrong):
    with pytest.raises(ConfigError, match=r"num_workers -1|rank"):
        loader(**wrong)


def test_other_data_of_the_same_sizes_are_told_apart():
    state = loader(identity="abc").state()
    loader(identity="abc").restore(state)
    with pytest.raises(DataError, match="not those"):
        loader(identity="abd").restore(state)


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"rank": 1, "world": 3}])
def test_the_place_is_that_of_the_batch_last_given(options):
    stream = loader(**options)
    assert stream.place is None
    for batch in itertools.islice(stream, 60):
        assert stream.place.rows.tolist() == batch["tokens"].tolist()
    alone = loader()
    *_, batch = itertools.islice(alone, len(plan(stream.sizes, 400)) * stream.place.epoch + stream.place.number + 1)
    assert batch["tokens"].tolist() == stream.place.rows.tolist()


def test_a_subset():
    some = Subset("abcdef", np.array([4, 1, 1]))
    assert [some[i] for i in range(len(some))] == ["e", "b", "b"]
    with pytest.raises(IndexError):
        some[3]


def test_even_where_most_examples_are_as_long_as_the_longest():
    assert Loader(range(5), [[8, 4]] * 4 + [[2, 1]], list, max_tokens=64).even
    assert not Loader(range(5), [[8, 4], [8, 3], [7, 4], [5, 5], [8, 2]], list, max_tokens=64).even
