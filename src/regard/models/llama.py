"""Decoders with rotary positions, RMSNorm and gated feed-forwards: Llama (Touvron et al. 2023) and those that vary it.

Llama 2 (Touvron et al. 2023b), Llama 3 (Grattafiori et al. 2024), Mistral (Jiang et al. 2023), Mixtral (Jiang et al.
2024), Qwen2 (Yang et al. 2024), Qwen3 (Yang et al. 2025), Gemma (Gemma Team 2024), Phi-3 (Abdin et al. 2024).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from torch import nn

from regard.attention.attention import Attention
from regard.attention.kernel import KernelName
from regard.attention.mask import Causal, Window
from regard.attention.position import Rotary
from regard.attention.scaling import Interpolation, Llama3Scaling, RotaryScaling, Yarn
from regard.blocks.decoder import Decoder, with_head
from regard.blocks.embed import Embedding
from regard.blocks.experts import MixtureOfExperts
from regard.blocks.feedforward import ActivationName, FeedForward
from regard.blocks.init import normal
from regard.blocks.norm import RMSNorm, UnitRMSNorm
from regard.blocks.residual import Block, Residual, Stack, branch
from regard.checkpoint.keymap import Constant, Repeat, Rule, Split
from regard.core.errors import ConfigError
from regard.family import (
    Family,
    activation_of,
    check_config,
    check_survives,
    check_uniform,
    head_of,
    labels_of,
    pair,
    under_each,
    words_of,
)

Variant = Literal["llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "phi3"]
HeadName = Literal["causal_lm", "classify", "tag", "answer"]


@dataclass(frozen=True)
class LayerSizes:
    """What one layer keeps after pruning: heads that ask, heads that are asked, inner width of its feed-forward."""

    heads: int
    kv_heads: int
    ffn_dim: int


@dataclass(frozen=True)
class LlamaConfig:
    """Everything that defines the model; the defaults are the smallest Llama of 2023 (table 2).

    Attributes:
        vocab_size: V.
        embed_dim: E.
        ffn_dim: F; of each expert, where there are some.
        num_heads: H.
        num_kv_heads: G, dividing H.
        head_dim: D.
        num_layers: blocks.
        max_seq_len: positions that a sequence may reach.
        rope_theta: the base of the rotary frequencies.
        rope_scaling: how they are changed for longer texts.
        rotary_share: of each head's features that turn.
        window: how many tokens a query sees, itself among them; None = all before it.
        full_layers: so many layers, the first ones, see all in spite of a window.
        num_experts: X, feed-forwards of which a router picks a few for each token; 0 = one feed-forward for all.
        top_k: how many experts serve a token.
        balance: how much the loss that keeps experts equally busy counts, beside the mean loss of a batch in training.
        bias: whether the projections to queries, keys and values have biases.
        out_bias: whether the projection of what attention gathered has one.
        ffn_bias: whether those of the feed-forwards have.
        qk_norm: normalise the queries and keys of each head.
        unit_norm: the gains of norms are 1 + weight.
        scale_embeddings: multiply token vectors by sqrt(E).
        dropout: on each sub-layer's output.
        attn_dropout: on attention weights.
        head_dropout: on what a head reads that tags tokens.
        drop_path: stochastic depth of the last block; earlier blocks in proportion.
        activation: of the feed-forwards' gates.
        norm_eps: added to mean squares.
        tie_head: the head's matrix is the token table.
        head: what the model is for: to say next tokens; classes of rows or of tokens; where an answer begins and ends;
            None = hidden states alone.
        labels: names of the classes, where there are some.
        pad_token: id that fills short rows, if any.
        bos_token: id that begins a text, if any.
        eos_token: id that ends a text, if any.
        stop_tokens: ids that end one, too.
        variant: whose published layout and words for it.
        layers: sizes of each layer where they differ (pruned models); None = all as above.
    """

    vocab_size: int = 32000
    embed_dim: int = 4096
    ffn_dim: int = 11008
    num_heads: int = 32
    num_kv_heads: int = 32
    head_dim: int = 128
    num_layers: int = 32
    max_seq_len: int = 2048
    rope_theta: float = 10000.0
    rope_scaling: RotaryScaling | None = None
    rotary_share: float = 1.0
    window: int | None = None
    full_layers: int = 0
    num_experts: int = 0
    top_k: int = 2
    balance: float = 0.0
    bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False
    qk_norm: bool = False
    unit_norm: bool = False
    scale_embeddings: bool = False
    dropout: float = 0.0
    attn_dropout: float = 0.0
    head_dropout: float = 0.1
    drop_path: float = 0.0
    activation: ActivationName = "silu"
    norm_eps: float = 1e-6
    tie_head: bool = False
    head: HeadName | None = "causal_lm"
    labels: tuple[str, ...] = ()
    pad_token: int | None = None
    bos_token: int | None = 1
    eos_token: int | None = 2
    stop_tokens: tuple[int, ...] = ()
    variant: Variant = "llama"
    layers: tuple[LayerSizes, ...] | None = None

    def __post_init__(self) -> None:
        check_config(self)
        if self.layers is not None and len(self.layers) != self.num_layers:
            raise ConfigError(f"layers lists {len(self.layers)} sizes, one is needed for each of {self.num_layers}")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"{self.num_heads} heads do not divide among {self.num_kv_heads} key-value heads")
        if self.rotary_dim % 2 or not 0 <= self.rotary_dim <= self.head_dim:
            raise ConfigError(f"rotary_share {self.rotary_share} of {self.head_dim} features is no number of pairs")
        if not 0 < self.rope_theta < math.inf:
            raise ConfigError(f"rope_theta must be a number above 0, not {self.rope_theta}")
        if not 0 <= self.full_layers <= self.num_layers:
            raise ConfigError(f"full_layers must be 0 to all {self.num_layers} layers, not {self.full_layers}")
        if not 0 <= self.balance < math.inf or (self.balance and not self.num_experts):
            raise ConfigError(f"balance must be a number from 0, and 0 where there are no experts, not {self.balance}")
        if any(not 0 <= token < self.vocab_size for token in self.stop_tokens if self.vocab_size):
            raise ConfigError(f"stop_tokens {self.stop_tokens} are not all inside the vocabulary of {self.vocab_size}")
        if self.window is not None and self.window < 1:
            raise ConfigError(f"window must be 1 token or more, or null, not {self.window}")
        if self.num_experts and not 1 <= self.top_k <= self.num_experts:
            raise ConfigError(f"a token goes to 1 to {self.num_experts} experts, not top_k {self.top_k}")
        if self.stop_tokens and self.eos_token is None:
            raise ConfigError("stop_tokens are further ones beside eos_token, which is null")
        if (self.head in ("classify", "tag")) != bool(self.labels):
            raise ConfigError(f"labels name the classes of heads that classify or tag; head is {self.head}")
        if self.head == "answer" and self.variant not in ANSWERS:
            raise ConfigError(f"{self.variant} has no head 'answer'; there are causal_lm, classify, tag")

    @property
    def rotary_dim(self) -> int:
        """How many of a head's features turn."""
        return int(self.head_dim * self.rotary_share)

    def sizes(self, layer: int) -> LayerSizes:
        """What layer number ``layer`` has."""
        if self.layers is not None:
            return self.layers[layer]
        return LayerSizes(self.num_heads, self.num_kv_heads, self.ffn_dim)


