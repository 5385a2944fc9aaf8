"""Long work tells how far it has come; short work says nothing."""

import os
import subprocess
import sys

import pytest

from regard.core import console
from regard.core.console import quietly, told

TEXTS = ["ab" * 500_000, "c" * 2_000_000]


def test_short_work_is_silent(capsys):
    assert list(told(TEXTS, len, "tokenising")) == TEXTS
    assert capsys.readouterr().err == ""


def test_long_work_says_how_much_and_how_fast(capsys, monkeypatch):
    monkeypatch.setattr(console, "SECONDS", 0.0)
    assert list(told(TEXTS, len, "tokenising")) == TEXTS
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("tokenising: 1.0 million characters, ")
    assert second.startswith("tokenising: 3.0 million characters, ")
    assert second.endswith(" a second")


def test_quiet_work_is_silent_however_long(capsys, monkeypatch):
    monkeypatch.setattr(console, "SECONDS", 0.0)
    with quietly(), quietly(False):  # inner work is no louder than outer
        assert list(told(TEXTS, len, "tokenising")) == TEXTS
    assert capsys.readouterr().err == ""
    assert not console.console().quiet


PRINTED = "input(); console().print('so far'); sys.exit(7)"
SHOWN = """
with console().status('working'):
    input()
sys.exit(7)
"""


@pytest.mark.parametrize("work", [PRINTED, SHOWN], ids=["printed", "shown"])
def test_a_terminal_that_is_closed_ends_no_work(work):
    ours, theirs = os.openpty()
    code = f"from regard.core.console import console; import sys\n{work}"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=theirs, text=True)
    os.close(theirs)
    os.close(ours)
    process.communicate("go\n")
    assert process.returncode == 7
