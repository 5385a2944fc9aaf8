"""What is held out and what is sampled, against lists that are sliced."""

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regard.data.split import Reread, hold_out, original, thinned


@pytest.mark.parametrize("count", [0, 1, 2, 20, 21, 400, 19_999, 20_000, 20_001, 25_000])
def test_one_in_twenty_is_held_out_and_a_thousand_at_most(count):
    train, valid = hold_out(range(count))
    assert valid == list(range(count))[::20][:1000]
    assert sorted([*train, *valid]) == list(range(count))
    assert [original(number) for number in range(len(train))] == list(train)


def test_no_more_is_read_than_is_asked_for():
    drawn = 0

    def read():
        nonlocal drawn
        for drawn in range(1, 100_001):
            yield str(drawn)

    train, valid = hold_out(Reread(read))
    assert (len(valid), drawn) == (1000, 20_000)
    assert list(islice(train, 3)) == ["2", "3", "4"]
    assert drawn == 4


def test_each_pass_reads_anew():
    passes = []

    def read():
        passes.append(len(passes))
        return iter("abc")

    examples = Reread(read)
    assert not passes
    assert [*examples, *examples] == [*"abcabc"]
    assert (len(examples), len(examples)) == (3, 3)
    assert passes == [0, 1, 2]


@given(st.lists(st.text(max_size=9), max_size=60), st.integers(0, 100))
def test_a_sample_is_every_nth_of_the_fewest_that_do_not_fit(texts, most):
    kept = thinned(iter(texts), len, most)
    steps = [2**power for power in range(7)]
    assert kept == next(
        texts[::step] for step in steps if sum(map(len, texts[::step])) <= most or len(texts[::step]) == 1
    )


def test_a_sample_is_all_that_is_ever_kept():
    alive = 0

    class Counted:
        def __init__(self):
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def __del__(self):
            nonlocal alive
            alive -= 1

    most = 0
    assert 25 < len(thinned((Counted() for _ in range(10_000)), lambda _: 1, 50)) <= 50
    assert most < 200