def build(config: LlamaConfig, *, kernel: KernelName = "auto") -> Decoder:
    """Embedding, causal blocks that share their positions, and the head that the configuration names."""
    embed = Embedding(
        config.vocab_size,
        config.embed_dim,
        scale=config.embed_dim**0.5 if config.scale_embeddings else 1.0,
        pad_token=None if config.pad_token in (config.bos_token, config.eos_token) else config.pad_token,
    )
    positions = rotary(config)
    blocks = [block(config, layer, positions, kernel) for layer in range(config.num_layers)]
    return with_head(config, embed, Stack(blocks, norm(config, config.embed_dim)), balance=config.balance)


def rotary(config: LlamaConfig) -> Rotary:
    """The positions that all layers share."""
    return Rotary(config.head_dim, theta=config.rope_theta, rotary_dim=config.rotary_dim, scaling=config.rope_scaling)


def norm(config: LlamaConfig, dim: int) -> RMSNorm:
    """The one norm that the configuration has everywhere."""
    return (UnitRMSNorm if config.unit_norm else RMSNorm)(dim, config.norm_eps)


def block(config: LlamaConfig, layer: int, positions: Rotary, kernel: KernelName) -> Block:
    """Causal self-attention, then a gated feed-forward or a mixture of them, each normalised before."""
    sizes, windowed = config.sizes(layer), config.window is not None and layer >= config.full_layers
    attention = Attention(
        config.embed_dim,
        sizes.heads,
        num_kv_heads=sizes.kv_heads,
        head_dim=config.head_dim,
        mask=Window((config.window or 1) - 1) if windowed else Causal(),
        positions=positions,
        bias=config.bias,
        out_bias=config.out_bias,
        qk_norm=partial(norm, config) if config.qk_norm else None,
        dropout=config.attn_dropout,
        kernel=kernel,
    )
    expert = partial(
        FeedForward, config.embed_dim, sizes.ffn_dim, activation=config.activation, gated=True, bias=config.ffn_bias
    )
    experts = config.num_experts
    ffn = MixtureOfExperts(config.embed_dim, experts, config.top_k, expert) if experts else expert()
    return Block(attention=residual(config, layer, attention), ffn=residual(config, layer, ffn))


