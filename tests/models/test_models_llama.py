"""Llama and those that vary it against the published counts and against transformers' models, in float64."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from regard import zoo
from regard.attention.cache import GrowingCache, RollingCache
from regard.attention.scaling import Interpolation, Llama3Scaling, Yarn
from regard.checkpoint.keymap import to_theirs
from regard.core.errors import CheckpointError, ConfigError, InputError, Unsupported
from regard.core.types import IGNORE
from regard.generate.beam import Beam
from regard.generate.decode import greedy
from regard.generate.front import generate
from regard.models.llama import FAMILY, LayerSizes, LlamaConfig, from_hf, to_hf
from regard.objectives.point import Point
from regard.objectives.supervise import Supervise

transformers = pytest.importorskip("transformers")

V, S, MAX, PAD, END = 50, 9, 64, 0, 2
SMALL = {
    "vocab_size": V, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": MAX, "initializer_range": 0.3, "pad_token_id": PAD,
    "bos_token_id": 1, "eos_token_id": END,
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama with biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama 3": ("Llama", {"rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16, "rope_theta": 100.0}}),
    "llama interpolated": ("Llama", {"rope_scaling": {"rope_type": "linear", "factor": 2.5}, "head_dim": 16}),
    "llama with yarn": ("Llama", {"rope_scaling": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 2.0}}),
    "mistral": ("Mistral", {"sliding_window": 4, "head_dim": 16}),
    "mixtral": ("Mixtral", {"num_local_experts": 3, "router_aux_loss_coef": 0.1, "rope_theta": 100.0}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
    "gemma": ("Gemma", {"head_dim": 16, "num_key_value_heads": 1}),
    "phi3": ("Phi3", {"partial_rotary_factor": 0.5, "sliding_window": 5}),
}  # fmt: skip


class Wide(TorchFunctionMode):
    """Computes in float64 what the reference computes in float32 whatever the type of its weights."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            return args[0].double()
        args, kwargs = tuple(map(widened, args)), {name: widened(value) for name, value in (kwargs or {}).items()}
        return func(*args, **kwargs)


def widened(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


@contextmanager
def wide() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        with Wide():
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def reference(kind: str, head: str = "ForCausalLM", **changes: Any) -> Any:
    """A tiny random model with weights large enough that its decisions are not ties."""
    torch.manual_seed(0)
    name, own = KINDS[kind]
    with wide():
        config = getattr(transformers, f"{name}Config")(**(SMALL | own | {"num_labels": 3} | changes))
        config._experts_implementation = "eager"
        model = getattr(transformers, f"{name}{head}")(config).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.2)
    model.set_attn_implementation("eager")
    return model


