"""A run may train an adapter: alone, resumed bit for bit, and of use to every command afterwards."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import regard
from regard import zoo
from regard.adapters import load_adapter
from regard.blocks.adapter import Adapter, adapted, plain
from regard.checkpoint.load import tensors_of
from regard.cli import main
from regard.core.errors import ConfigError
from regard.models.bert import BertConfig
from regard.models.gpt2 import GPT2Config
from regard.tasks.classify import LabelledText
from regard.train.fit import fit
from regard.train.parallel import Parallel
from regard.train.recipe import Recipe, fitted, load_recipe, override, starting
from regard.train.schedule import Schedule
from regard.zoo import head_parts

MODEL = BertConfig(vocab_size=0, embed_dim=16, ffn_dim=24, num_heads=2, num_layers=2, max_seq_len=32, norm_eps=1e-5)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows whose class is their first word, or their last."""
    folder = tmp_path_factory.mktemp("data")
    words = ["red", "green", "blue", "round", "square"]
    rows = [(words[i % 3], words[3 + i % 2]) for i in range(90)]
    (folder / "colours.tsv").write_text("".join(f"{a}\ta {a} {b} thing\n" for a, b in rows))
    (folder / "shapes.tsv").write_text("".join(f"{b}\ta {a} {b} thing\n" for a, b in rows))
    return folder


def recipe_of(file, **changes):
    base = Recipe(
        model=MODEL,
        data=LabelledText(train=str(file), vocab_size=120, max_tokens=200, max_len=16),
        missing="head",
        schedule=Schedule("constant", lr=1e-2, warmup=2),
        num_steps=8,
        log_every=2,
        valid_every=4,
        average=0.9,
        precision="float32",
    )
    return replace(base, **changes)


@pytest.fixture(scope="module")
def start(data):
    """A run that learnt colours, all of it."""
    fit(recipe_of(data / "colours.tsv", num_steps=30), data / "start", quiet=True)
    return data / "start"


@pytest.fixture(scope="module", params=["lora", "dora"])
def run(request, data, start):
    """A run that began there and learnt shapes by an adapter, with the command line."""
    out = data / request.param
    options = ["--adapter.kind", request.param, "--adapter.rank", "4", "--adapter.targets", "q", "v", "ffn"]
    arguments = ["--start", str(start), "--data.train", str(data / "shapes.tsv"), "--data.max-len", "16"]
    arguments += ["--num-steps", "480", "--valid-every", "240", "--log-every", "10", "--average", "0.9"]
    arguments += ["--schedule.shape", "linear", "--schedule.lr", "1e-2", "--objective.consistency", "0"]
    arguments += ["--model.dropout", "0", "--model.attn-dropout", "0"]
    assert main(["train", "classify_finetune", *arguments, *options, "--out", str(out), "--quiet"]) == 0
    return out


def test_the_base_stays_and_the_adapter_and_the_head_learn(run, start):
    model, base = zoo.load(run), zoo.load(start)
    assert len(adapted(model)) == 2 * 4
    before, after = tensors_of(base), tensors_of(plain(model, merged=False))
    changed = {name for name, tensor in after.items() if name not in before or not torch.equal(tensor, before[name])}
    assert changed == {"head.out.weight", "head.out.bias", "pooler.linear.weight", "pooler.linear.bias"}
    assert all(layer.b.abs().max() > 0 for layer in adapted(zoo.load(run)).values())


def test_the_recipe_says_all(run, start):
    recipe = load_recipe(run / "recipe.json")
    assert recipe.adapter.whole == ("pooler", "head")
    assert recipe.adapter.rank == 4
    assert recipe.start == str(start / "best")
    card = (run / "best" / "README.md").read_text()
    model = zoo.load(run)
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in model.parameters())
    assert 0 < learning < whole
    assert f"| trained | {learning:,} of them, {learning / whole:.2%} |" in card
    assert "| adapter | kind " in card
    assert "Trained of them" in (run / "report.html").read_text()


