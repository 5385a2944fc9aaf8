"""``regard data check``: it shows what a model would see, and names every row that is wrong."""

import itertools
import re
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from regard.cli import main
from regard.cli.data import BAR, BINS, LISTED, example, histogram, percentile
from regard.core.types import IGNORE

BYTES = ["--data.tokenizer-kind", "bytes"]
counters = st.dictionaries(st.integers(0, 300), st.integers(1, 50), min_size=1).map(Counter)


def check(capsys, *argv, task="translate"):
    """The exit code of a check, and what it printed."""
    code = main(["data", "check", *map(str, argv), "--task", task, *BYTES])
    printed = capsys.readouterr()
    assert printed.err == ""
    return code, printed.out


def part(text, title):
    """The lines of one part of the report."""
    return next(part.split("\n")[1:] for part in f"\n{text}".rstrip().split("\n\n") if part.strip().startswith(title))


def write(path, data):
    path.write_bytes(data.encode() if isinstance(data, str) else data)
    return path


def test_examples_show_their_tokens_and_which_carry_loss(tmp_path, capsys):
    code, out = check(capsys, write(tmp_path / "a.tsv", "ab\tc \nd\té\ne\tf\n"), "--examples", 2)
    assert code == 0
    assert part(out, "tokens between bars") == [
        "  line 1", "    tokens   a│b│</s>", "    targets  [c][ ][</s>]",
        "  line 2", "    tokens   d│</s>", "    targets  [][é][</s>]",
    ]  # fmt: skip
    assert out.startswith(f"{tmp_path / 'a.tsv'}\nexamples: 3\n\nmalformed rows: 0\n")


def test_every_malformed_row_is_named_and_the_code_is_1(tmp_path, capsys):
    rows = [b"a%d\tb\n" % i if i % 3 else b"\xff\tb\n" if i % 2 else b"only one\n" for i in range(90)]
    path = write(tmp_path / "a.tsv", b"".join(rows))
    code, out = check(capsys, path)
    assert code == 1
    assert "\nexamples: 60\n\nmalformed rows: 30\n" in out
    *lines, more = part(out, "malformed rows")
    assert len(lines) == LISTED
    for line, number in zip(lines, range(1, 90, 3), strict=False):
        what = "expected 2 columns (source<TAB>target), found 1" if number % 2 else "not UTF-8 text (byte 0xff)"
        assert line.startswith(f"  {path}, line {number}: {what}")
    assert more == "  ... and 10 more"


