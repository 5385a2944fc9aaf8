"""Finders of a rate and a batch: known curves read right, the largest found, and nothing left behind."""

import math
import os
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regard.core.errors import TrainingError
from regard.explain.find import rate_lines, size_lines, write_found
from regard.recipes import find
from regard.train.find import (
    HIGHEST,
    LOWEST,
    Rise,
    Size,
    Sizes,
    find_rate,
    find_size,
    grown,
    hardest,
    no_faster,
    passing,
    read_rates,
)
from regard.train.fit import Run
from regard.train.recipe import override


@pytest.fixture
def recipe(tiny_options):
    return override(find("translate"), [*tiny_options, "--model.dropout", "0"])


def test_the_rate_rises_by_the_same_factor():
    rise = Rise("constant", lr=LOWEST, warmup=0)
    rates = [rise(step, 8) for step in range(1, 9)]
    assert rates == pytest.approx([10.0**power for power in range(-6, 2)])
    assert rise(1, 1) == LOWEST


def curve(steepest, flat, steps=400):
    """Losses that fall from 8 to 3 about ``steepest``, and rise again well after ``flat``."""
    width = math.log(flat / steepest) / math.log(9)  # of a logistic curve, nine tenths of which are done at ``flat``
    rise = Rise("constant", lr=LOWEST, warmup=0)
    for step in range(1, steps + 1):
        rate = rise(step, steps)
        yield rate, 8 - 5 / (1 + (steepest / rate) ** (1 / width)) + (rate / (30 * flat)) ** 2


@given(steepest=st.floats(1e-5, 1e-2), ratio=st.floats(2, 10))
def test_a_known_curve_is_read_right(steepest, ratio):
    flat = steepest * ratio
    found = read_rates(list(curve(steepest, flat)))
    assert found.steepest == pytest.approx(steepest, rel=0.35)
    assert found.flat == pytest.approx(flat, rel=0.6)
    assert found.steepest <= found.proposed * 1.05
    assert found.proposed <= found.flat * 1.05
    assert found.diverged > 30 * flat


def test_a_loss_that_falls_nowhere_has_no_rate():
    with pytest.raises(TrainingError, match="in 3 steps the loss fell at no rate from 1e-06 to 10; try more --steps"):
        read_rates([(1e-6, 2.0), (1e-3, 2.0), (1.0, 2.5)])
    with pytest.raises(TrainingError, match="in 0 steps"):
        read_rates([])


def test_a_rate_within_reason_is_found(recipe):
    found = find_rate(recipe, 60)
    assert 1e-4 < found.proposed < 0.3, "what Adam is given for a model of this size"
    assert found.steepest <= found.flat < (found.diverged or HIGHEST)
    assert [rate for rate, _ in found.points] == [rate for rate, _ in found.smooth]
    assert len(found.points) < 60 or found.points[-1][0] == pytest.approx(HIGHEST)
    assert find_rate(recipe, 60).points == found.points, "the same on the same machine"


def test_finding_leaves_nothing_behind(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    state, threads, rng = torch.get_rng_state(), torch.get_num_threads(), random.getstate()
    find_rate(recipe, 10)
    find_size(recipe, seconds=0.01)
    assert torch.equal(torch.get_rng_state(), state)
    assert (torch.get_num_threads(), random.getstate()) == (threads, rng)
    assert torch.is_grad_enabled()
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - hidden ones too


def test_sizes_double_until_all_data_are_one_batch(recipe):
    found = find_size(recipe, seconds=0.01)
    with passing(recipe) as run:
        everything = int(run.loader.sizes.sum())
    sizes = [size.max_tokens for size in found.tried]
    assert sizes == [256 * 2**i for i in range(len(sizes))]
    assert sizes[-1] >= everything or no_faster(found.tried)
    assert all(size.tokens_per_second > 0 and size.seconds > 0 for size in found.tried)
    assert found.largest is None
    assert found.proposed in sizes


def test_a_batch_that_the_memory_does_not_take_ends_the_doubling(recipe, monkeypatch):
    step = Run.step

    def exhausted(self, batches):
        batch = next(batches)
        if batch["tokens"].numel() + batch["targets"].numel() > 300:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        step(self, iter([batch]))

    monkeypatch.setattr(Run, "step", exhausted)
    found = find_size(recipe, seconds=0.01)
    assert [size.max_tokens for size in found.tried] == [256]
    monkeypatch.setattr("regard.train.find.SMALLEST", 1024)
    with pytest.raises(TrainingError, match="a batch of 1024 tokens, the smallest that is tried, exceeds"):
        find_size(recipe)


def test_the_hardest_batches_are_the_fullest_and_the_longest(recipe):
    with passing(recipe) as run:
        run.loader.max_tokens = 200
        fullest, longest = hardest(run.loader)
        most = max(batch["tokens"].numel() + batch["targets"].numel() for batch in run.task.validation())
        assert 150 < fullest["tokens"].numel() + fullest["targets"].numel() <= 200
        assert fullest["tokens"].numel() + fullest["targets"].numel() >= min(most, 150)
        widths = longest["tokens"].shape[1] + longest["targets"].shape[1]
        assert widths == int(run.loader.sizes.sum(axis=1).max())


@given(limit=st.integers(256, 10**6), begin=st.integers(1, 256), most=st.integers(256, 10**6))
def test_the_largest_that_fits_is_found_to_a_sixteenth(limit, begin, most):
    asked = []

    def fits(size):
        asked.append(size)
        return size <= limit

    found = grown(fits, begin, most)
    if found is None:
        assert max(size for size in asked if size <= limit) >= most
    else:
        assert found <= limit <= found * (1 + 1 / 16) + 2
    assert len(asked) < 40


def test_a_larger_batch_must_pay():
    def sizes(*speeds):
        return [Size(256 * 2**i, speed, 1.0) for i, speed in enumerate(speeds)]

    assert not no_faster(sizes(1, 2))
    assert not no_faster(sizes(1, 2, 3))
    assert not no_faster(sizes(2, 1, 3))
    assert no_faster(sizes(1, 3, 3, 3.1))
    assert Sizes(sizes(1, 2.9, 3, 2), None).proposed == 512
    assert Sizes(sizes(1, 2, 3, 2), None).proposed == 1024


def test_the_page_says_what_was_found(tmp_path):
    sizes = Sizes([Size(256, 1000.0, 0.2), Size(512, 2000.0, 0.25)], largest=4000)
    rates = read_rates(list(curve(1e-3, 5e-3)))
    page = write_found("<x>", sizes, rates, "regard train x --schedule.lr 1", tmp_path / "p.html").read_text()
    assert page.count("<figure") == 2
    assert "http" not in page
    assert "&lt;x&gt;" in page
    assert any("data.max_tokens 512" in line for line in size_lines(sizes))
    assert any("memory: 4000" in line for line in size_lines(sizes))
    assert any(f"schedule.lr {rates.proposed:g}" in line for line in rate_lines(rates))
    alone = write_found("x", None, rates, "", tmp_path / "q.html").read_text()
    assert alone.count("<figure") == 1
