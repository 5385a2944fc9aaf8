import json
import shutil

import pytest

import regard
from regard.core.errors import ConfigError, DataError, RegardError
from regard.explain.page import Sample
from regard.explain.report import language, maps_of, picture, write_report
from regard.front import open_run


@pytest.fixture
def run(tiny_run, tmp_path):
    """A copy of the tiny run that a test may spoil."""
    shutil.copytree(tiny_run, tmp_path / "run")
    (tmp_path / "run" / "report.html").unlink()
    return tmp_path / "run"


def test_report_shows_the_run(run):
    path = write_report(run)
    assert path == run / "report.html"
    assert [each.name for each in run.iterdir() if each.name.endswith(".tmp")] == []
    html = path.read_text(encoding="utf-8")
    count = sum(parameter.numel() for parameter in regard.load(run).parameters())
    assert f"{count:,}" in html
    assert "in 4 steps" in html
    assert f"regard train {run}" in html


def test_report_is_the_same_twice(run):
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_maps_are_the_models_own_for_this_sample(tiny_run):
    task, model = open_run(tiny_run)
    sample = Sample("one two", "1 2", "1 2")
    maps = maps_of(task, model, sample)
    (source, target) = task.encode([("one two", "1 2")])[0]
    assert len(maps) == model.config.num_decoder_layers
    for weights in maps.values():
        assert weights.shape == (1, model.config.num_heads, len(target) + 1, len(source) + 1)
        assert weights.sum(dim=-1).allclose(weights.new_ones(()))
    svg = picture(task, sample, next(iter(maps.values()))[0, 0]).svg
    assert svg.count("⟨end⟩") >= 2


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        (lambda run: (run / "recipe.json").unlink(), DataError, "recipe.json: no such file; is .* the folder of a run"),
        (lambda run: (run / "recipe.json").write_text("[]"), DataError, "expected a JSON object, found list"),
        (lambda run: (run / "log.jsonl").write_text('{"step":1, "seconds":2}\n{"st'), DataError, "log.jsonl, line 2"),
        (lambda run: shutil.rmtree(run / "best"), RegardError, "best"),
    ],
)
def test_a_spoilt_run_is_refused_by_name(run, spoil, error, says):
    spoil(run)
    with pytest.raises(error, match=says):
        write_report(run)
    assert not (run / "report.html").exists()


def test_another_task_is_refused(run):
    recipe = json.loads((run / "recipe.json").read_text())
    (run / "recipe.json").write_text(json.dumps(recipe | {"task": "tig"}))
    with pytest.raises(ConfigError, match="no task 'tig'"):
        write_report(run)


def test_languages_by_name():
    assert [language(code) for code in ("en", "fr", "pt-BR", "de_AT", "klingon!", "x")] == [
        "English", "French", "Portuguese (Brazil)", "German (Austria)", "klingon!", "x",
    ]  # fmt: skip


def test_the_report_shows_what_the_run_watched(tiny_run):
    html = (tiny_run / "report.html").read_text(encoding="utf-8")
    for part in ("Gradient norm of each block", "Attention entropy of each head", "As it learned", "Health"):
        assert part in html
    assert "encoder.blocks.0" in html
    assert "Scores are those of best/: of all validations, that at step" in html


def test_a_task_without_a_page_of_its_own_has_a_plain_one(run, monkeypatch):
    monkeypatch.setattr("regard.explain.report.ParallelText", type("Other", (), {"task": "other"}))
    html = write_report(run).read_text(encoding="utf-8")
    for part in ("<h1>Translate</h1>", "exact_match", "Loss per token", "The model"):
        assert part in html
