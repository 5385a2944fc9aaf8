"""Several pairs of languages in one model: tags, shares, separate scores, and a run that goes on bit for bit."""

import json
from collections import Counter
from dataclasses import replace
from itertools import islice

import pytest
import torch

from regard.cli import main
from regard.core.errors import ConfigError, InputError
from regard.data.tokenize import Tokenizer
from regard.front import open_run, predict
from regard.generate.decode import greedy, sample
from regard.models.transformer import TransformerConfig
from regard.recipes import find
from regard.tasks import datas
from regard.tasks.several import ParallelTexts
from regard.train.fit import fit
from regard.train.recipe import Recipe, load_recipe, override
from regard.train.schedule import Schedule

COUNTS = {"en-de": 120, "en-fr": 60}


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Numbers to other words for them."""
    folder = tmp_path_factory.mktemp("data")
    for name, count in COUNTS.items():
        word = name.removeprefix("en-")
        rows = "".join(f"say {i % 10} and {i}\t{word} {i} {word} {i % 10}\n" for i in range(count))
        (folder / f"numbers.{name}.tsv").write_text(rows)
    return ParallelTexts(
        pairs=tuple(COUNTS), train=f"{folder}/numbers.{{pair}}.tsv", vocab_size=300, max_tokens=128, num_scored=4
    )


@pytest.fixture(scope="module")
def recipe(data):
    model = TransformerConfig(
        vocab_size=0, embed_dim=16, ffn_dim=32, num_heads=2, num_encoder_layers=1, num_decoder_layers=1,
        max_seq_len=64, norm_order="pre",
    )  # fmt: skip
    return Recipe(
        model, data, schedule=Schedule(lr=1e-2, warmup=2), num_steps=8, valid_every=4, log_every=2, accumulate=2
    )


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "whole"
    fit(recipe, out, quiet=True)
    return out


def loader(task, **options):
    return task.loader(seed=1, prepare=lambda batch, rng: batch, **options)


def test_each_batch_is_of_one_pair_of_languages_and_starts_with_its_token(data):
    task = data.open()
    starts = {member.start: name for name, member in task.members.items()}
    assert len(starts) == 2
    drawn = Counter()
    for batch in islice(loader(task), 60):
        (start,) = set(batch["decoder_tokens"][:, 0].tolist())
        texts = [task.tokenizer.decode(row[1:].tolist()) for row in batch["decoder_tokens"]]
        assert all(text.startswith(starts[start].removeprefix("en-")) for text in texts)
        assert task.show(batch).startswith(f"{starts[start]}: 'say ")
        drawn[starts[start]] += 1
    assert min(drawn.values()) > 5


def test_at_one_temperature_batches_come_by_size(data):
    stream = loader(data.open())
    assert stream.shares[0] > 0.6
    assert loader(replace(data, temperature=1e9).open()).shares == pytest.approx([0.5, 0.5], abs=1e-6)
    assert loader(replace(data, weights=(1, 3)).open()).shares == pytest.approx([0.25, 0.75])


def test_where_an_example_stands(data):
    task = data.open()
    stream = loader(task)
    for batch in islice(stream, 10):
        told = task.where(stream.place.rows)
        name = next(name for name in COUNTS if name in told)
        number = int(told.rsplit(" ", 1)[1]) - 1
        assert task.tokenizer.decode(batch["tokens"][0].tolist()) == f"say {number % 10} and {number}"
        assert task.show(batch).startswith(name)


def test_a_tag_in_a_text_is_text(data):
    tokenizer = data.open().tokenizer
    (start,) = tokenizer.add([">>en-de<<"])
    assert start not in tokenizer.encode("say >>en-de<<")
    assert tokenizer.decode(tokenizer.encode(">>en-de<<")) == ">>en-de<<"


def test_tokens_of_the_tags_survive_saving(data, tmp_path):
    task = data.open()
    task.save(tmp_path)
    again = data.open(tmp_path)
    assert [member.start for member in again.members.values()] == [member.start for member in task.members.values()]
    assert len(again.tokenizer) == len(task.tokenizer) == len(Tokenizer.load(tmp_path))


def test_held_out_languages_come_in_turn_and_are_never_learnt_from(data):
    splits = data.splits
    assert [data.untagged(source)[0] for source, _ in splits["valid"][:4]] == ["en-de", "en-fr"] * 2
    assert not {*splits["valid"]} & {*splits["train"]}
    assert len(splits["train"]) + len(splits["valid"]) == sum(COUNTS.values())
    assert data.read("en-fr") == [pair for pair in splits["valid"] if pair[0].startswith(">>en-fr<<")]


def test_scores_of_each_and_their_means(run):
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    lines = [line for line in log if "valid_loss" in line]
    assert len(lines) == 2
    for line in lines:
        for metric in ("bleu", "chrf", "exact_match"):
            assert line[metric] == pytest.approx(sum(line[f"{metric}/{name}"] for name in COUNTS) / 2)
        low, high = sorted(line[f"valid_nll/{name}"] for name in COUNTS)
        assert low < line["valid_nll"] < high
    assert "bleu/en-de" in (run / "best" / "README.md").read_text()


def test_a_run_goes_on_bit_for_bit(run, recipe, tmp_path):
    fit(recipe, tmp_path / "half", quiet=True, report=lambda step, _: step == 4)
    again = fit(recipe, tmp_path / "half", resume=True, quiet=True)
    assert again.step == 8
    for name in ("best", "last"):
        for file in (run / name).glob("*.safetensors"):
            assert file.read_bytes() == (tmp_path / "half" / name / file.name).read_bytes()


def test_answers_alone_and_together(run):
    task, model = open_run(run)
    sources = [">>en-fr<< say 3 and 13", ">>en-de<< say 3 and 13", ">>en-de<<say 1 and 1", ">>en-fr<< say 2"]
    together = [*task.predict(model, sources, greedy)]
    assert together == [answer for source in sources for answer in task.predict(model, [source], greedy)]
    assert together == [*predict(run, sources, beam=1)]
    drawn = [*task.predict(model, sources, sample(range(len(sources))))]
    for number, source in enumerate(sources):
        assert drawn[number] == next(iter(task.predict(model, [source], sample([number]))))
    assert together[1:3] == [*task.members["en-de"].predict(model, ["say 3 and 13", "say 1 and 1"], greedy)]


def test_the_start_is_all_that_tells_languages_apart(run):
    task, model = open_run(run)
    batches = {name: member.example(("say 3", "x 3")) for name, member in task.members.items()}
    hidden = {}
    for name, batch in batches.items():
        del batch["targets"]
        hidden[name] = model(**batch)
    one, other = hidden.values()
    assert torch.equal(one.memory, other.memory)
    assert not torch.equal(one.hidden, other.hidden)


def test_a_source_without_languages_is_an_error(run):
    task, model = open_run(run)
    with pytest.raises(InputError, match=r"'hello' names no pair of languages: .*>>en-de<< or >>en-fr<<"):
        next(task.predict(model, ["hello"]))
    with pytest.raises(InputError, match="did you mean 'en-de'"):
        next(task.predict(model, [">>en-da<< hello"]))
    with pytest.raises(InputError, match="of the texts for en-fr, text 1 has"):
        next(task.predict(model, [">>en-de<< one", ">>en-fr<< " + "7 " * 80]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"pairs": ()}, "must be languages"),
        ({"pairs": ("ende",)}, "must be languages"),
        ({"pairs": ("en-de", "en-de")}, "each once"),
        ({"train": "all.tsv"}, "is the same for several pairs"),
        ({"max_tokens": 0}, "must be at least 1"),
        ({"temperature": 0.5}, "must be at least 1"),
        ({"weights": (1.0, 2.0)}, "must be 3 numbers above 0"),
    ],
)
def test_what_cannot_be_learnt_from(wrong, message):
    with pytest.raises(ConfigError, match=message):
        ParallelTexts(**wrong)


def test_patterns_name_aligned_files():
    data = ParallelTexts(train="news.{pair}.{source},news.{pair}.{target}")
    assert data.members["en-de"].train == "news.en-de.en,news.en-de.de"
    assert (data.members["en-de"].source, data.members["en-de"].target) == ("en", "de")


def test_the_task_is_found_and_set_from_the_command_line(run):
    assert datas()["translate_many"] is ParallelTexts
    assert load_recipe(run / "recipe.json").data.pairs == ("en-de", "en-fr")
    changed = override(find("translate_many"), ["--data.pairs", "en-it", "en-nl", "--data.temperature", "5"])
    assert changed.data == replace(find("translate_many").data, pairs=("en-it", "en-nl"), temperature=5.0)


def test_phrases_are_learnt_from_without_files():
    data = replace(find("translate_many").data, pairs=("en-fr", "en-de"))
    assert {data.untagged(source)[0] for source, _ in data.splits["test"]} == {"en-fr", "en-de"}


def test_the_command_line_names_languages(run, data, capsys):
    assert main(["predict", str(run), ">>en-de<< say 1", ">>en-fr<< say 1", "--beam", "1"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    for spec in ([], ["--data", "en-fr"], ["--data", "en-de=" + data.members["en-de"].train]):
        assert main(["evaluate", str(run), *spec, "--json"]) == 0
        counts = {"": 9, "en-fr": 3}
        assert json.loads(capsys.readouterr().out)["num_examples"] == counts.get("".join(spec[1:]), 120)
    assert main(["evaluate", str(run), "--data", "en-xx"]) == 2
    assert "none of en-de, en-fr" in capsys.readouterr().err
    file = data.members["en-de"].train
    assert main(["data", "check", f"en-de={file}", "--task", "translate_many", "--data.pairs", "en-de"]) == 0
    assert "examples: 120" in capsys.readouterr().out


@pytest.fixture(scope="module")
def apart(recipe, tmp_path_factory):
    """A run in which each pair of languages has a decoder of its own."""
    out = tmp_path_factory.mktemp("runs") / "apart"
    fit(replace(recipe, model=replace(recipe.model, own=("decoder",))), out, quiet=True)
    return out


def test_languages_with_decoders_of_their_own_are_scored_and_translated(apart):
    assert load_recipe(apart / "recipe.json").model.members == tuple(COUNTS)
    task, model = open_run(apart)
    sources = [">>en-fr<< say 3 and 13", ">>en-de<< say 3 and 13"]
    together = [*task.predict(model, sources, greedy)]
    alone = [
        answer
        for name, number in (("en-fr", 1), ("en-de", 0))
        for answer in task.members[name].predict(model.of(number), ["say 3 and 13"], greedy)
    ]
    assert together == alone
    logged = [json.loads(line) for line in (apart / "log.jsonl").read_text().splitlines()]
    line = next(line for line in logged if "valid_loss" in line)
    assert line["valid_nll/en-de"] != line["valid_nll/en-fr"]
    low, high = sorted(line[f"valid_nll/{name}"] for name in COUNTS)
    assert low < line["valid_nll"] < high


def test_such_a_run_goes_on_bit_for_bit(apart, tmp_path):
    recipe = load_recipe(apart / "recipe.json")
    fit(recipe, tmp_path / "half", quiet=True, report=lambda step, _: step == 4)
    fit(recipe, tmp_path / "half", resume=True, quiet=True)
    for file in (apart / "last").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "half" / "last" / file.name).read_bytes()
