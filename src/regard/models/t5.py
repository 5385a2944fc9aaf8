"""T5, the text-to-text Transformer (Raffel et al. 2020), its version 1.1 (Shazeer 2020), and mT5 (Xue et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from regard.attention.attention import Attention
from regard.attention.kernel import KernelName
from regard.attention.mask import EVERYTHING, Causal
from regard.attention.position import T5Buckets
from regard.blocks.dropout import Dropout
from regard.blocks.embed import Embedding, Head
from regard.blocks.encoder_decoder import EncoderDecoder, Parts, Reader, Sides, Writer
from regard.blocks.feedforward import ActivationName, FeedForward
from regard.blocks.heads import Classifier, Dense, Scale
from regard.blocks.init import lecun, normal
from regard.blocks.norm import RMSNorm
from regard.blocks.residual import Block, Residual, Stack, branch
from regard.checkpoint.keymap import Repeat, Rule, Unread
from regard.core.errors import ConfigError
from regard.family import (
    Family,
    LayerSizes,
    activation_of,
    check_config,
    head_of,
    labels_of,
    shrink,
    word_of,
    words_of,
)

Variant = Literal["t5", "mt5"]
HeadName = Literal["seq2seq_lm", "encode", "classify", "tag", "answer"]


@dataclass(frozen=True)
class T5Config:
    """Everything that defines the model; the defaults are the paper's base model (section 3.1.2).

    Attributes:
        vocab_size: V.
        embed_dim: E.
        head_dim: D; heads may be more or fewer than E / D.
        ffn_dim: F.
        num_heads: H.
        num_encoder_layers: blocks of the encoder.
        num_decoder_layers: blocks of the decoder.
        max_seq_len: tokens either side may have. Nothing in the model ends there: the paper trains with so many.
        num_buckets: how many distances are told apart (section 2.1).
        max_distance: from there on, all are one.
        share_buckets: the layers of a side have their table of distances in common; pruned ones have each their own.
        dropout: of everything: embeddings, attention weights, inner activations, sub-layers, last states.
        head_dropout: of what a classifying head reads.
        activation: of the feed-forwards.
        gated: whether the feed-forwards are gated (Shazeer 2020, section 2).
        norm_eps: added to mean squares.
        tie_head: the head's matrix is the table of tokens.
        scale_head: the head reads states times E ** -0.5, as tied ones do.
        head: what the model is for: to write; to make states of texts, by the encoder alone; classes of texts; classes
            of tokens, by the encoder alone; where an answer begins and ends; None = states of both sides.
        labels: names of the classes, where there are some.
        pad_token: id that fills short rows.
        bos_token: id that the decoder starts from; None = the one that pads.
        eos_token: id that ends a text.
        variant: whose published layout.
        layers: sizes of each layer where they differ (pruned models), encoder first; None = all as above.
    """

    vocab_size: int = 32128
    embed_dim: int = 768
    head_dim: int = 64
    ffn_dim: int = 3072
    num_heads: int = 12
    num_encoder_layers: int = 12
    num_decoder_layers: int = 12
    max_seq_len: int = 512
    num_buckets: int = 32
    max_distance: int = 128
    share_buckets: bool = True
    dropout: float = 0.1
    head_dropout: float = 0.0
    activation: ActivationName = "relu"
    gated: bool = False
    norm_eps: float = 1e-6
    tie_head: bool = True
    scale_head: bool = True
    head: HeadName | None = "seq2seq_lm"
    labels: tuple[str, ...] = ()
    pad_token: int = 0
    bos_token: int | None = 0
    eos_token: int = 1
    variant: Variant = "t5"
    layers: tuple[LayerSizes, ...] | None = None

    def __post_init__(self) -> None:
        check_config(self)
        count = self.num_encoder_layers + self.num_decoder_layers
        if self.layers is not None and len(self.layers) != count:
            raise ConfigError(f"layers lists {len(self.layers)} sizes, one is needed for each layer, encoder first")
        if self.share_buckets and any(self.sizes(layer).heads != self.num_heads for layer in range(count)):
            raise ConfigError("layers that differ in heads cannot share buckets: set share_buckets to false")
        if not 4 <= self.num_buckets < 2 * self.max_distance:
            raise ConfigError(
                f"num_buckets must be at least 4 and less than twice max_distance, not {self.num_buckets}"
            )
        if (self.head in ("classify", "tag")) != bool(self.labels):
            raise ConfigError(f"labels name the classes of heads that classify or tag; head is {self.head}")

    @property
    def decodes(self) -> bool:
        """Whether there is a decoder."""
        return self.head not in ("encode", "tag")

    @property
    def share_embeddings(self) -> bool:
        """Whether both sides read one table of tokens."""
        return True

    @property
    def start_token(self) -> int:
        """What the decoder starts from."""
        return self.pad_token if self.bos_token is None else self.bos_token

    def sizes(self, layer: int) -> LayerSizes:
        """What layer number ``layer`` has, counting the encoder's layers first."""
        return LayerSizes(self.num_heads, self.ffn_dim, self.num_heads) if self.layers is None else self.layers[layer]


