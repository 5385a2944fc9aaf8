"""The 2017 Transformer against the paper's counts and against transformers' MarianMT, in float64."""

import gc
import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import regard
from regard import zoo
from regard.attention.mask import Window
from regard.attention.position import ALiBi, sinusoid_table
from regard.checkpoint.keymap import Rule, to_theirs
from regard.core.errors import CheckpointError, ConfigError, InputError
from regard.core.types import Index
from regard.models.transformer import FAMILY, LayerSizes, Transformer, TransformerConfig, from_hf, to_hf

transformers = pytest.importorskip("transformers")

V, PAD, EOS, MAX = 50, 49, 0, 40


def reference(**changes: Any) -> Any:
    """A tiny random MarianMT with weights large enough that its decisions are not ties."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": V, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
        "decoder_attention_heads": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": MAX,
        "pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": PAD, "forced_eos_token_id": EOS,
        "bos_token_id": None, "scale_embedding": True, "activation_function": "swish", "init_std": 0.3, "dropout": 0.0,
    }  # fmt: skip
    model = transformers.MarianMTModel(transformers.MarianConfig(**(settings | changes))).double().eval()
    model.final_logits_bias.normal_()
    # The reference rounds its position table to float32; give it the same one.
    table = sinusoid_table(MAX, 16, "half", torch.float64, torch.device("cpu"))
    for side in (model.model.encoder, model.model.decoder):
        side.embed_positions.weight.data.copy_(table)
    return model


@pytest.fixture(
    scope="module", params=[{}, {"share_encoder_decoder_embeddings": False}, {"encoder_ffn_dim": 24}], ids=str
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The reference, and ours loaded from the files that it saved."""
    theirs = reference(**request.param)
    folder = tmp_path_factory.mktemp("marian")
    theirs.save_pretrained(folder)
    return theirs, zoo.load(folder)


def inputs() -> dict[str, Tensor]:
    torch.manual_seed(1)
    valid = torch.arange(9) < torch.tensor([[9], [4], [7]])
    tokens = torch.where(valid, torch.randint(1, PAD, (3, 9)), PAD)
    decoder_tokens = torch.cat([torch.full((3, 1), PAD), torch.randint(1, PAD, (3, 6))], dim=1)
    return {"tokens": tokens, "valid": valid, "decoder_tokens": decoder_tokens}


def ask(theirs: Any, given: dict[str, Tensor], **options: Any) -> Any:
    return theirs(
        input_ids=given["tokens"],
        attention_mask=given["valid"].long(),
        decoder_input_ids=given["decoder_tokens"],
        **options,
    )