def residual(config: LlamaConfig, layer: int, mix: nn.Module) -> Residual:
    """x + Dropout(Sublayer(RMSNorm(x)))."""
    drop = branch(config.dropout, config.drop_path * (layer + 1) / config.num_layers)
    return Residual(mix, before=norm(config, config.embed_dim), branch=drop)


def heads(config: LlamaConfig) -> list[LlamaConfig]:
    """The configurations of the same trunk with no head and with each that the variant has."""
    return under_each(
        config, [None, "causal_lm", "classify", "tag", *(["answer"] if config.variant in ANSWERS else [])]
    )


ANSWERS: dict[str, str] = {
    "llama": "transformer.", "qwen2": "transformer.", "qwen3": "transformer.", "mistral": "model.", "mixtral": "model.",
}  # fmt: skip
"""What stands before the trunk's keys under the head that finds answers, in layouts that have it."""


def keymap(config: LlamaConfig) -> list[Rule]:
    """The keys of a published checkpoint as they stand in the file; the trunk's are prefixed where there is a head."""
    own = "" if config.head is None else ANSWERS[config.variant] if config.head == "answer" else "model."
    trunk = [Rule("embed_tokens.weight", "embed.weight"), *_layer(config), Rule("norm.weight", "decoder.norm.weight")]
    old = Rule("layers.{i}.self_attn.rotary_emb.inv_freq", (), Constant(lambda: rotary(config).frequencies()))
    rules = []
    for prefix in ("", "model.", "transformer."):
        named = [replace(rule, theirs=prefix + rule.theirs) for rule in trunk]
        rules += named if prefix == own else [Rule(rule.theirs, rule.names[0], Repeat()) for rule in named]
        rules.append(replace(old, theirs=prefix + old.theirs))
    if config.head == "causal_lm":
        tied = config.tie_head
        rules.append(
            Rule("lm_head.weight", "embed.weight", Repeat()) if tied else Rule("lm_head.weight", "head.weight")
        )
    elif config.head:
        rules += _linear("qa_outputs" if config.head == "answer" else "score", "head.out", config.head != "classify")
    return rules


