"""Prompting: choices as scored by hand from logits, shots and calibration by their formulas, and what shots bring."""

from __future__ import annotations

import copy
import json
import random
from dataclasses import replace
from itertools import chain

import pytest
import torch

from regard import zoo
from regard.cli import main
from regard.core.errors import ConfigError, InputError
from regard.data.learn import train_tokenizer
from regard.data.source import Fault, values
from regard.models.bert import BertConfig
from regard.models.gpt2 import GPT2Config
from regard.models.transformer import TransformerConfig
from regard.tasks.classify import Labelled
from regard.tasks.prompt import EMPTY, Item, Prompting, Template, classes, drawn, questions

TEXTS = ["a fine film", "dull", "what a long and very dull film that was", "music"]
LABELS = {"1": "good", "0": "not so good"}
ITEMS = classes([Labelled((text,), "10"[i % 2]) for i, text in enumerate(TEXTS)], LABELS)
SHOTS = classes([Labelled((text,), label) for text, label in (("fine music", "1"), ("a dull film", "0"))], LABELS)
TEMPLATE = Template("Input: {text}\nLabel: {label}")


@pytest.fixture(scope="module", params=["bpe", "characters"])
def tokenizer(request):
    read = [f"Input: {text}\nLabel: {label}\n\nN/A [MASK]" for text in TEXTS for label in LABELS.values()]
    return train_tokenizer(request.param, read * 5, 320)


@pytest.fixture(scope="module")
def model(tokenizer):
    config = GPT2Config(
        vocab_size=len(tokenizer), embed_dim=16, ffn_dim=32, num_heads=2, num_layers=2, max_seq_len=200, pad_token=0,
        bos_token=1, eos_token=2,
    )  # fmt: skip
    model = zoo.build(config, seed=3, dtype=torch.float64).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8)  # so that choices differ
    return model


def by_hand(model, tokenizer, before, item, per="token"):
    """The log-probability of each choice from one forward pass over the whole of it, divided as asked."""
    found = []
    for words in item.choices:
        prompt = [1, *tokenizer.encode(before), *tokenizer.encode(f"Input: {item.fields['text']}\nLabel:")]
        choice = tokenizer.encode(f" {words}")
        with torch.no_grad():
            logprobs = model(torch.tensor([[*prompt, *choice]])).logits[0].log_softmax(dim=-1)
        total = sum(float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(choice))
        found.append(total / {"token": len(choice), "character": len(words), "choice": 1}[per])
    return found


def written(shots):
    return [f"Input: {shot.fields['text']}\nLabel: {shot.choices[shot.target]}\n\n" for shot in shots]


@pytest.mark.parametrize("per", ["token", "character", "choice"])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_scores_are_those_of_each_choice_by_hand(model, tokenizer, per, count):
    asking = Prompting(model, tokenizer, TEMPLATE, SHOTS[:count], per=per)
    found = asking.scores([asking.asked(item) for item in ITEMS])
    # the shots are read as tokens of their own, one after the other
    before = written(SHOTS[:count])
    for item, scores in zip(ITEMS, found, strict=True):
        assert [*scores] == pytest.approx(by_hand(model, Each(tokenizer), before, item, per), rel=1e-9)


