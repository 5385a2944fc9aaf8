import math
from xml.etree import ElementTree

import pytest

from regard.explain.chart import (
    FAINTEST,
    MOST_CELLS,
    MOST_POINTS,
    Series,
    cell_chart,
    line_chart,
    number,
    spread,
    ticks,
)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 100, [0, 20, 40, 60, 80, 100]),
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.3, 7.9, [0, 2, 4, 6, 8]),
        (-3, 3, [-4, -2, 0, 2, 4]),
        (5, 5, [2, 3, 4, 5, 6, 7, 8]),
        (0, 0, [-0.6, -0.4, -0.2, 0, 0.2, 0.4, 0.6]),
    ],
)
def test_ticks_are_round_and_cover(low, high, expected):
    assert ticks(low, high) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"), (3.14159, "3.142"), (1234, "1234"), (12345, "12.35k"), (65e6, "65M"), (2.5e9, "2.5G"),
        (1e15, "1000T"),        (0.0005, "0.0005"), (2e-7, "2e-07"), (-65e6, "-65M"), (999.96, "1000"),
    ],
)  # fmt: skip
def test_number(value, expected):
    assert number(value) == expected


def svg(figure):
    return ElementTree.fromstring(figure).find("svg")


def polyline(figure):
    return [tuple(map(float, point.split(","))) for point in svg(figure).find("polyline").get("points").split()]


def test_chart_is_well_formed_and_escapes():
    figure = line_chart("a < b & c", [Series("x > y", [(0, 1), (10, 2)])])
    assert "a &lt; b &amp; c" in figure
    assert ElementTree.fromstring(figure).find("figcaption").find("h3").text == "a < b & c"


def test_larger_is_higher_and_later_is_further_right():
    (x0, y0), (x1, y1), (x2, y2) = polyline(line_chart("t", [Series("s", [(0, 5), (1, 1), (2, 3)])]))
    assert x0 < x1 < x2
    assert y0 < y2 < y1


def test_the_span_is_covered_whatever_the_points():
    axis = [text.text for text in svg(line_chart("t", [Series("s", [(0, 0), (1, 0)])], span=(0, 100))).findall("text")]
    assert axis[:6] == ["0", "20", "40", "60", "80", "100"]


def test_points_that_are_no_numbers_are_left_out_and_long_lines_thinned_to_their_mean():
    points = [(i, math.nan if i == 7 else 1.0) for i in range(10 * MOST_POINTS)]
    line = polyline(line_chart("t", [Series("s", points)]))
    assert MOST_POINTS / 2 < len(line) <= MOST_POINTS
    assert len({y for _, y in line}) == 1


def test_nothing_to_draw_is_nothing():
    assert line_chart("t", [Series("s", []), Series("n", [(1, math.inf)])]) == ""


def test_a_single_point_is_marked():
    assert svg(line_chart("t", [Series("s", [(0, 1.5)])])).find("circle") is not None


def cells(figure):
    (group,) = [each for each in svg(figure) if each.get("class") == "cells"]
    return {cell.find("title").text: float(cell.get("fill-opacity")) for cell in group}


def test_cells_are_the_stronger_the_larger_their_value():
    figure = cell_chart("a & b", ["1", "2"], {"<x>": [0.0, 1.0], "y": [0.5, None]})
    middle = FAINTEST + (1 - FAINTEST) / 2
    assert cells(figure) == {"<x>, step 1: 0": FAINTEST, "<x>, step 2: 1": 1.0, "y, step 1: 0.5": middle}
    assert cells(cell_chart("t", ["1"], {"x": [0.5]}, span=(0, 1)))["x, step 1: 0.5"] == middle


def test_on_a_logarithmic_scale_equal_ratios_are_equal_steps():
    values = list(cells(cell_chart("t", ["1", "2", "3", "4"], {"x": [1e-4, 1e-2, 1.0, 0.0]}, log=True)).values())
    assert values[1] - values[0] == pytest.approx(values[2] - values[1], abs=0.011)
    assert values[3] == values[0]


def test_many_columns_are_thinned_with_the_last_among_them():
    figure = cell_chart("t", [str(i) for i in range(1000)], {"x": [float(i) for i in range(1000)]})
    assert len(cells(figure)) == MOST_CELLS
    assert {"x, step 0: 0", "x, step 999: 999"} <= cells(figure).keys()
    assert spread(3, 8) == [0, 1, 2]
    assert spread(100, 3) == [0, 50, 99]


def test_cells_without_values_are_no_chart():
    assert cell_chart("t", [], {}) == ""
    assert cell_chart("t", ["1"], {"x": [math.nan]}) == ""
    assert cell_chart("t", ["1"], {"x": [0.0]}, log=True) == ""
