"""BERT and its kin against the published counts and against transformers' models, in float64."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from regard import zoo
from regard.checkpoint.keymap import to_theirs
from regard.core.errors import CheckpointError, ConfigError, InputError
from regard.core.types import IGNORE
from regard.models.bert import FAMILY, BertConfig, LayerSizes, from_hf, to_hf
from regard.objectives.supervise import Supervise

transformers = pytest.importorskip("transformers")

V, S, MAX = 50, 9, 40
COMMON = {
    "vocab_size": V, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 4, "num_hidden_layers": 2,
    "max_position_embeddings": MAX, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.3,
}  # fmt: skip
DISTILLED = {
    "vocab_size": V, "dim": 16, "hidden_dim": 24, "n_heads": 4, "n_layers": 2, "max_position_embeddings": MAX,
    "dropout": 0.0, "attention_dropout": 0.0, "seq_classif_dropout": 0.0, "qa_dropout": 0.0, "initializer_range": 0.3,
}  # fmt: skip
KINDS = {
    "Bert": COMMON,
    "Roberta": COMMON,
    "DistilBert": DISTILLED,
    "Albert": {**COMMON, "embedding_size": 8, "classifier_dropout_prob": 0.0},
    "Electra": {**COMMON, "embedding_size": 8},
}
HEADS = [
    "Model", "ForMaskedLM", "ForPreTraining", "ForSequenceClassification", "ForTokenClassification",
    "ForQuestionAnswering",
]  # fmt: skip
CASES = [
    (kind, head)
    for kind in KINDS
    for head in HEADS
    if head != "ForPreTraining" or kind in ("Bert", "Albert", "Electra")
]


def reference(kind: str, head: str, **changes: Any) -> Any:
    """A tiny random model with weights large enough that nothing is nearly 0."""
    torch.manual_seed(0)
    labels = 3 if head in ("ForSequenceClassification", "ForTokenClassification") else 2
    config = getattr(transformers, f"{kind}Config")(**(KINDS[kind] | {"num_labels": labels} | changes))
    model = getattr(transformers, f"{kind}{head}")(config).double().eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.2)
    model.set_attn_implementation("eager")
    return model


@pytest.fixture(scope="module", params=CASES, ids="".join)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The reference, and ours loaded from the files that it saved."""
    theirs = reference(*request.param)
    folder = tmp_path_factory.mktemp("bert")
    theirs.save_pretrained(folder)
    return theirs, zoo.load(folder)


def inputs(config: BertConfig) -> dict[str, Tensor]:
    torch.manual_seed(1)
    valid = torch.arange(S) < torch.tensor([[S], [4], [7]])
    tokens = torch.where(valid, torch.randint(4, V, (3, S)), config.pad_token)
    types = {"types": (torch.arange(S) > 2).long().expand(3, S)} if config.num_types > 1 else {}
    return {"tokens": tokens, "valid": valid, **types}


def answers(theirs: Any, ours: Any, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], Any, Any]:
    """What either says, under their names, of real tokens alone; and all that they give."""
    words = {"tokens": "input_ids", "valid": "attention_mask", "types": "token_type_ids"}
    given = {words[name]: value.long() for name, value in batch.items()}
    expected = theirs(**given, output_hidden_states=True, output_attentions=True)
    out = ours(**batch, weights=True)
    found = {"hidden_states": out.hidden, "pooler_output": out.pooled}
    if out.head is not None:
        logits = out.logits.squeeze(-1) if ours.config.head == "detect" else out.logits
        found |= {"logits": logits, "prediction_logits": logits, "start_logits": logits[..., 0]}
        found |= {
            "end_logits": logits[..., 1],
            **{name: out.others.get("follows") for name in ("seq_relationship_logits", "sop_logits")},
        }
    both = {}
    for name, given_back in expected.items():
        if name in found and found[name] is not None:
            value = given_back[-1] if name == "hidden_states" else given_back
            tokenwise = value.shape[:2] == batch["valid"].shape
            both[name] = tuple(each[batch["valid"]] if tokenwise else each for each in (found[name], value))
    return {k: v[0] for k, v in both.items()}, {k: v[1] for k, v in both.items()}, out, expected


def equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


def test_all_that_is_said_and_the_maps_equal_the_reference(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    batch = inputs(ours.config)
    found, expected, out, raw = answers(theirs, ours, batch)
    assert len(found) >= (1 if ours.config.head is None else 2)
    for name in found:
        equal(found[name], expected[name])
    for layer, maps in enumerate(raw.attentions):
        of_queries = out.weights[f"encoder.{layer}.attention"].transpose(1, 2)
        equal(of_queries[batch["valid"]], maps.transpose(1, 2)[batch["valid"]])


def test_every_gradient_equals_the_reference(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    theirs.zero_grad()
    ours.zero_grad()
    found, expected, _, _ = answers(theirs, ours, inputs(ours.config))
    for said in (found, expected):
        torch.manual_seed(2)
        torch.stack([(value * torch.randn(value.shape)).sum() for value in said.values()]).sum().backward()
    ours_by_name = {name: parameter.grad for name, parameter in ours.named_parameters() if parameter.grad is not None}
    gradients = to_theirs(ours_by_name, FAMILY.keymap(ours.config))
    named = {name: parameter.grad for name, parameter in theirs.named_parameters() if parameter.grad is not None}
    assert gradients.keys() == named.keys()
    for name, gradient in gradients.items():
        equal(gradient, named[name])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("head", ["ForMaskedLM", "ForSequenceClassification", "ForTokenClassification"])
def test_the_loss_equals_the_reference(kind: str, head: str, tmp_path: Path) -> None:
    theirs = reference(kind, head)
    theirs.save_pretrained(tmp_path)
    ours = zoo.load(tmp_path)
    batch = inputs(ours.config)
    if head == "ForSequenceClassification":
        targets = torch.tensor([2, 0, 1])
    else:
        targets = torch.where(batch["valid"] & (batch["tokens"] % 3 == 0), batch["tokens"] % 3, IGNORE)
    words = {"tokens": "input_ids", "valid": "attention_mask", "types": "token_type_ids"}
    expected = theirs(**{words[name]: value.long() for name, value in batch.items()}, labels=targets).loss
    loss = Supervise(0.0).loss(ours.train(), {**batch, "targets": targets})
    equal(loss.mean, expected)
    assert loss.count == (targets != IGNORE).sum()


@pytest.mark.parametrize(("kind", "head"), CASES, ids="".join)
def test_published_files_survive_the_round_trip_bit_for_bit(kind: str, head: str, tmp_path: Path) -> None:
    reference(kind, head).float().save_pretrained(tmp_path / "theirs")
    zoo.save(zoo.load(tmp_path / "theirs"), tmp_path / "ours")
    zoo.save(zoo.load(tmp_path / "ours"), tmp_path / "again", layout="hf")
    weights = [(tmp_path / side / "model.safetensors").read_bytes() for side in ("theirs", "again")]
    assert weights[0] == weights[1]
    before, again = (
        getattr(transformers, f"{kind}{head}").from_pretrained(tmp_path / side) for side in ("theirs", "again")
    )
    for key, tensor in before.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    assert from_hf(again.config.to_dict()) == from_hf(before.config.to_dict())


@pytest.mark.parametrize("name", FAMILY.sizes)
def test_named_sizes_can_be_published(name: str) -> None:
    config = FAMILY.sizes[name]
    assert from_hf(to_hf(config)) == config


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("bert-base", 109_482_240), ("bert-large", 335_141_888), ("roberta-base", 124_645_632),
        ("roberta-large", 355_359_744), ("distilbert-base", 66_362_880), ("albert-base", 11_683_584),
        ("albert-large", 17_683_968), ("electra-base", 108_891_648), ("electra-large", 334_092_288),
    ],
)  # fmt: skip
def test_parameters_are_as_many_as_published(name: str, count: int) -> None:
    assert sum(parameter.numel() for parameter in zoo.build(name, device="meta").parameters()) == count


