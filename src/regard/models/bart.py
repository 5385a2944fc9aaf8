"""Encoder-decoders that learn to mend spoilt texts: BART (Lewis et al. 2020) and those that vary it.

mBART (Liu et al. 2020) and Pegasus (Zhang et al. 2020).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from regard.attention.attention import Attention
from regard.attention.kernel import KernelName
from regard.attention.mask import EVERYTHING, Causal
from regard.attention.position import Learned, Sinusoidal, sinusoids
from regard.blocks.embed import Embedding, Head
from regard.blocks.encoder_decoder import EncoderDecoder, Parts, Reader, Sides, Writer
from regard.blocks.feedforward import ActivationName, FeedForward
from regard.blocks.heads import Classifier, Dense
from regard.blocks.init import normal
from regard.blocks.residual import Block, Residual, Stack, branch
from regard.checkpoint.keymap import Constant, Repeat, Reshape, Rule
from regard.core.errors import ConfigError
from regard.family import (
    Family,
    LayerSizes,
    activation_of,
    check_config,
    head_of,
    labels_of,
    pair,
    shrink,
    word_of,
    words_of,
)

Variant = Literal["bart", "mbart", "pegasus"]
HeadName = Literal["seq2seq_lm", "classify", "answer"]

OFFSET = 2
"""Rows of a trained position table before the first position's, which nothing reads."""


@dataclass(frozen=True)
class BartConfig:
    """Everything that defines the model; the defaults are BART's base model (section 2.1).

    Attributes:
        vocab_size: V.
        embed_dim: E.
        ffn_dim: F.
        num_heads: H; D = E / H.
        num_encoder_layers: blocks of the encoder.
        num_decoder_layers: blocks of the decoder.
        max_seq_len: positions either side may reach.
        dropout: on what the first block reads, and on each sub-layer's output.
        attn_dropout: on attention weights.
        ffn_dropout: on the inner activations.
        head_dropout: on what a classifying head reads.
        drop_path: stochastic depth of the last block; earlier blocks in proportion.
        activation: of the feed-forwards.
        norm_order: after each residual sum as in BART, or before each sub-layer, with one more norm at the end.
        norm_eps: added to variances.
        norm_embeddings: whether the sum of token and position vectors is normalised.
        learned_positions: a trained vector for each position; False = sinusoids, sines first.
        scale_embeddings: multiply token vectors by sqrt(E).
        head: what the model is for: to write; classes of rows; where an answer begins and ends; None = hidden states.
        labels: names of the classes, where there are some.
        pad_token: id that fills short rows.
        bos_token: id that begins a text, if any.
        eos_token: id that ends a text.
        start_token: id that the decoder starts from; None = that of the language to write (mBART, section 2.2).
        first_token: id that every answer begins with, whatever its logits, if any.
        last_token: id that an answer of the greatest length ends with, whatever its logits, if any.
        variant: whose published layout and words for it.
        layers: sizes of each layer where they differ (pruned models), encoder first; None = all as above.
    """

    vocab_size: int = 50265
    embed_dim: int = 768
    ffn_dim: int = 3072
    num_heads: int = 12
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    max_seq_len: int = 1024
    dropout: float = 0.1
    attn_dropout: float = 0.1
    ffn_dropout: float = 0.1
    head_dropout: float = 0.0
    drop_path: float = 0.0
    activation: ActivationName = "gelu"
    norm_order: Literal["post", "pre"] = "post"
    norm_eps: float = 1e-5
    norm_embeddings: bool = True
    learned_positions: bool = True
    scale_embeddings: bool = False
    head: HeadName | None = "seq2seq_lm"
    labels: tuple[str, ...] = ()
    pad_token: int = 1
    bos_token: int | None = 0
    eos_token: int = 2
    start_token: int | None = 2
    first_token: int | None = None
    last_token: int | None = 2
    variant: Variant = "bart"
    layers: tuple[LayerSizes, ...] | None = None

    def __post_init__(self) -> None:
        check_config(self)
        if self.layers is not None and len(self.layers) != self.num_encoder_layers + self.num_decoder_layers:
            raise ConfigError(f"layers lists {len(self.layers)} sizes, one is needed for each layer, encoder first")
        if (self.head == "classify") != bool(self.labels):
            raise ConfigError(f"labels name the classes of a head that classifies; head is {self.head}")
        if self.head not in (known := (None, *HEADS[self.variant].values())):
            raise ConfigError(f"{self.variant} has no head '{self.head}'; there are {', '.join(filter(None, known))}")

    @property
    def share_embeddings(self) -> bool:
        """Whether both sides read one table of tokens."""
        return True

    @property
    def tie_head(self) -> bool:
        """Whether a head that writes has that table, too."""
        return True

    @property
    def head_dim(self) -> int:
        """D."""
        return self.embed_dim // self.num_heads

    def sizes(self, layer: int) -> LayerSizes:
        """What layer number ``layer`` has, counting the encoder's layers first."""
        return LayerSizes(self.num_heads, self.ffn_dim, self.num_heads) if self.layers is None else self.layers[layer]


