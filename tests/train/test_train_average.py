"""Averages of weights over time, against their definitions."""

import torch
from torch import nn

from regard.train.average import Average, update_average


def moved(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape))
    return [parameter.detach().clone() for parameter in model.parameters()]


def test_moving_average():
    average, model = nn.Linear(3, 2), nn.Linear(3, 2)
    expected = [
        0.75 * a.detach() + 0.25 * b.detach() for a, b in zip(average.parameters(), model.parameters(), strict=True)
    ]
    update_average(average, model, 0.75)
    for mean, value in zip(average.parameters(), expected, strict=True):
        torch.testing.assert_close(mean, value)


def test_the_first_steps_of_a_moving_average_are_longer():
    model = nn.Linear(3, 2).double()
    average = Average(model, 0.9)
    expected = [parameter.detach().clone() for parameter in model.parameters()]
    for step in range(1, 200):
        decay = min(0.9, step / (step + 10))
        now = moved(model)
        expected = [decay * mean + (1 - decay) * value for mean, value in zip(expected, now, strict=True)]
        average.step(step)
        average.validated()
    for mean, value in zip(average.model.parameters(), expected, strict=True):
        torch.testing.assert_close(mean, value, rtol=0, atol=1e-12)
    assert not average.state()


def test_the_mean_of_the_last_validations():
    model = nn.Linear(3, 2).double()
    average = Average(model, 3)
    seen = []
    for step in range(1, 6):
        moved(model)
        average.step(step)  # between validations, nothing is taken in
        seen.append(moved(model))
        average.validated()
        for mean, *values in zip(average.model.parameters(), *seen[-3:], strict=True):
            torch.testing.assert_close(mean, sum(values) / len(values), rtol=0, atol=1e-12)


def test_it_goes_on_where_it_was():
    model = nn.Linear(3, 2)
    one = Average(model, 2)
    for _ in range(3):
        moved(model)
        one.validated()
    two = Average(model, 2)
    two.restore(one.state())
    moved(model)
    for average in (one, two):
        average.validated()
    for a, b in zip(one.model.parameters(), two.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_none_is_the_model_itself():
    model = nn.Linear(3, 2)
    average = Average(model, 0.0)
    average.step(1)
    average.validated()
    assert average.model is model
    assert not average.state()
