"""Padding by hand."""

import numpy as np
import torch

from regard.data.collate import pad


def test_right_and_left():
    rows = [[1, 2, 3], [], [4]]
    assert pad(rows, -100).tolist() == [[1, 2, 3], [-100] * 3, [4, -100, -100]]
    assert pad(rows, 0, left=True).tolist() == [[1, 2, 3], [0, 0, 0], [0, 0, 4]]


def test_empty():
    assert pad([], 0).shape == (0, 0)
    assert pad([[], []], 0).shape == (2, 0)


def test_a_given_width_and_rows_of_any_kind_of_integer():
    rows = [np.array([1, 65535], np.uint16), (3,)]
    assert pad(rows, -100, width=3).tolist() == [[1, 65535, -100], [3, -100, -100]]
    assert pad(rows, -100, width=3).dtype == torch.int64
