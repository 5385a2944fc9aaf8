"""Tasks with a head over a decoder that first learnt to write: classes, tags and answers by GPT-2 and GPT-NeoX."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

import regard
from regard import zoo
from regard.cli import main
from regard.core.errors import ConfigError
from regard.data.conll import Sentence
from regard.data.learn import train_tokenizer
from regard.data.tokenize import Tokenizer
from regard.models.bert import BertConfig
from regard.models.gpt2 import GPT2Config
from regard.models.neox import FAMILY as NEOX
from regard.models.transformer import TransformerConfig
from regard.tasks.answer import Answering, QuestionText
from regard.tasks.classify import Classify, LabelledText
from regard.tasks.language import Language, PlainText
from regard.tasks.tag import Tag, TaggedText

WORDS = [
    "the film and the plot were fine",
    "the cast was dull",
    "Anna lives in Rome",
    "Dora likes Oslo",
    "what is it ?",
]
SIZES = {"embed_dim": 32, "ffn_dim": 64, "num_heads": 2, "num_layers": 2, "max_seq_len": 128, "dropout": 0.0,
         "embed_dropout": 0.0, "attn_dropout": 0.0, "head_dropout": 0.0}  # fmt: skip
QUICK = ["--valid-every", "50", "--log-every", "50", "--schedule.lr", "0.005", "--schedule.warmup", "5",
         "--average", "0", "--quiet"]  # fmt: skip
TINY = BertConfig(vocab_size=0, embed_dim=16, ffn_dim=32, num_heads=2, num_layers=2, max_seq_len=64)
FAMILIES = {"gpt2": GPT2Config(**SIZES), "neox": replace(NEOX.sizes["pythia-70m"], rotary_dim=8, **SIZES)}


@pytest.fixture(scope="module", params=FAMILIES)
def writer(request, tmp_path_factory):
    """A checkpoint in the published layout that writes, its tokenizer without special tokens around a text."""
    folder = tmp_path_factory.mktemp("writer") / request.param
    tokenizer = train_tokenizer("bpe", WORDS * 5, 340)
    config = replace(FAMILIES[request.param], vocab_size=len(tokenizer), bos_token=None, eos_token=tokenizer.eos)
    zoo.save(zoo.build(config, seed=1), folder, layout="hf")
    tokenizer.save(folder)
    return folder


def train(task, writer, tmp_path, name, text, steps):
    """The folder of a run that began with the writer's weights."""
    (tmp_path / name).write_text(text)
    file = ["--data.train", str(tmp_path / name), "--num-steps", str(steps)]
    assert main(["train", task, "--start", str(writer), *file, *QUICK, "--out", str(tmp_path / "run")]) == 0
    return tmp_path / "run"