def build(config: T5Config, *, kernel: KernelName = "auto") -> Sides:
    """Encoder and, unless the head reads that, decoder over one table of tokens, for what the ``head`` names."""
    first = config.num_encoder_layers
    encoder = stack(config, range(first), kernel)
    both = range(first, first + config.num_decoder_layers)
    decoder = stack(config, both, kernel, decodes=True) if config.decodes else None
    parts = Parts(embedding(config), encoder, embedding(config) if config.decodes else None, decoder, head(config))
    if config.head is None:
        return EncoderDecoder(config, parts)
    if config.head == "seq2seq_lm":
        return Writer(config, parts)
    return Reader(config, parts, start=config.start_token, rows=config.head == "classify")


def embedding(config: T5Config) -> Embedding:
    """Token vectors alone: positions bias attention."""
    return Embedding(config.vocab_size, config.embed_dim, dropout=config.dropout)


def stack(config: T5Config, layers: range, kernel: KernelName, *, decodes: bool = False) -> Stack:
    """One side: blocks, and after them a norm and dropout."""
    blocks = [block(config, layer, kernel, decodes=decodes) for layer in layers]
    norm = nn.Sequential(RMSNorm(config.embed_dim, config.norm_eps), Dropout(config.dropout))
    shared = buckets(config, config.num_heads, decodes=decodes) if config.share_buckets else None
    return Stack(blocks, norm, positions=shared)


def block(config: T5Config, layer: int, kernel: KernelName, *, decodes: bool) -> Block:
    """Self-attention, in the decoder attention to the encoder's states, then feed-forward (section 2.1)."""
    sizes = config.sizes(layer)
    ffn = FeedForward(
        config.embed_dim, sizes.ffn_dim, activation=config.activation, gated=config.gated, bias=False,
        dropout=config.dropout,
    )  # fmt: skip
    parts = {"attention": attention(config, sizes.heads, kernel, decodes=decodes)}
    if decodes:
        parts["cross"] = attention(config, sizes.cross_heads, kernel, cross=True)
    return Block(**{name: residual(config, mix) for name, mix in [*parts.items(), ("ffn", ffn)]})


def attention(
    config: T5Config, heads: int, kernel: KernelName, *, decodes: bool = False, cross: bool = False
) -> Attention:
    """One multi-head attention, whose scores are not scaled: the first queries are so much smaller instead."""
    made = Attention(
        config.embed_dim,
        heads,
        head_dim=config.head_dim,
        cross=cross,
        mask=Causal() if decodes else EVERYTHING,
        positions=None if cross or config.share_buckets else buckets(config, heads, decodes=decodes),
        bias=False,
        scale=1.0,
        dropout=config.dropout,
        kernel=kernel,
    )
    made.q.init_gain = config.head_dim**-0.5
    return made


def buckets(config: T5Config, heads: int, *, decodes: bool) -> T5Buckets:
    """A table of distances; the decoder's tells those before alone."""
    return T5Buckets(
        heads, num_buckets=config.num_buckets, max_distance=config.max_distance, bidirectional=not decodes,
        std=config.embed_dim**-0.5,
    )  # fmt: skip


def residual(config: T5Config, mix: nn.Module) -> Residual:
    """x + Dropout(Sublayer(RMSNorm(x)))."""
    return Residual(mix, before=RMSNorm(config.embed_dim, config.norm_eps), branch=branch(config.dropout))


def head(config: T5Config) -> nn.Module | None:
    """What the configuration's ``head`` names."""
    width = config.embed_dim
    if config.head == "seq2seq_lm":
        return Head(config.vocab_size, width, transform=Scale(width**-0.5) if config.scale_head else None)
    if config.head == "classify":
        return Classifier(width, len(config.labels), dropout=config.head_dropout, dense=Dense(width, width, "tanh"))
    if config.head == "tag":
        tags = Classifier(width, len(config.labels), dropout=config.head_dropout)
        tags.out.init_gain = width**0.5  # the reference draws it as it draws tables
        return tags
    return Classifier(width, 2) if config.head == "answer" else None


def heads(config: T5Config) -> list[T5Config]:
    """The configurations of the same trunk with each head: with a decoder, of those that have one."""
    names: list[Any] = [None, "seq2seq_lm", "classify", "answer", *([] if config.decodes else ["encode", "tag"])]
    return [replace(config, head=name, labels=("",) if name in ("classify", "tag") else ()) for name in names]


