"""Language modelling: what a batch holds, how data is split, and what the scores mean."""

import math
from itertools import pairwise

import pytest
import torch

from regard import zoo
from regard.core.errors import ConfigError, DataError, InputError
from regard.core.types import IGNORE
from regard.data.learn import train_tokenizer
from regard.data.source import Fault
from regard.generate.decode import sample
from regard.models.gpt2 import GPT2Config
from regard.objectives.supervise import Supervise
from regard.tasks import datas
from regard.tasks.language import Language, PlainText, hold_out_ends, python_reference

TEXTS = ["one two three\nfour five\n", "eins zwei drei vier", "x"]
TINY = GPT2Config(vocab_size=0, embed_dim=16, ffn_dim=32, num_heads=2, num_layers=1, max_seq_len=12)


@pytest.fixture(scope="module")
def task():
    return Language(PlainText(seq_len=6, max_tokens=24), train_tokenizer("bpe", TEXTS, 300))


@pytest.fixture(scope="module")
def model(task):
    return zoo.build(task.configure(TINY), seed=3, dtype=torch.float64).eval()


def texts_of(task, batch):
    """What the rows read and what they are to say, as text."""
    said = [[token for token in row if token >= 0] for row in batch["targets"].tolist()]
    return [task.tokenizer.decode(row) for row in batch["tokens"].tolist()], [
        task.tokenizer.decode(row) for row in said
    ]


def test_rows_by_hand(task):
    a, b = (task.tokenizer.encode(text) for text in ("one two", "x"))
    size = len(a) + 1
    assert size < 6, "so that the first row holds the end of one text and the beginning of the next"
    rows = task.cut(["one two", "x"])
    batch = task.batch([rows[i] for i in range(len(rows))])
    stream = [1, *a, 2, 1, *b, 2]
    assert batch["tokens"].flatten().tolist()[: len(stream) - 1] == stream[:-1]
    said = [token if read != 2 else IGNORE for read, token in pairwise(stream)]
    assert batch["targets"].flatten().tolist()[: len(said)] == said
    assert "documents" in batch
    assert "valid" not in batch


def test_a_row_of_one_text_needs_no_documents(task):
    rows = task.cut(["one two three four five"])
    assert task.batch([rows[0]]).keys() == {"tokens", "targets"}
    together = Language(PlainText(seq_len=6, separate=False), task.tokenizer)
    rows = together.cut(["x"] * 5)
    assert together.batch([rows[0]]).keys() == {"tokens", "targets"}


def test_texts_that_share_a_row_are_scored_as_each_alone(task, model):
    """Texts shorter than a row: packed, padded and alone, the sum of their losses is the same."""
    texts = ["one", "two", "x", "five"]
    assert all(len(task.tokenizer.encode(text)) < 6 for text in texts)
    wide = Language(PlainText(seq_len=100, max_tokens=200), task.tokenizer)
    size = sum(map(len, texts))
    together = wide.score(model, texts).scores["bits_per_byte"] * size
    assert together == pytest.approx(
        sum(wide.score(model, [text]).scores["bits_per_byte"] * len(text) for text in texts), 1e-9
    )


def test_scores_by_hand(task, model):
    text = "one two"
    tokens = [1, *task.tokenizer.encode(text), 2]
    logprobs = model(torch.tensor([tokens])).logits[0].log_softmax(-1).detach()
    nll = -sum(float(logprobs[i, token]) for i, token in enumerate(tokens[1:]))
    wide = Language(PlainText(seq_len=100, max_tokens=200), task.tokenizer)
    assert wide.score(model, [text]).scores == pytest.approx(
        {
            "log_likelihood": -nll / (len(tokens) - 1),
            "perplexity": math.exp(nll / (len(tokens) - 1)),
            "bits_per_byte": nll / math.log(2) / len(text),
        }
    )


def test_a_text_is_read_whole_and_every_token_is_said_once(task):
    text = "one two three four five " * 10
    rows = task.cut([text])
    read, said = texts_of(task, task.batch([rows[i] for i in range(len(rows))]))
    assert "".join(read).replace("<pad>", "") == text
    assert "".join(said) == text


def test_predictions_are_those_of_the_model_alone(task, model):
    answers = list(task.predict(model, ["one two", "x"], max_tokens=4))
    assert answers == [next(task.predict(model, [text], max_tokens=4)) for text in ("one two", "x")]
    with pytest.raises(InputError, match=r"text 1 has .* give it a shorter one"):
        next(task.predict(model, ["one two three " * 20]))
    with pytest.raises(ConfigError, match="leave no length"):
        next(task.predict(model, ["x"], max_tokens=0))


def test_each_text_has_draws_of_its_own(task, model):
    said = [*task.predict(model, ["one two"] * 3, sample([1, 2, 3]), max_tokens=8)]
    assert said == [next(task.predict(model, ["one two"], sample([seed]), max_tokens=8)) for seed in (1, 2, 3)]
    assert len(set(said)) > 1


