"""The command line as a whole: what it answers, what it refuses, and what it imports."""

import json
import os
import shlex
import subprocess
import sys

import pytest

import regard
from regard.cli import VERBS, main

REGARD = [sys.executable, "-c", "import sys; from regard.cli import main; sys.exit(main())"]


def refused(capsys, *argv):
    """The one line on standard error with which a command is refused."""
    assert main([*map(str, argv)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("regard: error: ")
    return printed.err.removeprefix("regard: error: ").rstrip("\n")


def test_help_lists_every_verb(capsys):
    assert main([]) == 0
    first = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == first
    assert all(f"\n  {verb} " in first for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(verb, capsys):
    try:
        code = main([verb, "--help"])
    except SystemExit as stop:
        code = stop.code
    assert code == 0
    assert capsys.readouterr().out.startswith(f"usage: regard {verb} ")


def test_help_imports_no_torch():
    listed = ", ".join(f"['{verb}', '--help']" for verb in VERBS)
    program = (
        "import contextlib, sys\nfrom regard.cli import main\n"
        f"for argv in [[], ['--version'], ['--help'], {listed}]:\n"
        "    with contextlib.suppress(SystemExit):\n        main(argv)\n"
        "slow = {'torch', 'numpy', 'tyro', 'rich', 'sacrebleu', 'matplotlib', 'babel', 'tokenizers'}\n"
        "sys.exit(str(slow & set(sys.modules)) if slow & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_import_regard_imports_nothing_slow():
    program = "import regard, sys; print([m for m in sys.modules if m.split('.')[0] in ('torch', 'numpy')])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"regard {regard.__version__}\n"


def test_front_door_has_what_it_says():
    for name in regard.__all__:
        assert callable(getattr(regard, name)), name
    assert set(regard.__all__) <= set(dir(regard))
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = regard.lode


def test_generate_stays_callable_once_its_room_is_imported():
    program = (
        "import regard, regard.generate.decode\nfrom regard.generate.front import generate\n"
        "assert regard.generate.decode.greedy\n"
        "try:\n    regard.generate(1, 2, nonsense=3)\n"
        "except TypeError as error:\n    assert 'nonsense' in str(error), error\n"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["trian"], "no verb 'trian' (did you mean 'train'?); 'regard --help' lists them"),
        (["--verison"], "no verb '--verison'; 'regard --help' lists them"),
        (["evaluate"], "the following arguments are required: RUN (see 'regard evaluate --help')"),
        (["predict", "r", "--baem", "3"], "no option '--baem' (did you mean '--beam'?) (see 'regard predict --help')"),
        (
            ["predict", "r", "--beam", "0"],
            "--beam: expected a whole number from 1 on, found '0' (see 'regard predict --help')",
        ),
        (["convert", "a", "b", "--to", "pickle"], "--to: expected regard or hf, found 'pickle'"),
        (["show", "a", "b"], "unexpected argument 'b' (see 'regard show --help')"),
        (["generate", "r", "x", "--top-k", "3"], "--top-k chooses among draws: it needs a --temperature above 0"),
    ],
)
def test_misspelt_commands_are_refused_in_one_line(argv, says, capsys):
    assert refused(capsys, *argv).startswith(says)


@pytest.mark.parametrize(
    "argv", [["evaluate"], ["predict"], ["generate"], ["show"], ["convert"], ["train", "--resume"]], ids=lambda a: a[0]
)
def test_a_folder_that_is_not_there_is_refused_in_one_line(argv, tmp_path, capsys):
    verb, *options = argv
    more = {"predict": ["text"], "generate": ["text"], "convert": [tmp_path / "to", "--to", "hf"]}.get(verb, [])
    assert "nowhere" in refused(capsys, verb, tmp_path / "nowhere", *more, *options)


def test_an_interrupt_is_one_line_and_130(monkeypatch, capsys):
    def interrupt(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("regard.cli.show.run", interrupt)
    assert main(["show"]) == 130
    assert capsys.readouterr().err == "regard: interrupted\n"


def test_an_error_of_the_disk_names_the_file(monkeypatch, capsys):
    def fail(argv):
        raise PermissionError(13, "Permission denied", "secret.txt")

    monkeypatch.setattr("regard.cli.show.run", fail)
    assert refused(capsys, "show") == "secret.txt: Permission denied"


def test_a_reader_that_goes_away_is_no_error():
    process = subprocess.Popen([*REGARD, "show"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0


def test_predict_answers_a_slow_writer_line_by_line(tiny_run):
    process = subprocess.Popen(
        [*REGARD, "predict", str(tiny_run), "--max-tokens", "3"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in ("one two", "", "five"):
        process.stdin.write(line + "\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        assert answer.endswith("\n")
        assert line or answer == "\n"
    rest, _ = process.communicate()
    assert (rest, process.returncode) == ("", 0)


def test_training_goes_on_when_its_reader_goes_away(tiny_options, tmp_path):
    command = [*REGARD, "train", "translate", *tiny_options, "--num-steps", "40", "--out", str(tmp_path / "run")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    process.stderr.readline()
    process.stderr.close()
    assert process.wait() == 0
    assert json.loads((tmp_path / "run/last/training.json").read_text())["step"] == 40
    assert (tmp_path / "run/report.html").exists()


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("predict RUN <&-", 0),
        ("show RUN >&-", 0),
        ("predict RUN 'one two' 2>&-", 0),
        ("show > /dev/full", 2),
        ("no-such-verb 2>&-", 2),
    ],
)
def test_closed_and_full_streams_are_no_traceback(tiny_run, command, code):
    line = command.replace("RUN", shlex.quote(str(tiny_run)))
    done = subprocess.run(f"{shlex.join(REGARD)} {line}", shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert ("standard output: No space left" in done.stderr) == ("full" in command)


def test_output_is_utf8_whatever_the_locale_says(tiny_run):
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run([*REGARD, "show", str(tiny_run)], env=environment, capture_output=True, check=False)
    assert done.returncode == 0
    assert "├─" in done.stdout.decode("utf-8")


@pytest.mark.timeout(60)
def test_predict_reads_a_pipe_by_name(tiny_run, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    process = subprocess.Popen(
        [*REGARD, "predict", str(tiny_run), "--file", str(tmp_path / "pipe")], stdout=subprocess.PIPE, text=True
    )
    (tmp_path / "pipe").write_text("one two\n")
    assert process.communicate()[0].count("\n") == 1
    assert process.returncode == 0