def test_every_command_takes_the_run(run, data, capsys):
    assert main(["evaluate", str(run), "--data", str(data / "shapes.tsv"), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["accuracy"] > 0.9
    assert main(["predict", str(run), "a green square thing"]) == 0
    assert capsys.readouterr().out.strip() == "square"
    assert [*regard.predict(run, ["a red round thing"])] == ["round"]
    assert main(["predict", str(run), "a blue square thing", "--device", "auto", "--dtype", "bfloat16"]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == "square"
    assert "in bfloat16" in said.err
    assert main(["evaluate", str(run), "--device", "cuda:77"]) == 2
    assert "no device 'cuda:77' here" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["regard", "hf"])
def test_converted_it_is_an_ordinary_checkpoint(run, tmp_path, layout):
    assert main(["convert", str(run), str(tmp_path / "merged"), "--to", layout]) == 0
    merged, model = zoo.load(tmp_path / "merged"), zoo.load(run)
    assert not adapted(merged)
    tokens = torch.arange(3, 11)[None]
    torch.testing.assert_close(merged(tokens).logits, model(tokens).logits)
    assert (tmp_path / "merged" / "tokenizer.json").exists()


def test_the_adapter_alone_goes_on_its_base(run, start, tmp_path, capsys):
    assert main(["convert", str(run), str(tmp_path / "adapter"), "--adapter"]) == 0
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == str(start / "best")
    size = (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    assert size < (run / "best" / "model.safetensors").stat().st_size
    model = zoo.load(run)
    base = zoo.load(said["base_model_name_or_path"], missing="head", head="classify", labels=model.config.labels)
    tokens = torch.arange(3, 11)[None]
    torch.testing.assert_close(load_adapter(base, tmp_path / "adapter")(tokens).logits, model(tokens).logits)
    for arguments, message in (
        (["--adapter", "--to", "hf"], "give --to regard, --to hf, or --adapter alone"),
        ([], "give --to regard"),
    ):
        assert main(["convert", str(run), str(tmp_path / "x"), *arguments]) == 2
        assert message in capsys.readouterr().err
    assert main(["convert", str(start), str(tmp_path / "x"), "--adapter"]) == 2
    assert "the model has no adapter" in capsys.readouterr().err


def test_pefts_adapter_is_put_into_a_checkpoint(run, tmp_path):
    assert main(["convert", str(run), str(tmp_path / "adapter"), "--adapter"]) == 0
    model = zoo.load(run)
    zoo.save(plain(zoo.load(run), merged=False), tmp_path / "base")
    (tmp_path / "base" / "tokenizer.json").write_bytes((run / "best" / "tokenizer.json").read_bytes())
    command = ["convert", str(tmp_path / "base"), str(tmp_path / "whole"), "--to", "hf"]
    assert main([*command, "--with", str(tmp_path / "adapter")]) == 0
    tokens = torch.arange(3, 11)[None]
    torch.testing.assert_close(zoo.load(tmp_path / "whole")(tokens).logits, model(tokens).logits)


def test_a_run_begins_with_what_an_adapter_learnt(run, data):
    model, recipe = zoo.load(run), recipe_of(data / "shapes.tsv", num_steps=1, valid_every=1, average=0.0)
    recipe = replace(starting(recipe, run), schedule=Schedule(lr=1e-12, warmup=1))
    out = data / f"again-{run.name}"
    fit(recipe, out, quiet=True)
    tokens = torch.arange(3, 11)[None]
    torch.testing.assert_close(zoo.load(out)(tokens).logits, model(tokens).logits, rtol=1e-4, atol=1e-5)
    assert not adapted(zoo.load(out))


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_resumed_it_is_the_same_to_the_bit_though_its_start_is_gone(data, start, kind, tmp_path):
    begin = shutil.copytree(start / "best", tmp_path / "begin")
    adapter = Adapter(kind, rank=2, dropout=0.1, targets=("all",))
    recipe = recipe_of(data / "shapes.tsv", start=str(begin), adapter=adapter)
    recipe = replace(recipe, data=replace(recipe.data, tokenizer=str(begin)))
    fit(recipe, tmp_path / "whole", quiet=True)
    fit(recipe, tmp_path / "cut", quiet=True, report=lambda *_: True)
    shutil.rmtree(begin)
    fit(recipe, tmp_path / "cut", quiet=True, resume=True)
    for name in ("last/training.safetensors", "last/model.safetensors", "best/model.safetensors"):
        one, two = (load_file(tmp_path / each / name) for each in ("whole", "cut"))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[key], two[key]) for key in one), name
    moments = [key for key in load_file(tmp_path / "cut/last/training.safetensors") if key.startswith("optimizer.")]
    assert {key.split(".")[-2] for key in moments if ".encoder." in key} == (
        {"a", "b", "magnitude"} if kind == "dora" else {"a", "b"}
    )


def test_options_ask_for_one():
    recipe = recipe_of("x.tsv")
    assert override(recipe, ["--num-steps", "3"]).adapter is None
    assert override(recipe, ["--adapter.rank", "3"]).adapter == Adapter(rank=3)
    found = override(recipe, ["--adapter.targets", "q", "up", "--adapter.alpha=4", "--adapter.stable"]).adapter
    assert found == Adapter(targets=("q", "up"), alpha=4.0, stable=True)
    assert override(recipe, ["--adapter.whole", "head"]).adapter.whole == ("head",)
    with pytest.raises(ConfigError, match=r"no option '--adapter.rnak' .did you mean '--adapter.rank'"):
        override(recipe, ["--adapter.rnak", "3"])
    with pytest.raises(ConfigError, match=r"no option '--lora-rank' .did you mean '--adapter.rank'"):
        override(recipe, ["--lora-rank", "3"])
    with pytest.raises(ConfigError, match=r"set parallel.tensor and parallel.pipeline to 1"):
        replace(recipe, adapter=Adapter(), parallel=Parallel(tensor=2))


SMALL = replace(MODEL, vocab_size=9, bos_token=1, eos_token=2)


def test_help_tells_of_adapters_and_asks_for_none(capsys):
    with pytest.raises(SystemExit):
        override(recipe_of("x.tsv"), ["--help"])
    assert "--adapter.rank INT" in capsys.readouterr().out


class Fits:
    """A task that leaves a configuration as it is."""

    def configure(self, model):
        return model


def test_what_learns_whole_is_the_head_where_it_may_be_new():
    recipe = recipe_of("x.tsv", model=replace(SMALL, head="classify", labels=("a",)), adapter=Adapter())
    assert fitted(recipe, Fits()).adapter.whole == ("pooler", "head")
    assert fitted(replace(recipe, missing=None), Fits()).adapter.whole == ()
    chosen = replace(recipe, adapter=Adapter(whole=("head",)))
    assert fitted(chosen, Fits()).adapter.whole == ("head",)
    assert head_parts(GPT2Config(vocab_size=9, bos_token=1, eos_token=1)) == ()
    masked = head_parts(replace(SMALL, head="masked_lm"))
    assert "head.weight" not in masked
    assert "head.bias" in masked


def test_the_run_says_how_many_learn(data, start, tmp_path, capsys):
    recipe = recipe_of(data / "shapes.tsv", adapter=Adapter(rank=1), num_steps=1, valid_every=1)
    fit(recipe, tmp_path / "run")
    assert "of them trained, on cpu" in " ".join(capsys.readouterr().err.split())


def test_recipes_from_before_adapters_still_mean_the_same(run, tmp_path):
    value = json.loads(Path(run, "recipe.json").read_text())
    del value["adapter"]
    (tmp_path / "recipe.json").write_text(json.dumps(value))
    assert load_recipe(tmp_path / "recipe.json").adapter is None
