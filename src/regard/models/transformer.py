"""The 2017 encoder-decoder: "Attention Is All You Need" (Vaswani et al. 2017). MarianMT checkpoints are this family."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regard.attention.attention import Attention
from regard.attention.kernel import KernelName
from regard.attention.mask import EVERYTHING, Causal, Mask
from regard.attention.position import PositionName, SinusoidLayout, attended, embedded, sinusoids
from regard.blocks.embed import Embedding, Head
from regard.blocks.encoder_decoder import Parts, Writer
from regard.blocks.feedforward import ActivationName, FeedForward
from regard.blocks.norm import NormName, norm
from regard.blocks.residual import Block, Residual, Stack, branch
from regard.blocks.trunk import sharing
from regard.checkpoint.keymap import Constant, Repeat, Reshape, Rule
from regard.core.errors import ConfigError
from regard.family import Family, LayerSizes, check_config, shrink


@dataclass(frozen=True)
class TransformerConfig:
    """Everything that defines the model; the defaults are the paper's base model (table 3).

    Attributes:
        vocab_size: V, of both languages.
        embed_dim: E.
        ffn_dim: F.
        num_heads: H; D = E / H.
        num_encoder_layers: blocks of the encoder.
        num_decoder_layers: blocks of the decoder.
        max_seq_len: positions either side may reach.
        dropout: on the sum of embeddings and positions, and on each sub-layer's output (section 5.4).
        attn_dropout: on attention weights.
        ffn_dropout: on the inner activations.
        drop_path: stochastic depth of the last block; earlier blocks in proportion.
        activation: of the feed-forwards.
        gated: whether the feed-forwards are gated.
        norm: which normalisation.
        norm_order: after the residual sum as in the paper, or before each sub-layer, with one more norm at the end.
        norm_eps: added to variances.
        positions: which scheme; one that adds to embeddings, turns queries and keys, or biases scores.
        position_layout: of sinusoids: the paper's interleaved one, or sines first.
        scale_embeddings: multiply token vectors by sqrt(E) (section 3.4).
        share_embeddings: one table for both languages.
        tie_head: the head's matrix is the decoder's table (section 3.4).
        logits_bias: add a fixed bias to the logits.
        pad_token: id that fills short rows.
        bos_token: id that the decoder starts from.
        eos_token: id that ends a sequence.
        never: ids that are never written, whatever their logits; published Marian checkpoints name padding.
        layers: sizes of each layer where they differ (pruned models), encoder first; None = all as above.
        own: parts that each of the ``members`` has for itself, such as ``decoder`` and ``head``; they share the others.
        members: those who share the model, where it has several tasks; the data names them.
    """

    vocab_size: int = 37000
    embed_dim: int = 512
    ffn_dim: int = 2048
    num_heads: int = 8
    num_encoder_layers: int = 6
    num_decoder_layers: int = 6
    max_seq_len: int = 1024
    dropout: float = 0.1
    attn_dropout: float = 0.0
    ffn_dropout: float = 0.0
    drop_path: float = 0.0
    activation: ActivationName = "relu"
    gated: bool = False
    norm: NormName = "layer"
    norm_order: Literal["post", "pre"] = "post"
    norm_eps: float = 1e-5
    positions: PositionName = "sinusoidal"
    position_layout: SinusoidLayout = "interleaved"
    scale_embeddings: bool = True
    share_embeddings: bool = True
    tie_head: bool = True
    logits_bias: bool = False
    pad_token: int = 0
    bos_token: int = 1
    eos_token: int = 2
    never: tuple[int, ...] = ()
    layers: tuple[LayerSizes, ...] | None = None
    own: tuple[str, ...] = ()
    members: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_config(self)
        if self.layers is not None and len(self.layers) != self.num_encoder_layers + self.num_decoder_layers:
            raise ConfigError(f"layers lists {len(self.layers)} sizes, one is needed for each layer, encoder first")
        for token in self.never:
            if self.vocab_size and not 0 <= token < self.vocab_size:
                raise ConfigError(f"never {token} is outside the vocabulary of {self.vocab_size}")

    @property
    def head_dim(self) -> int:
        """D."""
        return self.embed_dim // self.num_heads

    def sizes(self, layer: int) -> LayerSizes:
        """What layer number ``layer`` has, counting the encoder's layers first."""
        if self.layers is not None:
            return self.layers[layer]
        return LayerSizes(heads=self.num_heads, ffn_dim=self.ffn_dim, cross_heads=self.num_heads)


