"""What a family of models is: everything that loading, saving, building and showing need to know about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, TypeVar

from torch import nn

from regard.blocks.feedforward import ActivationName
from regard.blocks.init import Initializer, embedding, xavier
from regard.checkpoint.keymap import Op, Repeat, Rule, Same
from regard.core.errors import ConfigError
from regard.core.serial import check_fields

C = TypeVar("C")
H = TypeVar("H")


@dataclass(frozen=True)
class Family:
    """One row for each family; the file that composes the model also says how its checkpoints are read and written.

    Attributes:
        name: the family's own name, written to config.json.
        model_types: the ``model_type`` of published configurations that are this family.
        config: the configuration dataclass.
        build: configuration to module; takes ``kernel=`` too.
        keymap: the published checkpoint's keys, for a configuration.
        from_hf: published configuration to ours. Raises ConfigError for what we cannot express.
        to_hf: ours to the published one. Raises ConfigError for what it cannot express.
        heads: the configurations of the same trunk with each head that there is; with its own alone unless given.
        tiny: the configuration with small sizes and everything else the same, for the conformance suite.
        sizes: named configurations.
        matrices: how weights of linear layers are drawn.
        embeddings: how tables are drawn.
    """

    name: str
    model_types: tuple[str, ...]
    config: type
    build: Callable[..., nn.Module]
    keymap: Callable[[Any], Sequence[Rule]]
    from_hf: Callable[[Mapping[str, Any]], Any]
    to_hf: Callable[[Any], dict[str, Any]]
    tiny: Callable[[Any], Any]
    sizes: Mapping[str, Any] = field(default_factory=dict)
    heads: Callable[[Any], Sequence[Any]] = lambda config: [config]
    matrices: Initializer = xavier
    embeddings: Initializer = embedding


@dataclass(frozen=True)
class LayerSizes:
    """What one layer keeps after pruning: heads of its attentions, inner width of its feed-forward."""

    heads: int
    ffn_dim: int
    cross_heads: int = 0


_SHARES = ("dropout", "attn_dropout", "ffn_dropout", "embed_dropout", "head_dropout", "drop_path")
_SIZES = (
    "embed_dim",
    "ffn_dim",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "num_layers",
    "num_encoder_layers",
    "num_decoder_layers",
    "max_seq_len",
)
_TOKENS = ("pad_token", "bos_token", "eos_token", "start_token", "first_token", "last_token")


def check_config(config: Any) -> None:
    """What the names of :class:`Family` configurations' fields promise, of those that this one has.

    Raises:
        ConfigError: a value of another type than its field says, a size below 1, a share that is none, a width that
            does not divide into heads where their size is not given, or a special token outside the vocabulary (of 0,
            which is not known yet, none).
    """
    check_fields(config)
    has = vars(config)
    for name in (name for name in _SIZES if name in has):
        most = 10_000 if name.endswith("layers") else 2**31
        if not 1 <= has[name] <= most:
            raise ConfigError(f"{name} must lie between 1 and {most:,}, not {has[name]}")
    for name in (name for name in _SHARES if name in has):
        if not 0 <= has[name] < 1:
            raise ConfigError(f"{name} must be at least 0 and less than 1, not {has[name]}")
    if "norm_eps" in has and not 0 < config.norm_eps < 1:
        raise ConfigError(f"norm_eps must be above 0 and less than 1, not {config.norm_eps}")
    if "num_heads" in has and "head_dim" not in has and config.embed_dim % config.num_heads:
        raise ConfigError(f"embed_dim {config.embed_dim} does not divide into {config.num_heads} heads")
    for name in (name for name in _TOKENS if name in has):
        if config.vocab_size and has[name] is not None and not 0 <= has[name] < config.vocab_size:
            raise ConfigError(f"{name} {has[name]} is outside the vocabulary of {config.vocab_size}")


ACTIVATIONS: dict[str, ActivationName] = {
    "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu": "gelu", "relu": "relu",
    "silu": "silu", "swish": "silu", "tanh": "tanh",
}  # fmt: skip
"""What published configurations of decoders call them; ``gelu_fast`` has sqrt(2 / pi) with ten digits."""


def activation_of(word: Any) -> ActivationName:
    """What a published configuration calls so. Raises ConfigError for what there is not."""
    if word not in ACTIVATIONS:
        raise ConfigError(f"activation '{word}' is none of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[word]


def word_of(activation: ActivationName) -> str:
    """The first word of published configurations for it. Raises ConfigError where they have none."""
    word = next((theirs for theirs, ours in ACTIVATIONS.items() if ours == activation), None)
    if word is None:
        raise ConfigError(f"the published layout has no activation={activation!r}")
    return word


def check_only(theirs: Mapping[str, Any], only: Mapping[str, Any]) -> None:
    """Raise ConfigError, naming it, for a setting that a family has in one way alone, and which is another here."""
    for name, value in only.items():
        if theirs.get(name, value) != value:
            raise ConfigError(f"{name} {theirs[name]} is not supported, only {value}")


def check_uniform(config: Any) -> None:
    """Raise ConfigError unless all layers have the sizes that published configurations say once."""
    own = replace(config, layers=None).sizes(0)
    if any(size != own for size in config.layers or ()):
        raise ConfigError("the published layout has one size for all layers; this model's layers differ")


def check_survives(config: Any, read: Any, layout: str) -> None:
    """Raise ConfigError, naming them, unless what was ``read`` from the published words of ``config`` says the same."""
    names = [name for name in vars(config) if getattr(config, name) != getattr(read, name)]
    if names:
        odd = ", ".join(f"{name}={getattr(config, name)!r} (only {getattr(read, name)!r})" for name in names)
        raise ConfigError(f"the published layout of {layout} has no {odd}")


def head_of(theirs: Mapping[str, Any], classes: Mapping[str, H], default: H) -> H:
    """The head of the published class that a configuration names; ``default`` where it names none.

    Raises ConfigError for a class that is none of ``classes``.
    """
    named = theirs.get("architectures") or []
    if not named:
        return default
    if named[0] not in classes:
        raise ConfigError(f"'{named[0]}' is not supported; there are {', '.join(classes)}")
    return classes[named[0]]


def labels_of(theirs: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a published configuration's classes. Raises ConfigError unless they are numbered from 0."""
    named = theirs.get("id2label") or {i: f"LABEL_{i}" for i in range(theirs.get("num_labels", 2))}
    numbers = {str(key): name for key, name in named.items()} if isinstance(named, Mapping) else {}
    if not numbers or numbers.keys() != {str(i) for i in range(len(numbers))}:
        raise ConfigError(f"id2label must name the classes 0, 1, 2 ...; found {named!r:.60}")
    return tuple(numbers[str(i)] for i in range(len(numbers)))


