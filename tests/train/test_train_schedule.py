"""Learning rates against the paper's formula and the shapes' own definitions."""

import itertools
import math

import pytest

from regard.core.errors import ConfigError
from regard.train.schedule import Schedule, vaswani


@pytest.mark.parametrize(("embed_dim", "warmup"), [(512, 4000), (1024, 4000), (64, 10)])
def test_vaswani_is_equation_3(embed_dim, warmup):
    schedule = vaswani(embed_dim, warmup)
    for step in (1, 2, warmup - 1, warmup, warmup + 1, 3 * warmup, 100_000):
        assert schedule(step, 100_000) == pytest.approx(
            embed_dim**-0.5 * min(step**-0.5, step * warmup**-1.5), rel=1e-12
        )


@pytest.mark.parametrize("shape", ["inverse_sqrt", "cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 1, 20])
def test_every_shape_warms_up_linearly_and_never_rises_after(shape, warmup):
    schedule = Schedule(shape, lr=0.5, warmup=warmup, final=0.1)
    rates = [schedule(step, 100) for step in range(1, 101)]
    assert rates[:warmup] == pytest.approx([0.5 * step / warmup for step in range(1, warmup + 1)])
    assert max(rates) <= 0.5
    after = rates[max(warmup - 1, 0) :]
    assert all(now >= later for now, later in itertools.pairwise(after))
    if shape in ("cosine", "linear"):
        assert rates[-1] == pytest.approx(0.05)


def test_halfway_of_linear_and_cosine_is_half():
    for shape in ("linear", "cosine"):
        assert Schedule(shape, lr=2.0, warmup=10)(60, 110) == pytest.approx(1.0)
    assert Schedule("cosine", lr=1.0, warmup=0)(25, 100) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"warmup": -1}, {"final": 2.0}])
def test_wrong_values(wrong):
    with pytest.raises(ConfigError, match=f"schedule.{next(iter(wrong))}"):
        Schedule(**wrong)