@pytest.fixture(scope="module", params=KINDS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """The reference, and ours loaded from the files that it saved."""
    theirs = reference(request.param)
    folder = tmp_path_factory.mktemp("llama")
    theirs.save_pretrained(folder)
    return theirs, zoo.load(folder)


def inputs() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    valid = torch.arange(S) < torch.tensor([[S], [4], [7]])
    return torch.where(valid, torch.randint(3, V, (3, S)), PAD), valid


def equal(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


def equal_gradients(ours: Any, theirs: Any) -> None:
    """Every gradient, under the names of their files."""
    found = {name: parameter.grad for name, parameter in ours.named_parameters()}
    found = to_theirs(found, FAMILY.keymap(ours.config))
    expected: dict[str, Tensor] = {}
    for name, parameter in theirs.named_parameters():
        place = name.replace(".mlp.gate.", ".block_sparse_moe.gate.").partition(".mlp.experts.")
        if not place[2]:
            expected[place[0]] = parameter.grad
            continue
        for number, gradient in enumerate(parameter.grad):  # their files have one matrix for each expert
            parts = gradient.chunk(2) if place[2] == "gate_up_proj" else [gradient]
            for word, part in zip(["w1", "w3"] if len(parts) == 2 else ["w2"], parts, strict=True):
                expected[f"{place[0]}.block_sparse_moe.experts.{number}.{word}.weight"] = part
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        equal(gradient, expected[name])


def test_logits_hidden_states_and_maps_equal_the_reference(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    tokens, valid = inputs()
    for places in ([0, 1], [1, 0]):  # padding on the right, and on the left
        given = [t.flip(1) if places[0] else t for t in (tokens, valid)]
        with wide():
            expected = theirs(
                given[0], attention_mask=given[1].long(), output_hidden_states=True, output_attentions=True
            )
        out, real = ours(*given, weights=True), given[1]
        equal(out.logits[real], expected.logits[real])
        equal(out.hidden[real], expected.hidden_states[-1][real])
        for layer, maps in enumerate(expected.attentions):
            of_queries = out.weights[f"decoder.{layer}.attention"].transpose(1, 2)
            equal(of_queries[real], maps.transpose(1, 2)[real])


def test_loss_and_every_gradient_equal_the_reference(pair: tuple[Any, Any]) -> None:
    theirs, ours = pair
    tokens, valid = inputs()
    labels = torch.where(valid, tokens, IGNORE)
    targets = torch.cat([labels[:, 1:], torch.full((3, 1), IGNORE)], dim=1)
    theirs.zero_grad()
    ours.zero_grad()
    extra = {"output_router_logits": True} if ours.config.balance else {}
    with wide():
        expected = theirs(tokens, attention_mask=valid.long(), labels=labels, **extra).loss
        expected.backward()
    loss = Supervise(0.0).loss(ours.train(), {"tokens": tokens, "valid": valid, "targets": targets})
    loss.mean.backward()
    assert ("penalty" in loss.parts) == bool(extra)
    equal(loss.mean, expected)
    equal_gradients(ours, theirs)
    loss = Supervise(0.0).loss(ours.eval(), {"tokens": tokens, "valid": valid, "targets": targets})
    equal(loss.sum, loss.parts["nll"])


def test_what_is_written_equals_the_reference(pair: tuple[Any, Any]) -> None:
    """Prompts and answers are longer than the windows, and the reference keeps caches too."""
    theirs, ours = pair
    tokens, valid = inputs()
    prompt, real = tokens.flip(1), valid.flip(1)  # the reference wants padding on the left
    settings = {"max_new_tokens": 10, "pad_token_id": PAD, "do_sample": False}
    for method, how in ((greedy, {}), (Beam(3), {"num_beams": 3, "length_penalty": 1.0, "early_stopping": False})):
        with wide():
            expected = theirs.generate(prompt, attention_mask=real.long(), **settings, **how)[:, prompt.shape[1] :]
        answers = generate(ours, prompt, real, method=method, stop=[END], max_tokens=10)
        for row, answer in zip(expected.tolist(), answers, strict=True):
            assert answer.tokens == row[: len(answer.tokens)]
            assert set(row[len(answer.tokens) :]) <= {PAD, END}


HEADS = ["Model", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"]
WITH_HEADS = [
    (kind, head)
    for kind in ("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "phi3")
    for head in HEADS
    if head != "ForQuestionAnswering" or kind not in ("gemma", "phi3")
]


@pytest.mark.parametrize(("kind", "head"), WITH_HEADS, ids="".join)
def test_other_heads_equal_the_reference(kind: str, head: str, tmp_path: Path) -> None:
    theirs = reference(kind, head, classifier_dropout=0.0)
    theirs.save_pretrained(tmp_path)
    ours = zoo.load(tmp_path)
    tokens, valid = inputs()
    if head == "ForQuestionAnswering":
        valid = torch.ones_like(valid)  # the reference points at padding too
    batch = {"tokens": tokens, "valid": valid}
    given = {"input_ids": tokens, "attention_mask": valid.long()}
    if head == "ForQuestionAnswering":
        targets = torch.tensor([[1, 3], [0, 2], [5, 6]])
        given |= {"start_positions": targets[:, 0], "end_positions": targets[:, 1]}
    elif head == "ForTokenClassification":
        targets = given["labels"] = torch.where(valid & (tokens % 2 == 0), tokens % 3, IGNORE)
    else:
        targets = torch.tensor([2, 0, 1])
        given |= {"labels": targets} if head == "ForSequenceClassification" else {}
    with wide():
        expected = theirs(**given)
    out = ours(**batch)
    if head == "Model":
        assert out.head is None
        equal(out.hidden[valid], expected.last_hidden_state[valid])
        return
    if head == "ForQuestionAnswering":
        for place, logits in enumerate((expected.start_logits, expected.end_logits)):
            equal(out.logits[..., place][valid], logits[valid])
        loss = Point().loss(ours, {**batch, "targets": targets, "choices": valid}).mean
    else:
        said = valid if head == "ForTokenClassification" else slice(None)
        equal(out.logits[said], expected.logits[said])
        loss = Supervise(0.0).loss(ours, {**batch, "targets": targets}).mean
    equal(loss, expected.loss)
    with wide():
        expected.loss.backward()
    loss.backward()
    equal_gradients(ours, theirs)


@pytest.mark.parametrize(("kind", "head"), [*((kind, "ForCausalLM") for kind in KINDS), *WITH_HEADS], ids="".join)
def test_published_files_survive_the_round_trip_bit_for_bit(kind: str, head: str, tmp_path: Path) -> None:
    build = getattr(transformers, KINDS[kind][0] + head)
    reference(kind, head).float().save_pretrained(tmp_path / "theirs")
    zoo.save(zoo.load(tmp_path / "theirs"), tmp_path / "ours")
    zoo.save(zoo.load(tmp_path / "ours"), tmp_path / "again", layout="hf")
    weights = [(tmp_path / side / "model.safetensors").read_bytes() for side in ("theirs", "again")]
    assert weights[0] == weights[1]
    before, again = (build.from_pretrained(tmp_path / side) for side in ("theirs", "again"))
    for key, tensor in before.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[key]), key
    assert from_hf(again.config.to_dict()) == from_hf(before.config.to_dict())


PUBLISHED = {
    "llama-7b": 6_738_415_616, "llama-13b": 13_015_864_320, "llama-30b": 32_528_943_616, "llama-65b": 65_285_660_672,
    "llama2-7b": 6_738_415_616, "llama2-13b": 13_015_864_320, "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248, "llama3-70b": 70_553_706_496, "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496, "llama3.1-405b": 405_853_388_800, "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824, "mistral-7b": 7_241_732_096, "mixtral-8x7b": 46_702_792_704,
    "qwen2-0.5b": 494_032_768, "qwen2-1.5b": 1_543_714_304, "qwen2-7b": 7_615_616_512, "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-3b": 3_085_938_688, "qwen2.5-14b": 14_770_033_664, "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976, "qwen3-4b": 4_022_468_096, "qwen3-8b": 8_190_735_360, "gemma-2b": 2_506_172_416,
    "gemma-7b": 8_537_680_896, "phi3-mini": 3_821_079_552, "phi3-medium": 13_960_238_080,
}  # fmt: skip
"""Parameters, as the publishers' files count them."""


@pytest.mark.parametrize("name", FAMILY.sizes)
def test_named_sizes_have_the_published_counts_and_can_be_published(name: str) -> None:
    config = FAMILY.sizes[name]
    assert sum(p.numel() for p in zoo.build(name, device="meta").parameters()) == PUBLISHED[name]
    assert from_hf(to_hf(config)) == config


@pytest.mark.parametrize("name", ["llama3.2-1b", "mixtral-8x7b", "qwen2-0.5b", "qwen3-0.6b", "gemma-2b", "phi3-mini"])
def test_the_reference_reads_our_words_as_the_same_model(name: str) -> None:
    theirs = to_hf(FAMILY.sizes[name])
    build = getattr(transformers, theirs["architectures"][0])
    with torch.device("meta"):
        model = build(build.config_class.from_dict(theirs))
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name]
    assert from_hf(model.config.to_dict()) == FAMILY.sizes[name]


def small(name: str = "llama-7b", **changes: Any) -> Any:
    return zoo.build(replace(FAMILY.tiny(FAMILY.sizes[name]), **changes), dtype=torch.float64).eval()


def test_files_of_old_with_stored_frequencies_load(tmp_path: Path) -> None:
    reference("llama").float().save_pretrained(tmp_path)
    new = load_file(tmp_path / "model.safetensors")
    frequencies = 1.0 / (10000.0 ** (torch.arange(0, 8, 2).float() / 8))
    stored = {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": frequencies.clone() for layer in range(2)}
    save_file({**new, **stored}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    zoo.save(zoo.load(tmp_path), tmp_path / "again", layout="hf")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert again.keys() == new.keys()
    assert all(torch.equal(again[key], new[key]) for key in new)
    stored = {key: 2 * value for key, value in stored.items()}
    save_file({**new, **stored}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"wrong 'model\.layers\.0\.self_attn\.rotary_emb\.inv_freq'"):
        zoo.load(tmp_path)


@pytest.mark.parametrize("kind", ["llama", "gemma", "phi3"])
def test_a_language_models_trunk_takes_another_head(kind: str, tmp_path: Path) -> None:
    reference(kind).save_pretrained(tmp_path)
    written = zoo.load(tmp_path)
    with pytest.raises(CheckpointError, match="missing='head' takes all else"):
        zoo.load(tmp_path, head="classify", labels=["a", "b"])
    tokens, valid = inputs()
    for changes in ({"head": "classify", "labels": ["a", "b"]}, {"head": None}):
        ours = zoo.load(tmp_path, missing="head", **changes)
        equal(ours(tokens, valid).hidden, written(tokens, valid).hidden)
        assert not hasattr(ours, "begin")


def test_configurations_of_all_years_are_read() -> None:
    old = {
        "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
        "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 2048,
        "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32, "rms_norm_eps": 1e-06,
        "tie_word_embeddings": False, "use_cache": True, "vocab_size": 32000,
    }  # fmt: skip
    assert from_hf(old) == from_hf({**old, "pad_token_id": -1}) == LlamaConfig()
    scaling = {"factor": 4.0, "type": "yarn", "original_max_position_embeddings": 512, "truncate": True}
    expected = LlamaConfig(rope_theta=500.0, rope_scaling=Yarn(4.0, 512), eos_token=3, stop_tokens=(4, 5))
    assert from_hf({**old, "rope_theta": 500.0, "rope_scaling": scaling, "eos_token_id": [3, 4, 5]}) == expected
    new = {"rope_theta": 500.0, "rope_type": "yarn", **scaling}
    assert from_hf({**old, "rope_parameters": new, "eos_token_id": [3, 4, 5]}) == expected
    assert to_hf(expected)["eos_token_id"] == [3, 4, 5]
    first = {**old, "model_type": "gemma", "architectures": ["GemmaForCausalLM"], "hidden_act": "gelu", "head_dim": 256}
    del first["tie_word_embeddings"]
    assert from_hf(first).activation == "gelu_tanh"
    assert from_hf(first).tie_head


@pytest.mark.parametrize(
    ("model_type", "changes", "says"),
    [
        ("llama", {"hidden_act": "mish"}, "activation 'mish' is none of gelu_new"),
        ("llama", {"architectures": ["LlamaForPreTraining"]}, "'LlamaForPreTraining' is not supported; there are"),
        (
            "llama",
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "'dynamic', whose angles depend on the longest",
        ),
        ("llama", {"rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 1.0}}, "'yarn' with 'mscale' is not"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor must be a number from 1, not 0.5"),
        ("llama", {"rope_scaling": {"type": "linear"}}, "rotary scaling 'linear' needs a factor"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5 is not supported in llama"),
        ("llama", {"rope_parameters": {"full_attention": {}}}, "'default' with 'full_attention' is not supported"),
        ("phi3", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rotary scaling 'yarn' is not supported in phi3"),
        ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention True is not supported"),
        ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise 0.1 is not supported"),
        (
            "qwen2",
            {"use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]},
            "layer_types: ",
        ),
    ],
)
def test_published_settings_that_are_not_supported_are_named(
    model_type: str, changes: dict[str, Any], says: str
) -> None:
    theirs = {**SMALL, "hidden_act": "silu", "rms_norm_eps": 1e-6, "sliding_window": 4, "max_window_layers": 1}
    with pytest.raises(ConfigError, match=says):
        from_hf({**theirs, "model_type": model_type, **changes})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_kv_heads": 5}, "32 heads do not divide among 5 key-value heads"),
        ({"rotary_share": 0.33, "head_dim": 10}, "rotary_share 0.33 of 10 features is no number of pairs"),
        ({"window": 0}, "window must be 1 token or more"),
        ({"num_experts": 2, "top_k": 3}, "1 to 2 experts, not top_k 3"),
        ({"eos_token": None, "stop_tokens": (3,)}, "further ones beside eos_token"),
        ({"head": "classify"}, "labels name the classes"),
        ({"head": "answer", "variant": "phi3"}, "phi3 has no head 'answer'"),
        ({"layers": (LayerSizes(1, 1, 1),)}, "layers lists 1"),
        ({"head_dim": 0}, "head_dim must lie between 1 and"),
    ],
)
def test_configurations_that_cannot_be_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        LlamaConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"drop_path": 0.1}, "no drop_path=0.1"),
        ({"bias": True, "out_bias": False}, "no out_bias=False"),
        ({"activation": "leaky_relu"}, "no activation='leaky_relu'"),
        ({"variant": "phi3", "bias": True}, "the published layout of phi3 has no bias=True"),
        ({"num_layers": 1, "layers": (LayerSizes(4, 4, 8),)}, "one size for all layers"),
    ],
)
def test_what_the_published_layout_cannot_say_is_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        to_hf(LlamaConfig(**changes))


def test_positions_begin_anew_with_each_document_and_windows_end_at_its_beginning() -> None:
    model = small("mistral-7b", max_seq_len=8, window=3)
    texts = [torch.tensor([[5, 6, 7, 8, 9, 10]]), torch.tensor([[11, 12, 13]]), torch.tensor([[5, 6]])]
    documents = torch.tensor([[7] * 6 + [3] * 3 + [9] * 2])
    packed = model(torch.cat(texts, dim=1), documents=documents).logits  # 11 tokens, 8 positions
    equal(packed, torch.cat([model(each).logits for each in texts], dim=1))
    with pytest.raises(InputError, match="reaches position 8"):
        model(torch.full((1, 9), 3), documents=torch.zeros(1, 9, dtype=torch.long))


def test_a_window_hides_what_lies_before_it() -> None:
    model = small("mistral-7b", window=3, num_layers=1)
    tokens = torch.randint(3, 32, (1, 8), generator=torch.Generator().manual_seed(0))
    other = tokens.clone()
    other[:, :2] = 31 - other[:, :2]
    said, changed = model(tokens).logits, model(other).logits
    assert torch.equal(said[:, 4:], changed[:, 4:])
    assert not torch.equal(said[:, 3], changed[:, 3])


def test_caches_keep_no_more_than_the_windows() -> None:
    model = small("qwen2-0.5b", window=4, full_layers=1)
    decoding = model.begin(max_len=20)
    kept = [layer.own for layer in decoding.caches.layers]
    assert [type(each) for each in kept] == [GrowingCache, RollingCache]
    tokens = torch.randint(3, 32, (2, 14), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        said = torch.cat([decoding.feed(piece) for piece in tokens.split([6, 1, 1, 4, 1, 1], dim=1)], dim=1)
    equal(said, model(tokens).logits.detach())
    assert kept[1].k.shape[2] == 3  # a query sees itself and three more
    with pytest.raises(Unsupported, match="moved past what place 5 would look at"):
        decoding.truncate(5)
    assert kept[0].length == 14  # nothing is forgotten where a layer cannot
    with torch.no_grad():
        equal(decoding.feed(tokens[:, :1]), model(torch.cat([tokens, tokens[:, :1]], dim=1)).logits[:, -1:])
    assert all(isinstance(layer.own, GrowingCache) for layer in model.begin(max_len=3).caches.layers)


def test_a_decoding_knows_its_end() -> None:
    with pytest.raises(InputError, match="max_len 33 is more than this model's 32 positions"):
        small().begin(max_len=33)


def test_a_class_is_read_off_the_last_real_token() -> None:
    model = small(head="classify", labels=("a", "b", "c"))
    row = torch.randint(3, 32, (1, 5), generator=torch.Generator().manual_seed(0))
    alone = model(row).logits
    equal(alone, model.head(model(row).hidden[:, -1]))
    for before, after in ((0, 3), (3, 0), (2, 1)):
        wide_row, valid = (
            torch.nn.functional.pad(each, (before, after)) for each in (row, torch.ones(1, 5, dtype=torch.bool))
        )
        equal(model(wide_row, valid).logits, alone)


def lesson() -> dict[str, Tensor]:
    tokens = torch.randint(3, 32, (2, 6), generator=torch.Generator().manual_seed(0))
    return {"tokens": tokens, "targets": tokens.roll(-1, dims=1)}


def test_experts_are_balanced_in_training_alone_and_recomputation_changes_nothing() -> None:
    model = small("mixtral-8x7b").train()
    found = []
    for recompute in (0, 1):
        model.decoder.recompute = recompute
        model.zero_grad()
        loss = Supervise(0.0).loss(model, lesson())
        loss.mean.backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
        equal(loss.sum, loss.parts["nll"] + loss.parts["penalty"])
        assert loss.parts["penalty"] > 0.02 * loss.count  # 1 would be balanced, for each of the choices
    for plain, again in zip(*found, strict=True):
        equal(again, plain)
    assert "penalty" not in Supervise(0.0).loss(model.eval(), lesson()).parts
    assert "penalty" not in Supervise(0.0).loss(small("mixtral-8x7b", balance=0.0).train(), lesson()).parts


def test_the_balance_of_experts_that_are_elsewhere_is_not_guessed() -> None:
    model = small("mixtral-8x7b").train()
    model.decoder.blocks[0] = torch.nn.Module()
    model.decoder.blocks[0].forward = lambda x, ctx: x
    with pytest.raises(ConfigError, match=r"set parallel\.pipeline to 1, or the model's balance to 0"):
        model(**{"tokens": lesson()["tokens"]})


def test_blocks_with_experts_can_be_compiled_in_training() -> None:
    model = small("mixtral-8x7b").train()
    expected = Supervise(0.0).loss(model, lesson()).mean
    for block in model.decoder.blocks:
        block.compile(backend="eager", fullgraph=True)
    equal(Supervise(0.0).loss(model, lesson()).mean, expected)


def test_tiny_configurations_keep_what_is_the_same_the_same() -> None:
    sizes = (LayerSizes(32, 8, 14336), LayerSizes(8, 4, 7168))
    tiny = FAMILY.tiny(replace(FAMILY.sizes["llama3-8b"], num_layers=2, layers=sizes, stop_tokens=(128009,)))
    assert tiny.layers == (LayerSizes(4, 2, 72), LayerSizes(1, 1, 64))
    assert (tiny.bos_token, tiny.eos_token, tiny.stop_tokens) == (0, 1, (2,))
    assert FAMILY.tiny(LlamaConfig(rope_scaling=Interpolation(2.0))).rope_scaling == Interpolation(2.0)
    assert FAMILY.tiny(FAMILY.sizes["llama3.2-1b"]).rope_scaling == Llama3Scaling(32.0, 16)
