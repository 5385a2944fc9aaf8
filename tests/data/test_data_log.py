"""A log is read as it was written, or refused by line."""

import json

import pytest

from regard.core.errors import DataError
from regard.data.log import read_log


def test_records_in_order(tmp_path):
    records = [{"step": 1, "seconds": 0.5, "samples": [{"source": "\u2028é"}]}, {"step": 2, "seconds": 1}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert read_log(tmp_path / "log.jsonl") == records


def test_no_log_is_an_empty_one(tmp_path):
    assert read_log(tmp_path / "log.jsonl") == []
    (tmp_path / "log.jsonl").touch()
    assert read_log(tmp_path / "log.jsonl") == []


@pytest.mark.parametrize(
    ("line", "says"),
    [(b"{", "not valid JSON"), (b"5", "expected an object"), (b'{"step": 1}', "and 'seconds'"), (b"\xff", "not UTF-8")],
)
def test_a_spoilt_line_is_named(tmp_path, line, says):
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1, "seconds": 1}\n' + line + b"\n")
    with pytest.raises(DataError, match=f"log.jsonl, line 2: .*{says}"):
        read_log(tmp_path / "log.jsonl")