class Transformer(Writer):
    """Encoder, decoder and head, composed from blocks.

    Args:
        config: what to build.
        kernel: how attention is computed.
    """

    def __init__(self, config: TransformerConfig, *, kernel: KernelName = "auto") -> None:
        encoder = [encoder_block(config, layer, kernel) for layer in range(config.num_encoder_layers)]
        decoder = [decoder_block(config, layer, kernel) for layer in range(config.num_decoder_layers)]
        parts = Parts(
            embedding(config),
            Stack(encoder, final_norm(config)),
            embedding(config),
            Stack(decoder, final_norm(config)),
            Head(config.vocab_size, config.embed_dim, bias="fixed" if config.logits_bias else None),
        )
        super().__init__(config, parts)


def build(config: TransformerConfig, *, kernel: KernelName = "auto") -> nn.Module:
    """The model; for several members, one that they share."""
    return sharing(partial(Transformer, config, kernel=kernel), config)


def embedding(config: TransformerConfig) -> Embedding:
    """Token vectors with the positions that are added to them (sections 3.4, 3.5 and 5.4)."""
    return Embedding(
        config.vocab_size,
        config.embed_dim,
        positions=embedded(config.positions, config.embed_dim, config.max_seq_len, config.position_layout),
        scale=config.embed_dim**0.5 if config.scale_embeddings else 1.0,
        pad_token=None if config.pad_token == config.eos_token else config.pad_token,
        dropout=config.dropout,
    )


def encoder_block(config: TransformerConfig, layer: int, kernel: KernelName) -> Block:
    """Self-attention, then feed-forward (section 3.1)."""
    sizes = config.sizes(layer)
    return Block(
        attention=residual(config, layer, attention(config, sizes.heads, EVERYTHING, kernel)),
        ffn=residual(config, layer, feed_forward(config, sizes.ffn_dim)),
    )


def decoder_block(config: TransformerConfig, layer: int, kernel: KernelName) -> Block:
    """Causal self-attention, attention to the encoder's states, then feed-forward (section 3.1)."""
    layer += config.num_encoder_layers
    sizes = config.sizes(layer)
    return Block(
        attention=residual(config, layer, attention(config, sizes.heads, Causal(), kernel)),
        cross=residual(config, layer, attention(config, sizes.cross_heads, EVERYTHING, kernel, cross=True)),
        ffn=residual(config, layer, feed_forward(config, sizes.ffn_dim)),
    )


def attention(
    config: TransformerConfig, heads: int, mask: Mask, kernel: KernelName, *, cross: bool = False
) -> Attention:
    """One multi-head attention (section 3.2)."""
    return Attention(
        config.embed_dim,
        heads,
        head_dim=config.head_dim,
        cross=cross,
        mask=mask,
        positions=None if cross else attended(config.positions, config.head_dim, heads, causal=mask == Causal()),
        dropout=config.attn_dropout,
        kernel=kernel,
    )


def feed_forward(config: TransformerConfig, ffn_dim: int) -> FeedForward:
    """One position-wise feed-forward network (section 3.3)."""
    return FeedForward(
        config.embed_dim, ffn_dim, activation=config.activation, gated=config.gated, dropout=config.ffn_dropout
    )


def residual(config: TransformerConfig, layer: int, mix: nn.Module) -> Residual:
    """Wrap a sub-layer: LayerNorm(x + Dropout(Sublayer(x))) in the paper's order."""
    depth = config.num_encoder_layers + config.num_decoder_layers
    drop = branch(config.dropout, config.drop_path * (layer + 1) / depth)
    normalise = norm(config.norm, config.embed_dim, config.norm_eps)
    if config.norm_order == "post":
        return Residual(mix, branch=drop, after=normalise)
    return Residual(mix, before=normalise, branch=drop)


def final_norm(config: TransformerConfig) -> nn.Module | None:
    """Pre-norm leaves the stream unnormalised, so a stack ends with a norm."""
    return norm(config.norm, config.embed_dim, config.norm_eps) if config.norm_order == "pre" else None


def keymap(config: TransformerConfig) -> list[Rule]:
    """The keys of a published MarianMT checkpoint, as they stand in the file; older files repeat some tensors."""
    return [
        *_embedding_rules(config),
        *_layer_rules("encoder", ("attention",)),
        *_layer_rules("decoder", ("attention", "cross")),
        *[
            Rule(f"model.{side}.embed_positions.weight", (), Constant(_table(config)))
            for side in ("encoder", "decoder")
        ],
    ]