def test_configure_fills_in_what_the_tokenizer_decides(task):
    filled = task.configure(TINY)
    assert (filled.vocab_size, filled.pad_token, filled.bos_token, filled.eos_token) == (len(task.tokenizer), 0, 1, 2)
    with pytest.raises(ConfigError, match="vocab_size 100 is less"):
        task.configure(GPT2Config(vocab_size=100, bos_token=None, eos_token=None))
    with pytest.raises(ConfigError, match="seq_len 6 is more than the model's 4 positions"):
        task.configure(GPT2Config(vocab_size=0, max_seq_len=4))


def test_texts_are_files_or_paragraphs(tmp_path):
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("a\nb\n\n\nc  \n \nd")
    two.write_text("e\r\nf\n")
    assert PlainText().read(f"{one},{two}") == ["a\nb\n\n\nc  \n \nd", "e\nf"]
    assert PlainText(documents="paragraph").read(f"{one},{two}") == ["a\nb", "c  ", "d", "e\nf"]
    two.write_text(" \n")
    with pytest.raises(DataError, match=r"two\.txt: there is no text"):
        PlainText().read(str(two))
    with pytest.raises(DataError, match="no such file"):
        PlainText().read(str(tmp_path / "three.txt"))


def test_what_is_held_out_is_not_learnt_from():
    one = "".join(f"line {i}\n" for i in range(40))
    (first,), (last,) = hold_out_ends([one])
    assert first + last == one
    assert last == "line 38\nline 39\n"
    (first,), (last,) = hold_out_ends([one.replace("\n", " ")])  # some corpora are one line
    assert (first + last, len(last)) == (one.replace("\n", " "), len(one) // 20)


def test_too_short_a_text_is_an_error(tmp_path):
    path = tmp_path / "one.txt"
    path.write_text("one line")
    with pytest.raises(DataError, match=r"too short to hold some of it out; name another file as data\.valid"):
        _ = PlainText(train=str(path)).splits
    named = PlainText(train=str(path), valid=str(path)).splits
    assert ([*named["train"]], named["valid"], named["test"]) == (["one line"], ["one line"], [])


def test_the_reference_of_python_is_the_default():
    splits = PlainText().splits
    assert sum(map(len, splits["train"])) > 200_000
    learnt = {each for text in splits["train"] for each in text.split("\n\n")}
    assert not learnt & {each for text in splits["valid"] for each in text.split("\n\n")}
    assert python_reference() == python_reference()


def test_the_loader_cuts_rows(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one two three four five\n" * 100)
    data = PlainText(train=str(path), vocab_size=270, seq_len=16, max_tokens=64)
    task = data.open()
    loader = task.loader(seed=0, prepare=Supervise().prepare)
    batch = next(iter(loader))
    assert batch["tokens"].shape == batch["targets"].shape == (4, 16)
    assert sum(int((each["targets"] != IGNORE).sum()) for each in task.validation()) > 0


def test_what_a_person_is_shown_of_a_text(task):
    text = "one two three four five " * 3
    assert task.lengths([text, "x"]) == [(len(task.tokenizer.encode(each)) + 2,) for each in (text, "x")]
    example = task.example(text)
    read = [token for row in example["tokens"].tolist() for token in row if token != task.tokenizer.pad]
    assert len(read) == task.lengths([text])[0][0] - 1
    assert "".join(task.pieces("tokens", read)) == "<s>" + text
    assert text.startswith(task.show(example).strip("'"))


def test_a_line_that_is_no_text_is_named(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n\xff\nthree\n")
    for kind in ("file", "paragraph"):
        faults = [row for row in PlainText(documents=kind).rows(str(path)) if isinstance(row, Fault)]
        assert [str(fault) for fault in faults] == [
            f"{path}, line 2: not UTF-8 text (byte 0xff); convert the file to UTF-8"
        ]
        with pytest.raises(DataError, match="line 2"):
            PlainText(documents=kind).read(str(path))


def test_characters_are_a_tokenizer_too(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("to be or not to be\n" * 30)
    task = PlainText(train=str(path), tokenizer_kind="characters").open()
    assert len(task.tokenizer) == 4 + len(set("to be or not\n"))
    rows = task.cut(["to be\n"])
    assert rows[0][0][0].tolist() == [1, *task.tokenizer.encode("to be\n")]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"valid": "v.txt"}, "need data.train"),
        ({"max_tokens": 0}, "data.max_tokens 0"),
        ({"seq_len": 0}, "data.seq_len"),
    ],
)
def test_wrong_values(wrong, message):
    with pytest.raises(ConfigError, match=message):
        PlainText(**wrong)


def test_the_task_is_found():
    assert datas()["language"] is PlainText