def _layer(config: LlamaConfig) -> list[Rule]:
    """The keys of the layers. Phi-3's files hold several of our matrices in one."""
    asks, mlp, moe = (f"layers.{{i}}.{name}" for name in ("self_attn", "mlp", "block_sparse_moe"))
    block = "decoder.blocks.{i}"
    mix, ffn = f"{block}.attention.mix", f"{block}.ffn.mix"
    rules = [
        Rule("layers.{i}.input_layernorm.weight", f"{block}.attention.before.weight"),
        Rule("layers.{i}.post_attention_layernorm.weight", f"{block}.ffn.before.weight"),
        *_linear(f"{asks}.o_proj", f"{mix}.o", config.out_bias),
    ]
    if config.qk_norm:
        rules += [Rule(f"{asks}.{name}_norm.weight", f"{mix}.{name}_norm.weight") for name in "qk"]
    if config.variant == "phi3":
        heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
        cuts = Split(tuple(count * config.head_dim for count in heads)), Split((config.ffn_dim, config.ffn_dim))
        return [
            *rules,
            Rule(f"{asks}.qkv_proj.weight", tuple(f"{mix}.{name}.weight" for name in "qkv"), cuts[0]),
            Rule(f"{mlp}.gate_up_proj.weight", (f"{ffn}.gate.weight", f"{ffn}.up.weight"), cuts[1]),
            Rule(f"{mlp}.down_proj.weight", f"{ffn}.down.weight"),
        ]
    for name in "qkv":
        rules += _linear(f"{asks}.{name}_proj", f"{mix}.{name}", config.bias)
    if config.num_experts:
        experts = {"w1": "gate", "w3": "up", "w2": "down"}.items()
        return [
            *rules,
            Rule(f"{moe}.gate.weight", f"{ffn}.router.weight"),
            *[Rule(f"{moe}.experts.{{j}}.{w}.weight", f"{ffn}.experts.{{j}}.{name}.weight") for w, name in experts],
        ]
    for name in ("gate", "up", "down"):
        rules += _linear(f"{mlp}.{name}_proj", f"{ffn}.{name}", config.ffn_bias)
    return rules


def _linear(theirs: str, ours: str, bias: bool) -> list[Rule]:
    return pair(theirs, ours)[: 2 if bias else 1]


WORDS: dict[ActivationName, str] = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh", "gelu": "gelu", "relu": "relu",
                                      "tanh": "tanh"}  # fmt: skip
"""What published configurations call activations."""

NAMES: dict[Variant, str] = {
    "llama": "Llama", "mistral": "Mistral", "mixtral": "Mixtral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma": "Gemma",
    "phi3": "Phi3",
}  # fmt: skip
HEADS: dict[str, HeadName | None] = {
    "Model": None, "ForCausalLM": "causal_lm", "ForSequenceClassification": "classify", "ForTokenClassification": "tag",
    "ForQuestionAnswering": "answer",
}  # fmt: skip
COMMON = {
    "vocab_size": "vocab_size", "embed_dim": "hidden_size", "ffn_dim": "intermediate_size",
    "num_heads": "num_attention_heads", "num_layers": "num_hidden_layers", "max_seq_len": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
}  # fmt: skip
"""What all published configurations call our fields."""

OWN: dict[Variant, dict[str, tuple[str, Any]]] = {
    "llama": {"bias": ("attention_bias", False), "ffn_bias": ("mlp_bias", False)},
    "mistral": {"window": ("sliding_window", 4096)},
    "mixtral": {
        "window": ("sliding_window", None), "num_experts": ("num_local_experts", 8),
        "top_k": ("num_experts_per_tok", 2), "balance": ("router_aux_loss_coef", 0.001),
    },
    "qwen2": {},
    "qwen3": {"bias": ("attention_bias", False)},
    "gemma": {"bias": ("attention_bias", False)},
    "phi3": {"window": ("sliding_window", None), "dropout": ("resid_pdrop", 0.0)},
}  # fmt: skip
"""What some call others of our fields, and what these are where nothing is said."""

