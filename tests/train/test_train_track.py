"""What TensorBoard and Weights & Biases are told is what the log says; they may be missing or fail, the run may not."""

import dataclasses
import json
from importlib.util import find_spec

import pytest

from regard.core.errors import MissingExtra
from regard.models.transformer import TransformerConfig
from regard.tasks.translate import ParallelText
from regard.train.fit import fit
from regard.train.recipe import Recipe
from regard.train.track import TensorBoard, Trackers, check_installed, numbers, texts

RECORD = {
    "step": 3,
    "valid_loss": 2.0,
    "attention_entropy": {"encoder.0.attention": [0.5, 0.25]},
    "samples": [{"source": "a", "output": "b"}],
    "seconds": 1.0,
}


@pytest.fixture
def recipe(pairs_file):
    return Recipe(
        model=TransformerConfig(
            vocab_size=0, embed_dim=8, ffn_dim=16, num_heads=2, num_encoder_layers=1, num_decoder_layers=1,
            max_seq_len=64,
        ),
        data=ParallelText(train=str(pairs_file), vocab_size=300, num_scored=2),
        num_steps=4, log_every=2, valid_every=4, average=0.0, precision="float32", track=("tensorboard",),
    )  # fmt: skip


def told(folder):
    """What stands in the event files: tag to {step: value}, of scalars and of texts."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = events.EventAccumulator(str(folder)).Reload()
    tags = read.Tags()
    scalars = {tag: {event.step: event.value for event in read.Scalars(tag)} for tag in tags["scalars"]}
    found = {}
    for tag in tags["tensors"]:
        found[tag] = {event.step: event.tensor_proto.string_val[0].decode() for event in read.Tensors(tag)}
    return scalars, found


def test_numbers_go_by_their_path_and_texts_apart():
    assert dict(numbers(RECORD)) == {
        "valid_loss": 2.0, "attention_entropy/encoder.0.attention/0": 0.5,
        "attention_entropy/encoder.0.attention/1": 0.25,
    }  # fmt: skip
    assert dict(texts(RECORD)) == {"samples/0": "a → b"}
    ill = {"step": 1, "health": "a cough", "message": "rest", "seconds": 0.0}
    assert (dict(numbers(ill)), dict(texts(ill))) == ({}, {"health": "a cough: rest"})


def test_tensorboard_has_what_the_log_has(recipe, tmp_path):
    pytest.importorskip("tensorboard")
    fit(recipe, tmp_path / "run", quiet=True)
    scalars, written = told(tmp_path / "run" / "tensorboard")
    for line in map(json.loads, (tmp_path / "run" / "log.jsonl").read_text().splitlines()):
        for name, value in numbers(line):
            assert scalars[name][line["step"]] == pytest.approx(value, rel=1e-6), name
        for name, text in texts(line):
            assert written[f"{name}/text_summary"][line["step"]] == text


def test_what_a_killed_process_told_tensorboard_is_taken_back(tmp_path):
    pytest.importorskip("tensorboard")
    first = TensorBoard(tmp_path, step=0)
    for step in (1, 2, 3):
        first.write({"step": step, "loss": 9.0})
    first.close()
    again = TensorBoard(tmp_path, step=1)
    again.write({"step": 2, "loss": 5.0})
    again.close()
    assert told(tmp_path)[0]["loss"] == {1: 9.0, 2: 5.0}


def test_a_missing_tracker_is_named_before_anything_is_made(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("regard.train.track.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'regard\[tensorboard\]'"):
        fit(recipe, tmp_path / "run", quiet=True)
    assert not (tmp_path / "run").exists()
    check_installed(())


def test_a_folder_of_its_name_is_no_tracker(tmp_path, monkeypatch):
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    if find_spec("wandb").origin is not None:
        pytest.skip("it is installed")
    with pytest.raises(MissingExtra, match="wandb"):
        check_installed(["wandb"])


def test_a_tracker_that_fails_is_heard_of_once_and_the_run_goes_on(recipe, tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorboard")

    def fail(self, record):
        raise OSError("the disk is full\nand more")

    monkeypatch.setattr(TensorBoard, "write", fail)
    assert fit(recipe, tmp_path / "run").step == 4
    lines = [line for line in capsys.readouterr().err.splitlines() if "the disk is full" in line]
    assert lines == ["tensorboard is no longer told of this run (OSError: the disk is full)"]


def test_one_that_cannot_even_begin_is_let_go(recipe, tmp_path):
    pytest.importorskip("tensorboard")
    (tmp_path / "tensorboard").write_text("a file in its place")
    said = []
    with Trackers(["tensorboard"], tmp_path, recipe, 0, said.append) as trackers:
        trackers.write(RECORD)
    assert len(said) == 1
    assert said[0].startswith("tensorboard is no longer told")


def test_a_run_may_be_gone_on_with_untracked(recipe, tmp_path):
    pytest.importorskip("tensorboard")
    fit(recipe, tmp_path / "run", quiet=True)
    assert fit(dataclasses.replace(recipe, track=()), tmp_path / "run", resume=True, quiet=True).step == 4


def test_wandb_takes_a_run_offline(recipe, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    said = []
    with Trackers(["wandb"], tmp_path, recipe, 0, said.append) as trackers:
        trackers.write(RECORD)
    assert said == []
    assert list((tmp_path / "wandb").glob("offline-run-*"))