def test_a_file_of_nothing_but_faults_is_reported_too(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", '{"source": "a"}\n{}\n')
    code, out = check(capsys, path)
    assert code == 1
    assert part(out, "malformed rows") == [
        f"  {path}, line 1: missing key 'target'; found source",
        f"  {path}, line 2: missing key 'source'; found no keys",
    ]


def test_duplicates_are_found_within_a_file_and_between_two(tmp_path, capsys):
    one = write(tmp_path / "train.tsv", "a\tb\nc\td\na\tb\nx\ny\tz\na\tb\n")
    two = write(tmp_path / "test.jsonl", '{"source": "q", "target": "r"}\n{"source": "y", "target": "z"}\n[]\n')
    code, out = check(capsys, one, "--against", two)
    assert code == 1
    assert part(out, "duplicates: 2") == ["  line 3 is line 1 again", "  line 6 is line 1 again"]
    assert part(out, f"in {two} as well: 1") == ["  line 5 is line 2 there"]
    assert [line.split(": ")[0] for line in part(out, "malformed rows: 2")] == [f"  {two}, line 3", f"  {one}, line 4"]


def test_lengths_are_those_of_every_example(tmp_path, capsys):
    path = write(tmp_path / "a.tsv", "".join(f"{'a' * (i % 7 + 1)}\t{'b' * (i + 1)}\n" for i in range(70)))
    code, out = check(capsys, path)
    assert code == 0
    assert "\nsource: 2 to 8 tokens; 50 % up to 5, 90 % up to 8, 99 % up to 8\n" in out
    assert [line.split() for line in part(out, "source:")] == [[str(i), "10", "█" * BAR] for i in range(2, 9)]
    assert "\ntarget: 2 to 71 tokens; 50 % up to 36, 90 % up to 64, 99 % up to 71\n" in out
    assert [line.split()[:2] for line in part(out, "target:")] == [[f"{i}-{i + 6}", "7"] for i in range(2, 72, 7)]


@given(lengths=counters)
def test_a_histogram_counts_each_length_once(lengths):
    head, *bars = histogram("text", lengths)
    assert head.startswith(f"text: {min(lengths)} to {max(lengths)} tokens; ")
    assert len(bars) <= BINS
    spans = [re.fullmatch(r" +(\d+)(?:-(\d+))? +([\d,]+)(?: (█+))?", bar).groups() for bar in bars]
    ends = [(int(first), int(last or first)) for first, last, *_ in spans]
    assert ends[0][0] == min(lengths)
    assert ends[-1][1] == max(lengths)
    assert all(last + 1 == first for (_, last), (first, _) in itertools.pairwise(ends))
    counts = [int(count.replace(",", "")) for *_, count, _ in spans]
    assert counts == [sum(lengths[i] for i in range(first, last + 1)) for first, last in ends]
    assert [len(bar or "") > 0 for *_, bar in spans] == [count > 0 for count in counts]
    assert max(len(bar or "") for *_, bar in spans) == BAR


@given(lengths=counters, share=st.integers(1, 100))
def test_a_percentile_is_the_smallest_length_with_so_many_below(lengths, share):
    found = percentile(lengths, share)
    every = np.array([*lengths.elements()])
    assert 100 * (every <= found).sum() >= share * len(every)
    assert 100 * (every < found).sum() < share * len(every)


def test_places_without_loss_are_marked_and_long_rows_cut():
    task = SimpleNamespace(
        example=lambda value: {
            "tokens": torch.arange(100)[None], "targets": torch.tensor([[IGNORE, 7, IGNORE, 9]]),
        },
        pieces=lambda name, row: [f"{name[1]}{number}\n" for number in row],
    )  # fmt: skip
    tokens, targets = example(task, "any")
    assert targets == r"targets  _[a7\n]_[a9\n]"
    assert tokens.endswith(r"│o63\n ... and 36 more")


def test_plain_text_is_checked_by_the_same_command(tmp_path, capsys):
    path = write(tmp_path / "a.txt", b"one\ntwo\n\n\xff\n\nthree\n\none\ntwo\n")
    code, out = check(capsys, path, "--data.documents", "paragraph", task="language")
    assert code == 1
    assert part(out, "malformed rows: 1") == [
        f"  {path}, line 4: not UTF-8 text (byte 0xff); convert the file to UTF-8"
    ]
    assert part(out, "duplicates: 1") == ["  line 8 is line 1 again"]
    assert r"    targets  [o][n][e][\n][t][w][o][</s>]" in out
    assert "\ntext: 7 to 9 tokens; " in out


def test_the_tokenizer_of_a_run_can_be_counted_in(tiny_run, pairs_file, capsys):
    argv = ["data", "check", str(pairs_file), "--task", "translate", "--data.tokenizer", str(tiny_run)]
    assert main(argv) == 0
    assert "target: 4 to 4 tokens" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["chek", "a.tsv", "--task", "translate"], "check: expected check, found 'chek' (did you mean 'check'?)"),
        (["check", "a.tsv"], "the following arguments are required: --task"),
        (["check", "a.tsv", "--task", "translat"], "no task 'translat' (did you mean 'translate'?); there are "),
        (["check", "nowhere.tsv", "--task", "translate"], "nowhere.tsv: no such file"),
        (["check", "a.tsv", "--task", "translate", "--data.sorce", "en"], "no option '--data.sorce' (did you mean "),
    ],
)
def test_a_check_that_cannot_be_made_is_refused_in_one_line(argv, says, capsys):
    assert main(["data", *argv]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"regard: error: {says}")
    assert printed.err.count("\n") == 1