def _table(config: TransformerConfig) -> Callable[[], Tensor]:
    return lambda: sinusoids(torch.arange(config.max_seq_len, dtype=torch.float64), config.embed_dim, "half")


def _embedding_rules(config: TransformerConfig) -> list[Rule]:
    encoder, decoder = "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight"
    if config.share_embeddings:
        source = target = "encoder_embed.weight"
        rules = [Rule("model.shared.weight", source), Rule(encoder, source, Repeat()), Rule(decoder, target, Repeat())]
    else:
        source, target = "encoder_embed.weight", "decoder_embed.weight"
        rules = [Rule(encoder, source), Rule(decoder, target)]
    rules.append(Rule("lm_head.weight", target, Repeat()) if config.tie_head else Rule("lm_head.weight", "head.weight"))
    if config.logits_bias:
        rules.append(Rule("final_logits_bias", "head.bias", Reshape((1, config.vocab_size), (config.vocab_size,))))
    return rules


def _layer_rules(side: str, attentions: tuple[str, ...]) -> list[Rule]:
    theirs, ours = f"model.{side}.layers.{{i}}", f"{side}.blocks.{{i}}"
    return [
        *[rule for name in attentions for rule in _attention_rules(side, name)],
        *_pair(f"{theirs}.fc1", f"{ours}.ffn.mix.up"),
        *_pair(f"{theirs}.fc2", f"{ours}.ffn.mix.down"),
        *_pair(f"{theirs}.final_layer_norm", f"{ours}.ffn.after"),
    ]


def _attention_rules(side: str, name: str) -> list[Rule]:
    theirs = f"model.{side}.layers.{{i}}.{'self_attn' if name == 'attention' else 'encoder_attn'}"
    ours = f"{side}.blocks.{{i}}.{name}"
    projections = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "out_proj": "o"}
    rules = [rule for their, our in projections.items() for rule in _pair(f"{theirs}.{their}", f"{ours}.mix.{our}")]
    return rules + _pair(f"{theirs}_layer_norm", f"{ours}.after")


def _pair(theirs: str, ours: str) -> list[Rule]:
    return [Rule(f"{theirs}.{part}", f"{ours}.{part}") for part in ("weight", "bias")]


MARIAN_ACTIVATIONS: dict[str, ActivationName] = {"relu": "relu", "gelu": "gelu", "swish": "silu", "silu": "silu"}


def from_hf(theirs: Mapping[str, Any]) -> TransformerConfig:
    """Our configuration from a published MarianMT one.

    Raises ConfigError for a setting that this family does not have, and names it.
    """
    heads, activation = theirs["encoder_attention_heads"], theirs["activation_function"]
    if theirs["decoder_attention_heads"] != heads:
        raise ConfigError("a MarianMT model whose encoder and decoder differ in heads is not supported")
    if activation not in MARIAN_ACTIVATIONS:
        raise ConfigError(f"activation_function '{activation}' is none of {', '.join(MARIAN_ACTIVATIONS)}")
    for name in ("encoder_layerdrop", "decoder_layerdrop"):
        if theirs.get(name):
            raise ConfigError(f"{name} {theirs[name]} is not supported; drop_path is what this family has")
    target_vocab = theirs.get("decoder_vocab_size") or theirs["vocab_size"]
    if target_vocab != theirs["vocab_size"]:
        raise ConfigError(
            f"vocabularies of {theirs['vocab_size']} and {target_vocab} differ: only one size is supported"
        )
    encoder, decoder = theirs["encoder_layers"], theirs["decoder_layers"]
    encoder_ffn, decoder_ffn = theirs["encoder_ffn_dim"], theirs["decoder_ffn_dim"]
    config = TransformerConfig(
        vocab_size=theirs["vocab_size"],
        embed_dim=theirs["d_model"],
        ffn_dim=encoder_ffn,
        num_heads=heads,
        num_encoder_layers=encoder,
        num_decoder_layers=decoder,
        max_seq_len=theirs["max_position_embeddings"],
        dropout=theirs["dropout"],
        attn_dropout=theirs["attention_dropout"],
        ffn_dropout=theirs["activation_dropout"],
        activation=MARIAN_ACTIVATIONS[activation],
        position_layout="half",
        scale_embeddings=theirs["scale_embedding"],
        share_embeddings=theirs.get("share_encoder_decoder_embeddings", True),
        tie_head=theirs.get("tie_word_embeddings", True),
        logits_bias=True,
        pad_token=theirs["pad_token_id"],
        bos_token=theirs["decoder_start_token_id"],
        eos_token=theirs["eos_token_id"],
        never=_never(theirs.get("bad_words_ids") or []),
    )
    if encoder_ffn == decoder_ffn:
        return config
    widths = [encoder_ffn] * encoder + [decoder_ffn] * decoder
    return replace(config, layers=tuple(LayerSizes(heads, width, heads) for width in widths))


