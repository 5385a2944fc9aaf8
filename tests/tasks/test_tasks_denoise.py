"""Denoising: that it can be learnt, what is scored, and what cannot be asked."""

from __future__ import annotations

import json

import pytest

import regard
from regard.cli import main
from regard.core.errors import ConfigError, InputError
from regard.data.learn import train_tokenizer
from regard.models.gpt2 import GPT2Config
from regard.models.transformer import TransformerConfig
from regard.tasks.denoise import Restored, SpoiltText


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model that knows how four animals see each other; tests only read it."""
    folder = tmp_path_factory.mktemp("denoise")
    animals = ["cat", "dog", "cow", "hen"]
    lines = [f"the {a} sees the {b} again" for a in animals for b in animals] * 6
    (folder / "train.txt").write_text("\n\n".join(lines))
    options = {
        "data.train": folder / "train.txt", "data.documents": "paragraph", "data.vocab-size": 60,
        "data.tokenizer-kind": "wordpiece", "data.max-tokens": 300, "model.embed-dim": 32, "model.ffn-dim": 64,
        "model.num-heads": 2, "model.num-encoder-layers": 1, "model.num-decoder-layers": 1, "model.dropout": 0,
        "num-steps": 300, "valid-every": 300, "schedule.lr": 0.01, "schedule.warmup": 10, "average": 0,
    }  # fmt: skip
    words = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    assert main(["train", "denoise", *words, "--out", str(folder / "run"), "--quiet"]) == 0
    return folder / "run"


def test_a_run_learns_to_restore(run):
    recipe = json.loads((run / "recipe.json").read_text())
    assert (recipe["task"], recipe["learns"]) == ("denoise", "denoise")
    asked = ["the cat sees <mask> dog again", "the cow sees the hen <mask>", "<mask> hen sees the cow again"]
    told = ["the cat sees the dog again", "the cow sees the hen again", "the hen sees the cow again"]
    assert [*regard.predict(run, asked)] == told


def test_the_same_texts_are_always_spoilt_alike(run, capsys):
    scores = []
    for _ in range(2):
        assert main(["evaluate", str(run), "--json"]) == 0
        scores.append(json.loads(capsys.readouterr().out))
    assert scores[0] == scores[1]
    assert scores[0]["log_likelihood"] > -2
    assert "special ones included" in scores[0]["notes"]["log_likelihood"]


def test_a_summarizer_begins_with_what_was_learnt(run, tmp_path):
    rows = [{"document": f"the {a} sees the {b} again", "summary": f"the {a}"} for a in "abcd" for b in "abcdef"]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    options = ["--data.train", str(tmp_path / "rows.jsonl"), "--num-steps", "2", "--valid-every", "2"]
    assert main(["train", "summarize", "--start", str(run), *options, "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert len([*regard.predict(tmp_path / "out", ["the cat sees the dog again"])]) == 1


def test_what_cannot_be_is_refused(run, tmp_path):
    with pytest.raises(InputError, match="text 1 has no <mask>"):
        [*regard.predict(run, ["the cat"])]
    task = SpoiltText(train=str(run.parent / "train.txt"), vocab_size=300).open()
    with pytest.raises(ConfigError, match="GPT2Config has no decoder that reads an encoder; transformer, t5 and bart"):
        task.configure(GPT2Config())
    with pytest.raises(ConfigError, match=r"data\.seq_len 128 is more than the model's 16 positions"):
        task.configure(TransformerConfig(max_seq_len=16))


def test_an_end_is_said_whatever_the_tokenizer_puts_around_texts(run):
    tokenizer = train_tokenizer("bpe", ["one two three"], 300)
    assert tokenizer.around == ([], [])
    batch = Restored(SpoiltText(seq_len=8), tokenizer).example("one two three one two three one two three")
    assert len(batch["tokens"]) > 1
    assert [row[valid][-1] for row, valid in zip(batch["tokens"], batch["valid"], strict=True)] == (
        [tokenizer.eos] * len(batch["tokens"])
    )
    assert batch["tokens"].shape[1] <= 8
