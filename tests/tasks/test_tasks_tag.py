"""Tagging: which token a word's tag stands at, what spans are, and that a sentence of any length has all its tags."""

from __future__ import annotations

import json
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import seqeval.metrics
import seqeval.metrics.sequence_labeling
import tokenizers
import torch
from hypothesis import given
from hypothesis import strategies as st

import regard
from regard import zoo
from regard.cli import main
from regard.core.errors import CheckpointError, ConfigError, DataError
from regard.core.types import IGNORE
from regard.data.conll import Sentence
from regard.data.learn import train_tokenizer
from regard.data.tokenize import Tokenizer
from regard.models.bert import BertConfig
from regard.models.gpt2 import GPT2Config
from regard.models.transformer import TransformerConfig
from regard.tasks.tag import Rules, Tag, TaggedText, compared, likeliest, mixed_phrases, spans, whole

WORDS = ("Anna", "Müller-Lüdenscheidt", "lives", "in", "Rome", ".")
TAGS = ("B-PER", "I-PER", "O", "O", "B-LOC", "O")
LABELS = ("B-LOC", "B-PER", "I-PER", "O")
TINY = BertConfig(vocab_size=0, embed_dim=16, ffn_dim=32, num_heads=2, num_layers=2, max_seq_len=32)
WIKIANN = Path(__file__).parents[3] / "shared/data/wikiann-en"


@pytest.fixture(scope="module", params=["wordpiece", "bpe"])
def tokenizer(request):
    return train_tokenizer(request.param, [" ".join(WORDS), "Berlin is in Germany"] * 5, 300, framed=True)


@pytest.fixture(scope="module")
def task(tokenizer):
    return Tag(TaggedText(max_len=32, max_tokens=100), tokenizer, LABELS)


@pytest.fixture(scope="module")
def model(task):
    return zoo.build(task.configure(TINY), seed=3, dtype=torch.float64).eval()


def test_a_tag_stands_at_its_words_first_token(task):
    batch = task.example(Sentence(WORDS, TAGS))
    tokens, targets = batch["tokens"][0].tolist(), batch["targets"][0].tolist()
    assert len(tokens) > len(WORDS) + 2, "some words are several tokens"
    places = [place for place, target in enumerate(targets) if target != IGNORE]
    assert [LABELS[targets[place]] for place in places] == [*TAGS]
    for word, start, end in zip(WORDS, places, [*places[1:], len(tokens) - 1], strict=True):
        said = task.tokenizer.decode(tokens[start:end]).strip().replace(" ", "")
        assert said in (word, task.tokenizer.decode(task.tokenizer.encode(word)).replace(" ", ""))
    assert tokens[0] == task.tokenizer.bos
    assert tokens[-1] == task.tokenizer.eos


def test_words_that_leave_nothing_are_unknown(task):
    words = ("Anna", "\u200b\u00ad", "Rome") if task.tokenizer.unk is not None else ("Anna", "in", "Rome")
    assert all(task.tokenizer.encode_words([words])[0])
    assert len(next(task.tags(zoo.build(task.configure(TINY)), [words]))) == 3


@pytest.mark.parametrize("max_len", [8, 11, 32])
def test_long_sentences_are_read_in_pieces_and_lose_no_word(tokenizer, max_len):
    task = Tag(TaggedText(max_len=max_len), tokenizer, LABELS)
    pieces = task.encode([Sentence(WORDS * 4, TAGS * 4), Sentence(("x" * 50,), ("O",))])
    assert all(len(piece.tokens) <= max_len for piece in pieces)
    assert [LABELS[target] for piece in pieces for target in piece.targets] == [*TAGS * 4, "O"]
    model = zoo.build(task.configure(TINY)).eval()
    assert [len(tags) for tags in task.tags(model, [WORDS * 4, ("x" * 50,), ()])] == [24, 1, 0]


def test_tags_do_not_depend_on_neighbours(task, model):
    texts = [WORDS[: 1 + i % 6] * (1 + i % 2) for i in range(20)]
    together = [*task.tags(model, texts)]
    assert together == [next(task.tags(model, [text])) for text in texts]
    batch = task.example(Sentence(WORDS, TAGS))
    del batch["targets"]
    scores = model(**batch).logits[0].detach().numpy()[task.cut([WORDS])[0][0][1]]
    path = likeliest(scores, Rules.of(LABELS))
    assert next(task.tags(model, [WORDS])) == tuple(LABELS[number] for number in path)


