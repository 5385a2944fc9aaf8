"""A card that the hub can read, and from which the run can be judged."""

import json

import pytest
import torch

from regard import zoo
from regard.models.transformer import TransformerConfig
from regard.recipes import find
from regard.tasks import datas
from regard.tasks.translate import ParallelText
from regard.train.card import HUB, card
from regard.train.recipe import Recipe
from regard.train.state import Progress


def front_matter(text):
    """The header's fields; each is one line of YAML whose value is JSON, which YAML contains."""
    _, head, body = text.split("---\n", 2)
    return {name: json.loads(value) for name, _, value in (line.partition(": ") for line in head.splitlines())}, body


def rows(body, title):
    """The table below a heading."""
    table = body.split(f"## {title}\n")[1].split("\n## ")[0]
    cells = [line.strip("| ").split(" | ", 1) for line in table.splitlines() if line.startswith("| ")]
    return dict(row for row in cells if len(row) == 2)


def made(data):
    recipe = Recipe(model=TransformerConfig(vocab_size=10, embed_dim=8, num_heads=2), data=data, seed=7)
    progress = Progress(loader={}, step=30, tokens=1_000_000, seconds=185)
    metrics = {"valid_loss": 2.5, "bleu": 30.125}
    device = torch.device("cpu")
    return card(recipe, progress, metrics, sizes={"train": 1200, "valid": 3}, parameters=500, device=device)


def test_a_card_says_what_and_from_what_and_how_well_and_for_how_much():
    head, body = front_matter(made(ParallelText(train="/home/me/secret/a|b.tsv", source="de", target="en")))
    assert head["library_name"] == "regard"
    assert head["pipeline_tag"] == "translation"
    assert head["language"] == ["de", "en"]
    assert head["tags"] == ["regard", "transformer", "translate"]
    assert head["metrics"] == ["bleu"]
    assert "secret" not in body
    assert rows(body, "Data") == {
        "train": "a&#124;b.tsv: 1,200 examples", "valid": "held out of train: 3 examples", "languages": "de, en",
    }  # fmt: skip
    assert rows(body, "Metrics, on held-out data") == {"valid_loss": "2.5", "bleu": "30.125"}
    assert rows(body, "Training")["seed"] == "7"
    assert rows(body, "Training")["step"] == "30 of 10,000"
    cost = rows(body, "Cost")
    assert cost["time"] == "3 min"
    assert cost["tokens seen"] == "1,000,000"
    assert cost["FLOPs"].startswith("3e+09")
    assert cost["torch"] == torch.__version__


def test_languages_that_nobody_named_are_not_claimed():
    assert "language" not in front_matter(made(ParallelText(train="digits.tsv")))[0]
    assert front_matter(made(ParallelText()))[0]["language"] == ["en", "fr"]


def test_the_hub_knows_every_task_but_these():
    assert datas().keys() - HUB.keys() == {"spans", "detect", "denoise"}
    assert HUB.keys() <= datas().keys()


@pytest.mark.parametrize("name", ["translate", "language"])
def test_every_recipe_has_one(name):
    recipe = find(name)
    text = card(recipe, Progress(loader={}), {}, sizes={"train": 1}, parameters=1, device=torch.device("cpu"))
    assert front_matter(text)[0]["tags"][-1] == recipe.data.task


def test_the_best_checkpoint_has_its_card_and_loads(tiny_run):
    head, body = front_matter((tiny_run / "best" / "README.md").read_text())
    assert set(head["metrics"]) == {"bleu", "chrf", "exact_match"}
    log = [json.loads(line) for line in (tiny_run / "log.jsonl").read_text().splitlines()]
    best = max((line for line in log if "chrf" in line), key=lambda line: (line["chrf"], line["step"]))
    measured = rows(body, "Metrics, on held-out data")
    assert measured == {name: f"{best[name]:.5g}" for name in measured}
    count = sum(parameter.numel() for parameter in zoo.load(tiny_run / "best").parameters())
    assert rows(body, "Cost")["parameters"] == f"{count:,}"
    assert int(rows(body, "Cost")["tokens seen"].replace(",", "")) > 0
