from xml.etree import ElementTree

import pytest
import torch
from torch import nn

from regard.core.errors import InputError, Unsupported
from regard.core.types import Output
from regard.explain.attention import (
    Choice,
    alignment,
    attention_maps,
    choices,
    cross_maps,
    head_grid,
    heat_map,
    labels,
    sharpest,
)


def test_alignment_is_one_for_one_to_one_and_nothing_for_maps_that_do_not_tell_queries_apart():
    assert alignment(torch.eye(5)) == pytest.approx(1)
    assert alignment(torch.eye(5)[torch.randperm(5)]) == pytest.approx(1)
    assert alignment(torch.full((4, 6), 1 / 6)) == pytest.approx(0, abs=1e-6)
    resting = torch.zeros(4, 6)
    resting[:, 5] = 1
    assert alignment(resting) == pytest.approx(0, abs=1e-6)
    assert alignment(torch.ones(1, 3) / 3) == 0


def test_alignment_equals_its_definition():
    joint = torch.rand(3, 4, dtype=torch.float64).softmax(dim=-1) / 3
    independent = joint.sum(0, keepdim=True) * joint.sum(1, keepdim=True)
    information = (joint * (joint / independent).log()).sum()
    assert alignment(3 * joint) == pytest.approx(float(information / torch.tensor(3.0).log()), rel=1e-6)


def maps():
    blurred, resting, diagonal = torch.full((4, 4), 0.25), torch.zeros(4, 4), torch.eye(4)
    resting[:, 3] = 1
    first, second = torch.stack([blurred, resting]), torch.stack([resting, diagonal])
    return {"decoder.0.cross": first[None], "decoder.1.cross": second[None]}


def test_the_sharpest_map_is_the_one_that_aligns():
    assert sharpest([maps(), maps()]) == Choice("decoder.1.cross")
    assert sharpest([maps()], heads=True) == Choice("decoder.1.cross", 1)
    assert len(choices(maps())) == 6


def test_a_choice_reads_one_head_or_their_average():
    torch.testing.assert_close(Choice("decoder.1.cross", 1).of(maps()), torch.eye(4))
    average = Choice("decoder.1.cross").of(maps())
    torch.testing.assert_close(average, maps()["decoder.1.cross"][0].mean(0))
    assert str(Choice("decoder.1.cross", 1)) == "decoder.1.cross, head 1"
    with pytest.raises(InputError, match=r"did you mean 'decoder.1.cross'"):
        Choice("decoder.1.cros").of(maps())
    with pytest.raises(InputError, match="no head 2"):
        Choice("decoder.1.cross", 2).of(maps())


def test_cross_maps_are_told_by_their_path():
    both = {"decoder.0.attention": torch.ones(1, 1, 1, 1), **maps()}
    assert list(cross_maps(both)) == ["decoder.0.cross", "decoder.1.cross"]
    with pytest.raises(Unsupported, match="no cross-attention"):
        cross_maps({"encoder.0.attention": torch.ones(1, 1, 1, 1)})


class Recorder(nn.Module):
    def __init__(self, record):
        super().__init__()
        self.record, self.dropout = record, nn.Dropout(0.5)

    def forward(self, tokens, weights=False):
        found = {"a": self.dropout(torch.ones(1, 1, 2, 2, requires_grad=True)).double()}
        return Output(hidden=tokens, weights=found if weights and self.record else None)


def test_maps_are_recorded_in_evaluation_mode_and_the_model_is_left_as_it_was():
    model = Recorder(record=True).train()
    recorded = attention_maps(model, tokens=torch.zeros(1, 2))["a"]
    assert recorded.equal(torch.ones(1, 1, 2, 2))
    assert recorded.dtype == torch.float32
    assert not recorded.requires_grad
    assert model.training
    with pytest.raises(Unsupported, match="records no attention maps"):
        attention_maps(Recorder(record=False), tokens=torch.zeros(1, 2))
    with pytest.raises(Unsupported, match="Identity has no attention"):
        attention_maps(nn.Identity())


def test_labels_drop_spaces_and_mark_what_goes_on_a_word():
    pieces = ["le", " jan", "vier", " 2", "0", ",", "", "é", " ", "</s>"]
    assert labels(pieces) == ["le", "jan", "·vier", "2", "0", ",", "…", "é", "␣", "</s>"]


def test_heat_map_shows_each_weight_where_it_belongs():
    weights = torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.25, 0.75]])
    picture = ElementTree.fromstring(heat_map(weights, ["a", "<b>"], ["x", "y", "z"], about="a & b"))
    cells = next(group for group in picture if group.get("class") == "cells")
    assert [cell.get("fill-opacity") for cell in cells] == ["0.90", "0.10", "0.25", "0.75"]
    assert [cell.find("title").text for cell in cells][-1] == "<b> ← z: 75%"
    first, second, third, fourth = [(float(cell.get("x")), float(cell.get("y"))) for cell in cells]
    assert first[0] < second[0] == third[0] < fourth[0]
    assert first[1] == second[1] < third[1] == fourth[1]
    with pytest.raises(InputError, match="cannot have 1 row and 3 column names"):
        heat_map(weights, ["a"], ["x", "y", "z"], about="")


def test_head_grid_shows_every_head_and_marks_one():
    grid = ElementTree.fromstring(head_grid(maps(), marked=Choice("decoder.1.cross", 1)))
    captions = [figure.find("figcaption").text for figure in grid.iter("figure")]
    assert len(captions) == 6
    assert captions[-1] == "head 1 · 1.00"
    assert [figure.find("figcaption").text for figure in grid.iter("figure") if "marked" in figure.get("class")] == [
        "head 1 · 1.00"
    ]