def _never(phrases: Sequence[Sequence[int]]) -> tuple[int, ...]:
    if any(len(phrase) != 1 for phrase in phrases):
        raise ConfigError("bad_words_ids of more than one token are not supported; give them to generate instead")
    return tuple(phrase[0] for phrase in phrases)


PUBLISHED = TransformerConfig(position_layout="half", logits_bias=True)
"""What every published checkpoint of this family has; the fields that the published configuration cannot tell."""


def to_hf(config: TransformerConfig) -> dict[str, Any]:
    """The published MarianMT configuration of ``config``. Raises ConfigError naming what it has no word for."""
    names = (
        "gated", "norm", "norm_order", "norm_eps", "positions", "position_layout", "logits_bias", "drop_path", "own",
    )  # fmt: skip
    ours, theirs = ({name: getattr(each, name) for name in names} for each in (config, PUBLISHED))
    if odd := [f"{name}={ours[name]!r} (only {theirs[name]!r})" for name in names if ours[name] != theirs[name]]:
        raise ConfigError(f"the published layout has no {', '.join(odd)}")
    widths = [config.sizes(i).ffn_dim for i in range(config.num_encoder_layers + config.num_decoder_layers)]
    encoder_ffn, decoder_ffn = widths[0], widths[-1]
    sides = [encoder_ffn] * config.num_encoder_layers + [decoder_ffn] * config.num_decoder_layers
    kept = {
        heads for i in range(len(widths)) for heads in (config.sizes(i).heads, config.sizes(i).cross_heads) if heads
    }
    if widths != sides or kept != {config.num_heads}:
        raise ConfigError("the published layout has one size for all layers of a side; this model's layers differ")
    activation = next((theirs for theirs, ours in MARIAN_ACTIVATIONS.items() if ours == config.activation), None)
    if activation is None:
        raise ConfigError(f"the published layout has no activation={config.activation!r}")
    return {
        "architectures": ["MarianMTModel"],
        "model_type": "marian",
        "is_encoder_decoder": True,
        "vocab_size": config.vocab_size,
        "decoder_vocab_size": config.vocab_size,
        "d_model": config.embed_dim,
        "encoder_layers": config.num_encoder_layers,
        "decoder_layers": config.num_decoder_layers,
        "encoder_attention_heads": config.num_heads,
        "decoder_attention_heads": config.num_heads,
        "encoder_ffn_dim": encoder_ffn,
        "decoder_ffn_dim": decoder_ffn,
        "max_position_embeddings": config.max_seq_len,
        "dropout": config.dropout,
        "attention_dropout": config.attn_dropout,
        "activation_dropout": config.ffn_dropout,
        "activation_function": activation,
        "scale_embedding": config.scale_embeddings,
        "share_encoder_decoder_embeddings": config.share_embeddings,
        "tie_word_embeddings": config.tie_head,
        "pad_token_id": config.pad_token,
        "decoder_start_token_id": config.bos_token,
        "eos_token_id": config.eos_token,
        "forced_eos_token_id": config.eos_token,
        "bos_token_id": None,
        "bad_words_ids": [[token] for token in config.never] or None,
    }


def tiny(config: TransformerConfig) -> TransformerConfig:
    """As :func:`regard.family.shrink`, with the same special tokens that are never written."""
    small = shrink(config, never=())
    names = ("pad_token", "bos_token", "eos_token")
    renamed = {getattr(config, name): getattr(small, name) for name in names}
    return replace(small, never=tuple(renamed[token] for token in config.never if token in renamed))


FAMILY = Family(
    name="transformer",
    model_types=("marian",),
    config=TransformerConfig,
    build=build,
    keymap=keymap,
    from_hf=from_hf,
    to_hf=to_hf,
    tiny=tiny,
    sizes={
        "transformer-base": TransformerConfig(),
        "transformer-big": TransformerConfig(embed_dim=1024, ffn_dim=4096, num_heads=16, dropout=0.3),
    },
)
