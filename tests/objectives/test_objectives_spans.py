"""Span corruption: the authors' lengths exactly, nothing lost between inputs and targets, and that it can be learnt."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import regard
from regard import zoo
from regard.cli import main
from regard.core.errors import ConfigError, InputError
from regard.core.types import IGNORE
from regard.data.learn import train_tokenizer
from regard.models.gpt2 import GPT2Config
from regard.models.transformer import TransformerConfig
from regard.objectives.spans import Spans, parted
from regard.tasks.spans import SENTINELS, SpanLanguage, SpanText

PAD, BOS, EOS = range(3)
OURS = tuple(range(900, 1000))
KNOWN = {"sentinels": OURS, "start_token": BOS, "end_token": EOS, "pad_token": PAD}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def rows(lengths, before=(), after=(EOS,)):
    width = max(lengths) + len(before) + len(after)
    tokens, words = torch.full((len(lengths), width), PAD), torch.full((len(lengths), width), -1)
    for number, length in enumerate(lengths):
        row = [*before, *range(10, 10 + length), *after]
        tokens[number, : len(row)] = torch.tensor(row)
        words[number, len(before) : len(before) + length] = torch.arange(length)
    return {"tokens": tokens, "words": words, "valid": tokens != PAD}


def test_lengths_are_those_of_the_authors():
    """From 568 tokens, with the end token, T5 makes inputs of 512 and targets of 114 (its published settings)."""
    made = Spans(**KNOWN).prepare(rows([568] * 4), rng())
    assert made["tokens"].shape == (4, 512)
    assert made["targets"].shape == made["decoder_tokens"].shape == (4, 114)
    assert made["valid"].all()
    assert (made["targets"] != IGNORE).all()
    assert Spans().counts(568) == (85, 28)


@given(st.data())
def test_inputs_and_targets_together_are_the_text(data):
    lengths = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=4))
    objective = Spans(share=data.draw(st.floats(0.02, 0.95)), span=data.draw(st.floats(1, 9)), **KNOWN)
    before = data.draw(st.sampled_from([(), (BOS,)]))
    batch = rows(lengths, before)
    made = objective.prepare(batch, rng(data.draw(st.integers(0, 99))))
    for number, length in enumerate(lengths):
        read = made["tokens"][number][made["valid"][number]].tolist()
        said = [token for token in made["targets"][number].tolist() if token != IGNORE]
        assert made["decoder_tokens"][number][: len(said)].tolist() == [BOS, *said[:-1]]
        assert (read[: len(before)], read[-1], said[-1]) == ([*before], EOS, EOS)
        spans, current = {}, []
        for token in said[:-1]:
            if token in OURS:
                current = spans[token] = []
            else:
                current.append(token)
        taken, count = objective.counts(length)
        assert list(spans) == list(OURS[:count])
        assert sum(map(len, spans.values())) == taken
        assert all(spans.values())
        inside = read[len(before) : -1]
        assert [token for token in inside if token in OURS] == list(spans)
        assert list(itertools.chain(*(spans.get(token, [token]) for token in inside))) == [*range(10, 10 + length)]
        assert length == 1 or inside[0] == 10
        assert inside[-1] == OURS[count - 1]


def test_share_and_span_are_the_papers():
    mask = torch.stack([Spans().mask(500, rng(seed)) for seed in range(50)])
    assert mask.sum(dim=1).tolist() == [75] * 50
    starts = mask & ~torch.cat([torch.zeros(50, 1, dtype=torch.bool), mask[:, :-1]], dim=1)
    assert starts.sum(dim=1).tolist() == [25] * 50  # of three tokens each, on average
    assert len({tuple(row.tolist()) for row in mask}) == 50


def test_every_way_to_part_is_equally_likely():
    generator, count = rng(), 6000
    ways = Counter(tuple(parted(6, 3, generator).tolist()) for _ in range(count))
    assert len(ways) == 10
    assert all(sum(way) == 6 and min(way) >= 1 for way in ways)
    surprise = sum((seen - count / 10) ** 2 / (count / 10) for seen in ways.values())
    assert surprise < 27.9  # chi-squared with nine degrees of freedom, one in a thousand


def test_it_is_a_function_of_the_generator():
    objective, batch = Spans(**KNOWN), rows([40, 30])
    one, again, other = (objective.prepare(batch, rng(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["targets"], other["targets"])


def test_what_cannot_be_is_refused():
    for wrong in ({"share": 0.0}, {"share": 1.0}, {"span": 0.5}):
        with pytest.raises(ConfigError, match="must be"):
            Spans(**wrong)
    task = SpanLanguage(SpanText(), train_tokenizer("unigram", ["one two three"], 300))
    task.sentinels = OURS[:3]
    with pytest.raises(ConfigError, match="a row of 128 tokens has 6 spans, and there are 3 sentinels"):
        Spans().fitted(task)
    with pytest.raises(ConfigError, match="GPT2Config has no decoder that reads an encoder"):
        SpanLanguage.configure(task, GPT2Config())


def test_texts_of_any_length_are_scored():
    text = " ".join(["the cat sat on the mat"] * 350)
    for length, (span, count) in {512: (3.0, 26), 2048: (3.07, 100)}.items():
        tokenizer = train_tokenizer("wordpiece", [text], 60, framed=True)
        task = SpanLanguage(SpanText(seq_len=length, max_tokens=4096), tokenizer)
        assert task.paper == Spans(span=span)
        assert task.paper.counts(length)[1] == count
        config = TransformerConfig(
            vocab_size=0, embed_dim=8, ffn_dim=8, num_heads=1, num_encoder_layers=1, num_decoder_layers=1,
            max_seq_len=length,
        )  # fmt: skip
        model = zoo.build(task.configure(config), seed=0).eval()
        assert task.score(model, [text]).scores["perplexity"] > 1


def test_a_run_learns_to_fill_gaps(tmp_path, capsys):
    animals = ["cat", "dog", "cow", "hen"]
    lines = [f"the {a} sees the {b} again" for a in animals for b in animals] * 6
    (tmp_path / "train.txt").write_text("\n\n".join(lines))
    options = {
        "data.train": tmp_path / "train.txt", "data.documents": "paragraph", "data.vocab-size": 60,
        "model.embed-dim": 32, "model.ffn-dim": 64, "model.num-heads": 2, "model.num-encoder-layers": 1,
        "model.num-decoder-layers": 1, "num-steps": 200, "valid-every": 200, "log-every": 100, "schedule.lr": 0.01,
        "schedule.warmup": 10, "average": 0, "model.dropout": 0, "data.max-tokens": 300, "objective.share": 0.3,
        "objective.span": 1, "data.tokenizer-kind": "wordpiece",
    }  # fmt: skip
    run = tmp_path / "run"
    words = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    assert main(["train", "spans", *words, "--out", str(run), "--quiet"]) == 0
    recipe = json.loads((run / "recipe.json").read_text())
    assert (recipe["task"], recipe["learns"]) == ("spans", "spans")
    assert recipe["objective"]["sentinels"] == regard.tokenizer(run).add(SENTINELS)
    asked = [f"the cat {SENTINELS[0]} the dog {SENTINELS[1]}", f"{SENTINELS[0]} cow sees the hen again"]
    assert [*regard.predict(run, asked)] == ["the cat sees the dog again", "the cow sees the hen again"]
    for wrong in ("the cat", f"the {SENTINELS[1]} cat"):
        with pytest.raises(InputError, match="text 1 has no gaps that are called"):
            [*regard.predict(run, [wrong])]
    assert main(["evaluate", str(run), "--data", str(tmp_path / "train.txt")]) == 0
    assert "with sentinels and ends" in capsys.readouterr().out
