"""``regard tune`` and ``regard find`` from the command line: what they print, leave behind, and refuse."""

import json
import shlex

import pytest

from regard.cli import main


def refused(capsys, *argv):
    """The one line on standard error with which a command is refused."""
    assert main([*map(str, argv)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err.removeprefix("regard: error: ").rstrip("\n")


@pytest.fixture(scope="module")
def search(tmp_path_factory, tiny_options):
    """The folder of a finished search of the default space; tests only read it."""
    out = tmp_path_factory.mktemp("search") / "tiny"
    assert main(["tune", "translate", *tiny_options, "--trials", "2", "--out", str(out), "--quiet"]) == 0
    return out


def test_a_search_ends_with_the_command_to_use(search, capsys):
    assert main(["tune", str(search), "--resume"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert shlex.split(lines[-1])[:3] == ["regard", "train", "translate"]
    assert [line.split()[0] for line in lines[1:5]] == [
        "schedule.lr", "schedule.warmup", "model.dropout", "objective.label_smoothing"
    ]  # fmt: skip
    assert printed.err == f"regard: the page is {search / 'tune.html'}\n"
    assert (search / "tune.html").exists()
    assert json.loads((search / "search.json").read_text())["trials"] == 2


def test_a_trial_is_a_run_like_any_other(search, capsys, tmp_path):
    runs = [str(search / "trial-000"), str(search / "trial-001")]
    assert main(["predict", runs[0], "one two", "--max-tokens", "3"]) == 0
    assert main(["compare", *runs, "--out", str(tmp_path / "compare.html")]) == 0
    assert "schedule.lr" in capsys.readouterr().out
    assert main(["train", runs[0], "--resume", "--quiet"]) == 0


def test_searches_that_cannot_be_made_are_refused_in_one_line(search, tiny_options, tmp_path, capsys):
    out = tmp_path / "out"
    assert "did you mean 'translate'" in refused(capsys, "tune", "translat")
    assert "did you mean '--schedule.lr'" in refused(capsys, "tune", "translate", "--schedule.rl", "1")
    assert "did you mean '--model.dropout'" in refused(
        capsys, "tune", "translate", "--out", out, "--space", "model.dropuot=0..1"
    )
    assert "expected a whole number from 1 on, found '0'" in refused(capsys, "tune", "translate", "--jobs", "0")
    assert "go on with --resume" in refused(capsys, "tune", search)
    assert "no other option" in refused(capsys, "tune", search, "--resume", "--seed", "1")
    assert "no such folder" in refused(capsys, "tune", tmp_path / "nowhere")
    assert "not empty" in refused(capsys, "tune", "translate", *tiny_options, "--out", search)
    assert "another seed" in refused(
        capsys, "tune", "translate", *tiny_options, "--seed", "1", "--out", search, "--resume"
    )
    assert "nowhere.tsv" in refused(capsys, "tune", "translate", "--data.train", "nowhere.tsv", "--out", out)
    assert not out.exists()


def test_find_prints_options_and_writes_one_page(tiny_options, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["find", "translate", *tiny_options, "--steps", "50"]) == 0
    printed = capsys.readouterr()
    *_, command = printed.out.splitlines()
    words = shlex.split(command)
    assert words[: 3 + len(tiny_options)] == ["regard", "train", "translate", *tiny_options]
    options = dict(zip(words[-4::2], words[-3::2], strict=True))
    assert int(options["--data.max-tokens"]) >= 256
    assert 1e-4 < float(options["--schedule.lr"]) < 1
    assert printed.err == "regard: the page is find.html\n"
    assert [path.name for path in tmp_path.iterdir()] == ["find.html"]


def test_find_finds_one_alone(tiny_options, tmp_path, capsys):
    for only, option in (("batch", "--data.max-tokens"), ("rate", "--schedule.lr")):
        page = tmp_path / f"{only}.html"
        assert main(["find", "translate", *tiny_options, "--steps", "40", "--only", only, "--out", str(page)]) == 0
        assert shlex.split(capsys.readouterr().out.splitlines()[-1])[-2] == option
        assert page.read_text().count("<figure") == 1


def test_what_cannot_be_found_is_refused_in_one_line(tiny_options, tmp_path, capsys):
    assert "no recipe" in refused(capsys, "find", "trnslate")
    frozen = ["--freeze", "encoder*", "decoder*", "head*"]
    assert "nothing to train" in refused(capsys, "find", "translate", *tiny_options, *frozen, "--only", "rate")
    assert "the loss fell at no rate" in refused(
        capsys, "find", "translate", *tiny_options, "--steps", "1", "--only", "rate", "--out", tmp_path / "x.html"
    )