class Each:
    """A tokenizer that encodes several texts one by one."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def encode(self, text):
        texts = [text] if isinstance(text, str) else text
        return [*chain.from_iterable(map(self.tokenizer.encode, texts))]


def test_an_example_is_scored_alone_as_among_others(model, tokenizer):
    asking = Prompting(model, tokenizer, TEMPLATE, SHOTS)
    together = asking.scores([asking.asked(item) for item in ITEMS * 90])
    for item, scores in zip(ITEMS * 2, together, strict=False):
        (alone,) = asking.scores([asking.asked(item)])
        assert [*scores] == pytest.approx([*alone], rel=1e-9)


def test_questions_may_each_have_their_choices(model, tokenizer):
    asking = Prompting(model, tokenizer, TEMPLATE)
    items = [Item({"text": "dull"}, ("good", "a film", "music"), 1), Item({"text": "music"}, ("fine",), 0), ITEMS[0]]
    for item, scores in zip(items, asking.scores([asking.asked(item) for item in items]), strict=True):
        assert [*scores] == pytest.approx(by_hand(model, tokenizer, "", item), rel=1e-9)
    assert asking.score(items[:2]).scores.keys() == {"accuracy"}


def test_calibration_by_hand(model, tokenizer):
    plain, fair = (Prompting(model, tokenizer, TEMPLATE, SHOTS, calibrate=each) for each in (False, True))

    def shares(item):
        scores = torch.tensor(by_hand(model, Each(tokenizer), written(SHOTS), item), dtype=torch.float64)
        return scores.softmax(dim=0)

    bias = torch.stack([shares_of_empty(model, tokenizer, text) for text in EMPTY]).mean(dim=0)
    for item in ITEMS:
        asked = [plain.asked(item)]
        assert plain.shares(asked)[0].tolist() == pytest.approx(shares(item).tolist(), rel=1e-9)
        expected = shares(item) / bias
        assert fair.shares(asked)[0].tolist() == pytest.approx((expected / expected.sum()).tolist(), rel=1e-9)


def shares_of_empty(model, tokenizer, text):
    """The shares of the labels after a text without content."""
    item = Item({"text": text}, tuple(LABELS.values()))
    return torch.tensor(by_hand(model, Each(tokenizer), written(SHOTS), item), dtype=torch.float64).softmax(dim=0)


def test_a_tokenizer_without_a_start_needs_none(model, tokenizer):
    bare = copy.copy(tokenizer)
    bare.bos = None
    asking = Prompting(model, bare, TEMPLATE)
    for items in (ITEMS, ITEMS * 90):
        for item, scores in zip(ITEMS, asking.scores([asking.asked(each) for each in items]), strict=False):
            prompt, choice = bare.encode(f"Input: {item.fields['text']}\nLabel:"), bare.encode(" good")
            with torch.no_grad():
                logprobs = model(torch.tensor([[*prompt, *choice]])).logits[0].log_softmax(dim=-1)
            total = sum(float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(choice))
            assert scores[0] == pytest.approx(total / len(choice), rel=1e-9)


class Blank(Each):
    """A tokenizer that puts a blank before whatever it cuts, as Llama's does."""

    bos, pad = 1, 0

    def encode(self, text):
        return self.tokenizer.encode(f" {text}")

    def encode_batch(self, texts):
        return [self.encode(text) for text in texts]


def test_a_blank_that_a_tokenizer_puts_before_texts_stands_before_the_first_alone(model):
    characters = train_tokenizer("characters", ["".join(TEXTS) + "InputLabe: \n/A[MASK]good"], 320)
    blank = Blank(characters)
    for count in (0, 2):
        asking = Prompting(model, blank, TEMPLATE, SHOTS[:count])
        asked = asking.asked(ITEMS[0])
        read = [*chain.from_iterable(asking.shots[: asked.shots]), *asked.prompt, *asked.choices[0]]
        whole = "".join(written(SHOTS[:count])) + f"Input: {ITEMS[0].fields['text']}\nLabel: good"
        assert asked.shots == count
        assert read == blank.encode(whole)


def test_what_has_no_content_has_fewer_shots_where_it_is_longer_than_a_text(model, tokenizer):
    item = Item({"text": "a"}, ITEMS[0].choices)
    asked = Prompting(model, tokenizer, TEMPLATE, SHOTS).asked(item)
    before = sum(len(tokenizer.encode(text)) for text in written(SHOTS))
    needed = 1 + before + len(asked.prompt) + max(map(len, asked.choices))
    tight = zoo.build(replace(model.config, max_seq_len=needed), seed=0, dtype=torch.float64).eval()
    asking = Prompting(tight, tokenizer, TEMPLATE, SHOTS, calibrate=True)
    assert asking.asked(item) == asked
    assert asking.asked(Item({"text": "N/A N/A"}, item.choices), asked.shots).shots < asked.shots
    assert asking.shares([asked])[0].sum() == pytest.approx(1.0)


def test_as_many_shots_stand_there_as_there_are_positions_for(model, tokenizer):
    many = Prompting(model, tokenizer, TEMPLATE, SHOTS * 20)
    asked = [many.asked(item) for item in ITEMS]
    sizes = [len(tokenizer.encode(text)) for text in written(SHOTS * 20)]
    for each in asked:
        used = 1 + len(each.prompt) + max(map(len, each.choices))
        assert used + sum(sizes[: each.shots]) <= 200 < used + sum(sizes[: each.shots + 1])
    assert len({each.shots for each in asked}) > 1
    for item, each, scores in zip(ITEMS, asked, many.scores(asked), strict=True):
        before = written((SHOTS * 20)[: each.shots])
        assert [*scores] == pytest.approx(by_hand(model, Each(tokenizer), before, item), rel=1e-9)
    with pytest.raises(InputError, match="the model 200 positions"):
        many.asked(Item({"text": "dull " * 300}, ("good",)))


