"""A study trains each variant with each seed, goes on where it was stopped, and says what chance is."""

from dataclasses import replace

import pytest

from regard import zoo
from regard.cli import main
from regard.core.errors import ConfigError, TrainingError
from regard.core.serial import differences, to_json
from regard.data.learn import train_tokenizer
from regard.explain.study import as_text, verdict, write_study
from regard.models.bert import BertConfig
from regard.recipes.language import language
from regard.studies import find
from regard.studies.recurrent import cells
from regard.tasks.language import PlainText
from regard.train.fit import fit
from regard.train.recipe import override
from regard.train.study import Findings, Study, Trained, Variant, conduct
from regard.train.trial import Worker, validations


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    (folder / "train.txt").write_text("the quick brown fox jumps over the lazy dog.\n" * 60)
    recipe = language()
    model = replace(recipe.model, embed_dim=16, ffn_dim=32, num_heads=2, num_layers=1, max_seq_len=64)
    data = PlainText(str(folder / "train.txt"), vocab_size=280, seq_len=32, max_tokens=128)
    return replace(recipe, model=model, data=data, num_steps=4, valid_every=2, log_every=2)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A checkpoint to begin with, and texts of two classes beside it."""
    folder = tmp_path_factory.mktemp("bert")
    config = BertConfig(vocab_size=300, embed_dim=16, ffn_dim=32, num_heads=2, num_layers=2, max_seq_len=32)
    zoo.save(zoo.build(config, seed=0), folder)
    train_tokenizer("wordpiece", ["good bad film"], 300, framed=True).save(folder)
    rows = [f"{'good' if i % 2 else 'bad'}\t{'good' if i % 2 else 'bad'} film\n" for i in range(40)]
    (folder / "a.tsv").write_text("".join(rows))
    return folder


@pytest.fixture(scope="module")
def two(base):
    wide = replace(base, model=replace(base.model, ffn_dim=64))
    return Study(
        "Widths", "Is wide better?", [Variant("narrow", base, 32), Variant("wide", wide, 64)], "width", (16, 64)
    )


@pytest.fixture(scope="module")
def found(two, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "widths"
    return conduct(two, out, seeds=2, quiet=True), out


def test_each_run_is_what_training_by_hand_gives(found, two, tmp_path):
    findings, _ = found
    assert findings.done
    by_hand = replace(two.variants[1].recipe, seed=1)
    fit(by_hand, tmp_path / "run", quiet=True)
    expected = max(line["log_likelihood"] for line in validations(tmp_path / "run"))
    assert findings.runs["wide"][1].score == expected
    assert findings.runs["wide"][0].score != expected


def test_rows_as_long_as_those_of_training_score_as_training_did(two, tmp_path):
    findings = conduct(replace(two, lengths=(32,)), tmp_path / "study", seeds=1, quiet=True)
    for (run,) in findings.runs.values():
        assert run.by_length[32] == pytest.approx(-run.score, rel=1e-5)


def test_what_is_there_is_not_trained_again(found, two):
    findings, out = found
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    again = conduct(two, out, seeds=2, quiet=True)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert [run.score for run in again.runs["wide"]] == [run.score for run in findings.runs["wide"]]


def test_another_recipe_in_the_same_folder_is_refused(found, two):
    other = replace(two, variants=[replace(v, recipe=replace(v.recipe, num_steps=6)) for v in two.variants])
    with pytest.raises(ConfigError, match=r"narrow-0\.json: a study goes on by its own recipes; .* another num_steps"):
        conduct(other, found[1], seeds=2, quiet=True)


def test_a_variant_that_cannot_be_trained_is_named(two, tmp_path):
    broken = replace(two.variants[1].recipe, clip_norm=0.0, schedule=replace(two.variants[1].recipe.schedule, lr=1e38))
    study = replace(two, variants=[two.variants[0], replace(two.variants[1], recipe=broken)])
    with pytest.raises(TrainingError, match=r"wide-0: .*loss"):
        conduct(study, tmp_path / "study", seeds=1, quiet=True)


def test_the_page_has_every_variant_and_stands_alone(found, tmp_path):
    findings, _ = found
    page = write_study(findings, "regard study widths", tmp_path / "study.html").read_text()
    for text in ("narrow", "wide", "Is wide better?", "64 tokens", "regard study widths"):
        assert text in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    table = as_text(findings)
    assert f"{findings.runs['wide'][0].parameters:,}" in table


@pytest.mark.parametrize(
    ("scores", "says"),
    [
        (([1.0, 1.1, 1.2], [2.0, 2.1, 2.5]), "b is best, 1.1 f1 before a, over 3 seeds with a standard error of 0.1."),
        (
            ([1.0, 2.0, 3.0], [1.1, 2.0, 3.2]),
            "b is best, 0.1 f1 before a, over 3 seeds with a standard error of 0.05774:",
        ),
        (([1.0, 1.1], [2.0, 2.1]), "with fewer than three seeds nobody knows"),
    ],
)
def test_a_gap_is_told_beside_what_chance_makes(scores, says):
    runs = {
        name: [Trained(seed, score, 1, 1, 1.0, []) for seed, score in enumerate(each)]
        for name, each in zip("ab", scores, strict=True)
    }
    study = Study("", "", [Variant("a", None), Variant("b", None)])
    assert says in verdict(Findings(study, "f1", runs, len(scores[0])))
    with pytest.raises(ConfigError, match="was stopped"):
        as_text(Findings(study, "f1", runs, len(scores[0]) + 1))


def test_cells_have_as_many_parameters_as_each_other(base):
    large = replace(base, model=replace(base.model, embed_dim=128, ffn_dim=512, num_layers=3))
    configs = [variant.recipe.model for variant in cells(large).variants]
    models = [zoo.skeleton(zoo.family_of(config), config, "auto") for config in configs]
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in models]
    assert len(sizes) == 3
    assert max(sizes) < 1.02 * min(sizes)  # widths are even numbers


@pytest.mark.parametrize("name", ["cells", "heads", "layers", "positions"])
def test_every_study_of_a_language_model_stands_without_data(name):
    plan = find(name)
    study = plan.study(plan.base())
    assert len({variant.name for variant in study.variants}) == len(study.variants) >= 2


@pytest.mark.parametrize("name", ["pretraining", "adaptation"])
def test_a_study_of_a_checkpoint_asks_for_one(name):
    plan = find(name)
    with pytest.raises(ConfigError, match="name its folder by --start"):
        plan.study(plan.base())


def test_the_command_writes_the_page(base, tmp_path, capsys):
    fields = [
        "--data.train", base.data.train, "--data.vocab-size", "280", "--data.seq-len", "32", "--num-steps", "2",
        "--valid-every", "2", "--model.embed-dim", "16", "--model.ffn-dim", "16", "--data.max-tokens", "64",
    ]  # fmt: skip
    assert main(["study", "heads", "--seeds", "1", "--out", str(tmp_path / "out"), "--quiet", *fields]) == 0
    said = capsys.readouterr()
    assert "16 heads" in said.out
    assert "study.html" in said.err
    assert main(["study", "haeds"]) == 2
    assert "did you mean 'heads'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("heads", ["--seed", "7"], "--seed: a study sets it, from 0 on; --seeds says how many"),
        ("heads", ["--model.num-heads", "4"], "--model.num-heads: the study 'heads' sets it itself"),
        ("layers", ["--model.num_layers=3"], "--model.num-layers: the study 'layers' sets it itself"),
        ("positions", ["--model.positions", "alibi"], "--model.positions: the study 'positions' sets it itself"),
        ("positions", ["--model.max-seq-len", "64"], "--model.max-seq-len: the study 'positions' sets it itself"),
        ("heads", ["--missing", "head"], "--missing: the study 'heads' sets it itself"),
        ("cells", ["--missing", "head"], "--missing: the study 'cells' sets it itself"),
        ("adaptation", ["--freeze", "embed"], "--freeze: the study 'adaptation' sets it itself"),
        ("adaptation", ["--adapter.rank", "8"], "--adapter.rank: the study 'adaptation' sets it itself"),
    ],
)
def test_what_a_study_would_not_heed_is_refused(name, options, says, bert, tmp_path, capsys):
    start = (
        ["--start", str(bert), "--data.train", str(bert / "a.tsv"), "--data.max-len", "16"]
        if name == "adaptation"
        else []
    )
    assert main(["study", name, "--out", str(tmp_path / "out"), *start, *options]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["heads", "layers", "positions"])
def test_a_study_says_all_that_it_sets_in_every_variant(name):
    """Whatever field of the model differs from the recipe's in some variant is the study's own."""
    plan = find(name)
    study, model = plan.study(plan.base()), to_json(plan.base().model)
    changed = {f"model.{field}" for each in study.variants for field in differences(model, to_json(each.recipe.model))}
    assert changed <= set(study.sets)


def test_a_process_that_fails_says_how_a_study_and_a_search_go_on(tmp_path, capfd):
    worker = Worker("score", 1)
    try:
        worker.begin("job", tmp_path / "nothing.json", tmp_path / "run")
        with pytest.raises(
            TrainingError, match=r"exit code 1; .* a study goes on by the same command, a search with --"
        ):
            worker.read()
    finally:
        worker.end()


def test_adaptation_trains_few_parameters(bert, tmp_path):
    plan = find("adaptation")
    fields = ["--start", str(bert), "--data.train", str(bert / "a.tsv"), "--data.max-len", "16"]
    study = plan.study(override(plan.base(), [*fields, "--num-steps", "2", "--valid-every", "2"]))
    found = conduct(study, tmp_path / "study", seeds=1, quiet=True)
    learning = {name: runs[0].learning for name, runs in found.runs.items()}
    assert learning["head alone"] < learning["LoRA"] < learning["DoRA"] < learning["all weights"]
    assert learning["all weights"] == found.runs["all weights"][0].parameters
