"""Padding by hand."""

from regard.data.collate import pad


def test_right_and_left():
    rows = [[1, 2, 3], [], [4]]
    assert pad(rows, -100).tolist() == [[1, 2, 3], [-100] * 3, [4, -100, -100]]
    assert pad(rows, 0, left=True).tolist() == [[1, 2, 3], [0, 0, 0], [0, 0, 4]]


def test_empty():
    assert pad([], 0).shape == (0, 0)
    assert pad([[], []], 0).shape == (2, 0)