def build(config: BartConfig, *, kernel: KernelName = "auto") -> Sides:
    """Encoder and decoder over one table of tokens, for what the configuration's ``head`` names."""
    blocks = [block(config, layer, kernel) for layer in range(config.num_encoder_layers + config.num_decoder_layers)]
    encoder = Stack(blocks[: config.num_encoder_layers], final_norm(config))
    decoder = Stack(blocks[config.num_encoder_layers :], final_norm(config))
    parts = Parts(embedding(config), encoder, embedding(config), decoder, head(config))
    if config.head is None:
        return EncoderDecoder(config, parts)
    if config.head == "seq2seq_lm":
        return Writer(config, parts)
    start = None if config.variant == "mbart" else config.start_token  # its language, whatever it writes
    return Reader(config, parts, start=start, rows=config.head == "classify")


def embedding(config: BartConfig) -> Embedding:
    """Token vectors with positions."""
    width, length = config.embed_dim, config.max_seq_len
    return Embedding(
        config.vocab_size,
        width,
        positions=Learned(width, length, OFFSET) if config.learned_positions else Sinusoidal(width, length, "half"),
        scale=width**0.5 if config.scale_embeddings else 1.0,
        pad_token=None if config.pad_token == config.eos_token else config.pad_token,
        norm=nn.LayerNorm(width, config.norm_eps) if config.norm_embeddings else None,
        dropout=config.dropout,
    )


def block(config: BartConfig, layer: int, kernel: KernelName) -> Block:
    """Self-attention, in the decoder also attention to the encoder's states, then feed-forward."""
    sizes, writes = config.sizes(layer), layer >= config.num_encoder_layers
    shared: dict[str, Any] = {"head_dim": config.head_dim, "dropout": config.attn_dropout, "kernel": kernel}
    mask = Causal() if writes else EVERYTHING
    parts: dict[str, nn.Module] = {"attention": Attention(config.embed_dim, sizes.heads, mask=mask, **shared)}
    if writes:
        parts["cross"] = Attention(config.embed_dim, sizes.cross_heads, cross=True, **shared)
    parts["ffn"] = FeedForward(
        config.embed_dim, sizes.ffn_dim, activation=config.activation, dropout=config.ffn_dropout
    )
    return Block(**{name: residual(config, layer, part) for name, part in parts.items()})


def residual(config: BartConfig, layer: int, mix: nn.Module) -> Residual:
    """Wrap a sub-layer in norm, dropout and the residual sum."""
    depth = config.num_encoder_layers + config.num_decoder_layers
    drop = branch(config.dropout, config.drop_path * (layer + 1) / depth)
    norm = nn.LayerNorm(config.embed_dim, config.norm_eps)
    if config.norm_order == "post":
        return Residual(mix, branch=drop, after=norm)
    return Residual(mix, before=norm, branch=drop)