def keymap(config: T5Config) -> list[Rule]:
    """The keys of a published checkpoint as they stand in the file; older ones repeat the table of tokens.

    Some heads have the trunk's keys within ``transformer.``; a new head's trunk may come from files of either kind.
    """
    sides = ("encoder", "decoder") if config.decodes else ("encoder",)
    trunk = [Rule("shared.weight", "encoder_embed.weight")]
    for side in sides:
        trunk += [Rule(f"{side}.embed_tokens.weight", "encoder_embed.weight", Repeat()), *_side(config, side)]
    if config.decodes:  # the reference's first files hold one for memories, which nothing ever read
        trunk.append(Rule(f"decoder.block.0.layer.1.EncDecAttention.{BUCKETS}", (), Unread()))
    within = [replace(rule, theirs=f"transformer.{rule.theirs}") for rule in trunk]
    rules, again = (within, trunk) if config.head in ("classify", "tag") else (trunk, within)
    return [*rules, *_head(config), *[replace(rule, op=Repeat()) for rule in again if rule.names]]


BUCKETS = "relative_attention_bias.weight"


def _side(config: T5Config, side: str) -> list[Rule]:
    theirs, ours = f"{side}.block.{{i}}.layer", f"{side}.blocks.{{i}}"
    parts = {"attention": "SelfAttention", "cross": "EncDecAttention", "ffn": "DenseReluDense"}
    if side == "encoder":
        del parts["cross"]
    inner = {"gate": "wi_0", "up": "wi_1"} if config.gated else {"up": "wi"}
    rules = [Rule(f"{side}.final_layer_norm.weight", f"{side}.norm.0.weight")]
    for number, (our, their) in enumerate(parts.items()):
        matrices = {name: name for name in "qkvo"} if our != "ffn" else {**inner, "down": "wo"}
        rules += [
            Rule(f"{theirs}.{number}.{their}.{matrix}.weight", f"{ours}.{our}.mix.{name}.weight")
            for name, matrix in matrices.items()
        ]
        rules.append(Rule(f"{theirs}.{number}.layer_norm.weight", f"{ours}.{our}.before.weight"))
    table = f"layer.0.SelfAttention.{BUCKETS}"
    if config.share_buckets:
        return [*rules, Rule(f"{side}.block.0.{table}", f"{side}.positions.weight")]
    return [*rules, Rule(f"{side}.block.{{i}}.{table}", f"{ours}.attention.mix.positions.weight")]


def _head(config: T5Config) -> list[Rule]:
    if config.head == "seq2seq_lm" and config.tie_head:
        return [Rule("lm_head.weight", "encoder_embed.weight", Repeat())]
    if config.head == "seq2seq_lm":
        return [Rule("lm_head.weight", "head.weight")]
    linear: dict[str | None, dict[str, str]] = {
        "classify": {"classification_head.dense": "head.dense.linear", "classification_head.out_proj": "head.out"},
        "tag": {"classifier": "head.out"},
        "answer": {"qa_outputs": "head.out"},
    }
    named = linear.get(config.head, {}).items()
    return [Rule(f"{theirs}.{part}", f"{ours}.{part}") for theirs, ours in named for part in ("weight", "bias")]


NAMES: dict[Variant, str] = {"t5": "T5", "mt5": "MT5"}
HEADS: dict[str, HeadName | None] = {
    "Model": None, "ForConditionalGeneration": "seq2seq_lm", "EncoderModel": "encode",
    "ForSequenceClassification": "classify", "ForTokenClassification": "tag", "ForQuestionAnswering": "answer",
}  # fmt: skip
OLD = "WithLMHeadModel"
"""What the first published configurations call the head that writes."""

COMMON = {
    "vocab_size": "vocab_size", "embed_dim": "d_model", "head_dim": "d_kv", "ffn_dim": "d_ff", "num_heads": "num_heads",
    "num_encoder_layers": "num_layers", "num_buckets": "relative_attention_num_buckets", "dropout": "dropout_rate",
    "norm_eps": "layer_norm_epsilon", "pad_token": "pad_token_id", "eos_token": "eos_token_id",
}  # fmt: skip
LATER = {
    "num_decoder_layers": "num_decoder_layers", "max_seq_len": "n_positions", "head_dropout": "classifier_dropout",
    "max_distance": "relative_attention_max_distance", "bos_token": "decoder_start_token_id",
}  # fmt: skip
"""What published configurations call our fields; not all of them have the later ones."""


