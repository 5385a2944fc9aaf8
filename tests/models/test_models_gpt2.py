"""GPT and GPT-2 against the published counts and against transformers' models, in float64."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from regard import zoo
from regard.checkpoint.files import read
from regard.checkpoint.keymap import to_theirs
from regard.core.errors import CheckpointError, ConfigError, InputError
from regard.core.types import IGNORE
from regard.generate.beam import Beam
from regard.generate.decode import greedy
from regard.generate.front import generate
from regard.models.gpt2 import FAMILY, GPT2Config, LayerSizes, from_hf, to_hf
from regard.objectives.supervise import Supervise
from regard.train.optimize import Optimizer, build_optimizer

transformers = pytest.importorskip("transformers")

V, END, MAX = 50, 49, 40
SMALL = {
    "vocab_size": V, "n_positions": MAX, "n_embd": 16, "n_layer": 2, "n_head": 4, "initializer_range": 0.3,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": END, "eos_token_id": END,
}  # fmt: skip
KINDS = {
    "gpt2": (transformers.GPT2LMHeadModel, transformers.GPT2Config),
    "openai-gpt": (transformers.OpenAIGPTLMHeadModel, transformers.OpenAIGPTConfig),
}


def reference(kind: str = "gpt2", **changes: Any) -> Any:
    """A tiny random model with weights large enough that its decisions are not ties."""
    torch.manual_seed(0)
    build, config = KINDS[kind]
    model = build(config(**(SMALL | changes))).double().eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.2)
    return model


CASES = [
    ("gpt2", {}),
    ("gpt2", {"n_inner": 24, "activation_function": "relu", "tie_word_embeddings": False}),
    ("openai-gpt", {}),
]


@pytest.fixture(scope="module", params=CASES, ids=str)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The reference, and ours loaded from the files that it saved."""
    kind, changes = request.param
    theirs = reference(kind, **changes)
    folder = tmp_path_factory.mktemp("gpt")
    theirs.save_pretrained(folder)
    theirs.set_attn_implementation("eager")
    return theirs, zoo.load(folder)


def inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    valid = torch.arange(9) < torch.tensor([[9], [4], [7]])
    return torch.where(valid, torch.randint(0, END, (3, 9)), END), valid


def equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


