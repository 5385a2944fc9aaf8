"""Learning rates against torch's schedulers, and the papers' formulas where it has none."""

import itertools
import math
import typing

import pytest
import torch
from torch.optim import lr_scheduler

from regard.core.errors import ConfigError
from regard.train.schedule import Schedule, Shape, vaswani

STEPS = 100


def rates(schedule, steps=STEPS):
    return [schedule(step, steps) for step in range(1, steps + 1)]


def torchs(count, make):
    """The first ``count`` rates of a scheduler of torch, from a peak of 0.5."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    scheduler = make(optimizer)
    found = []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(("embed_dim", "warmup"), [(512, 4000), (1024, 4000), (64, 10)])
def test_vaswani_is_equation_3(embed_dim, warmup):
    schedule = vaswani(embed_dim, warmup)
    for step in (1, 2, warmup - 1, warmup, warmup + 1, 3 * warmup, 100_000):
        assert schedule(step, 100_000) == pytest.approx(
            embed_dim**-0.5 * min(step**-0.5, step * warmup**-1.5), rel=1e-12
        )


@pytest.mark.parametrize("warmup", [1, 20])
@pytest.mark.parametrize(
    ("fields", "make"),
    [
        ({"shape": "constant"}, lambda o, _: lr_scheduler.ConstantLR(o, 1.0)),
        ({"shape": "linear", "final": 0.1}, lambda o, rest: lr_scheduler.LinearLR(o, 1.0, 0.1, rest)),
        ({"shape": "cosine", "final": 0.1}, lambda o, rest: lr_scheduler.CosineAnnealingLR(o, rest, 0.05)),
        (
            {"shape": "cosine_restarts", "final": 0.1, "period": 7, "factor": 0.5},
            lambda o, _: lr_scheduler.CosineAnnealingWarmRestarts(o, 7, 2, 0.05),
        ),
        (
            {"shape": "cosine_restarts", "period": 9, "factor": 1.0},
            lambda o, _: lr_scheduler.CosineAnnealingWarmRestarts(o, 9),
        ),
        ({"shape": "step", "period": 30, "factor": 0.1}, lambda o, _: lr_scheduler.StepLR(o, 30, 0.1)),
        ({"shape": "exponential", "final": 0.01}, lambda o, rest: lr_scheduler.ExponentialLR(o, 0.01 ** (1 / rest))),
    ],
)
def test_after_the_warm_up_it_is_torchs(fields, make, warmup):
    schedule = Schedule(**fields, lr=0.5, warmup=warmup)
    rest = STEPS - warmup
    assert rates(schedule)[warmup - 1 :] == pytest.approx(torchs(rest + 1, lambda o: make(o, rest)), rel=1e-9)


def test_cyclical_is_smiths_triangle():
    theirs = torchs(STEPS + 1, lambda o: lr_scheduler.CyclicLR(o, 0.05, 0.5, step_size_up=8, cycle_momentum=False))
    assert rates(Schedule("cyclical", lr=0.5, warmup=8, final=0.1, period=16))[7:] == pytest.approx(theirs[8:])
    theirs = torchs(STEPS + 1, lambda o: lr_scheduler.CyclicLR(o, 0.0, 0.5, step_size_up=8, cycle_momentum=False))
    assert rates(Schedule("cyclical", lr=0.5, warmup=8, period=16)) == pytest.approx(theirs[1:])


@pytest.mark.parametrize("final", [0.0, 0.2])
def test_warmup_stable_decay_is_a_trapezoid(final):
    found = rates(Schedule("warmup_stable_decay", lr=0.5, warmup=10, final=final, period=20))
    corners = {1: 0.05, 10: 0.5, 45: 0.5, 80: 0.5, 90: 0.5 * (1 + final) / 2, 100: 0.5 * final}
    assert {step: found[step - 1] for step in corners} == pytest.approx(corners)
    short = rates(Schedule("warmup_stable_decay", lr=0.5, warmup=10, final=final, period=1000))
    assert short == pytest.approx(rates(Schedule("linear", lr=0.5, warmup=10, final=final)))


@pytest.mark.parametrize("shape", typing.get_args(Shape))
@pytest.mark.parametrize("warmup", [0, 1, 20])
def test_every_shape_warms_up_linearly_and_stays_between_peak_and_final(shape, warmup):
    schedule = Schedule(shape, lr=0.5, warmup=warmup, final=0.1, period=15)
    found = rates(schedule)
    assert found[:warmup] == pytest.approx([0.5 * step / warmup for step in range(1, warmup + 1)])
    after = found[max(warmup - 1, 0) :]
    assert max(found) <= 0.5 + 1e-12
    assert shape == "inverse_sqrt" or min(after) >= 0.05 - 1e-12
    if shape not in ("cosine_restarts", "cyclical"):
        assert all(now >= later for now, later in itertools.pairwise(after))
    if shape in ("cosine", "linear", "exponential", "warmup_stable_decay"):
        assert found[-1] == pytest.approx(0.05)


def test_a_run_may_end_within_its_warm_up():
    for shape in typing.get_args(Shape):
        schedule = Schedule(shape, lr=0.5, warmup=200, final=0.1)
        assert rates(schedule) == pytest.approx([0.5 * step / 200 for step in range(1, STEPS + 1)])


def test_halfway_of_linear_and_cosine_is_half():
    for shape in ("linear", "cosine"):
        assert Schedule(shape, lr=2.0, warmup=10)(60, 110) == pytest.approx(1.0)
    assert Schedule("cosine", lr=1.0, warmup=0)(25, 100) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0.0}, {"warmup": -1}, {"final": 2.0}, {"period": 0}, {"factor": 0.0},
        {"final": 0.0, "shape": "exponential"},
    ],
)  # fmt: skip
def test_wrong_values(wrong):
    with pytest.raises(ConfigError, match=f"schedule.{next(iter(wrong))}"):
        Schedule(**wrong)
