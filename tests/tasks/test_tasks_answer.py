"""Question answering: where answers stand in windows, what the best one is, and the figures of SQuAD's own program."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics.functional.text import squad

import regard
from regard import zoo
from regard.cli import main
from regard.core.errors import ConfigError, DataError, InputError
from regard.data.facts import facts
from regard.data.learn import train_tokenizer
from regard.data.squad import Answer, Question
from regard.models.bert import BertConfig
from regard.objectives.point import Point, pointers
from regard.tasks import answer
from regard.tasks.answer import NOWHERE, Answering, QuestionText, compared, likeliest

PASSAGE = (
    "In France people speak French and pay with the euro. In Japan people speak Japanese and pay with the yen. " * 3
)
TINY = BertConfig(vocab_size=0, embed_dim=16, ffn_dim=32, num_heads=2, num_layers=2, max_seq_len=64)
XQUAD = Path(__file__).parents[3] / "shared/data/xquad-en"


@pytest.fixture(scope="module", params=["wordpiece", "bpe"])
def task(request):
    tokenizer = train_tokenizer(request.param, [PASSAGE, "What do people pay with?"] * 5, 400, framed=True)
    return Answering(QuestionText(max_len=40, stride=6, max_question=12, max_tokens=200), tokenizer)


@pytest.fixture(scope="module")
def model(task):
    return zoo.build(task.configure(TINY), seed=3, dtype=torch.float64).eval()


def test_windows_hold_the_question_and_all_of_the_passage(task):
    windows = task.windows("What do people pay with?", PASSAGE)
    assert len(windows) > 2
    question = task.tokenizer.encode("What do people pay with?")[:12]
    covered = np.zeros(len(PASSAGE), dtype=bool)
    for window in windows:
        assert len(window.tokens) <= 40
        assert window.tokens[1 : 1 + len(question)].tolist() == question
        assert window.choices[NOWHERE]
        for start, end in window.offsets[1:][window.choices[1:]]:
            covered[start:end] = True
    assert all(covered[i] for i, char in enumerate(PASSAGE) if char != " ")


@pytest.mark.parametrize("text", ["French", "the yen", "Japanese and pay", "In France people"])
def test_the_answer_is_marked_where_all_of_it_is(task, text):
    start = PASSAGE.index(text)
    windows = task.windows("What?", PASSAGE, Answer(text, start))
    marked = [window for window in windows if window.start != NOWHERE]
    assert marked
    for window in marked:
        said = PASSAGE[window.offsets[window.start, 0] : window.offsets[window.end, 1]]
        assert said.strip() == text
    for window in windows:
        places = window.offsets[1:][window.choices[1:]]
        if window.start == NOWHERE:
            assert places[0][0] > start or places[-1][1] < start + len(text)


def test_a_batch_by_hand(task):
    batch = task.example(Question("q", "What?", PASSAGE, (Answer("French", PASSAGE.index("French")),)))
    assert batch["choices"][:, 0].all()
    assert not batch["choices"][~batch["valid"]].any()
    assert batch["targets"].shape == (len(batch["tokens"]), 2)
    assert "types" not in batch
    assert task.inputs(task.windows("What?", PASSAGE), typed=True)["types"].max() == 1


def test_pointing_is_the_mean_of_two_cross_entropies(task, model):
    batch = task.example(Question("q", "What?", PASSAGE, (Answer("French", PASSAGE.index("French")),)))
    loss = Point().loss(model, batch)
    logits = model(**{name: batch[name] for name in ("tokens", "valid", "types") if name in batch}).logits
    expected = []
    for scores, choices, targets in zip(logits, batch["choices"], batch["targets"], strict=True):
        for pointer in (0, 1):
            allowed = scores[choices, pointer]
            expected.append(allowed.logsumexp(0) - scores[targets[pointer], pointer])
    torch.testing.assert_close(loss.mean, torch.stack(expected).mean())
    assert int(loss.count) == 2 * len(batch["tokens"])
    assert torch.isneginf(pointers(logits, batch["choices"])[~batch["choices"][:, None].expand(-1, 2, -1)]).all()


@settings(max_examples=30)
@given(st.integers(2, 9), st.integers(1, 5), st.integers(1, 6), st.integers(0, 99))
def test_the_best_spans_are_those_of_exhaustive_search(size, longest, count, seed):
    rng = np.random.default_rng(seed)
    starts, ends = rng.normal(size=(2, size)).astype(np.float32)
    starts[rng.random(size) < 0.2] = -np.inf
    found = likeliest(starts, ends, longest, count)
    spans = [
        (float(starts[i] + ends[j]), i, j)
        for i, j in product(range(1, size), range(1, size))
        if 0 <= j - i < longest and np.isfinite(starts[i] + ends[j])
    ]
    assert found == sorted(spans, key=lambda span: -span[0])[: len(found)]
    assert len(found) == min(count, len(spans))


def test_answers_do_not_depend_on_neighbours(task, model):
    pairs = [
        ("What?", PASSAGE),
        ("Where do people speak?", PASSAGE[:60]),
        ("With what?", "the euro"),
        ("?", PASSAGE * 3),
    ]
    together = [*task.answers(model, pairs * 40)]
    for pair, best in zip(pairs * 40, together, strict=True):
        if pair[1] is PASSAGE or len(pair[1]) < 100:
            (alone,) = task.answers(model, [pair])
            assert [(each.text, each.start) for each in alone] == [(each.text, each.start) for each in best]
            assert [each.score for each in alone] == pytest.approx([each.score for each in best], abs=1e-5)
    assert all(
        pair[1][each.start :].startswith(each.text)
        for pair, best in zip(pairs * 40, together, strict=True)
        for each in best
    )
    assert all(sum(each.share for each in best) == pytest.approx(1) for best in together)


def test_no_answer_is_one_where_there_may_be_none(task, model):
    never = Answering(QuestionText(max_len=40, stride=6, max_question=12), task.tokenizer)
    maybe = Answering(QuestionText(max_len=40, stride=6, max_question=12, no_answer=True), task.tokenizer)
    pair = [("What?", PASSAGE)]
    assert "" not in [each.text for each in next(never.answers(model, pair, count=10_000))]
    assert "" in [each.text for each in next(maybe.answers(model, pair, count=10_000))]


words = st.lists(st.sampled_from(["the", "a", "Cat", "cat,", "dog", "An", "U.S.", "x-ray", ""]), max_size=5).map(
    " ".join
)


@given(st.lists(st.tuples(words, st.lists(words, max_size=3)), min_size=1, max_size=4))
def test_figures_are_those_of_the_reference_program(pairs):
    outputs, known = [output for output, _ in pairs], [answers for _, answers in pairs]
    expected = squad(
        [{"id": str(i), "prediction_text": output} for i, output in enumerate(outputs)],
        [{"id": str(i), "answers": {"text": each or [""], "answer_start": [0]}} for i, each in enumerate(known)],
    )
    assert compared(outputs, known).scores == pytest.approx({name: float(value) for name, value in expected.items()})


def test_passages_are_held_out_whole(tmp_path, monkeypatch):
    asked = [{"id": f"{{}}{i}", "question": "who?", "answers": [{"text": "he", "answer_start": 0}]} for i in range(3)]
    paragraphs = [
        {"context": f"he is {n}", "qas": [each | {"id": each["id"].format(n)} for each in asked]}
        for n in [*range(40), 0]
    ]
    (tmp_path / "some.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    data = QuestionText(train=str(tmp_path / "some.json"), vocab_size=60, max_question=16)
    held, learnt = ({each.context for each in data.splits[name]} for name in ("valid", "train"))
    assert (len(held), len(learnt), held & learnt) == (2, 38, set())
    assert len(data.splits["valid"]) == 9
    assert data.open().where([4]) == f"{data.train}, question 21"
    monkeypatch.setattr(answer, "MOST", 5)
    assert len(replace(data).splits["valid"]) == 6
    (tmp_path / "one.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs[:1]}]}))
    with pytest.raises(DataError, match="one passage is too few"):
        _ = QuestionText(train=str(tmp_path / "one.json")).splits


def test_settings_that_cannot_be():
    with pytest.raises(ConfigError, match="leaves a passage 24 tokens"):
        QuestionText(max_len=64, max_question=32, stride=24)
    with pytest.raises(ConfigError, match=r"need data\.train"):
        QuestionText(valid="x")


def test_the_facts_are_true_of_their_passages():
    splits = facts()
    for questions in splits.values():
        for each in questions[:300]:
            (answer,) = each.answers
            assert each.context[answer.start :].startswith(answer.text)
    passages = [{each.context for each in questions} for questions in splits.values()]
    assert not passages[0] & (passages[1] | passages[2])


def test_a_run_learns_answers_and_scores(tmp_path, capsys):
    paragraphs = [
        {
            "context": f"the cat is {a} and the dog is {b} .",
            "qas": [
                {"id": f"{a}{b}{w}", "question": f"what is the {w} ?", "answers": [{"text": c, "answer_start": at}]}
                for w, c, at in (("cat", a, 11), ("dog", b, 11 + len(a) + 16))
            ],
        }
        for a in ("red", "blue", "green", "grey", "black", "white", "brown", "pink", "gold", "pale")
        for b in ("old", "young", "small", "big", "thin", "fat", "wild", "tame", "lame", "slow")
    ]
    (tmp_path / "train.json").write_text(json.dumps({"data": [{"paragraphs": paragraphs}]}))
    options = {
        "data.train": tmp_path / "train.json", "data.vocab-size": 80, "model.embed-dim": 32, "model.ffn-dim": 64,
        "model.num-heads": 2, "model.num-layers": 2, "num-steps": 300, "valid-every": 100, "log-every": 50,
        "schedule.lr": 0.002, "schedule.warmup": 20, "average": 0, "model.dropout": 0, "model.attn-dropout": 0,
        "data.max-tokens": 1024,
    }  # fmt: skip
    run = tmp_path / "run"
    words = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    assert main(["train", "answer", *words, "--out", str(run), "--quiet"]) == 0
    assert main(["evaluate", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["f1"] > 80
    (said,) = regard.predict(run, ["what is the dog ?\tthe cat is red and the dog is young ."])
    assert said in ("young", "red")
    with pytest.raises(InputError, match="a question and its passage, with a tab between"):
        [*regard.predict(run, ["what?"])]
    assert main(["data", "check", str(tmp_path / "train.json"), "--task", "answer", "--examples", "1"]) == 0


@pytest.mark.skipif(not XQUAD.exists(), reason=f"{XQUAD} is not there")
def test_real_questions_have_their_answers_in_a_window():
    data = QuestionText(train=str(XQUAD / "train.json.gz"), valid=str(XQUAD / "val.json.gz"), vocab_size=4000)
    task = data.open()
    assert len(data.splits["train"]) == 872
    for each in data.splits["valid"]:
        answer = each.answers[0]
        marked = [w for w in task.windows(each.question, each.context, answer) if w.start != NOWHERE]
        assert marked, each
        said = each.context[marked[0].offsets[marked[0].start, 0] : marked[0].offsets[marked[0].end, 1]]
        assert answer.text in said