def test_other_tags_than_the_models_are_refused(task, model):
    other = Tag(task.data, task.tokenizer, LABELS[:2])
    with pytest.raises(CheckpointError, match=r"labels\.json: its 2 labels are not the 4 .* B-LOC, B-PER, I-PER, O$"):
        [*other.predict(model, ["Anna lives"])]


tags = st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B", "E-A", "S-B", "S-A", "E-B"])


@given(st.lists(st.lists(st.tuples(tags, tags), min_size=1, max_size=12), min_size=1, max_size=4))
def test_spans_and_their_scores_are_the_reference_packages(rows):
    true, said = ([[pair[side] for pair in row] for row in rows] for side in (0, 1))
    for row in true:
        expected = seqeval.metrics.sequence_labeling.get_entities(row)
        assert [(span.kind, span.start, span.end - 1) for span in spans(row)] == expected
    scores, _ = compared(true, said)
    expected = {
        "f1": seqeval.metrics.f1_score(true, said, zero_division=0),
        "precision": seqeval.metrics.precision_score(true, said, zero_division=0),
        "recall": seqeval.metrics.recall_score(true, said, zero_division=0),
        "accuracy": seqeval.metrics.accuracy_score(true, said),
    }
    assert scores == pytest.approx(expected)


def test_tags_without_a_scheme_are_spans_of_their_own():
    assert spans(("NN", "IN", "EX", "O", "I")) == [("NN", 0, 1), ("IN", 1, 2), ("EX", 2, 3), ("", 4, 5)]
    scores, _ = compared([("NOUN", "VERB", "IN")], [("VERB", "VERB", "IN")])
    assert scores["f1"] == pytest.approx(2 / 3)


def test_tags_that_are_only_held_out_are_known(tmp_path):
    rows = [f"Anna\t{'B-RARE' if i % 20 == 0 else 'B-PER'}\n\n" for i in range(60)]
    (tmp_path / "a.conll").write_text("".join(rows))
    assert TaggedText(train=str(tmp_path / "a.conll")).open().labels == ("B-PER", "B-RARE")


def test_labels_without_b_are_completed(tmp_path):
    (tmp_path / "a.conll").write_text("Anna\tI-PER\nlives\tO\n\n" * 40)
    task = TaggedText(train=str(tmp_path / "a.conll"), labels=("O", "I-PER")).open()
    assert task.labels == ("O", "I-PER", "B-PER")
    assert {task.labels[target] for piece in task.examples for target in piece.targets} == {"O", "B-PER"}


def test_i_begins_a_span_where_there_is_no_b():
    rules = Rules.of(("O", "I-A", "I-B"))
    assert all(rules.first)
    assert all(rules.last)
    assert rules.after.all()
    mixed = Rules.of(("O", "I-A", "I-B", "B-B"))
    assert mixed.first.tolist() == [True, True, False, True]
    assert mixed.after[:, 2].tolist() == [False, False, True, True]


def test_what_does_not_fit_is_refused(task):
    with pytest.raises(ConfigError, match=r"this TransformerConfig has no head for tags; .*\bbert, .* and \w+ have"):
        task.configure(TransformerConfig())
    with pytest.raises(ConfigError, match="this GPT2Config has no head for tags"):
        task.configure(GPT2Config(norm_order="post"))
    with pytest.raises(DataError, match=r"the tag 'B-PRE' is none of those learnt.*did you mean 'B-PER'"):
        task.encode([Sentence(("Anna",), ("B-PRE",))])
    with pytest.raises(ConfigError, match="max_len 4 must be at least 8"):
        TaggedText(max_len=4)


def test_the_phrases_have_spans_of_several_kinds():
    splits = mixed_phrases()
    kinds = [{span.kind for example in split for span in spans(example.tags)} for split in splits.values()]
    assert kinds[0] >= kinds[1] | kinds[2]
    assert len(kinds[0]) > 5
    assert all(len(example.words) == len(example.tags) for example in splits["train"])


