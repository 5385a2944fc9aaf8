"""A checkpoint's trunk under another head: what is taken, what is drawn, and that neither happens unasked."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

import regard
from regard.checkpoint.keymap import same_bits
from regard.checkpoint.load import tensors_of
from regard.core.errors import CheckpointError, ConfigError
from regard.models.bert import FAMILY, BertConfig
from regard.models.gpt2 import GPT2Config

SIZES = {"vocab_size": 30, "embed_dim": 8, "ffn_dim": 16, "num_heads": 2, "num_layers": 2, "max_seq_len": 12}
TINY = BertConfig(**SIZES, bos_token=1, eos_token=2)
CLASSES = {"head": "classify", "labels": ["bad", "good"]}


@pytest.fixture(params=["regard", "hf"])
def masked(request, tmp_path):
    """A checkpoint that says masked tokens, in either layout, and its model."""
    model = regard.build(BertConfig(**SIZES, bos_token=1, eos_token=2, head="masked_lm"), seed=3).eval()
    regard.save(model, tmp_path / "masked", layout=request.param)
    return tmp_path / "masked", model


def shared(one, other):
    """The names that two models share, and whether their tensors are the same bit for bit."""
    a, b = tensors_of(one), tensors_of(other)
    return {name: same_bits(a[name], b[name]) for name in a.keys() & b.keys()}


def test_a_new_head_over_the_same_trunk(masked):
    folder, model = masked
    classifier = regard.load(folder, missing="head", **CLASSES)
    assert classifier.config.labels == ("bad", "good")
    same = shared(model, classifier)
    assert {name.split(".")[0] for name in same} == {"embed", "encoder"}
    assert all(same.values())
    drawn = {name: tensor for name, tensor in tensors_of(classifier).items() if name not in same}
    assert {name.split(".")[0] for name in drawn} == {"head", "pooler"}
    assert all(tensor.isfinite().all() for tensor in drawn.values())
    assert drawn["head.out.weight"].std() > 0
    tokens = torch.tensor([[1, 5, 6, 2]])
    assert torch.equal(model(tokens).hidden, classifier(tokens).hidden)


def test_the_seed_draws_the_head(masked):
    folder, _ = masked
    one, again, other = (regard.load(folder, missing="head", seed=seed, **CLASSES) for seed in (0, 0, 1))
    assert all(shared(one, again).values())
    assert [name for name, same in sorted(shared(one, other).items()) if not same] == [
        "head.out.weight", "pooler.linear.weight",
    ]  # fmt: skip


def test_a_new_head_is_refused_unless_asked_for(masked):
    folder, _ = masked
    with pytest.raises(CheckpointError, match="missing='head' takes all else"):
        regard.load(folder, **CLASSES)


@pytest.mark.parametrize("damage", ["deeper", "drop", "reshape"])
def test_a_trunk_that_does_not_fit_stays_an_error(tmp_path, damage):
    folder, path = tmp_path, tmp_path / "model.safetensors"
    regard.save(regard.build(BertConfig(**SIZES, bos_token=1, eos_token=2, head="masked_lm")), folder, layout="hf")
    tensors = load_file(path)
    name = next(name for name in tensors if "1" in name and name.endswith("weight"))
    if damage == "deeper":
        tensors[name.replace("1", "2", 1)] = tensors[name].clone()
    elif damage == "drop":
        del tensors[name]
    else:
        tensors[name] = tensors[name][..., :-1].contiguous()
    save_file(tensors, path)
    with pytest.raises(CheckpointError) as error:
        regard.load(folder, missing="head", **CLASSES)
    assert "takes all else" not in str(error.value)


@pytest.mark.parametrize("size", ["bert-base", "roberta-base", "distilbert-base", "albert-base", "electra-small"])
def test_a_published_trunk_without_a_head_takes_any(tmp_path, size):
    model = regard.build(FAMILY.tiny(FAMILY.sizes[size]), seed=3)
    regard.save(model, tmp_path, layout="hf")
    for head in ("masked_lm", "answer", "classify", "tag"):
        labels = ["a", "b"] if head in ("classify", "tag") else []
        same = shared(model, regard.load(tmp_path, head=head, labels=labels, missing="head"))
        assert [name for name, equal in same.items() if not equal and not name.startswith("pooler")] == []
        assert len(same) > 20


def test_what_the_checkpoint_has_of_the_head_is_taken(tmp_path):
    model = regard.build(BertConfig(**SIZES, bos_token=1, eos_token=2, head="pretrain"))
    regard.save(model, tmp_path, layout="hf")
    assert all(shared(model, regard.load(tmp_path, head="masked_lm", missing="head")).values())
    found = shared(model, regard.load(tmp_path, missing="head", **CLASSES))
    assert found["pooler.linear.weight"]


def test_classes_of_another_number_are_drawn(tmp_path):
    model = regard.build(BertConfig(**SIZES, bos_token=1, eos_token=2, head="tag", labels=("a", "b")))
    regard.save(model, tmp_path)
    other = regard.load(tmp_path, labels=["a", "b", "c"], missing="head")
    assert tensors_of(other)["head.out.weight"].shape == (3, 8)
    assert shared(regard.build(TINY), other)
    with pytest.raises(CheckpointError, match=r"misshapen[\s\S]*missing='head'"):
        regard.load(tmp_path, labels=["a", "b", "c"])


def test_fields_of_the_configuration_are_changed_by_name(tmp_path):
    regard.save(regard.build(GPT2Config(**SIZES, bos_token=None, eos_token=None)), tmp_path)
    assert regard.load(tmp_path, dropout=0.5).config.dropout == 0.5
    with pytest.raises(ConfigError, match="did you mean 'dropout'"):
        regard.load(tmp_path, dropuot=0.5)
    with pytest.raises(ConfigError, match="missing may be 'head' or None, not 'all'"):
        regard.load(tmp_path, missing="all")
