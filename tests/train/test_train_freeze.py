"""Which parameters learn, and how deep they lie."""

import pytest
from torch import nn

from regard import zoo
from regard.core.errors import ConfigError
from regard.models.transformer import TransformerConfig
from regard.train.freeze import depths, freeze, thaw

TINY = TransformerConfig(
    vocab_size=20, embed_dim=8, ffn_dim=12, num_heads=2, num_encoder_layers=2, num_decoder_layers=3, norm_order="pre"
)


@pytest.fixture
def model():
    return zoo.build(TINY)


def learning(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("encoder", lambda name: name.startswith("encoder.")),
        ("decoder.blocks.1", lambda name: name.startswith("decoder.blocks.1.")),
        ("*.ffn", lambda name: ".ffn." in name),
        ("*.bias", lambda name: name.endswith(".bias")),
        ("head.weight", lambda name: name == "encoder_embed.weight"),  # tied
        ("*", lambda _: True),
    ],
)
def test_a_pattern_freezes_what_it_names(model, pattern, expected):
    everything = learning(model)
    freeze(model, [pattern])
    assert everything - learning(model) == {name for name in everything if expected(name)} != set()


def test_a_pattern_that_matches_nothing_is_an_error(model):
    with pytest.raises(ConfigError, match=r"no part of the model is called 'encodr' .did you mean 'encoder'"):
        freeze(model, ["decoder", "encodr"])


def test_depth_is_the_place_in_the_stack(model):
    depth = depths(model)
    named = dict(model.named_parameters())
    assert depth.keys() == set(named.values())
    places = {"decoder.norm": 0, "encoder.norm": 0, "decoder.blocks.2": 1, "decoder.blocks.0": 3,
              "encoder.blocks.1": 1, "encoder.blocks.0": 2, "encoder_embed": 4}  # fmt: skip
    for part, expected in places.items():
        found = {depth[parameter] for name, parameter in named.items() if name.startswith(part)}
        assert found == {expected}, part
    assert depths(nn.Linear(2, 2)) != {}


def test_thawing_goes_from_the_top_down(model):
    named = dict(model.named_parameters())
    depth = depths(model)
    frozen = named["decoder.blocks.2.ffn.mix.up.weight"]
    depth.pop(frozen)
    frozen.requires_grad_(False)
    for step, deepest in ((1, 1), (5, 1), (6, 2), (11, 3), (16, 4), (100, 4)):
        thaw(depth, 5, step)
        for parameter, level in depth.items():
            assert parameter.requires_grad == (level <= deepest)
        assert not frozen.requires_grad


def test_thawing_begins_with_the_highest_part_that_learns(model):
    depth = {parameter: level for parameter, level in depths(model).items() if level > 2}
    thaw(depth, 5, 1)
    assert {level for parameter, level in depth.items() if parameter.requires_grad} == {3}