OPTIONS = {
    "model.embed-dim": 16, "model.ffn-dim": 32, "model.num-heads": 2, "model.num-layers": 1, "data.vocab-size": 200,
    "num-steps": 150, "valid-every": 50, "log-every": 10, "schedule.lr": 0.01, "schedule.warmup": 5, "average": 0,
    "model.dropout": 0, "model.attn-dropout": 0, "model.head-dropout": 0,
}  # fmt: skip


def test_a_run_learns_predicts_and_scores(tmp_path, capsys):
    names, places = ("Anna", "Berta", "Carla", "Dora"), ("Rome", "Paris", "Oslo", "Bern", "Wien")
    rows = [
        f"{a}\tB-PER\nlives\tO\nin\tO\n{b}\tB-LOC\n\n{b}\tB-LOC\nlikes\tO\n{a}\tB-PER\n\n"
        for a, b in ((names[i % 4], places[i % 5]) for i in range(60))
    ]
    (tmp_path / "train.conll").write_text("".join(rows))
    options = [text for name, value in OPTIONS.items() for text in (f"--{name}", str(value))]
    run = tmp_path / "run"
    file = ["--data.train", str(tmp_path / "train.conll")]
    assert main(["train", "tag", *options, *file, "--out", str(run), "--quiet"]) == 0
    assert [*regard.predict(run, ["Dora lives in Oslo", "Rome likes Anna"])] == [
        "Dora/B-PER lives in Oslo/B-LOC",
        "Rome/B-LOC likes Anna/B-PER",
    ]
    capsys.readouterr()
    assert main(["evaluate", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["f1"] == 1.0
    assert main(["data", "check", str(tmp_path / "train.conll"), "--task", "tag", "--examples", "1"]) == 0
    assert "[B-PER][O][O][B-LOC]" in capsys.readouterr().out


def test_published_vocabularies_mark_words_by_their_blanks(tmp_path):
    """GPT-2's and RoBERTa's tokens hold the blank before their word."""
    core = tokenizers.ByteLevelBPETokenizer()
    core.train_from_iterator(["the cat sat on the mat the cat"] * 9, vocab_size=290, special_tokens=["<s>", "</s>"])
    core.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.load(tmp_path)
    words = ("the", "cat", "sat")
    expected = tokenizer.encode(" ".join(words))
    assert [token for word in tokenizer.encode_words([words])[0] for token in word] == expected
    assert tokenizer.decode(tokenizer.encode_words([words])[0][1]) == " cat"


@pytest.mark.skipif(not WIKIANN.exists(), reason=f"{WIKIANN} is not there")
def test_real_sentences_are_read():
    data = TaggedText(train=str(WIKIANN / "train.conll.gz"), valid=str(WIKIANN / "dev.conll.gz"))
    assert {split: len(found) for split, found in data.splits.items()} == {"train": 20000, "valid": 10000, "test": 0}


@given(st.lists(st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B", "E-B", "S-B"]), max_size=6))
def test_spans_that_begin_with_b_are_the_same_spans(tags):
    assert spans(whole(tags)) == spans(tags)
    assert whole(whole(tags)) == whole(tags)


@pytest.mark.parametrize("labels", [("O", "B-A", "I-A", "B-B", "I-B"), ("O", "B-A", "I-A", "E-A", "S-A"), ("X", "Y")])
@given(length=st.integers(0, 5), seed=st.integers(0, 99))
def test_the_likeliest_tags_are_those_of_exhaustive_search(labels, length, seed):
    scores = np.random.default_rng(seed).normal(size=(length, len(labels))).astype(np.float32)
    rules = Rules.of(labels)

    def allowed(path):
        return not path or bool(
            rules.first[path[0]] and rules.last[path[-1]] and all(rules.after[a, b] for a, b in pairwise(path))
        )

    every = [path for path in product(range(len(labels)), repeat=length) if allowed(path)]
    best = max(every, key=lambda path: sum(float(row[tag]) for row, tag in zip(scores, path, strict=True)))
    assert likeliest(scores, rules) == list(best)


@given(st.lists(st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B"]), max_size=7))
def test_the_rules_allow_what_whole_spans_look_like(tags):
    labels = ("O", "B-A", "I-A", "B-B", "I-B")
    rules, path = Rules.of(labels), [labels.index(tag) for tag in whole(tags)]
    assert all(rules.after[a, b] for a, b in pairwise(path))
    assert not path or rules.first[path[0]]
    assert not path or rules.last[path[-1]]