ALWAYS: dict[Variant, dict[str, Any]] = {
    "qwen2": {"bias": True}, "qwen3": {"qk_norm": True}, "gemma": {"unit_norm": True, "scale_embeddings": True},
}  # fmt: skip
"""What some have without saying so."""

ONLY = {"use_bidirectional_attention": False, "router_jitter_noise": 0.0, "embd_pdrop": 0.0}
"""Settings of published configurations that this family has in one way alone."""

SCALINGS: dict[str, tuple[type, dict[str, str]]] = {
    "linear": (Interpolation, {"factor": "factor"}),
    "llama3": (
        Llama3Scaling,
        {"factor": "factor", "original_max_position_embeddings": "original_len", "low_freq_factor": "low",
         "high_freq_factor": "high"},
    ),
    "yarn": (
        Yarn,
        {"factor": "factor", "original_max_position_embeddings": "original_len", "beta_fast": "fast",
         "beta_slow": "slow", "attention_factor": "amplitude"},
    ),
}  # fmt: skip
"""What published configurations call rotary scalings, and their numbers."""


def from_hf(theirs: Mapping[str, Any]) -> LlamaConfig:
    """Our configuration from a published one. Raises ConfigError, naming it, for a setting that is not supported."""
    variant: Variant = theirs["model_type"]
    for name, value in ONLY.items():
        if (theirs.get(name) or value) != value:
            raise ConfigError(f"{name} {theirs[name]} is not supported, only {value}")
    activation = theirs.get("hidden_activation") or theirs["hidden_act"]
    kept = {ours: theirs[word] for ours, word in COMMON.items()}
    kept |= {ours: theirs.get(word, default) for ours, (word, default) in OWN[variant].items()}
    kept |= ALWAYS.get(variant, {}) | _rope(theirs)
    if variant.startswith("qwen") and theirs.get("use_sliding_window") and theirs["sliding_window"] is not None:
        kept |= {"window": theirs["sliding_window"], "full_layers": theirs["max_window_layers"]}
    ends = theirs.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    head = head_of(theirs, {NAMES[variant] + suffix: head for suffix, head in HEADS.items()}, "causal_lm")
    dropped, pad = theirs.get("classifier_dropout"), theirs.get("pad_token_id")
    pad = None if pad == -1 else pad  # as Llama's first files say that there is none
    config = LlamaConfig(
        **kept,
        num_kv_heads=theirs.get("num_key_value_heads") or kept["num_heads"],
        head_dim=theirs.get("head_dim") or kept["embed_dim"] // kept["num_heads"],
        out_bias=variant != "qwen2" and kept.get("bias", False),
        attn_dropout=theirs.get("attention_dropout", 0.0),
        head_dropout=0.1 if dropped is None else dropped,
        # Gemma's first files say gelu and mean its approximation.
        activation="gelu_tanh" if (variant, activation) == ("gemma", "gelu") else activation_of(activation),
        tie_head=theirs.get("tie_word_embeddings", variant == "gemma"),
        head=head,
        labels=labels_of(theirs) if head in ("classify", "tag") else (),
        pad_token=pad,
        bos_token=theirs.get("bos_token_id"),
        eos_token=next(iter(ends), None),
        stop_tokens=tuple(ends[1:]),
        variant=variant,
    )
    if theirs.get("layer_types", _layer_types(config)) != _layer_types(config):
        raise ConfigError(
            "layer_types: only full_attention in the first layers and sliding_attention after is supported"
        )
    return config


