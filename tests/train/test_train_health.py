"""Every illness is named in a run that has it, once, and none in a run that is well."""

import dataclasses
import json
import random
import time

import pytest
import torch

from regard.core.errors import TrainingError
from regard.models.transformer import TransformerConfig
from regard.tasks.translate import ParallelText
from regard.train.fit import Run, fit
from regard.train.health import DETECTORS, Health, Waiting
from regard.train.recipe import Recipe
from regard.train.schedule import Schedule


def write_pairs(path, count, seed, reverse=True):
    """Digits, and the same digits from the end, which can be learnt; or others, which cannot."""
    rng = random.Random(seed)
    rows = [[str(rng.randrange(10)) for _ in range(rng.randint(2, 6))] for _ in range(count)]
    targets = [row[::-1] if reverse else [str(rng.randrange(10)) for _ in row] for row in rows]
    lines = [f"{' '.join(row)}\t{' '.join(target)}\n" for row, target in zip(rows, targets, strict=True)]
    path.write_text("".join(lines))
    return str(path)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """Hardly learns: a model that was made ill stays so."""
    folder = tmp_path_factory.mktemp("data")
    return Recipe(
        model=TransformerConfig(
            vocab_size=0, embed_dim=16, ffn_dim=32, num_heads=2, num_encoder_layers=2, num_decoder_layers=2,
            dropout=0.0, max_seq_len=64,
        ),
        data=ParallelText(
            train=write_pairs(folder / "train.tsv", 400, 0), valid=write_pairs(folder / "valid.tsv", 30, 1),
            vocab_size=300, max_tokens=200, num_scored=2,
        ),
        schedule=Schedule("constant", lr=1e-12, warmup=0),
        log_every=1,
        average=0.0,
        precision="float32",
    )  # fmt: skip


@pytest.fixture
def run(recipe, tmp_path):
    task = recipe.data.open()
    return Run(dataclasses.replace(recipe, model=task.configure(recipe.model)), task, tmp_path)


def stepped(run, health, count):
    """What is said over some steps, each of which has its line in the log."""
    found = []
    for _ in range(count):
        run.step(run.waiting.over(iter(run.loader)))
        found += health.examine(run.summary())
    return found


def validated(run, health, count):
    """What is said over some validations."""
    line = {"valid_loss": 1.0, "seconds": 0.0, **run.observe(run.model.eval())}
    return [each for step in range(count) for each in health.examine({"step": step, **line})]


def kinds(found):
    return [each["health"] for each in found]


def test_an_untouched_model_is_well(run):
    health = Health()
    assert stepped(run, health, 8) == []
    assert validated(run, health, 5) == []


def test_vanishing_gradients(run):
    """A decoder that hardly reads its encoder teaches it hardly anything."""
    with torch.no_grad():
        for block in run.model.decoder.blocks:
            block.cross.mix.o.weight.mul_(1e-6)
    health = Health()
    assert stepped(run, health, 2) == []  # once or twice may be chance
    (found,) = stepped(run, health, 1)
    assert found["health"] == "vanishing gradients"
    assert "encoder.blocks.0, encoder.blocks.1 is" in found["message"]
    assert stepped(run, health, 3) == []


def test_exploding_gradients(run):
    health = Health()
    assert stepped(run, health, 8) == []
    with torch.no_grad():
        run.model.head.bias = None
        run.model.decoder.blocks[1].ffn.after.weight.mul_(1e4)
    found = stepped(run, health, 1)
    assert kinds(found) == ["exploding gradients"]
    assert "times what it was" in found[0]["message"]
    assert found[0]["step"] == 9


@pytest.mark.parametrize(("scale", "count", "says"), [(1e6, 2, "encoder.1.attention head 1"), (0.0, 4, "average")])
def test_collapsed_attention(run, scale, count, says):
    """Huge queries look at one token; queries of zero, at everything alike."""
    with torch.no_grad():
        run.model.encoder.blocks[1].attention.mix.q.weight.mul_(scale)
    health = Health()
    assert validated(run, health, count - 1) == []
    (found,) = validated(run, health, 1)
    assert found["health"] == "collapsed attention"
    assert says in found["message"]


def test_dead_units(run):
    with torch.no_grad():
        run.model.decoder.blocks[0].ffn.mix.up.bias[:20] = -1000.0
    health = Health()
    assert validated(run, health, 3) == []  # they may come back to life
    (found,) = validated(run, health, 1)
    assert found["health"] == "dead units"
    share = run.observe(run.model.eval())["dead_units"]["decoder.0.ffn"]
    assert 20 / 32 <= share < 1
    assert found["message"].startswith(f"{share:.0%} of the inner units of decoder.0.ffn are zero")


