"""Runs side by side: figures by hand, best ones marked, settings that differ, and a page that stands alone."""

import json

import pytest

from regard.cli import main
from regard.core.errors import ConfigError, DataError
from regard.explain.compare import figures, metrics, read_runs, settings, write_comparison


@pytest.fixture
def folders(tmp_path):
    recipes = [{"seed": 0, "model": {"dropout": 0.1}}, {"seed": 0, "model": {"dropout": 0.3}, "extra": "<b>"}]
    logs = [
        [
            {"step": 2, "loss": 3.0, "tokens_per_second": 100.0, "seconds": 30},
            {"step": 2, "valid_loss": 2.5, "bleu": 10.0, "seconds": 31},
            {"step": 4, "loss": 2.0, "tokens_per_second": 300.0, "seconds": 60},
            {"step": 4, "valid_loss": 2.75, "bleu": 12.0, "dead_units": {"a": 0.5}, "samples": [], "seconds": 61},
            {"step": 4, "health": "a cough", "message": "rest", "seconds": 61},
        ],
        [
            {"step": 2, "loss": 3.5, "tokens_per_second": 50.0, "seconds": 30},
            {"step": 2, "valid_loss": 2.0, "seconds": 90},
        ],
    ]
    for name, recipe, log in zip(("one", "two"), recipes, logs, strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.json").write_text(json.dumps(recipe))
        (tmp_path / name / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    return [tmp_path / "one", tmp_path / "two"]


def test_figures_by_hand(folders):
    runs = read_runs(folders)
    assert metrics(runs) == ["valid_loss", "bleu"]
    found = {row.name: (list(row.values), row.best()) for row in figures(runs)}
    assert found == {
        "best valid_loss": ([2.5, 2.0], 2.0),
        "best bleu": ([12.0, None], None),
        "steps": ([4, 2], None),
        "time": ([61, 90], None),
        "tokens per second": ([200.0, 50.0], 200.0),
    }
    assert settings(runs) == {"model.dropout": ["0.1", "0.3"], "extra": ["", "<b>"]}


def test_the_table_marks_the_best_and_the_page_stands_alone(folders, tmp_path, capsys):
    assert main(["compare", *map(str, folders), "--out", str(tmp_path / "both.html")]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["one", "two"]
    assert ["best", "valid_loss", "2.5", "2*"] in lines
    assert ["tokens", "per", "second", "200*", "50"] in lines
    assert ["time", "1", "min", "1", "s", "1", "min", "30", "s"] in lines
    page = (tmp_path / "both.html").read_text()
    assert "<b>2</b>" in page
    assert page.count("<polyline") == 2 + 2 + 1 + 2 + 2  # loss, valid_loss, bleu (of one), speed, valid_loss over time
    assert "&lt;b&gt;" in page
    assert "http" not in page.replace("http-equiv", "")


def test_what_cannot_be_compared(folders, tmp_path):
    with pytest.raises(ConfigError, match="2 to 8 runs, not 1"):
        read_runs(folders[:1])
    with pytest.raises(ConfigError, match="with itself"):
        read_runs([folders[0], folders[0]])
    with pytest.raises(DataError, match=r"recipe\.json: no such file"):
        read_runs([folders[0], tmp_path])
    same = tmp_path / "other" / "one"
    same.mkdir(parents=True)
    (same / "recipe.json").write_text((folders[0] / "recipe.json").read_text())
    runs = read_runs([folders[0], same])
    assert [run.name for run in runs] == [str(folders[0]), str(same)]
    assert settings(runs) == {}
    assert "one recipe" in write_comparison(runs, tmp_path / "page.html").read_text()