def test_shots_are_drawn_by_the_seed():
    items = [Item({"text": str(i)}, ("a", "b"), 0) for i in range(50)]
    first, again, other = (drawn(items, 5, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len({item.fields["text"] for item in first}) == 5
    for count in (-1, 51):
        with pytest.raises(ConfigError, match=f"shots {count} must lie between 0 and 50"):
            drawn(items, count, 0)


def test_a_template_is_written_out():
    template = Template("{text} / {pair}\n=> {label}")
    item = Item({"text": "a", "pair": "{b}"}, ("x", "y"), 1)
    assert (template.prompt(item.fields), template.choice("x")) == ("a / {b}\n=>", " x")
    assert template.whole(item) == "a / {b}\n=> y"
    assert Template("{{{text}}}{label}").prompt({"text": "a"}) == "{a}"


@pytest.mark.parametrize(
    "text", ["{text}", "{label} {text}", "{label}", " {label}", "{text} {label}!", "{text {label}", "{label}{label}"]
)
def test_templates_that_cannot_be(text):
    with pytest.raises(ConfigError, match="the template"):
        Template(text)


def test_what_cannot_be_asked_is_refused(model, tokenizer):
    with pytest.raises(ConfigError, match=r"a place for 'txt', an example has text \(did you mean 'text'\?\)"):
        Prompting(model, tokenizer, Template("{txt} {label}")).asked(ITEMS[0])
    with pytest.raises(ConfigError, match="per must be one of token, character, choice"):
        Prompting(model, tokenizer, TEMPLATE, per="word")
    with pytest.raises(InputError, match="the choice '' has no token"):
        Prompting(model, tokenizer, Template("{text}{label}")).asked(Item({"text": "x"}, ("",)))
    with pytest.raises(InputError, match="the class '2' is none of 1, 0"):
        classes([Labelled(("x",), "2")], LABELS)
    for config in (BertConfig(vocab_size=120, embed_dim=8, ffn_dim=8, num_heads=1, num_layers=1),
                   TransformerConfig(vocab_size=9, embed_dim=8, ffn_dim=8, num_heads=1)):  # fmt: skip
        with pytest.raises(ConfigError, match="does not go on with a text; gpt2 and other"):
            Prompting(zoo.build(config), tokenizer, TEMPLATE)


def test_questions_with_choices_are_read(tmp_path):
    rows = [
        {"text": "2 + 2?", "choices": ["3", "4"], "label": 1},
        {"text": "1 + 1?", "choices": ["2", "3"], "label": "2"},
        {"text": "?", "choices": "23", "label": 0},
        {"text": "?", "choices": ["2"], "label": 1},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    *good, bad, worse = questions(str(tmp_path / "a.jsonl"))
    assert [*values(iter(good))] == [Item({"text": "2 + 2?"}, ("3", "4"), 1), Item({"text": "1 + 1?"}, ("2", "3"), 0)]
    assert isinstance(bad, Fault)
    assert "'choices' should be a list of texts, found '23'" in str(bad)
    assert "'label' should be one of the choices, or its number from 0, found 1" in str(worse)


# the command ---------------------------------------------------------------------------------------------------------

WORDS, TEMPLATED = ("cat", "dog", "sun", "sea"), ("--template", "{text} {label}")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model of texts in which all words have the same label, red or blue by chance: an example shows which."""
    folder, rng = tmp_path_factory.mktemp("prompt"), random.Random(0)
    with (folder / "train.jsonl").open("w") as file:
        for _ in range(1500):
            label = rng.choice(["red", "blue"])
            text = "\n\n".join(f"{rng.choice(WORDS)} {label}" for _ in range(6))
            file.write(json.dumps({"text": text}) + "\n")
    for label in ("red", "blue"):
        (folder / f"{label}.tsv").write_text("".join(f"{label}\t{word}\n" for word in WORDS))
    options = {
        "data.train": folder / "train.jsonl", "data.vocab-size": 320, "data.seq-len": 32, "data.max-tokens": 2048,
        "model.max-seq-len": 32, "model.embed-dim": 64, "model.ffn-dim": 128, "model.num-heads": 4,
        "model.num-layers": 2, "model.dropout": 0, "model.embed-dropout": 0, "num-steps": 200, "valid-every": 200,
        "log-every": 100, "schedule.lr": 0.003, "schedule.warmup": 50, "average": 0,
    }  # fmt: skip
    words = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    assert main(["train", "language", *words, "--out", str(folder / "run"), "--quiet"]) == 0
    return folder


def printed(capsys, *argv):
    capsys.readouterr()
    assert main([*map(str, argv)]) == 0
    return capsys.readouterr().out


def test_shots_show_what_is_wanted(run, capsys):
    def accuracy(label, *options):
        argv = ["prompt", run / "run", "--data", run / f"{label}.tsv", "--labels", "red,blue", *TEMPLATED, *options]
        return json.loads(printed(capsys, *argv, "--json"))["accuracy"]

    without = sum(accuracy(label) for label in ("red", "blue")) / 2
    shown = sum(accuracy(label, "--examples", run / f"{label}.tsv", "--shots", 3) for label in ("red", "blue")) / 2
    assert without == 0.5  # whichever it says of a text is right in one of the two files
    assert shown > 0.9


def test_texts_are_answered_line_by_line(run, capsys):
    argv = ["prompt", run / "run", "cat", "dog", "--labels", "warm=red, cold=blue", *TEMPLATED]
    shots = ["--examples", run / "shots.tsv", "--shots", 2, "--calibrate", "--per", "choice"]
    (run / "shots.tsv").write_text("cold\tcat\ncold\tsea\n")
    assert printed(capsys, *argv, *shots) == "cold\ncold\n"
    first, second = map(json.loads, printed(capsys, *argv, *shots, "--json").splitlines())
    assert first["label"] == second["label"] == "cold"
    assert sum(first["shares"].values()) == pytest.approx(1)
    pairs = ["prompt", run / "run", "--pair", "second", "--labels", "red,blue", "cat\tdog"]
    assert printed(capsys, *pairs).strip() in ("red", "blue")


def test_the_model_goes_where_it_is_told(run, capsys):
    argv = ["prompt", run / "run", "cat", "--labels", "red,blue", *TEMPLATED, "--json"]
    exact = json.loads(printed(capsys, *argv))
    assert main([*map(str, argv), "--device", "auto", "--dtype", "bfloat16"]) == 0
    said = capsys.readouterr()
    assert said.err.startswith("regard: on ")
    assert said.err.endswith(", in bfloat16\n")
    assert json.loads(said.out)["shares"] != exact["shares"]


def test_choices_are_scored(run, capsys):
    rows = [{"text": "cat", "choices": ["red", "blue", "green"], "label": "red"}]
    (run / "choices.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 4))
    argv = ["prompt", run / "run", "--choices", "--data", run / "choices.jsonl", "--examples", run / "choices.jsonl"]
    said = printed(capsys, *argv, *TEMPLATED, "--shots", 3)
    assert "4 of 4, after 3 examples" in said
    assert "macro" in said
    assert printed(capsys, *argv, "--template", r"{text}\n{label}", "--shots", 3) != said


def test_without_files_it_tells_languages_apart(run, capsys):
    argv = ["prompt", run / "run", "un", "--examples", "languages", "--shots", 1]
    assert printed(capsys, *argv).strip() in {"de", "en", "es", "fr", "it", "nl", "pl", "pt"}


@pytest.mark.parametrize("place", ["{text:d}", "{text!r:>{w}}", "{text!r}"])
def test_places_say_nothing_of_how_a_text_is_written(place):
    with pytest.raises(ConfigError, match=r"says how to write 'text'; texts are written as they are, \{text\}$"):
        Template(f"{place} => {{label}}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["x"], "there must be two labels or more"),
        (["x", "--labels", "a", "b"], "give --labels A=WORDS,B=WORDS"),  # b is a text
        (["x", "--labels", "a,b="], "each with words"),
        (["x", "--labels", "a=up,b,a=down"], "--labels: 'a' is named twice"),
        (["x", "--data", "languages"], "give texts or --data, not both"),
        (["x", "--labels", "a,b", "--shots", "2"], "--shots 2 needs --examples F"),
        (["x", "--labels", "a,b", "--choices"], "--choices needs --data F"),
        (["x", "--labels", "a,b", "--pair", "p"], "two texts with a tab between, found 1"),
        (["x", "--labels", "a,b", "--template", "{text}"], "must have {label} once, at its end"),
    ],
)
def test_what_makes_no_prompt_is_refused_in_one_line(run, capsys, options, message):
    capsys.readouterr()
    assert main(["prompt", str(run / "run"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