def test_a_decoder_learns_classes(writer, tmp_path, capsys):
    things = ["film", "plot", "cast", "scene", "music"]
    rows = [
        f"{label}\tthe {things[i % 5]} {word} and the {things[i // 5 % 5]}{' too' * (i % 3)}\n"
        for i in range(60)
        for label, word in (("pos", "was fine"), ("neg", "was dull"))
    ]
    run = train("classify", writer, tmp_path, "reviews.tsv", "".join(rows), 100)
    texts = ["the film was fine and the cast", "the plot was dull and the music too too"]
    assert [*regard.predict(run, texts)] == ["pos", "neg"]
    assert main(["evaluate", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == 1.0
    model = regard.load(run).double()
    tokens = torch.tensor([Tokenizer.load(run).encode(text)[:6] for text in texts])
    pad = torch.full((2, 2), model.config.pad_token)
    real, not_real = torch.ones(2, 6, dtype=torch.bool), torch.zeros(2, 2, dtype=torch.bool)
    left = model(torch.cat([pad, tokens], dim=1), torch.cat([not_real, real], dim=1)).logits
    right = model(torch.cat([tokens, pad], dim=1), torch.cat([real, not_real], dim=1)).logits
    torch.testing.assert_close(left, model(tokens).logits, rtol=0, atol=1e-9)
    torch.testing.assert_close(right, left, rtol=0, atol=1e-9)
    zoo.save(regard.load(run), tmp_path / "published", layout="hf")
    published = json.loads((tmp_path / "published" / "config.json").read_text())
    assert published["architectures"][0].endswith("ForSequenceClassification")
    assert published["id2label"] == {"0": "neg", "1": "pos"}


def test_a_decoder_learns_tags(writer, tmp_path):
    names, places = ("Anna", "Berta", "Carla", "Dora"), ("Rome", "Paris", "Oslo", "Bern", "Wien")
    text = "".join(
        f"{a}\tB-PER\nlives\tO\nin\tO\n{b}\tB-LOC\n\n{b}\tB-LOC\nlikes\tO\n{a}\tB-PER\n\n"
        for a, b in ((names[i % 4], places[i % 5]) for i in range(60))
    )
    run = train("tag", writer, tmp_path, "train.conll", text, 100)
    said = [*regard.predict(run, ["Rome likes Dora", "Anna lives in Oslo"])]
    assert said == ["Rome/B-LOC likes Dora/B-PER", "Anna/B-PER lives in Oslo/B-LOC"]


def test_a_decoder_says_a_tag_when_it_has_read_the_word(writer):
    task = Tag(TaggedText(max_len=40), Tokenizer.load(writer), ("O", "B-PER"))
    sentence = Sentence(("Anna", "lives", "Unheardofword"), ("B-PER", "O", "B-PER"))
    words = task.tokenizer.encode_words([sentence.words])[0]
    assert len(words[2]) > 1
    ends = torch.tensor([*map(len, words)]).cumsum(0)
    for model, places in ((TINY, ends - torch.tensor([*map(len, words)])), (FAMILIES["gpt2"], ends - 1)):
        task.configure(replace(model, vocab_size=0))
        (piece,) = task.encode([sentence])
        assert piece.tokens.tolist() == [token for word in words for token in word]
        assert piece.places.tolist() == places.tolist()


def test_a_decoder_learns_answers(writer, tmp_path, capsys):
    paragraphs = [
        {
            "context": f"the cat is {a} and the dog is {b} .",
            "qas": [
                {"id": f"{a}{b}{w}", "question": f"what is the {w} ?", "answers": [{"text": c, "answer_start": at}]}
                for w, c, at in (("cat", a, 11), ("dog", b, 11 + len(a) + 16))
            ],
        }
        for a in ("red", "blue", "green", "grey", "black", "white", "brown", "pink")
        for b in ("old", "young", "small", "big", "thin", "fat", "wild", "tame", "slow")
    ]
    run = train("answer", writer, tmp_path, "train.json", json.dumps({"data": [{"paragraphs": paragraphs}]}), 150)
    assert main(["evaluate", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["f1"] > 80


def test_families_without_a_head_are_told_who_has_one(writer):
    tokenizer = Tokenizer.load(writer)
    tasks = {
        "classes": Classify(LabelledText(), tokenizer, ("a", "b")),
        "tags": Tag(TaggedText(), tokenizer, ("a", "b")),
        "answers": Answering(QuestionText(), tokenizer),
    }
    for what, task in tasks.items():
        with pytest.raises(ConfigError, match=rf"this TransformerConfig has no head for {what}; .*bert"):
            task.configure(TransformerConfig())
    with pytest.raises(ConfigError, match="this NeoXConfig has no head for answers"):
        tasks["answers"].configure(NEOX.sizes["phi-1"])


def test_a_classifier_may_learn_to_write_again(writer):
    tokenizer = Tokenizer.load(writer)
    config = zoo.load(writer, head="classify", labels=["a", "b"], missing="head").config
    found = Language(PlainText(seq_len=64), tokenizer).configure(config)
    assert (found.head, found.labels) == ("causal_lm", ())
