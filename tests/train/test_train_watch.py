"""The log is a file of JSON lines that can be cut back; plain lines are for whoever reads a pipe."""

import json

from regard.train.watch import Log, Watch


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
    with Watch(20, quiet=True) as watch:
        watch.show({"step": 10, "loss": 1.25, "tokens_per_second": 1234.5})
        watch.say("hello")
    assert capsys.readouterr() == ("", "")