def from_hf(theirs: Mapping[str, Any]) -> T5Config:
    """Our configuration from a published one. Raises ConfigError, naming it, for a setting that is not supported."""
    variant: Variant = theirs["model_type"]
    if theirs.get("is_decoder"):
        raise ConfigError(f"is_decoder {theirs['is_decoder']} is not supported, only False")
    named = str(theirs.get("feed_forward_proj", "relu"))
    activation = theirs.get("dense_act_fn") or ("gelu_new" if named == "gated-gelu" else named.removeprefix("gated-"))
    # Newer files always say that the head is tied: only whether it is scaled tells, and mT5's is neither.
    tied = theirs.get("tie_word_embeddings", True)
    scaled = variant == "t5" and theirs.get("scale_decoder_outputs", tied)
    kept = {ours: theirs[word] for ours, word in COMMON.items()}
    kept |= {"num_decoder_layers": kept["num_encoder_layers"], "bos_token": None}
    kept |= {ours: theirs[word] for ours, word in LATER.items() if theirs.get(word) is not None}
    classes = {NAMES[variant] + suffix: head for suffix, head in (*HEADS.items(), (OLD, "seq2seq_lm"))}
    head = head_of(theirs, classes, "seq2seq_lm")
    return T5Config(
        **kept,
        activation=activation_of(activation),
        gated=theirs.get("is_gated_act", named.startswith("gated-")),
        tie_head=scaled and tied,
        scale_head=scaled,
        head=head,
        labels=labels_of(theirs) if head in ("classify", "tag") else (),
        variant=variant,
    )


def to_hf(config: T5Config) -> dict[str, Any]:
    """The published configuration of ``config``. Raises ConfigError naming what it has no word for."""
    theirs = _words(config)
    read = from_hf(theirs)
    if names := [name for name in vars(config) if getattr(config, name) != getattr(read, name)]:
        odd = ", ".join(f"{name}={getattr(config, name)!r} (only {getattr(read, name)!r})" for name in names)
        raise ConfigError(f"the published layout of {config.variant} has no {odd}")
    return theirs


def _words(config: T5Config) -> dict[str, Any]:
    """The published configuration, without a look at whether it says all."""
    word = word_of(config.activation)
    suffix = next(theirs for theirs, ours in HEADS.items() if ours == config.head)
    return {
        "architectures": [NAMES[config.variant] + suffix],
        "model_type": config.variant,
        "is_encoder_decoder": config.decodes,
        **{theirs: getattr(config, ours) for ours, theirs in (COMMON | LATER).items()},
        "feed_forward_proj": f"gated-{word.removesuffix('_new')}" if config.gated else word,
        "dense_act_fn": word,
        "is_gated_act": config.gated,
        "tie_word_embeddings": config.tie_head,
        **({"scale_decoder_outputs": config.scale_head} if config.variant == "t5" else {}),
        **words_of(config.labels),
    }


def tiny(config: T5Config) -> T5Config:
    """As :func:`regard.family.shrink`, with heads that are wider than a share of the state where they were."""
    return shrink(config, head_dim=4 if config.num_heads * config.head_dim == config.embed_dim else 6)


_SIZES: dict[str, dict[str, Any]] = {
    "small": {"embed_dim": 512, "ffn_dim": 2048, "num_heads": 8, "num_encoder_layers": 6, "num_decoder_layers": 6},
    "base": {},
    "large": {"embed_dim": 1024, "ffn_dim": 4096, "num_heads": 16, "num_encoder_layers": 24, "num_decoder_layers": 24},
}
_HUGE: dict[str, Any] = {**_SIZES["large"], "head_dim": 128}
_GATED: dict[str, dict[str, Any]] = {
    "small": {"embed_dim": 512, "ffn_dim": 1024, "num_heads": 6, "num_encoder_layers": 8, "num_decoder_layers": 8},
    "base": {"ffn_dim": 2048},
    "large": {**_SIZES["large"], "ffn_dim": 2816},
    "xl": {**_SIZES["large"], "embed_dim": 2048, "ffn_dim": 5120, "num_heads": 32},
    "xxl": {**_SIZES["large"], "embed_dim": 4096, "ffn_dim": 10240, "num_heads": 64},
}
_LATER: dict[str, Any] = {"activation": "gelu_tanh", "gated": True, "tie_head": False, "scale_head": False}
_MT5: dict[str, Any] = {**_LATER, "variant": "mt5", "vocab_size": 250112}

FAMILY = Family(
    name="t5",
    model_types=("t5", "mt5"),
    config=T5Config,
    build=build,
    keymap=keymap,
    from_hf=from_hf,
    to_hf=to_hf,
    tiny=tiny,
    heads=heads,
    sizes={
        **{f"t5-{name}": T5Config(**sizes) for name, sizes in _SIZES.items()},
        "t5-3b": T5Config(**{**_HUGE, "ffn_dim": 16384, "num_heads": 32}),
        "t5-11b": T5Config(**{**_HUGE, "ffn_dim": 65536, "num_heads": 128}),
        **{f"t5-v1.1-{name}": T5Config(**_LATER, **sizes) for name, sizes in _GATED.items()},
        **{f"mt5-{name}": T5Config(**_MT5, **sizes) for name, sizes in _GATED.items()},
    },
    matrices=lecun,
    embeddings=normal(1.0),
)