def final_norm(config: BartConfig) -> nn.Module | None:
    """Pre-norm leaves the stream unnormalised, so a stack ends with a norm."""
    return nn.LayerNorm(config.embed_dim, config.norm_eps) if config.norm_order == "pre" else None


def head(config: BartConfig) -> nn.Module | None:
    """What the configuration's ``head`` names."""
    width = config.embed_dim
    if config.head == "seq2seq_lm":
        return Head(config.vocab_size, width, bias="fixed")
    if config.head == "classify":
        return Classifier(width, len(config.labels), dropout=config.head_dropout, dense=Dense(width, width, "tanh"))
    return Classifier(width, 2) if config.head else None


def heads(config: BartConfig) -> list[BartConfig]:
    """The configurations of the same trunk with no head and with each that the variant has."""
    names = dict.fromkeys(HEADS[config.variant].values())
    return [replace(config, head=name, labels=("",) if name == "classify" else ()) for name in names]


def keymap(config: BartConfig) -> list[Rule]:
    """The keys of a published checkpoint as they stand in the file; older ones repeat some tensors, or have tables."""
    sides = ("encoder", "decoder")
    trunk = [Rule("shared.weight", TABLE), *[rule for side in sides for rule in _side(side, config)]]
    copies = [Rule(f"{side}.embed_tokens.weight", TABLE, Repeat()) for side in sides]
    if not config.learned_positions:
        copies += [Rule(f"{side}.embed_positions.weight", (), _sinusoids(config)) for side in sides]
    named = [_within(rule) for rule in trunk]
    rules, again = (named, trunk) if config.head else (trunk, named)
    repeats = [Rule(rule.theirs, rule.names[0], Repeat()) for rule in again]
    return [*rules, *_head_rules(config), *repeats, *copies, *[_within(rule) for rule in copies]]


TABLE = "encoder_embed.weight"


def _within(rule: Rule) -> Rule:
    """The rule for a trunk that is part of a model with a head."""
    return replace(rule, theirs=f"model.{rule.theirs}")


def _sinusoids(config: BartConfig) -> Constant:
    places = torch.arange(config.max_seq_len, dtype=torch.float64)
    return Constant(lambda: sinusoids(places, config.embed_dim, "half"))


def _head_rules(config: BartConfig) -> list[Rule]:
    if config.head == "seq2seq_lm":
        bias = Reshape((1, config.vocab_size), (config.vocab_size,))
        return [Rule("final_logits_bias", "head.bias", bias), Rule("lm_head.weight", TABLE, Repeat())]
    if config.head == "classify":
        dense = pair("classification_head.dense", "head.dense.linear")
        return [*dense, *pair("classification_head.out_proj", "head.out")]
    return pair("qa_outputs", "head.out") if config.head else []


def _side(side: str, config: BartConfig) -> list[Rule]:
    """The rules for the encoder or the decoder, but for the table of tokens."""
    theirs, ours = f"{side}.layers.{{i}}", f"{side}.blocks.{{i}}"
    norm = "after" if config.norm_order == "post" else "before"
    parts = {f"{theirs}.fc1": f"{ours}.ffn.mix.up", f"{theirs}.fc2": f"{ours}.ffn.mix.down"}
    parts[f"{theirs}.final_layer_norm"] = f"{ours}.ffn.{norm}"
    for name, word in {"attention": "self_attn", "cross": "encoder_attn"}.items():
        if side == "decoder" or name == "attention":
            parts |= {f"{theirs}.{word}.{part}_proj": f"{ours}.{name}.mix.{part[0]}" for part in ("q", "k", "v", "out")}
            parts[f"{theirs}.{word}_layer_norm"] = f"{ours}.{name}.{norm}"
    if config.norm_embeddings:
        parts[f"{side}.layernorm_embedding"] = f"{side}_embed.norm"
    if config.norm_order == "pre":
        parts[f"{side}.layer_norm"] = f"{side}.norm"
    places = [Rule(f"{side}.embed_positions.weight", f"{side}_embed.positions.weight")]
    return [*(places if config.learned_positions else []), *[r for k, v in parts.items() for r in pair(k, v)]]


