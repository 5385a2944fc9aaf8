"""A stopwatch whose parts add up, leaves nothing behind, and FLOPs that add up too."""

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from regard import zoo
from regard.cli import main
from regard.explain.profile import CLIP, DATA, HEAD, OPTIMIZER, REST, Stopwatch, family, flops, table, watched
from regard.models.transformer import TransformerConfig
from regard.objectives.supervise import Supervise
from regard.train.fit import Learner

CONFIG = TransformerConfig(
    vocab_size=40, embed_dim=16, ffn_dim=32, num_heads=2, num_encoder_layers=2, num_decoder_layers=1, norm_order="pre"
)
PARTS = ["encoder.attention", "encoder.ffn", "encoder.norm"]
PARTS += ["decoder.attention", "decoder.cross", "decoder.ffn", "decoder.norm"]


@pytest.fixture
def training():
    model = zoo.build(CONFIG)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tokens = torch.randint(3, 40, (2, 5))

    def step():
        model(tokens=tokens, decoder_tokens=tokens).logits.square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return model, optimizer, step


def test_every_tick_belongs_to_one_part(training, monkeypatch):
    model, optimizer, step = training
    clock = itertools.count()
    monkeypatch.setattr(Stopwatch, "_now", lambda self: float(next(clock)))
    watch = Stopwatch(model, optimizer)
    with watch.attached():
        for _ in range(3):
            watch.begin()
            step()
            watch.end()
    ticks = next(clock) - 3  # every look at the clock ends a part, save the first of a step
    assert watch.times.total == ticks
    assert set(watch.times.forward) == {*PARTS, "encoder_embed", "decoder_embed", DATA, HEAD, CLIP, OPTIMIZER, REST}
    assert set(watch.times.backward) == set(PARTS)
    assert watch.times.forward["encoder.attention"] == watch.times.backward["encoder.attention"] == 2 * 3
    assert watch.times.forward[HEAD] == 3
    lines = table(watch.times, {}, 1.0)
    assert lines[-1].split()[:2] == ["one", "step"]
    assert not any(hooks for each in model.modules() for hooks in (each._forward_hooks, each._backward_hooks))
    step()
    assert next(clock) == ticks + 4


@pytest.mark.parametrize("outer", [False, True], ids=["model", "model in the loop's module"])
def test_flops_add_up_and_are_where_they_are_spent(training, outer):
    model, _, step = training
    if outer:
        learner = Learner(model, Supervise(0.0))
        tokens = torch.randint(3, 40, (2, 5))

        def step():
            learner({"tokens": tokens, "decoder_tokens": tokens, "targets": tokens})[0].backward()

    with FlopCounterMode(display=False) as counter:
        step()
    found = flops(model, step)
    assert sum(found.values()) == counter.get_total_flops()
    rows, embed, ffn, layers = 2 * 5, 16, 32, 2
    assert found["encoder.ffn"] == 3 * 2 * rows * 2 * embed * ffn * layers  # forward, and twice that backward
    assert found[HEAD] == 3 * 2 * rows * embed * 40
    assert found["encoder.norm"] == 0


def test_parts_of_all_layers_are_one():
    paths = watched(zoo.build(CONFIG))
    assert "encoder.blocks.1.ffn" in paths
    assert list(dict.fromkeys(map(family, paths))) == ["encoder_embed", *PARTS[:3], "decoder_embed", *PARTS[3:]]


def test_the_verb(capsys, tiny_options):
    assert main(["profile", "translate", *tiny_options, "--steps", "2"]) == 0
    text = capsys.readouterr().out
    assert "parameters on cpu" in text
    assert all(f"\n{part.replace('.', ' ')} " in text for part in PARTS)
    assert main(["profile", "translat"]) == 2
    assert "did you mean 'translate'" in capsys.readouterr().err