def words_of(labels: Sequence[str]) -> dict[str, Any]:
    """How a published configuration names classes, if there are any."""
    names = dict(enumerate(labels))
    return {"id2label": names, "label2id": {name: i for i, name in names.items()}} if names else {}


def check_labels(config: Any) -> None:
    """Raise ConfigError unless there are names of classes where, and only where, a head classifies."""
    if (config.head in ("classify", "tag")) != bool(config.labels):
        raise ConfigError(f"labels name the classes of heads that classify or tag; head is {config.head}")


def check_layers(config: Any) -> None:
    """Raise ConfigError unless :class:`LayerSizes`, where there are some, are as many as layers."""
    if config.layers is not None and len(config.layers) != config.num_layers:
        raise ConfigError(f"layers lists {len(config.layers)} sizes, one is needed for each of {config.num_layers}")


AS_IT_IS = Same()


def pair(theirs: str, ours: str, op: Op = AS_IT_IS) -> list[Rule]:
    """The rules of a weight, to which ``op`` happens, and a bias."""
    return [Rule(f"{theirs}.weight", f"{ours}.weight", op), Rule(f"{theirs}.bias", f"{ours}.bias")]


def headed(
    config: Any, trunk: Sequence[Rule], name: str, *, tokens: str = "lm_head", tag: str = "classifier"
) -> list[Rule]:
    """The key map of a decoder with the head that ``config`` names (:mod:`regard.blocks.decoder`).

    Args:
        config: of the family; where its ``head_bias`` says so, the head that says tokens has a bias.
        trunk: the rules of all else, as files without a head have them.
        name: what stands before each of those keys in files with a head. Either form is read.
        tokens: the head that says tokens.
        tag: the head that tags them.
    """
    whole = [replace(rule, theirs=f"{name}.{rule.theirs}") for rule in trunk]
    rules, others = (whole, list(trunk)) if config.head else (list(trunk), whole)
    if config.head in ("causal_lm", "choice"):
        tied = Rule(f"{tokens}.weight", "embed.weight", Repeat())
        rules.append(tied if config.tie_head else Rule(f"{tokens}.weight", "head.weight"))
        if getattr(config, "head_bias", False):
            rules.append(Rule(f"{tokens}.bias", "head.bias"))
    if config.head == "choice":
        rules += pair("multiple_choice_head.summary", "choice.out")
    elif config.head == "classify":
        rules.append(Rule("score.weight", "head.out.weight"))
    elif config.head in ("tag", "answer"):
        rules += pair(tag if config.head == "tag" else "qa_outputs", "head.out")
    return [*rules, *[Rule(rule.theirs, rule.names[0], Repeat()) for rule in others]]


def under_each(config: C, names: Iterable[str | None]) -> list[C]:
    """The configurations of the same trunk with each of these heads, for :attr:`Family.heads`."""
    has: Any = config
    return [replace(has, head=name, labels=("",) if name in ("classify", "tag") else ()) for name in names]


_DEPTHS = "num_layers", "num_encoder_layers", "num_decoder_layers"


def _smaller(size: LayerSizes, heads: int, widths: Sequence[int]) -> LayerSizes:
    """The layer with its share of 4 heads, and another width for each of ``widths``."""
    kept, cross = (-(-4 * count // heads) for count in (size.heads, size.cross_heads))
    return LayerSizes(kept, 64 + 8 * widths.index(size.ffn_dim), cross)


def shrink(config: C, **changes: Any) -> C:
    """The same choices at a size for tests: two layers, 4 heads of 4. What is one and the same remains so.

    So special tokens that are one stay one, and layers of the same width. ``changes`` are made besides.
    """
    has: Any = config
    named = {name: token for name, token in vars(has).items() if name in _TOKENS and token is not None}
    special = sorted(set(named.values()))
    tokens = {name: special.index(token) for name, token in named.items()}
    few: dict[str, Any] = {"vocab_size": 32, "embed_dim": 16, "ffn_dim": 64, "num_heads": 4, "max_seq_len": 32}
    sizes = {name: size for name, size in few.items() if name in vars(has)}
    depths = {name: getattr(has, name) for name in _DEPTHS if name in vars(has)}
    sizes |= {name: min(depth, 2) for name, depth in depths.items()}
    if getattr(has, "layers", None) is not None:
        ends = accumulate(depths.values())
        stacks = zip(ends, depths.values(), strict=True)
        kept = [size for end, depth in stacks for size in has.layers[end - depth : end][:2]]
        widths = sorted({size.ffn_dim for size in kept})
        sizes["layers"] = tuple(_smaller(size, has.num_heads, widths) for size in kept)
    return replace(has, **{**sizes, **tokens, **changes})