def test_files_of_old_load(tmp_path: Path) -> None:
    """TensorFlow's words for a norm's two, a stored buffer, and a trunk named as within a model."""
    theirs = reference("Bert", "Model").float()
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    old = {
        "bert." + key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for key, value in tensors.items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(MAX)[None]
    save_file(old, tmp_path / "model.safetensors", metadata={"format": "pt"})
    ours = zoo.load(tmp_path)
    zoo.save(ours, tmp_path / "again", layout="hf")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"is_decoder": True}, "is_decoder True is not supported"),
        ({"hidden_act": "mish"}, "activation 'mish' is none of gelu"),
        ({"architectures": ["BertForMultipleChoice"]}, "'BertForMultipleChoice' is not supported; there are BertModel"),
    ],
)
def test_what_is_not_supported_is_named(changes: dict[str, Any], message: str) -> None:
    theirs = transformers.BertConfig(**COMMON).to_dict() | changes
    with pytest.raises(ConfigError, match=message):
        from_hf(theirs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "classify"}, "labels name the classes"),
        ({"labels": ("a", "b")}, "labels name the classes"),
        ({"head": "detect"}, "bert has no head 'detect'; there are masked_lm, classify"),
        ({"head": "pretrain", "variant": "roberta"}, "roberta has no head 'pretrain'"),
        ({"layers": (LayerSizes(12, 3072),)}, "layers lists 1 sizes"),
        ({"layers": (LayerSizes(12, 3072),) * 12, "share_layers": True}, "have one size"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        BertConfig(**changes)


def test_what_the_published_layout_has_no_word_for() -> None:
    for changes in ({"drop_path": 0.1}, {"position_offset": 2}, {"pooler": "relu"}):
        with pytest.raises(ConfigError, match=f"{next(iter(changes))}="):
            to_hf(BertConfig(**changes))
    with pytest.raises(ConfigError, match="one size for all layers"):
        to_hf(BertConfig(num_layers=1, layers=(LayerSizes(3, 3072),)))


def test_wrong_types_are_named() -> None:
    model = zoo.build(FAMILY.tiny(FAMILY.sizes["bert-base"]))
    tokens = torch.randint(3, 32, (2, 5))
    for types, message in (
        (torch.full((2, 5), 2), "types must be 0 to 1; found 2"),
        (torch.zeros(2, 4, dtype=torch.long), "of the shape of tokens"),
        (torch.zeros(2, 5), "must be integers"),
    ):
        with pytest.raises(InputError, match=message):
            model(tokens, types=types)


def test_the_first_token_is_pooled_wherever_padding_lies() -> None:
    model = zoo.build(FAMILY.tiny(FAMILY.sizes["bert-base"]), dtype=torch.float64).eval()
    row = torch.randint(3, 32, (1, 5))
    alone = model(row).pooled
    for before, after in ((0, 3), (3, 0), (2, 1)):
        wide = F.pad(row, (before, after))
        valid = F.pad(torch.ones(1, 5, dtype=torch.bool), (before, after))
        equal(model(wide, valid).pooled, alone)


def test_a_file_with_other_parts_is_refused(tmp_path: Path) -> None:
    reference("Bert", "ForPreTraining").save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(config.read_text().replace("BertForPreTraining", "BertForMaskedLM"))
    with pytest.raises(CheckpointError, match=r"cls\.seq_relationship"):
        zoo.load(tmp_path)


def test_shared_layers_are_one() -> None:
    config = replace(FAMILY.tiny(FAMILY.sizes["albert-base"]), num_layers=5)
    model = zoo.build(config)
    assert len({id(block) for block in model.encoder.blocks}) == 1
    assert len(model.encoder.blocks) == 5
