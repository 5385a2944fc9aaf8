"""Plots: points where they belong on linear, logarithmic and named axes, and text that stays text."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regard.explain.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from regard.explain.plot import Axis, Curve, Dot, bars, plot

INNER = WIDTH - LEFT - RIGHT


def places(svg):
    """Where the dots lie, as shares of the width and height of the plot."""
    found = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', svg)
    return [((float(x) - LEFT) / INNER, (HEIGHT - BOTTOM - float(y)) / (HEIGHT - TOP - BOTTOM)) for x, y in found]


@pytest.mark.parametrize(
    ("axis", "xs"),
    [
        (Axis("n"), (0, 5, 10)),
        (Axis("lr", log=True), (1e-4, 1e-3, 1e-2)),
        (Axis("x", names=("a", "b", "c")), (0, 1, 2)),
    ],
)
def test_dots_by_hand(axis, xs):
    svg = plot("t", axis, dots=[Dot(x, y, 0, "") for x, y in zip(xs, (0, 5, 10), strict=True)])
    across, up = zip(*places(svg), strict=True)
    assert across == pytest.approx((0.04 / 1.08, 0.5, 1.04 / 1.08), abs=1e-3)
    assert up == pytest.approx((0, 0.5, 1), abs=1e-3)


def test_an_axis_is_labelled_with_round_numbers_or_names():
    assert Axis("n").ticks(0, 10) == [(0, "0"), (2, "2"), (4, "4"), (6, "6"), (8, "8"), (10, "10")]
    assert [name for _, name in Axis("lr", log=True).ticks(-3.1, -1.9)] == ["0.001", "0.002", "0.005", "0.01"]
    assert [name for _, name in Axis("lr", log=True).ticks(-6, 1)] == [
        "1e-06", "1e-05", "0.0001", "0.001", "0.01", "0.1", "1", "10"
    ]  # fmt: skip
    assert Axis("x", names=("a", "b")).ticks(-1, 2) == [(0, "a"), (1, "b")]


xs, ys = st.integers(-36, 36).map(lambda n: 10 ** (n / 4)), st.integers(-(10**6), 10**6).map(lambda n: n / 100)


@given(st.lists(st.tuples(xs, ys), min_size=1, max_size=9), st.booleans())
def test_everything_lies_inside(points, log):
    for x, y in places(plot("t", Axis("x", log=log), dots=[Dot(x, y, 0, "") for x, y in points])):
        assert -0.01 < x < 1.01
        assert -0.01 < y < 1.01


def test_marks_curves_and_keys_are_drawn_and_text_is_escaped():
    svg = plot(
        "<t>", Axis("x"), dots=[Dot(1, 2, 3, "<d>")], curves=[Curve([(0, 0), (2, 4)], 0)], marks=[(1, "<m>")],
        keys=[(0, "<k>")],
    )  # fmt: skip
    assert svg.count("<polyline") == 2
    assert all(f"&lt;{letter}&gt;" in svg for letter in "tdmk")
    assert plot("t", Axis("x")) == ""


def test_bars_are_as_long_as_their_shares():
    svg = bars("b", [("<one>", 0.75), ("two", 0.25)])
    one, two = (float(width) for width in re.findall(r'width="([\d.]+)" height', svg))
    assert one == pytest.approx(3 * two, rel=0.01)
    assert "&lt;one&gt;" in svg
    assert "75%" in svg
