"""Recipes: JSON and back, and changes from the command line, with every mistake named."""

import dataclasses
import json

import pytest

from regard.core.errors import ConfigError
from regard.core.serial import to_json
from regard.recipes import find, recipes
from regard.train.recipe import load_recipe, override, save_recipe


@pytest.mark.parametrize("name", recipes())
def test_json_and_back(name, tmp_path):
    recipe = find(name)
    save_recipe(recipe, tmp_path / "recipe.json")
    again = load_recipe(tmp_path / "recipe.json")
    assert to_json(again) == to_json(recipe)
    for each in dataclasses.fields(recipe):
        assert getattr(again, each.name) == getattr(recipe, each.name)


def test_override_changes_only_what_is_named():
    recipe = find("translate")
    changed = override(
        recipe,
        ["--data.train", "my.tsv", "--num-steps", "7", "--model.dropout=0.25", "--optimizer.betas", "0.8", "0.9",
         "--model.gated", "--model.no-tie-head", "--optimizer.name", "muon", "--schedule.shape", "cosine_restarts",
         "--freeze", "encoder", "*.ffn", "--recompute", "2", "--average", "5", "--patience", "3",
         "--unfreeze-every", "50", "--clip-value", "0.5", "--objective.label-smoothing", "0",
         "--objective.focal-gamma", "2"],
    )  # fmt: skip
    expected = dataclasses.replace(
        recipe,
        num_steps=7,
        data=dataclasses.replace(recipe.data, train="my.tsv"),
        model=dataclasses.replace(recipe.model, dropout=0.25, gated=True, tie_head=False),
        optimizer=dataclasses.replace(recipe.optimizer, betas=(0.8, 0.9), name="muon"),
        schedule=dataclasses.replace(recipe.schedule, shape="cosine_restarts"),
        objective=dataclasses.replace(recipe.objective, label_smoothing=0.0, focal_gamma=2.0),
        freeze=("encoder", "*.ffn"),
        recompute=2,
        average=5.0,
        patience=3,
        unfreeze_every=50,
        clip_value=0.5,
    )
    assert to_json(changed) == to_json(expected)
    assert to_json(override(recipe, [])) == to_json(recipe)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.trian", "x"], "no option '--data.trian' .did you mean '--data.train'"),
        (["--num_step", "3"], "did you mean '--num-steps'"),
        (["--num-steps", "many"], "num-steps: .*'many'"),
        (["--num-steps"], "Missing value"),
        (["stray"], "stray"),
        (["--num-steps", "0"], "num_steps 0 must be at least 1"),
        (["--average", "1.5"], "average 1.5 must be a decay"),
        (["--patience", "-1"], "patience -1 must be at least 0"),
        (["--clip-value", "nan"], "clip_value nan must be a number from 0"),
        (["--optimizer.name", "adamv"], "adamv"),
        (["--optimizer.momentum", "2"], "optimizer.momentum 2.0 must be"),
        (["--schedule.period", "0"], "schedule.period 0 must be at least 1"),
        (["--schedule.shape", "square"], "square"),
        (["--data.valid", "x.tsv"], "data.train"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(ConfigError, match=message) as caught:
        override(find("translate"), arguments)
    assert "\n" not in str(caught.value)


def test_help_names_every_field(capsys):
    with pytest.raises(SystemExit):
        override(find("translate"), ["--help"])
    shown = capsys.readouterr().out
    for option in ("--data.train", "--model.embed-dim", "--schedule.warmup", "--num-steps", "--max-minutes"):
        assert option in shown


def written(path, change):
    save_recipe(find("translate"), path)
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: value.update(family="transfomer"), "'transfomer' is not one of .*did you mean 'transformer'"),
        (lambda value: value.pop("task"), r"None is not one of .*translate"),
        (lambda value: value["model"].update(embed_dimm=3), "unknown key 'embed_dimm' .did you mean 'embed_dim'"),
        (lambda value: value.update(num_steps="ten"), "num_steps: expected int"),
    ],
)
def test_a_damaged_recipe_names_the_key(change, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        load_recipe(written(tmp_path / "recipe.json", change))


def test_a_missing_recipe(tmp_path):
    with pytest.raises(ConfigError, match="no such file"):
        load_recipe(tmp_path / "recipe.json")


def test_an_unknown_recipe():
    with pytest.raises(ConfigError, match="did you mean 'translate'"):
        find("transalte")
    assert to_json(find("translate-base")) == to_json(find("translate_base"))