NAMES: dict[Variant, str] = {"bart": "Bart", "mbart": "MBart", "pegasus": "Pegasus"}
_ALL: dict[str, HeadName | None] = {
    "Model": None, "ForConditionalGeneration": "seq2seq_lm", "ForSequenceClassification": "classify",
    "ForQuestionAnswering": "answer",
}  # fmt: skip
HEADS: dict[Variant, Mapping[str, HeadName | None]] = {
    "bart": _ALL, "mbart": _ALL, "pegasus": {"Model": None, "ForConditionalGeneration": "seq2seq_lm"},
}  # fmt: skip
"""The heads that each one's published classes have."""

_PRE = {"norm_order": "pre"}
SHAPES: dict[Variant, Mapping[str, Any]] = {
    "bart": {}, "mbart": _PRE, "pegasus": {**_PRE, "norm_embeddings": False, "learned_positions": False},
}  # fmt: skip
"""What a published model has by its name alone, where it differs from BART."""

COMMON = {
    "vocab_size": "vocab_size", "embed_dim": "d_model", "ffn_dim": "encoder_ffn_dim",
    "num_heads": "encoder_attention_heads", "num_encoder_layers": "encoder_layers",
    "num_decoder_layers": "decoder_layers", "max_seq_len": "max_position_embeddings", "dropout": "dropout",
    "attn_dropout": "attention_dropout", "ffn_dropout": "activation_dropout", "scale_embeddings": "scale_embedding",
    "pad_token": "pad_token_id", "eos_token": "eos_token_id",
}  # fmt: skip
OPTIONAL = {
    "bos_token": "bos_token_id", "start_token": "decoder_start_token_id", "first_token": "forced_bos_token_id",
    "last_token": "forced_eos_token_id",
}  # fmt: skip
"""What published configurations call our fields."""


_ENDS = {"forced_eos_token_id": 2}
DEFAULTS: dict[Variant, Mapping[str, Any]] = {
    "bart": {**_ENDS, "decoder_start_token_id": 2}, "mbart": _ENDS,
    "pegasus": {"forced_eos_token_id": 1, "decoder_start_token_id": 0},
}  # fmt: skip
"""What a published configuration means that does not say so."""


def _only(config: BartConfig) -> dict[str, Any]:
    """Settings of published configurations that follow from others; older ones state some of them."""
    pre = config.norm_order == "pre"
    return {
        "normalize_before": pre, "add_final_layer_norm": pre, "normalize_embedding": config.norm_embeddings,
        "static_position_embeddings": not config.learned_positions, "is_encoder_decoder": True, "is_decoder": False,
        "tie_word_embeddings": True, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0,
        "decoder_attention_heads": config.num_heads,
    }  # fmt: skip