def test_logits_hidden_states_and_maps_equal_the_reference(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    tokens, valid = inputs()
    expected = theirs(tokens, attention_mask=valid.long(), output_hidden_states=True, output_attentions=True)
    out = ours(tokens, valid, weights=True)
    equal(out.logits[valid], expected.logits[valid])
    equal(out.hidden[valid], expected.hidden_states[-1][valid])
    for layer, maps in enumerate(expected.attentions):
        of_queries = out.weights[f"decoder.{layer}.attention"].transpose(1, 2)
        equal(of_queries[valid], maps.transpose(1, 2)[valid])


def test_loss_and_every_gradient_equal_the_reference(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    tokens, valid = inputs()
    labels = torch.where(valid, tokens, IGNORE)
    theirs.zero_grad()
    ours.zero_grad()
    targets = torch.cat([labels[:, 1:], torch.full((3, 1), IGNORE)], dim=1)
    expected = theirs(tokens, attention_mask=valid.long(), labels=labels)
    rounded, expected = expected.loss, F.cross_entropy(expected.logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(rounded.double(), expected)  # the reference's own is in float32
    expected.backward()
    loss = Supervise(0.0).loss(ours, {"tokens": tokens, "valid": valid, "targets": targets}).mean
    loss.backward()
    equal(loss, expected)
    ours_by_name = {name: parameter.grad for name, parameter in ours.named_parameters()}
    gradients = to_theirs(ours_by_name, FAMILY.keymap(ours.config))
    named = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert gradients.keys() == named.keys()
    for name, gradient in gradients.items():
        equal(gradient, named[name])


def test_what_is_written_equals_the_reference(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    tokens, valid = inputs()
    prompt, real = tokens.flip(1), valid.flip(1)  # the reference wants padding on the left
    if theirs.config.model_type == "openai-gpt":  # whose positions do not heed padding
        prompt, real = tokens[:, :4], valid[:, :4]
    settings = {"max_new_tokens": 8, "pad_token_id": END, "do_sample": False}
    for method, how in ((greedy, {}), (Beam(3), {"num_beams": 3, "length_penalty": 1.0, "early_stopping": False})):
        expected = theirs.generate(prompt, attention_mask=real.long(), **settings, **how)[:, prompt.shape[1] :]
        answers = generate(ours, prompt, real, method=method, stop=[END], max_tokens=8)
        for row, answer in zip(expected.tolist(), answers, strict=True):
            assert answer.tokens == row[: len(answer.tokens)]
            assert set(row[len(answer.tokens) :]) <= {END}


@pytest.mark.parametrize(("kind", "changes"), CASES, ids=str)
def test_published_files_survive_the_round_trip_bit_for_bit(kind: str, changes: dict[str, Any], tmp_path: Path) -> None:
    reference(kind, **changes).float().save_pretrained(tmp_path / "theirs")
    zoo.save(zoo.load(tmp_path / "theirs"), tmp_path / "ours")
    zoo.save(zoo.load(tmp_path / "ours"), tmp_path / "again", layout="hf")
    weights = [(tmp_path / side / "model.safetensors").read_bytes() for side in ("theirs", "again")]
    assert weights[0] == weights[1]
    before, again = (KINDS[kind][0].from_pretrained(tmp_path / side) for side in ("theirs", "again"))
    for key, tensor in before.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    assert from_hf(again.config.to_dict()) == from_hf(before.config.to_dict())


def test_files_of_2019_without_a_prefix_and_with_masks_load(tmp_path: Path) -> None:
    reference().float().save_pretrained(tmp_path)
    new = {key: tensor.clone() for key, tensor in read(tmp_path).items()}
    expected = zoo.load(tmp_path).state_dict()
    old = {key.removeprefix("transformer."): tensor for key, tensor in new.items()}
    for layer in range(2):
        old[f"h.{layer}.attn.bias"] = torch.ones(1, 1, MAX, MAX).tril()
        old[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(old, tmp_path / "model.safetensors")
    loaded = zoo.load(tmp_path).state_dict()
    assert loaded.keys() == expected.keys()
    for key, tensor in loaded.items():
        assert torch.equal(tensor, expected[key]), key
    old["h.1.attn.bias"] = torch.ones(1, 1, MAX, MAX)
    save_file(old, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"wrong 'h\.1\.attn\.bias'"):
        zoo.load(tmp_path)
    del old["h.1.attn.bias"], old["h.1.mlp.c_fc.bias"]
    save_file(old, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing 'transformer\.h\.1\.mlp\.c_fc\.bias'"):
        zoo.load(tmp_path)


def test_a_published_model_learns_as_ours_does(tmp_path: Path) -> None:
    """Its matrices lie the other way round in the file, which must not show to an optimiser."""
    made = small()
    zoo.save(made, tmp_path, layout="hf")
    loaded = zoo.load(tmp_path)
    tokens = torch.randint(2, 32, (2, 8), generator=torch.Generator().manual_seed(0))
    for model in (made, loaded):
        optimizer = build_optimizer(Optimizer("adamw"), model)
        for _ in range(3):
            loss = Supervise(0.0).loss(model, {"tokens": tokens, "targets": tokens})
            optimizer.zero_grad()
            loss.mean.backward()
            for group in optimizer.param_groups:
                group["lr"] = 1e-2
            optimizer.step()
    for (name, ours), theirs in zip(made.named_parameters(), loaded.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=name)


@pytest.mark.parametrize(
    ("size", "parameters"),
    [
        ("gpt2", 124_439_808),
        ("gpt2-medium", 354_823_168),
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("gpt", 116_534_784),
    ],
)
def test_named_sizes_have_the_published_counts(size: str, parameters: int) -> None:
    assert sum(p.numel() for p in zoo.build(size, device="meta").parameters()) == parameters


GPT3 = {"small": 0.125, "medium": 0.35, "large": 0.76, "xl": 1.3, "2.7b": 2.7, "6.7b": 6.7, "13b": 13, "175b": 175}


@pytest.mark.parametrize(("name", "billions"), GPT3.items())
def test_sizes_of_gpt3_have_about_the_papers_counts(name: str, billions: float) -> None:
    """The paper rounds (Brown et al. 2020, table 2.1)."""
    count = sum(p.numel() for p in zoo.build(f"gpt3-{name}", device="meta").parameters())
    assert count / 1e9 == pytest.approx(billions, rel=0.02)


def small(**changes: Any) -> Any:
    config = replace(FAMILY.tiny(GPT2Config()), max_seq_len=8, **changes)
    return zoo.build(config, dtype=torch.float64).eval()


def test_first_weights_have_the_papers_spread() -> None:
    model = zoo.build(GPT2Config(vocab_size=2000, num_layers=2, bos_token=None, eos_token=None))
    model.requires_grad_(False)
    first = model.decoder.blocks[0]
    assert float(first.ffn.mix.up.weight.std()) == pytest.approx(0.02, rel=0.02)
    for linear in (first.ffn.mix.down, first.attention.mix.o):
        assert float(linear.weight.std()) == pytest.approx(0.02 / 4**0.5, rel=0.02)
    assert float(model.embed.weight.std()) == pytest.approx(0.02, rel=0.02)


def test_positions_begin_anew_with_each_document() -> None:
    model = small()
    texts = [torch.tensor([[5, 6, 7, 8, 9, 10]]), torch.tensor([[11, 12, 13]]), torch.tensor([[5, 6]])]
    documents = torch.tensor([[7] * 6 + [3] * 3 + [9] * 2])
    packed = model(torch.cat(texts, dim=1), documents=documents).logits  # 11 tokens, 8 positions
    equal(packed, torch.cat([model(each).logits for each in texts], dim=1))
    with pytest.raises(InputError, match="reaches position 8"):
        model(torch.full((1, 9), 3), documents=torch.zeros(1, 9, dtype=torch.long))


@pytest.mark.parametrize(
    ("documents", "says"),
    [
        (torch.ones(1, 3), "documents must be integers, not float32"),
        (torch.ones(1, 3, dtype=torch.bool), "documents must be integers, not bool"),
        (torch.ones(1, 2, dtype=torch.long), r"documents is \[1, 2\] but its tokens are \[1, 3\]"),
    ],
)
def test_documents_that_mean_nothing_are_named(documents: Tensor, says: str) -> None:
    with pytest.raises(InputError, match=says):
        small()(torch.tensor([[3, 4, 5]]), documents=documents)


def test_a_decoding_knows_its_rows_and_its_end() -> None:
    model = small()
    with pytest.raises(InputError, match="max_len 9 is more than this model's 8 positions"):
        model.begin(max_len=9)
    decoding = model.begin(max_len=4)
    decoding.feed(torch.full((2, 3), 5))
    with pytest.raises(InputError, match="tokens has 1 rows, but 2 are being written"):
        decoding.feed(torch.full((1, 1), 5))
    with pytest.raises(InputError, match="reaches position 4"):
        decoding.feed(torch.full((2, 2), 5))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"embed_dim": 10, "num_heads": 4}, "does not divide"),
        ({"layers": (LayerSizes(1, 1),)}, "layers lists 1"),
        ({"vocab_size": 100}, "bos_token 50256 is outside the vocabulary of 100"),
        ({"norm_order": "Pre"}, "'Pre' is not one of"),
        ({"dropout": 1.0}, "dropout must be at least 0"),
        ({"norm_eps": 0.0}, "norm_eps must be above 0"),
        ({"num_layers": 0}, "num_layers must lie between 1 and 10,000"),
    ],
)
def test_configurations_that_cannot_be_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        GPT2Config(**changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"drop_path": 0.1}, "no drop_path=0.1"),
        ({"activation": "leaky_relu"}, "no activation='leaky_relu'"),
        ({"norm_order": "post", "ffn_dim": 8}, "no ffn_dim=8"),
        ({"num_layers": 1, "layers": (LayerSizes(1, 1),)}, "one size for all layers"),
    ],
)
def test_what_the_published_layout_cannot_say_is_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        to_hf(GPT2Config(**changes))


def test_configurations_of_2019_are_the_defaults() -> None:
    theirs = {
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1,
        "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02,
        "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12,
        "n_positions": 1024, "resid_pdrop": 0.1, "summary_type": "cls_index", "vocab_size": 50257,
    }  # fmt: skip
    assert from_hf(theirs) == GPT2Config()
    assert from_hf(to_hf(FAMILY.sizes["gpt"])) == FAMILY.sizes["gpt"]


@pytest.mark.parametrize(
    "setting", [{"scale_attn_by_inverse_layer_idx": True}, {"add_cross_attention": True}, {"scale_attn_weights": False}]
)
def test_published_settings_that_are_not_supported_are_named(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(setting))} .* is not supported"):
        from_hf(to_hf(GPT2Config()) | setting)