def test_logits_and_hidden_states_equal_the_reference(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    given = inputs()
    expected = ask(theirs, given, output_hidden_states=True)
    out = ours(**given)
    torch.testing.assert_close(out.logits, expected.logits, rtol=0, atol=1e-9)
    torch.testing.assert_close(out.hidden, expected.decoder_hidden_states[-1], rtol=0, atol=1e-9)
    real = given["valid"]
    torch.testing.assert_close(out.memory[real], expected.encoder_last_hidden_state[real], rtol=0, atol=1e-9)


def test_attention_maps_equal_the_reference(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    given = inputs()
    theirs.set_attn_implementation("eager")
    expected = ask(theirs, given, output_attentions=True)
    maps = ours(**given, weights=True).weights
    for layer in range(2):
        for name, theirs_map in (
            (f"decoder.{layer}.attention", expected.decoder_attentions[layer]),
            (f"decoder.{layer}.cross", expected.cross_attentions[layer]),
        ):
            torch.testing.assert_close(maps[name], theirs_map, rtol=0, atol=1e-9)
    theirs.set_attn_implementation("sdpa")


def test_every_gradient_equals_the_reference(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    given = inputs()
    targets = torch.randint(0, V, given["decoder_tokens"].shape)
    for model, logits in ((theirs, ask(theirs, given).logits), (ours, ours(**given).logits)):
        model.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    gradients = to_theirs({name: p.grad for name, p in ours.named_parameters()}, parameter_rules(ours))
    expected = {name: p.grad for name, p in theirs.named_parameters() if p.requires_grad}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-9)


def parameter_rules(model: Any) -> list[Rule]:
    return [rule for rule in model_family().keymap(model.config) if rule.theirs != "final_logits_bias"]


def model_family() -> Any:
    return zoo.families()["transformer"]


def test_published_layout_survives_the_round_trip_bit_for_bit(tmp_path: Path) -> None:
    reference().float().save_pretrained(tmp_path / "theirs")
    zoo.save(zoo.load(tmp_path / "theirs"), tmp_path / "ours")
    zoo.save(zoo.load(tmp_path / "ours"), tmp_path / "again", layout="hf")
    weights = [(tmp_path / side / "model.safetensors").read_bytes() for side in ("theirs", "again")]
    assert weights[0] == weights[1]
    again = transformers.MarianMTModel.from_pretrained(tmp_path / "again")
    before = transformers.MarianMTModel.from_pretrained(tmp_path / "theirs")
    for key, tensor in before.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    assert from_hf(again.config.to_dict()) == from_hf(before.config.to_dict())


def test_older_files_that_repeat_tied_tensors_and_tables_load(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    theirs = reference().float()
    theirs.save_pretrained(tmp_path)
    save_file({key: value.clone() for key, value in theirs.state_dict().items()}, tmp_path / "model.safetensors")
    loaded = zoo.load(tmp_path)
    given = inputs()
    torch.testing.assert_close(loaded(**given).logits, ask(theirs, given).logits, rtol=0, atol=1e-4)


def count(config: TransformerConfig) -> int:
    """The closed formula: shared table, and for each layer its projections, inner widths and norms."""
    e, f, norm = config.embed_dim, config.ffn_dim, 2 * config.embed_dim
    attention = 4 * (e * e + e)
    ffn = 2 * e * f + f + e
    encoder = attention + ffn + 2 * norm
    decoder = 2 * attention + ffn + 3 * norm
    return config.vocab_size * e + config.num_encoder_layers * encoder + config.num_decoder_layers * decoder


@pytest.mark.parametrize(("size", "millions"), [("transformer-base", 63), ("transformer-big", 214)])
def test_named_sizes_have_the_papers_counts(size: str, millions: int) -> None:
    model = zoo.build(size, device="meta")
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == count(model.config)
    assert round(parameters / 1e6) == millions


@pytest.mark.parametrize(
    "changes",
    [
        {"positions": "rotary", "norm": "rms", "norm_order": "pre", "gated": True, "activation": "silu"},
        {"positions": "alibi", "norm": "scale", "drop_path": 0.2},
        {"positions": "t5", "norm_order": "pre", "share_embeddings": False},
        {"positions": "learned", "tie_head": False},
        {"positions": "none", "layers": (LayerSizes(2, 8), LayerSizes(1, 4), LayerSizes(3, 8, 1), LayerSizes(4, 6, 2))},
    ],
    ids=lambda changes: changes["positions"],
)
def test_every_part_can_be_swapped_and_still_decodes_what_it_scores(changes: dict[str, Any], tmp_path: Path) -> None:
    config = TransformerConfig(
        vocab_size=V, embed_dim=16, ffn_dim=32, num_heads=4, num_encoder_layers=2, num_decoder_layers=2, **changes
    )
    model = zoo.build(config, dtype=torch.float64).eval()
    given = inputs()
    expected = model(**given).logits
    with torch.no_grad():
        decoding = model.begin(tokens=given["tokens"], valid=given["valid"])
        pieces = [decoding.feed(given["decoder_tokens"][:, i:j]) for i, j in ((0, 1), (1, 4), (4, 5), (5, 7))]
    torch.testing.assert_close(torch.cat(pieces, dim=1), expected, rtol=0, atol=1e-9)
    zoo.save(model, tmp_path)
    loaded = zoo.load(tmp_path)
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key
    # Not bit for bit: tensors mapped from a file are aligned otherwise, and sums then run in another order.
    torch.testing.assert_close(loaded(**given).logits, expected, rtol=0, atol=1e-12)


def test_decoding_reorders_and_truncates_like_the_rows_it_names() -> None:
    model = zoo.build(
        TransformerConfig(vocab_size=V, embed_dim=16, ffn_dim=32, num_heads=4), dtype=torch.float64
    ).eval()
    given = inputs()
    torch.manual_seed(2)
    with torch.no_grad():
        decoding = model.begin(tokens=given["tokens"], valid=given["valid"])
        written = torch.full((3, 1), PAD)
        source = torch.arange(3)
        decoding.feed(written)
        for rows in ([0, 0, 1, 1, 2, 2], [1, 0, 2, 2, 5, 4], [0, 1, 4, 5], [1, 1, 2, 3], [3, 0, 1], [2]):
            keep = torch.tensor(rows)
            decoding.reorder(keep)
            written, source = written[keep], source[keep]
            tokens = torch.randint(1, PAD, (len(rows), 2))
            written = torch.cat([written, tokens], dim=1)
            logits = decoding.feed(tokens)
            whole = model(tokens=given["tokens"][source], valid=given["valid"][source], decoder_tokens=written)
            torch.testing.assert_close(logits, whole.logits[:, -2:], rtol=0, atol=1e-9)
        decoding.truncate(4)
        logits = decoding.feed(tokens := torch.tensor([[7]]))
        whole = model(
            tokens=given["tokens"][source],
            valid=given["valid"][source],
            decoder_tokens=torch.cat([written[:, :4], tokens], dim=1),
        )
        torch.testing.assert_close(logits[:, -1], whole.logits[:, -1], rtol=0, atol=1e-9)


def tiny() -> Transformer:
    return zoo.build(TransformerConfig(vocab_size=V, embed_dim=16, ffn_dim=32, num_heads=4, max_seq_len=12)).eval()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tokens": torch.ones(3, 9)}, "tokens must be integer"),
        ({"tokens": torch.ones(9, dtype=torch.long)}, "tokens must be [batch, sequence]"),
        ({"tokens": torch.ones(3, 0, dtype=torch.long)}, "at least one"),
        ({"tokens": torch.full((3, 9), V)}, f"tokens has id {V}"),
        ({"decoder_tokens": torch.full((3, 2), -1)}, "decoder_tokens has id -1"),
        ({"valid": torch.ones(3, 8, dtype=torch.bool)}, "valid is [3, 8]"),
        ({"valid": torch.ones(3, 9)}, "valid must be bool"),
        ({"decoder_tokens": torch.ones(2, 2, dtype=torch.long)}, "3 rows"),
        ({"decoder_tokens": torch.ones(3, 13, dtype=torch.long)}, "position 12"),
    ],
)
def test_wrong_input_is_named(changes: dict[str, Tensor], words: str) -> None:
    with pytest.raises(InputError, match=words.replace("[", r"\[").replace("]", r"\]")):
        tiny()(**(inputs() | changes))


def test_configurations_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match="does not divide"):
        TransformerConfig(embed_dim=10, num_heads=4)
    with pytest.raises(ConfigError, match="outside the vocabulary"):
        TransformerConfig(vocab_size=2)
    with pytest.raises(ConfigError, match="layers lists 1"):
        TransformerConfig(layers=(LayerSizes(1, 1),))
    with pytest.raises(ConfigError, match=r"no size 'transformer-bas'.*did you mean 'transformer-base'"):
        zoo.build("transformer-bas")
    with pytest.raises(ConfigError, match="positions='rotary'"):
        to_hf(TransformerConfig(positions="rotary", position_layout="half", logits_bias=True))


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_state_alone() -> None:
    config = tiny().config
    state = torch.get_rng_state()
    first, second, third = zoo.build(config, seed=3), zoo.build(config, seed=3), zoo.build(config, seed=4)
    assert torch.equal(state, torch.get_rng_state())
    for (name, a), b, c in zip(first.named_parameters(), second.parameters(), third.parameters(), strict=True):
        assert a.isfinite().all()
        assert torch.equal(a, b), name
        if a.ndim == 2:
            assert not torch.equal(a, c), name


