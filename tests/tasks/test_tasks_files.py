"""Training from files: tokenised once, never in memory, and the same batches however many processes make them."""

import json
import os
import random
import threading
import tracemalloc
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from regard.checkpoint.files import load_tensors
from regard.core.errors import ConfigError, DataError
from regard.core.types import IGNORE
from regard.data import cache
from regard.data.learn import train_tokenizer
from regard.data.loader import Loader, plan
from regard.data.pack import Stream
from regard.data.source import Fault
from regard.data.split import thinned
from regard.data.tokenize import Tokenizer
from regard.models.transformer import TransformerConfig
from regard.objectives.supervise import Supervise
from regard.tasks.language import Language, PlainText
from regard.tasks.seq2seq import sizes
from regard.tasks.translate import ParallelText, Translate
from regard.train.fit import Run, fit
from regard.train.recipe import Recipe

COUNT = 130
"""Examples in each file, which all differ; seven are held out."""


def sentences(count):
    rng = random.Random(0)
    return [
        f"{i} " + " ".join(rng.choice(["one", "two", "three"]) for _ in range(rng.randint(1, 9))) for i in range(count)
    ]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path_factory, monkeypatch):
    """Nothing is tokenised when a test begins."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def texts(tmp_path):
    """Rows of text, and how to learn from them."""
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in sentences(COUNT)))
    return PlainText(train=str(path), vocab_size=300, seq_len=8, max_tokens=32)


@pytest.fixture
def pairs(tmp_path):
    """Rows of pairs, and how to learn from them."""
    path = tmp_path / "pairs.tsv"
    path.write_text("".join(f"{text}\t{text[::-1]}\n" for text in sentences(COUNT)))
    return ParallelText(train=str(path), vocab_size=300, max_tokens=120)


@pytest.fixture(params=["texts", "pairs"])
def data(request):
    return request.getfixturevalue(request.param)


def loader(task, **ranks):
    return task.loader(seed=3, prepare=Supervise().prepare, **ranks)


def take(stream, count):
    return [{name: value.tolist() for name, value in batch.items()} for batch in islice(stream, count)]


def epoch(task):
    """A loader, and the batches of its first epoch as they come."""
    stream = loader(task)
    return stream, islice(stream, len(plan(stream.sizes, stream.max_tokens)))


class Counting(Tokenizer):
    """A tokenizer that counts the texts it is given."""

    encoded = 0

    def encode_batch(self, texts):
        self.encoded += len(texts)
        return super().encode_batch(texts)


def with_counting(data, folder):
    task = data.open(folder)
    task.tokenizer = Counting(task.tokenizer._core, task.tokenizer._names)
    return task


def test_pairs_are_those_of_the_file_in_its_order(pairs):
    task = pairs.open()
    examples = task.encode([(text, text[::-1]) for i, text in enumerate(sentences(COUNT)) if i % 20])
    memory = Loader(examples, sizes(examples), task.batch, max_tokens=120, seed=3)
    assert take(loader(task), 60) == take(memory, 60)


def test_texts_are_those_of_the_file_in_its_order(texts):
    task = texts.open()
    coded = [[1, *task.tokenizer.encode(text), 2] for i, text in enumerate(sentences(COUNT)) if i % 20]
    rows = Stream(cache.Rows(np.concatenate(coded), np.cumsum([0, *map(len, coded)])), 8)
    memory = Loader(rows, rows.sizes, task.batch, max_tokens=32, seed=3)
    assert take(loader(task), 60) == take(memory, 60)


def test_ranks_share_out_one_stream(data):
    task = data.open()
    whole = take(loader(task), 80)
    first, second = (take(loader(task, rank=rank, world=2), 40) for rank in (0, 1))
    assert [batch for both in zip(first, second, strict=True) for batch in both] == whole


@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0)])
def test_other_workers_go_on_with_the_same_batches(data, tmp_path, before, after):
    task = data.open()
    task.save(tmp_path)
    whole = take(loader(task), 40)
    first = loader(replace(data, num_workers=before).open(tmp_path))
    seen = take(first, 17)
    second = loader(replace(data, num_workers=after).open(tmp_path))
    second.restore(first.state())
    assert second.num_workers == after
    assert seen + take(second, 23) == whole


def test_a_run_goes_on_with_other_workers(pairs, tmp_path, monkeypatch):
    tiny = TransformerConfig(
        vocab_size=0, embed_dim=16, ffn_dim=16, num_heads=2, num_encoder_layers=1, num_decoder_layers=1
    )
    recipe = Recipe(model=tiny, data=pairs, num_steps=6, valid_every=2, precision="float32")
    fit(recipe, tmp_path / "whole", quiet=True)
    step = Run.step

    def pull_the_plug(run, *args):
        if run.progress.step == 5:
            raise KeyboardInterrupt
        return step(run, *args)

    monkeypatch.setattr(Run, "step", pull_the_plug)
    with pytest.raises(KeyboardInterrupt):
        fit(recipe, tmp_path / "run", quiet=True)
    monkeypatch.setattr(Run, "step", step)
    fit(replace(recipe, data=replace(pairs, num_workers=2)), tmp_path / "run", resume=True, quiet=True)
    whole, resumed = (load_tensors(tmp_path / name / "last/training.safetensors") for name in ("whole", "run"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_file_is_tokenised_once(data, tmp_path):
    data.open().save(tmp_path)
    first = with_counting(data, tmp_path)
    expected = take(loader(first), 20)
    assert first.tokenizer.encoded == (COUNT - 7) * len(first.sequences)
    file = Path(data.train)
    moved = file.rename(file.with_stem("moved"))
    second = with_counting(replace(data, train=str(moved)), tmp_path)
    assert take(loader(second), 20) == expected
    assert second.tokenizer.encoded == 0
    assert isinstance(second.corpus.columns[second.sequences[-1]].tokens.base, np.memmap)


def test_a_changed_file_is_other_data(data, tmp_path):
    data.open().save(tmp_path)
    task = data.open(tmp_path)
    state = loader(task).state()
    file = Path(data.train)
    file.write_text(file.read_text().replace("129 ", "921 "))
    changed = replace(data).open(tmp_path)
    assert changed.corpus.sizes.tolist() == task.corpus.sizes.tolist()
    assert changed.corpus.key != task.corpus.key
    with pytest.raises(DataError, match="not those that the run began with"):
        loader(changed).restore(state)


def test_what_else_decides_the_examples_is_other_data(texts, pairs, tmp_path):
    texts.open().save(tmp_path)
    same_bytes = tmp_path / "texts.csv"
    same_bytes.write_text('"text"\n' + "one\n" * 90)
    table = replace(texts, train=str(same_bytes))
    same_bytes.with_suffix(".txt").write_bytes(same_bytes.read_bytes())
    lines = replace(table, train=str(same_bytes.with_suffix(".txt")))
    both = [table, lines, replace(lines, documents="paragraph"), replace(table, valid=texts.train)]
    keys = [data.open(tmp_path).corpus.key for data in both]
    named = [replace(pairs, valid=pairs.train), replace(pairs, source="de"), pairs]
    keys += [data.open(tmp_path).corpus.key for data in named]
    assert len(set(keys)) == len(keys)


def numbers(task, batch):
    """The numbers that the whole examples in a batch begin with."""
    rows = [task.tokenizer.decode([token for token in row if token > 2]) for row in batch["tokens"].tolist()]
    return {row.split(" ", 1)[0] for row in rows}


def test_no_held_out_example_is_trained_on(pairs, texts):
    task = pairs.open()
    held = {source.split(" ", 1)[0] for source, _ in pairs.splits["valid"]}
    assert held == {str(i) for i in range(0, COUNT, 20)}
    _, batches = epoch(task)
    seen = set.union(*(numbers(task, batch) for batch in batches))
    assert seen == {str(i) for i in range(COUNT)} - held

    task = replace(texts, seq_len=4).open()
    rows = task.rows(task.corpus)
    read = task.tokenizer.decode(
        np.concatenate([part for row in map(rows.__getitem__, range(len(rows))) for part, _ in row])
    )
    assert read == "".join(text for i, text in enumerate(sentences(COUNT)) if i % 20)


@pytest.mark.parametrize("held_out", [True, False])
def test_where_an_example_stands(pairs, texts, held_out):
    for data in (pairs, texts):
        task = (data if held_out else replace(data, valid=data.train)).open()
        stream, batches = epoch(task)
        for batch in batches:
            name, number = task.where(stream.place.rows).rsplit(" ", 1)
            text = sentences(COUNT)[int(number) - 1]
            assert name.startswith(f"{data.train}, ")
            first = batch["tokens"][0].tolist()
            first = first[: (first.index(2) if 2 in first else len(first))]  # the end of a text
            assert task.tokenizer.decode(first).strip() in text


def test_where_an_example_stands_that_no_file_holds():
    task = Language(PlainText(seq_len=64), train_tokenizer("bytes", [], 300))
    stream, batches = epoch(task)
    next(batches)
    number = int(task.where(stream.place.rows).removeprefix("the reference of Python, text "))
    assert number % 20 != 1


def test_of_few_texts_each_is_where_it_stands(tmp_path):
    (tmp_path / "a.txt").write_text("one\n" * 30)
    (tmp_path / "b.txt").write_text("two\n" * 30)
    data = PlainText(
        train=f"{tmp_path / 'a.txt'},{tmp_path / 'b.txt'}", tokenizer_kind="bytes", seq_len=9, max_tokens=9
    )
    task = data.open()
    rows = task.rows(task.corpus)
    assert task.where([0]) == f"{data.train}, text 1"
    assert task.where([len(rows) - 1]) == f"{data.train}, text 2"


def test_too_long_pairs_are_left_out_and_the_others_counted_as_the_file_has_them(tmp_path):
    (tmp_path / "a.tsv").write_text("".join(f"{'x' * (50 if i % 2 else 3)}\t{i}\n" for i in range(40)))
    data = ParallelText(train=str(tmp_path / "a.tsv"), tokenizer_kind="bytes", max_len=20, max_tokens=20)
    task = data.open()
    stream, batches = epoch(task)
    for batch in batches:
        said = task.tokenizer.decode([token for token in batch["targets"][0].tolist() if token > 2])
        assert task.where(stream.place.rows) == f"{data.train}, pair {int(said) + 1}"


def test_a_pipe_is_read_once(pairs, tmp_path):
    pipe = tmp_path / "pipe.tsv"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=(Path(pairs.train).read_text(),))
    writer.start()
    task = replace(pairs, train=str(pipe)).open()
    writer.join()
    assert take(loader(task), 20) == take(loader(pairs.open()), 20)
    assert task.corpus.key == ""


def test_memory_holds_neither_texts_nor_tokens(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "CHARACTERS", 20_000)
    text, size = "some words of one text " * 40, 4_000_000
    (tmp_path / "a.jsonl").write_text(f"{json.dumps({'text': text})}\n" * (size // len(text)))
    (tmp_path / "a.tsv").write_text(f"{text}\t{text}\n" * (size // 2 // len(text)))
    tokenizer = train_tokenizer("bytes", [], 300)
    one = Language(PlainText(train=str(tmp_path / "a.jsonl")), tokenizer)
    other = Translate(ParallelText(train=str(tmp_path / "a.tsv"), max_len=1000), tokenizer)
    for task in (one, other):
        tracemalloc.start()
        try:
            next(iter(loader(task)))
            assert tracemalloc.get_traced_memory()[1] < size / 2
        finally:
            tracemalloc.stop()
        assert sum(len(column.tokens) for column in task.corpus.columns.values()) > 0.8 * size


def test_a_tokenizer_learns_from_a_sample(data, monkeypatch):
    for name in ("language", "seq2seq"):
        monkeypatch.setattr(f"regard.tasks.{name}.thinned", partial(thinned, most=500))
    learnt = [text for i, text in enumerate(sentences(COUNT)) if i % 20]
    both = isinstance(data, ParallelText)
    sample = thinned(learnt, lambda text: len(text) * (2 if both else 1), 500)
    assert 5 < len(sample) < len(learnt) / 2
    expected = train_tokenizer(
        "bpe", [each for text in sample for each in ((text, text[::-1]) if both else (text,))], 300
    )
    assert data.open().tokenizer._core.to_str() == expected._core.to_str()


def test_texts_are_columns_of_tables(tmp_path):
    (tmp_path / "a.csv").write_text('id,text\n1,"one\n\ntwo"\n2,three\n')
    (tmp_path / "b.jsonl").write_text('{"text": "four"}\n{"txt": "five"}\n{"text": " "}\n')
    data = PlainText(documents="paragraph")
    assert data.read(str(tmp_path / "a.csv")) == ["one\n\ntwo", "three"]
    assert replace(data, text="id").read(str(tmp_path / "a.csv")) == ["1", "2"]
    assert [str(row) for row in data.rows(str(tmp_path / "b.jsonl")) if isinstance(row, Fault)] == [
        f"{tmp_path / 'b.jsonl'}, line 2: missing key 'text'; found txt; rename 'txt' to 'text'"
    ]
    with pytest.raises(DataError, match="line 2"):
        data.read(f"{tmp_path / 'a.csv'},{tmp_path / 'b.jsonl'}")


def test_a_malformed_row_far_down_is_named_before_training(pairs):
    with Path(pairs.train).open("a") as file:
        file.write("only one column\n")
    task = Translate(pairs, train_tokenizer("bytes", [], 300))
    with pytest.raises(DataError, match=f"line {COUNT + 1}: expected 2 columns"):
        loader(task)


def test_a_wrong_number_of_workers(data):
    with pytest.raises(ConfigError, match="num_workers -1 must be at least 0"):
        loader(replace(data, num_workers=-1).open())


def test_the_targets_of_a_mapped_corpus_are_not_masked_away(data):
    _, batches = epoch(data.open())
    assert all(bool((batch["targets"] != IGNORE).any()) and batch["targets"].dtype == torch.int64 for batch in batches)
