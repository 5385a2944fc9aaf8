import json
import re
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

from regard.explain.cost import memory, parts
from regard.explain.page import Page, Picture, Sample, curve, duration, marked_changes, render, size

VOID = {"meta", "line", "circle", "rect", "polyline", "path"}


class Balanced(HTMLParser):
    """Fails on a tag that is not closed where it should be; collects what the page would fetch."""

    def __init__(self):
        super().__init__()
        self.open, self.fetched, self.text = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        self.fetched += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def page():
    layer = nn.Linear(4, 4)
    log = [
        {"step": 1, "epoch": 0, "loss": 3.0, "lr": 0.1, "tokens_per_second": 100.0, "seconds": 1.0},
        {"step": 2, "valid_loss": 2.0, "exact_match": 0.5, "bleu": 12.5, "seconds": 2.0},
        {"step": 3, "epoch": 0, "loss": 1.0, "lr": 0.2, "tokens_per_second": 120.0, "seconds": 3.0},
    ]
    return Page(
        title="a < b",
        summary="x & y",
        log=log,
        facts={"BLEU": "12.5"},
        samples=[Sample("one", "un", "un"), Sample("<script>", "deux trois", "deux quatre")],
        pictures=[Picture("<svg></svg>", "one → un")],
        choice="decoder.0.cross, average of all heads",
        grid="<div></div>",
        model=parts(layer, input=torch.zeros(1, 4)),
        memory=memory(layer, input=torch.zeros(1, 4)),
        length=1,
        recipe={"seed": 3, "note": "</pre>"},
        commands="regard train x",
        versions={"regard": "1.2"},
    )


def test_page_is_whole_and_fetches_nothing(page):
    html = render(page)
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    assert parser.fetched == []
    assert "script" not in re.sub(r"&lt;script&gt;", "", html)
    assert "url(" not in html
    assert "@import" not in html
    text = "".join(parser.text)
    quoted = json.dumps("</pre>")
    for part in ("a < b", "x & y", "deux", "average of all heads", quoted, "regard 1.2", "Loss per token"):
        assert part in text


def test_page_leaves_out_what_there_is_none_of(page):
    bare = Page(**{**vars(page), "log": [], "samples": [], "pictures": []})
    html = render(bare)
    assert "Loss per token" not in html
    assert "Translations" not in html
    assert "What it looks at" not in html
    assert "The model" in html


def test_curve_takes_each_step_once_in_order(page):
    again = [*page.log, {"step": 1, "loss": 9.0}]
    assert curve(again, "loss") == [(1, 9.0), (3, 1.0)]
    assert curve(page.log, "exact_match", 100) == [(2, 50.0)]
    assert curve(page.log, "nothing") == []


@pytest.mark.parametrize(
    ("output", "reference", "expected"),
    [
        ("a b c", "a b c", "a b c"),
        ("a x c", "a b c", "a <del>x</del> <ins>b</ins> c"),
        ("a c", "a b c", "a <ins>b</ins> c"),
        ("a b b c", "a b c", "a b <del>b</del> c"),
        ("<i>", "a", "<del>&lt;i&gt;</del>"),
        ("", "a", "<del>(nothing)</del>"),
        ("1 000", "1\u202f000 F", "<del>1 000</del>"),
    ],
)
def test_changes_are_marked_word_by_word(output, reference, expected):
    assert marked_changes(output, reference) == expected


def test_sizes_and_durations():
    assert [size(n) for n in (0, 999, 1000, 252.3e6, 1.5e12)] == ["0 B", "999 B", "1 kB", "252 MB", "1.5 TB"]
    assert [duration(s) for s in (0.4, 59, 60, 185, 7800)] == ["0 s", "59 s", "1 min 0 s", "3 min 5 s", "2 h 10 min"]


def test_what_went_on_inside_is_shown(page):
    watched = [
        {"step": 1, "loss": 3.0, "grad_norm": 1.0, "grad_norms": {"a.blocks.0": 1.0}, "waiting": 0.5},
        {"step": 2, "valid_loss": 2.0, "attention_entropy": {"a.0": [0.5, 0.25]}, "dead_units": {"a.0.ffn": 0.125}},
    ]  # fmt: skip
    html = render(Page(**{**vars(page), "log": [{"seconds": 1.0, **line} for line in watched]}))
    text = words(html)
    for part in ("Nothing of the kind was found", "Gradient norm of each block", "a.blocks.0, step 1: 1"):
        assert part in text
    for part in ("a.0, head 1: 0.25", "a.0, step 2: 0.375", "a.0.ffn, step 2: 0.125", "Time that goes into waiting"):
        assert part in text


def test_what_ailed_the_run_is_told(page):
    ill = {"step": 1234, "health": "dead units", "message": "half of <them>", "seconds": 2.0}
    text = words(render(Page(**{**vars(page), "log": [*page.log, ill]})))
    assert "Step 1,234: dead units. half of <them>" in text
    assert "Nothing of the kind" not in text
    assert "Health" not in words(render(page))  # of a log from before anyone looked


def test_answers_over_time_are_those_that_changed(page):
    outputs = ["x", "x", "y", "un <i>"]
    samples = [{"source": "one", "reference": "un", "output": output} for output in outputs]
    log = [{"step": step, "seconds": 1.0, "samples": [sample]} for step, sample in enumerate(samples, start=1)]
    text = words(render(Page(**{**vars(page), "log": log})))
    assert "one → un" in text
    assert re.findall(r"step (\d)(?=\S)", text.split("As it learned")[1]) == ["1", "3", "4"]
    assert "As it learned" not in words(render(page))


def test_figures_say_whether_they_are_of_the_best_or_of_the_last(page):
    html = render(Page(**{**vars(page), "kept": "Scores are those of best/."}))
    assert "Scores are those of best/." in html
    assert "training <small>last</small> <b>1</b>" in html


def test_a_model_of_which_nothing_is_known_is_left_out(page):
    assert "The model" not in words(render(Page(**{**vars(page), "model": None, "memory": None})))


def words(html):
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    assert parser.fetched == []
    return "".join(parser.text)