def test_a_forward_pass_leaves_nothing_for_the_cycle_collector() -> None:
    config = TransformerConfig(
        vocab_size=V, embed_dim=16, ffn_dim=32, num_heads=4, num_encoder_layers=1, positions="t5"
    )
    model = zoo.build(config)
    gc.collect()
    gc.disable()
    try:
        output = model(**inputs(), weights=True)
        memory = weakref.ref(output.memory)
        output.logits.sum().backward()
        del output
        assert memory() is None
        assert not [each for each in gc.get_objects() if type(each) is Index and each.memo]
    finally:
        gc.enable()


def small(**changes: Any) -> Any:
    return zoo.build(TransformerConfig(**({
        "vocab_size": 20, "embed_dim": 16, "ffn_dim": 32, "num_heads": 2, "num_encoder_layers": 1,
        "num_decoder_layers": 2, "max_seq_len": 8,
    } | changes)), dtype=torch.float64).eval()  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"positions": "sinusodial"}, "did you mean 'sinusoidal'"),
        ({"norm_order": "Post"}, "norm_order: 'Post' is not one of post, pre"),
        ({"norm": "layernorm"}, "norm: 'layernorm' is not one of"),
        ({"activation": "swiglu"}, "activation: 'swiglu' is not one of"),
        ({"dropout": 1.5}, "dropout must be at least 0 and less than 1"),
        ({"drop_path": 1.0}, "drop_path must be at least 0 and less than 1"),
        ({"norm_eps": -1.0}, "norm_eps must be above 0"),
        ({"scale_embeddings": "false"}, "scale_embeddings: expected bool, found 'false'"),
    ],
)
def test_a_field_that_means_nothing_is_an_error(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        small(**changes)


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary", "alibi", "t5", "none"])
def test_no_position_scheme_goes_beyond_the_last_position(positions: str) -> None:
    model = small(positions=positions)
    tokens = torch.full((2, 9), 3)
    with pytest.raises(InputError, match="reaches position 8"):
        model(tokens=tokens, decoder_tokens=tokens[:, :2])
    with pytest.raises(InputError, match="reaches position 8"):
        model(tokens=tokens[:, :2], decoder_tokens=tokens)
    decoding = model.begin(tokens=tokens[:, :2], max_len=4)
    decoding.feed(tokens[:, :3], torch.tensor([[True] * 3, [False, True, True]]))
    decoding.feed(tokens[:, :1])
    with pytest.raises(InputError, match="reaches position 4"):
        decoding.feed(tokens[:, :1])


def test_rows_are_what_was_begun_and_reordered() -> None:
    model = small()
    tokens = torch.tensor([[3, 4], [5, 6]])
    decoding = model.begin(tokens=tokens)
    with pytest.raises(InputError, match="tokens has 4 rows, but 2 are being written"):
        decoding.feed(torch.full((4, 1), 1))
    decoding.feed(torch.full((2, 1), 1))
    decoding.truncate(0)
    decoding.reorder(torch.tensor([1, 0]))
    swapped = model(tokens=tokens.flip(0), decoder_tokens=torch.full((2, 1), 1)).logits
    torch.testing.assert_close(decoding.feed(torch.full((2, 1), 1)), swapped, rtol=0, atol=1e-12)


def test_an_end_token_that_also_pads_learns_from_being_looked_up() -> None:
    model = small(pad_token=2).train()
    tokens = torch.tensor([[3, 2]])
    model(tokens=tokens, decoder_tokens=tokens).hidden.square().sum().backward()
    assert bool(model.encoder_embed.weight.grad[2].any())


def test_logits_read_without_gradients_are_not_all_there_is() -> None:
    model = small()
    output = model(tokens=torch.tensor([[3]]), decoder_tokens=torch.tensor([[1]]))
    with torch.no_grad():
        assert not output.logits.requires_grad
    assert output.logits.requires_grad
    assert output.logits is output.logits


def test_nothing_is_saved_that_could_not_be_loaded(tmp_path: Path) -> None:
    model = small()
    zoo.save(torch.compile(model), tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    loaded = zoo.load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))
    model.head.weight = torch.nn.Parameter(model.head.weight.detach().clone())
    with pytest.raises(CheckpointError, match=r"the model to save.*unexpected 'head.weight'"):
        zoo.save(model, tmp_path)
    for bad, error in ((zoo.build(model.config, device="meta"), CheckpointError), (torch.nn.Linear(1, 1), ConfigError)):
        with pytest.raises(error):
            zoo.save(bad, tmp_path)
    with pytest.raises(ConfigError, match="no layout 'HF'; there are regard, hf"):
        zoo.save(model, tmp_path, layout="HF")
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_configuration_that_was_changed_is_an_error(tmp_path: Path) -> None:
    zoo.save(small(), tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())
    for change in ({"num_heads": 4}, {"positions": "none"}, {"activation": "gelu"}):
        changed = {**stored, "config": stored["config"] | change}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(ConfigError, match="changed since it was saved; if that was meant, delete its 'checksum'"):
            zoo.load(tmp_path)
    del changed["checksum"]
    (tmp_path / "config.json").write_text(json.dumps(changed))
    assert zoo.load(tmp_path).config.activation == "gelu"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"dtype": "bfloat16"}, "dtype must be a floating-point type"),
        ({"dtype": torch.int8}, "dtype must be a floating-point type"),
        ({"device": "gpu"}, "no device 'gpu'"),
    ],
)
def test_a_place_that_does_not_exist_is_an_error(tmp_path: Path, options: dict[str, Any], says: str) -> None:
    zoo.save(small(), tmp_path)
    with pytest.raises(ConfigError, match=says):
        zoo.load(tmp_path, **options)


def test_a_swapped_part_is_not_lost_by_saving(tmp_path: Path) -> None:
    for name, part in (("mask", Window(1, 1)), ("positions", ALiBi(2)), ("scale", 1.0)):
        model = small()
        setattr(model.encoder.blocks[0].attention.mix, name, part)
        with pytest.raises(
            CheckpointError, match=r"another encoder\.blocks\.0\.attention\.mix.* than its configuration"
        ):
            zoo.save(model, tmp_path / "swapped")
    assert not (tmp_path / "swapped").exists()
    with pytest.raises(ConfigError, match="save takes a model, not dict"):
        zoo.save({}, tmp_path / "swapped")


def test_a_prompt_that_is_no_tensor_is_named() -> None:
    with pytest.raises(InputError, match="prompt is str, not a tensor of token ids"):
        regard.generate(small(), "the red cat")


def test_what_is_never_written_stays_so_in_a_small_model():
    config = TransformerConfig(vocab_size=58101, pad_token=58100, bos_token=58100, eos_token=0, never=(58100,))
    small = FAMILY.tiny(config)
    assert (small.pad_token, small.bos_token, small.eos_token, small.never) == (1, 1, 0, (1,))