def log_of(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def test_overfitting(recipe, tmp_path):
    """Twenty pairs learnt by heart, of which no other follows."""
    train = write_pairs(tmp_path / "train.tsv", 20, 2, reverse=False)
    data = dataclasses.replace(recipe.data, train=train, max_tokens=400)
    schedule = Schedule("constant", lr=0.01, warmup=0)
    recipe = dataclasses.replace(recipe, data=data, schedule=schedule, num_steps=150, valid_every=15, log_every=15)
    fit(recipe, tmp_path / "run", quiet=True)
    found = [line for line in log_of(tmp_path / "run") if line.get("health") == "overfitting"]
    assert len(found) == 1
    assert "the held-out loss has risen" in found[0]["message"]


def test_a_starving_model(run):
    def slowly(batches):
        for batch in batches:
            time.sleep(0.1)
            yield batch

    health, batches, found = Health(), run.waiting.over(slowly(iter(run.loader))), []
    for _ in range(6):
        run.step(batches)
        found += health.examine(run.summary())
    assert kinds(found) == ["a starving model"]


def test_every_illness_has_its_test():
    tested = {"vanishing gradients", "exploding gradients", "collapsed attention", "dead units", "overfitting"}
    assert DETECTORS.keys() == tested | {"a starving model"}


def test_waiting_counts_only_the_time_until_a_batch_is_there():
    times = iter([0.0, 2.0, 10.0, 13.0, 20.0, 20.5])
    waiting = Waiting(lambda: next(times))
    assert list(waiting.over(iter("ab"))) == ["a", "b"]
    assert waiting.taken() == 5.5
    assert waiting.taken() == 0.0


def test_a_run_that_learns_is_well(recipe, tmp_path):
    schedule = Schedule(lr=0.01, warmup=20)
    recipe = dataclasses.replace(recipe, schedule=schedule, num_steps=120, valid_every=20, log_every=10, average=0.9)
    fit(recipe, tmp_path / "run", quiet=True)
    log = log_of(tmp_path / "run")
    assert [line for line in log if "health" in line] == []
    assert log[-1]["valid_nll"] < 2
    trained, validated = log[0], log[-1]
    assert list(trained["grad_norms"])[1:] == [f"{side}.blocks.{i}" for side in ("encoder", "decoder") for i in (0, 1)]
    assert trained["grad_norm_max"] >= trained["grad_norm"]
    assert len(validated["attention_entropy"]) == 2 * 3
    assert len(validated["dead_units"]) == 4
    assert [sample.keys() for sample in validated["samples"]] == [{"source", "reference", "output"}] * 3


def test_what_is_said_stands_in_the_log_and_is_not_said_again(recipe, tmp_path, monkeypatch, capsys):
    def always(past):
        return "alas" if past.lines else None

    monkeypatch.setattr("regard.train.health.DETECTORS", {"a cough": always})
    fit(dataclasses.replace(recipe, num_steps=3, valid_every=3), tmp_path / "run")
    said = [line for line in log_of(tmp_path / "run") if "health" in line]
    assert [(line["step"], line["health"], line["message"]) for line in said] == [(1, "a cough", "alas")]
    assert capsys.readouterr().err.count("a cough: alas") == 1
    log = log_of(tmp_path / "run")
    assert Health(log).examine({**log[-2], "step": 4}) == []


def test_a_loss_that_is_not_finite_is_traced(recipe, tmp_path):
    recipe = dataclasses.replace(recipe, schedule=Schedule("constant", lr=1e38, warmup=0), clip_norm=0.0, num_steps=9)
    with pytest.raises(TrainingError) as caught:
        fit(recipe, tmp_path / "run", quiet=True)
    message = str(caught.value)
    assert "\n" not in message
    assert "it began in the weights, in encoder_embed.weight, on batch 2 of epoch 0, which begins with '" in message
    assert "lower schedule.lr" in message


def test_a_resumed_run_says_nothing_twice(recipe, tmp_path, monkeypatch):
    def cough(past):
        return "alas" if len(past.lines) >= 3 else None

    def pull_the_plug(self, batches):
        if self.progress.step == 5:
            raise KeyboardInterrupt
        step(self, batches)

    monkeypatch.setattr("regard.train.health.DETECTORS", {"a cough": cough})
    recipe, step = dataclasses.replace(recipe, num_steps=8, valid_every=2), Run.step
    fit(recipe, tmp_path / "whole", quiet=True)
    monkeypatch.setattr(Run, "step", pull_the_plug)
    with pytest.raises(KeyboardInterrupt):
        fit(recipe, tmp_path / "cut", quiet=True)
    monkeypatch.setattr(Run, "step", step)
    fit(recipe, tmp_path / "cut", resume=True, quiet=True)

    def told(run):
        clocks = ("seconds", "tokens_per_second", "waiting")
        return [{name: value for name, value in line.items() if name not in clocks} for line in log_of(run)]

    assert told(tmp_path / "cut") == told(tmp_path / "whole")
    assert [line["step"] for line in told(tmp_path / "cut") if "health" in line] == [3]
