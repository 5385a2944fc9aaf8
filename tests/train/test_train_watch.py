"""The log is a file of JSON lines that can be cut back; plain lines are for whoever reads a pipe."""

import json

import pytest

from regard.core.console import quietly
from regard.train.watch import Log, Watch, rough


def test_what_came_after_the_checkpoint_is_written_again(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    log.write({"step": 1, "loss": 2.0})
    length = log.sync()
    log.write({"step": 2, "loss": 1.0})
    again = Log(tmp_path / "log.jsonl", length)
    again.write({"step": 2, "loss": 0.5})
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 0.5}]


def test_a_log_shorter_than_its_checkpoint_says_is_not_filled_up(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    log.write({"step": 1, "loss": 2.0})
    length = log.sync()
    for _ in range(2):  # cut back twice, and never written to in between
        log = Log(tmp_path / "log.jsonl", length)
        assert log.sync() == length
    (tmp_path / "log.jsonl").write_bytes(b"")
    assert Log(tmp_path / "log.jsonl", length).sync() == 0
    assert (tmp_path / "log.jsonl").read_bytes() == b""


def test_without_a_terminal_every_record_is_one_line(capsys):
    with Watch(20) as watch:
        watch.advance(10)
        watch.show({"step": 10, "loss": 1.25, "tokens_per_second": 1234.5})
        watch.show({"step": 10, "valid_loss": 2.5, "bleu": 30.25})
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert "10 / 20" in lines[0]
    assert "loss 1.25" in lines[0]
    assert "bleu 30.25" in lines[1]


def test_quiet_is_quiet(capsys):
    with quietly(), Watch(20) as watch:
        watch.show({"step": 10, "loss": 1.25, "tokens_per_second": 1234.5})
        watch.say("hello")
    assert capsys.readouterr() == ("", "")


def test_lines_say_how_much_longer_and_leave_out_what_is_for_machines(capsys):
    with Watch(40) as watch:
        watch.show({"step": 10, "loss": 1.5, "tokens_per_second": 9.0, "grad_norms": {"a": 1.0}, "seconds": 60.0})
        watch.show({"step": 10, "valid_loss": 2.5, "samples": [{"source": "x", "output": "y"}], "seconds": 60.0})
        watch.show({"step": 40, "loss": 1.5, "tokens_per_second": 9.0, "seconds": 240.0})
    first, second, last = capsys.readouterr().err.splitlines()
    assert first.split()[-3:] == ["left", "3", "min"]
    assert "grad_norms" not in first
    assert "samples" not in second
    assert "left" not in second + last


def test_what_ails_the_run_is_a_line_of_words(capsys):
    with Watch(40) as watch:
        watch.show({"step": 10, "health": "dead units", "message": "half of them; do this", "seconds": 1.0})
    assert capsys.readouterr().err == "step     10 / 40   dead units: half of them; do this\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (170, "3 min"), (3590, "1 h 0 min"), (7800, "2 h 10 min")]
)
def test_times_to_come_are_rough(seconds, text):
    assert rough(seconds) == text


def test_records_are_what_was_written(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    assert log.records() == []
    written = [{"step": 1, "health": "é", "seconds": 1.0}, {"step": 2, "loss": 0.5, "seconds": 2.0}]
    for record in written:
        log.write(record)
    assert log.records() == written