def from_hf(theirs: Mapping[str, Any]) -> BartConfig:
    """Our configuration from a published one. Raises ConfigError, naming it, for a setting that is not supported."""
    variant: Variant = theirs["model_type"]
    classes = {NAMES[variant] + each: found for each, found in HEADS[variant].items()}
    head = head_of(theirs, classes, None)
    theirs = {**DEFAULTS[variant], **theirs}
    kept = {ours: theirs[word] for ours, word in COMMON.items()}
    kept |= {ours: theirs.get(word) for ours, word in OPTIONAL.items()}
    if theirs.get("force_bos_token_to_be_generated"):  # what the first ones said
        kept["first_token"] = kept["bos_token"]
    config = BartConfig(
        **kept,
        **SHAPES[variant],
        activation=activation_of(theirs["activation_function"]),
        head_dropout=theirs.get("classifier_dropout") or 0.0,
        head=head,
        labels=labels_of(theirs) if head == "classify" else (),
        variant=variant,
    )
    for word, value in _only(config).items():
        if theirs.get(word, value) != value:
            raise ConfigError(f"{word} {theirs[word]} is not supported in {variant}, only {value}")
    widths = theirs["encoder_ffn_dim"], theirs["decoder_ffn_dim"]
    if widths[0] == widths[1]:
        return config
    counts = config.num_encoder_layers, config.num_decoder_layers
    sizes = [
        LayerSizes(config.num_heads, widths[side], config.num_heads) for side in (0, 1) for _ in range(counts[side])
    ]
    return replace(config, layers=tuple(sizes))


def to_hf(config: BartConfig) -> dict[str, Any]:
    """The published configuration of ``config``. Raises ConfigError naming what it has no word for."""
    theirs = _words(config)
    read = from_hf(theirs)
    count = config.num_encoder_layers + config.num_decoder_layers
    if any(config.sizes(layer) != read.sizes(layer) for layer in range(count)):
        raise ConfigError("the published layout has one size for all layers of a side; this model's layers differ")
    names = [name for name in vars(config) if name != "layers" and getattr(config, name) != getattr(read, name)]
    if names:
        odd = ", ".join(f"{name}={getattr(config, name)!r} (only {getattr(read, name)!r})" for name in names)
        raise ConfigError(f"the published layout of {config.variant} has no {odd}")
    return theirs


def _words(config: BartConfig) -> dict[str, Any]:
    """The published configuration, without a look at whether it says all."""
    classes = {ours: theirs for theirs, ours in HEADS[config.variant].items()}
    return {
        "architectures": [NAMES[config.variant] + classes[config.head]],
        "model_type": config.variant,
        **{theirs: getattr(config, ours) for ours, theirs in (COMMON | OPTIONAL).items()},
        "encoder_ffn_dim": config.sizes(0).ffn_dim,
        "decoder_ffn_dim": config.sizes(config.num_encoder_layers).ffn_dim,
        "activation_function": word_of(config.activation),
        "classifier_dropout": config.head_dropout,
        **{word: value for word, value in _only(config).items() if not word.startswith(("norm", "add", "static"))},
        **words_of(config.labels),
    }


_LARGE: dict[str, Any] = {
    "embed_dim": 1024, "ffn_dim": 4096, "num_heads": 16, "num_encoder_layers": 12, "num_decoder_layers": 12,
}  # fmt: skip
_STEADY: dict[str, Any] = {"attn_dropout": 0.0, "ffn_dropout": 0.0}

FAMILY = Family(
    name="bart",
    model_types=("bart", "mbart", "pegasus"),
    config=BartConfig,
    build=build,
    keymap=keymap,
    from_hf=from_hf,
    to_hf=to_hf,
    tiny=shrink,
    heads=heads,
    sizes={
        "bart-base": BartConfig(),
        "bart-large": BartConfig(**_LARGE),
        "bart-large-cnn": BartConfig(**_LARGE, **_STEADY, vocab_size=50264, first_token=0),
        "mbart-large": BartConfig(
            **_LARGE,
            **_STEADY,
            **SHAPES["mbart"],
            vocab_size=250027,
            scale_embeddings=True,
            start_token=None,
            variant="mbart",
        ),
        "pegasus-large": BartConfig(
            **(_LARGE | {"num_encoder_layers": 16, "num_decoder_layers": 16}),
            **SHAPES["pegasus"],
            vocab_size=96103,
            activation="relu",
            scale_embeddings=True,
            pad_token=0,
            bos_token=None,
            eos_token=1,
            start_token=0,
            last_token=1,
            variant="pegasus",
        ),
    },
    matrices=normal(0.02),
    embeddings=normal(0.02),
)