def _rope(theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Our fields for rotary positions, which older files have in several places and newer ones in one."""
    variant, given = theirs["model_type"], dict(theirs.get("rope_parameters") or theirs.get("rope_scaling") or {})
    older = given.pop("type", "default")
    kind = given.pop("rope_type", older)
    theta = given.pop("rope_theta", theirs.get("rope_theta", 1e6 if variant == "mixtral" else 1e4))
    share = given.pop("partial_rotary_factor", theirs.get("partial_rotary_factor", 1.0))
    if share != 1 and variant != "phi3":
        raise ConfigError(f"partial_rotary_factor {share} is not supported in {variant}, only 1.0")
    fields = {"rope_theta": theta, "rotary_share": share}
    if kind != "default" and (kind not in SCALINGS or variant == "phi3"):  # whose yarn is another
        why = ", whose angles depend on the longest row of a batch," if kind in ("dynamic", "longrope") else ""
        raise ConfigError(f"rotary scaling '{kind}'{why} is not supported in {variant}")
    scaling, words = SCALINGS.get(kind, (None, {}))
    if "original_max_position_embeddings" in words:
        given.setdefault("original_max_position_embeddings", theirs["max_position_embeddings"])
    given = {word: value for word, value in given.items() if value is not None and (word, value) != ("truncate", True)}
    for word in given:
        if word not in words:
            raise ConfigError(f"rotary scaling '{kind}' with '{word}' is not supported")
    if scaling is None:
        return fields
    if "factor" not in given:
        raise ConfigError(f"rotary scaling '{kind}' needs a factor")
    return fields | {"rope_scaling": scaling(**{words[word]: value for word, value in given.items()})}


def _layer_types(config: LlamaConfig) -> list[str]:
    """What newer published configurations call each layer's mask."""
    windowed = config.num_layers if config.window is None else config.full_layers
    return ["full_attention" if layer < windowed else "sliding_attention" for layer in range(config.num_layers)]


def to_hf(config: LlamaConfig) -> dict[str, Any]:
    """The published configuration of ``config``. Raises ConfigError naming what it has no word for."""
    check_uniform(config)
    theirs = _words(config)
    check_survives(config, from_hf(theirs), config.variant)
    return theirs


def _words(config: LlamaConfig) -> dict[str, Any]:
    """The published configuration, without a look at whether it says all. Older readers understand it, too."""
    variant = config.variant
    activation = WORDS.get(config.activation)
    if activation is None:
        raise ConfigError(f"the published layout has no activation={config.activation!r}")
    suffixes = {ours: theirs for theirs, ours in HEADS.items()}
    words: dict[str, Any] = {
        "architectures": [NAMES[variant] + suffixes[config.head]],
        "model_type": variant,
        **{theirs: getattr(config, ours) for ours, theirs in COMMON.items()},
        **{theirs: getattr(config, ours) for ours, (theirs, _) in OWN[variant].items()},
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": activation,
        "attention_dropout": config.attn_dropout,
        "tie_word_embeddings": config.tie_head,
        "rope_theta": config.rope_theta,
        "rope_scaling": _scaling(config.rope_scaling),
        "pad_token_id": config.pad_token,
        "bos_token_id": config.bos_token,
        "eos_token_id": [config.eos_token, *config.stop_tokens] if config.stop_tokens else config.eos_token,
        **words_of(config.labels),
    }
    if variant == "gemma":
        words["hidden_activation"] = activation
    if config.rotary_share != 1:
        words["partial_rotary_factor"] = config.rotary_share
    if variant.startswith("qwen"):
        words["use_sliding_window"] = config.window is not None
        words |= {"sliding_window": config.window, "max_window_layers": config.full_layers}
    if config.head_dropout != 0.1:
        words["classifier_dropout"] = config.head_dropout
    return words


def _scaling(scaling: RotaryScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    words = SCALINGS[scaling.kind][1]
    return {"rope_type": scaling.kind, **{theirs: getattr(scaling, ours) for theirs, ours in words.items()}}


def tiny(config: LlamaConfig) -> LlamaConfig:
    """The same choices at a size for tests. What is one and the same (special tokens, widths of layers) remains so."""
    named = (config.pad_token, config.bos_token, config.eos_token, *config.stop_tokens)
    special = sorted({token for token in named if token is not None})
    pad, bos, eos = (None if token is None else special.index(token) for token in named[:3])
    count, groups = min(config.num_layers, 2), config.num_heads // config.num_kv_heads
    kv_heads = 4 if groups == 1 else 1 if config.num_kv_heads == 1 else 2
    sizes = [config.sizes(layer) for layer in range(count)]
    widths = sorted({size.ffn_dim for size in sizes})

    def small(size: LayerSizes) -> LayerSizes:
        kept = -(-kv_heads * size.kv_heads // config.num_kv_heads)
        group = -(-4 // kv_heads * (size.heads // size.kv_heads) // groups)
        return LayerSizes(kept * group, kept, 64 + 8 * widths.index(size.ffn_dim))

    scaling = config.rope_scaling
    if isinstance(scaling, Llama3Scaling | Yarn):
        scaling = replace(scaling, original_len=16)
    return replace(
        config, vocab_size=32, embed_dim=32, ffn_dim=64, num_heads=4, num_kv_heads=kv_heads,
        head_dim=8 if config.head_dim * config.num_heads == config.embed_dim else 16, num_layers=count, max_seq_len=32,
        rope_scaling=scaling, window=config.window and 4, full_layers=min(config.full_layers, count - 1),
        num_experts=min(config.num_experts, 4), top_k=min(config.top_k, 2), pad_token=pad, bos_token=bos,
        eos_token=eos, stop_tokens=tuple(special.index(token) for token in config.stop_tokens),
        layers=None if config.layers is None else tuple(small(size) for size in sizes),
    )  # fmt: skip


def _sized(width: int, ffn: int, heads: int, kv_heads: int, layers: int, **changes: Any) -> LlamaConfig:
    fields = {"head_dim": width // heads} | changes
    return LlamaConfig(
        embed_dim=width, ffn_dim=ffn, num_heads=heads, num_kv_heads=kv_heads, num_layers=layers, **fields
    )


_LLAMA2: dict[str, Any] = {"max_seq_len": 4096, "norm_eps": 1e-5}
_LLAMA3: dict[str, Any] = {
    "vocab_size": 128256, "max_seq_len": 8192, "norm_eps": 1e-5, "rope_theta": 500000.0, "bos_token": 128000,
    "eos_token": 128001,
}  # fmt: skip
_LLAMA31 = _LLAMA3 | {"max_seq_len": 131072, "rope_scaling": Llama3Scaling(8.0, 8192)}
_LLAMA32 = _LLAMA31 | {"rope_scaling": Llama3Scaling(32.0, 8192), "tie_head": True}
_MISTRAL: dict[str, Any] = {"variant": "mistral", "max_seq_len": 32768, "norm_eps": 1e-5}
_MIXTRAL: dict[str, Any] = {
    "variant": "mixtral", "max_seq_len": 32768, "norm_eps": 1e-5, "rope_theta": 1e6, "num_experts": 8, "balance": 0.02,
}  # fmt: skip
_QWEN2: dict[str, Any] = {
    "variant": "qwen2", "vocab_size": 151936, "max_seq_len": 131072, "rope_theta": 1e6, "bias": True,
    "bos_token": 151643, "eos_token": 151643,
}  # fmt: skip
_QWEN3: dict[str, Any] = {
    "variant": "qwen3", "vocab_size": 151936, "max_seq_len": 40960, "rope_theta": 1e6, "head_dim": 128,
    "qk_norm": True, "bos_token": 151643, "eos_token": 151645,
}  # fmt: skip
_GEMMA: dict[str, Any] = {
    "variant": "gemma", "vocab_size": 256000, "max_seq_len": 8192, "head_dim": 256, "unit_norm": True,
    "scale_embeddings": True, "activation": "gelu_tanh", "tie_head": True, "pad_token": 0, "bos_token": 2,
    "eos_token": 1,
}  # fmt: skip
_PHI3: dict[str, Any] = {
    "variant": "phi3", "vocab_size": 32064, "max_seq_len": 4096, "norm_eps": 1e-5, "window": 2047, "pad_token": 32000,
    "eos_token": 32000,
}  # fmt: skip

FAMILY = Family(
    name="llama",
    model_types=("llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "phi3"),
    config=LlamaConfig,
    build=build,
    keymap=keymap,
    from_hf=from_hf,
    to_hf=to_hf,
    tiny=tiny,
    heads=heads,
    sizes={
        "llama-7b": LlamaConfig(),
        "llama-13b": _sized(5120, 13824, 40, 40, 40),
        "llama-30b": _sized(6656, 17920, 52, 52, 60),
        "llama-65b": _sized(8192, 22016, 64, 64, 80),
        "llama2-7b": LlamaConfig(**_LLAMA2),
        "llama2-13b": _sized(5120, 13824, 40, 40, 40, **_LLAMA2),
        "llama2-70b": _sized(8192, 28672, 64, 8, 80, **_LLAMA2),
        "llama3-8b": _sized(4096, 14336, 32, 8, 32, **_LLAMA3),
        "llama3-70b": _sized(8192, 28672, 64, 8, 80, **_LLAMA3),
        "llama3.1-8b": _sized(4096, 14336, 32, 8, 32, **_LLAMA31),
        "llama3.1-70b": _sized(8192, 28672, 64, 8, 80, **_LLAMA31),
        "llama3.1-405b": _sized(16384, 53248, 128, 8, 126, **_LLAMA31),
        "llama3.2-1b": _sized(2048, 8192, 32, 8, 16, **_LLAMA32),
        "llama3.2-3b": _sized(3072, 8192, 24, 8, 28, **_LLAMA32),
        "mistral-7b": _sized(4096, 14336, 32, 8, 32, **_MISTRAL, window=4096),
        "mixtral-8x7b": _sized(4096, 14336, 32, 8, 32, **_MIXTRAL),
        "qwen2-0.5b": _sized(896, 4864, 14, 2, 24, **_QWEN2, tie_head=True),
        "qwen2-1.5b": _sized(1536, 8960, 12, 2, 28, **_QWEN2, tie_head=True),
        "qwen2-7b": _sized(3584, 18944, 28, 4, 28, **_QWEN2 | {"vocab_size": 152064}),
        "qwen2.5-0.5b": _sized(896, 4864, 14, 2, 24, **_QWEN2 | {"max_seq_len": 32768}, tie_head=True),
        "qwen2.5-3b": _sized(2048, 11008, 16, 2, 36, **_QWEN2 | {"max_seq_len": 32768}, tie_head=True),
        "qwen2.5-14b": _sized(5120, 13824, 40, 8, 48, **_QWEN2 | {"vocab_size": 152064, "norm_eps": 1e-5}),
        "qwen3-0.6b": _sized(1024, 3072, 16, 8, 28, **_QWEN3, tie_head=True),
        "qwen3-1.7b": _sized(2048, 6144, 16, 8, 28, **_QWEN3, tie_head=True),
        "qwen3-4b": _sized(2560, 9728, 32, 8, 36, **_QWEN3, tie_head=True),
        "qwen3-8b": _sized(4096, 12288, 32, 8, 36, **_QWEN3),
        "gemma-2b": _sized(2048, 16384, 8, 1, 18, **_GEMMA),
        "gemma-7b": _sized(3072, 24576, 16, 16, 28, **_GEMMA),
        "phi3-mini": _sized(3072, 8192, 32, 32, 32, **_PHI3),
        "phi3-medium": _sized(5120, 17920, 40, 10, 40, **_PHI3),
    },
    matrices=normal(0.02),
    embeddings=normal(0.02),
)
