"""The few shapes that meet at the seams.

Shape legend, used in every signature: B batch, S sequence (Q and K where queries and keys differ), H heads,
G key-value heads, D head_dim, E embed_dim, F ffn_dim, V vocab, R rows (B, or 1 where every row is the same).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

if TYPE_CHECKING:
    from regard.attention.cache import Caches, LayerCache
    from regard.attention.mask import Mask
    from regard.attention.position import PositionScheme

T = TypeVar("T")

IGNORE = -100
"""The target id that carries no loss."""

Batch = dict[str, Tensor]
"""What a model is called with, by keyword (tokens, valid, decoder_tokens, ...), plus ``targets`` in training."""


def widened(tensor: Float[Tensor, "*S"]) -> Float[Tensor, "*S"]:
    """The tensor in float32 at least, whatever autocast made of it: what sums and exponentials are taken in."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(eq=False)
class Index:
    """Where each token stands: its order in the row (for masks and caches) and its coordinates (for positions).

    Never changed once made. (It is not declared frozen because torch.compile hashes frozen dataclasses by their fields;
    here each index is itself and no other.)

    Order counts the real tokens of a row from 0, wherever padding lies; -1 marks padding, which nothing may
    attend to. So the same row gives the same answer alone, in a batch, and padded on either side.

    Attributes:
        order: [R S] integers, -1 = padding. R is 1 when all rows agree.
        at: [R S] coordinates, [R S 2] in two dimensions; padding lies at 0. Equal to ``order`` unless given.
        padded: False promises that no entry of ``order`` is -1.
        start: the first order when all rows are the same run of them and ``at`` equals ``order``, known without looking
            at a tensor; else None. (A number, not a range, which torch.compile would compile for again and again.)
        memo: what :meth:`once` keeps.
    """

    order: Int[Tensor, "R S"]
    at: Tensor
    padded: bool
    start: int | None = None
    memo: dict[Any, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def count(cls, length: int, *, start: int = 0, device: torch.device | str | None = None) -> Index:
        """Positions start, start + 1, ... for rows without padding; one row stands for all."""
        order = torch.arange(start, start + length, device=device)[None]
        return cls(order, order, padded=False, start=start)

    @classmethod
    def of(cls, valid: Bool[Tensor, "B S"], *, start: Int[Tensor, "B 1"] | int = 0) -> Index:
        """Number the real tokens of each row from ``start``; padding gets -1 (and coordinate 0)."""
        order = torch.where(valid, valid.cumsum(dim=1) - 1 + start, -1)
        return cls(order, order.clamp(min=0), padded=True)

    @classmethod
    def over(cls, tokens: Tensor, valid: Bool[Tensor, "B S"] | None, *, after: Index | None = None) -> Index:
        """The index of a [B S ...] input, going on ``after`` what was fed before; None marks no padding."""
        if valid is None and (after is None or after.start is not None):
            return cls.count(tokens.shape[1], start=0 if after is None else after.next, device=tokens.device)
        if valid is None:
            valid = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        if after is None or after.start is not None:
            return cls.of(valid, start=0 if after is None else after.next)
        return cls.of(valid, start=after.order.max(dim=1, keepdim=True).values + 1)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` gives, made once for this index and ``key``: so the layers of a forward pass share it.

        Not so in code that torch compiles or exports, where what one graph keeps would be a condition of the next.
        """
        if torch.compiler.is_compiling():
            return make()
        if key not in self.memo:
            self.memo[key] = make()
        found: T = self.memo[key]
        return found

    @property
    def next(self) -> int:
        """The order that follows, for an index with a start."""
        if self.start is None:
            raise ValueError("rows of this index end at different orders")
        return self.start + self.length

    @property
    def padding(self) -> Bool[Tensor, "R S 1"]:
        """True where there is no token."""
        return self.once("padding", lambda: (self.order < 0)[..., None])

    @property
    def length(self) -> int:
        """S, the number of places."""
        return self.order.shape[1]

    def beside(self, other: Index) -> Index | None:
        """What stands for ``other`` in a key of this index's memo: None for itself.

        An index that held itself would keep its tensors until Python's collector looks for cycles, steps later.
        """
        return None if other is self else other

    def rows(self, keep: Int[Tensor, "N"]) -> Index:
        """The index of the chosen rows."""
        if self.order.shape[0] == 1:
            return self
        last = self.memo.get("rows")  # every layer's cache asks for the same rows: let them share the answer
        if last is None or last[0] is not keep:
            last = self.memo["rows"] = keep, Index(self.order[keep], self.at[keep], self.padded)
        chosen: Index = last[1]
        return chosen

    def fold(self, beams: int) -> Index:
        """The index of rows whose every ``beams`` neighbours are laid end to end (see ``attention.fold_beams``)."""
        return self.once(("fold", beams), lambda: Index(_fold(self.order, beams), _fold(self.at, beams), self.padded))

    def first(self, count: int) -> Index:
        """The index of the first ``count`` places."""
        return self._cut(slice(0, count))

    def last(self, count: int) -> Index:
        """The index of the last ``count`` places."""
        return self._cut(slice(self.length - count, self.length))

    def _cut(self, places: slice) -> Index:
        def make() -> Index:
            order = self.order[:, places]
            at = order if self.at is self.order else self.at[:, places]
            return Index(order, at, self.padded, None if self.start is None else self.start + places.start)

        return self.once((places.start, places.stop), make)


def _fold(t: Tensor, beams: int) -> Tensor:
    if t.shape[0] == 1:
        return t.repeat(1, beams, *[1] * (t.ndim - 2))
    return t.unflatten(0, (-1, beams)).flatten(1, 2)


class Routers:
    """By what the mixtures of experts of one forward pass chose: the logits [B S X] of each router, by its path.

    (No dataclass and no mapping: FSDP hands a block copies of these, and what the block put there would be lost.)
    """

    def __init__(self) -> None:
        self.logits: dict[str, Tensor] = {}


@dataclass(frozen=True)
class Context:
    """What a block needs to know besides its input; passed down, never stored on a module.

    Attributes:
        index: where the tokens of ``x`` stand.
        mask: the batch's own mask (documents, prefixes), on top of each self-attention's fixed pattern; what a query
            may read of the memory is all of it that is no padding.
        positions: the scheme that all self-attentions of a stack have in common, instead of each one's own.
        also: what queries of self-attention see besides, whatever its fixed pattern (a prefix).
        memory: [B M E] what cross-attention reads, with ``memory_index``.
        caches: every layer's caches while decoding, and ``cache``, those of the block being run.
        weights: where attention puts its maps when someone asked to see them, by side, layer and part, as in
            ``encoder.0.attention``.
        routers: where mixtures of experts put that by which they choose, where training is to balance them.
        path: the name of what is being run, for both.
    """

    index: Index
    mask: Mask | None = None
    positions: PositionScheme | None = None
    also: Mask | None = None
    memory: Float[Tensor, "B M E"] | None = None
    memory_index: Index | None = None
    caches: Caches | None = None
    cache: LayerCache | None = None
    weights: dict[str, Tensor] | None = None
    routers: Routers | None = None
    path: str = ""

    def layer(self, number: int) -> Context:
        """The same context for block ``number`` of a stack: its own cache, its own path."""
        cache = self.caches.layers[number] if self.caches is not None else None
        return replace(self, cache=cache, path=f"{self.path}.{number}" if self.path else str(number))

    def at(self, name: str) -> Context:
        """The same context one level down, for the part called ``name``; free unless maps are recorded."""
        return self if self.weights is None else replace(self, path=f"{self.path}.{name}" if self.path else name)


@dataclass
class Output:
    """What a model returns. ``logits`` is computed when first read, so that a loss may use fewer positions.

    Attributes:
        hidden: [B S E] the last hidden states.
        head: hidden states to logits; None for a model without a head.
        memory: [B M E] the encoder's states, where there is an encoder.
        weights: attention maps [B H Q K] by side, layer and part (``decoder.1.cross``), if asked for.
        pooled: [B E] what stands for each row, where the model makes one of it.
        reads: which of the two the head reads.
        others: the logits of further heads, by name.
        penalty: what training adds to the mean loss of the batch, where the model asks for it (balance of experts).
    """

    hidden: Float[Tensor, "B S E"]
    head: Callable[[Tensor], Tensor] | None = None
    memory: Float[Tensor, "B M E"] | None = None
    weights: Mapping[str, Tensor] | None = None
    pooled: Float[Tensor, "B E"] | None = None
    reads: Literal["hidden", "pooled"] = "hidden"
    others: Mapping[str, Tensor] = field(default_factory=dict)
    penalty: Float[Tensor, ""] | None = None
    _logits: Tensor | None = field(default=None, repr=False)

    @property
    def features(self) -> Float[Tensor, "B *S E"]:
        """What the head reads."""
        found = self.hidden if self.reads == "hidden" else self.pooled
        assert found is not None, "a model whose head reads it makes it"
        return found

    @property
    def logits(self) -> Float[Tensor, "B *S V"]:
        """[B S V] scores before softmax, [B V] of a head that reads rows. Raises AttributeError where there is none."""
        if self.head is None:
            raise AttributeError("this model has no head: use .hidden")
        if self._logits is None or (torch.is_grad_enabled() and not self._logits.requires_grad):
            self._logits = self.head(self.features)
        return self._logits


@dataclass(frozen=True)
class Loss:
    """A loss as sum and count, which stays exact under accumulation and data parallelism; the mean is derived.

    Attributes:
        sum: scalar, summed over ``count`` targets, differentiable.
        count: scalar, how many targets carried loss.
        parts: named detached sums over the same targets, for the log (for example ``nll`` without smoothing).
    """

    sum: Float[Tensor, ""]
    count: Int[Tensor, ""]
    parts: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def mean(self) -> Float[Tensor, ""]:
        """sum / count."""
        return self.sum / self.count

    def plus(self, penalty: Float[Tensor, ""] | None) -> Loss:
        """The loss whose mean is larger by ``penalty``, which its parts name; as it is where there is none."""
        if penalty is None:
            return self
        share = penalty * self.count
        return Loss(self.sum + share, self.count, {**self.parts, "penalty": share.detach()})


class Decoding(Protocol):
    """A model in the middle of writing: its caches, and nothing else, remember what was fed.

    Generation drives this and knows no family. Rows are sequences being written.
    """

    def feed(self, tokens: Int[Tensor, "B S"], valid: Bool[Tensor, "B S"] | None = None) -> Float[Tensor, "B S V"]:
        """Append tokens to every row and return the logits after each of them."""
        ...

    def reorder(self, rows: Int[Tensor, "N"]) -> None:
        """Row i goes on as old row ``rows[i]``; N may differ from B (beams are expanded, finished rows dropped)."""
        ...

    def truncate(self, length: int) -> None:
        """Forget everything fed after the first ``length`` places."""
        ...


class LanguageModel(Protocol):
    """What generation asks of a model."""

    def begin(self, *, max_len: int | None = None, **inputs: Tensor) -> Decoding:
        """Encode the inputs, if the model has an encoder, and stand ready to feed; at most ``max_len`` places."""
        ...


class Text(Protocol):
    """What tasks and generation ask of a tokenizer (see ``regard.data.tokenize``)."""

    @property
    def pad(self) -> int: ...

    @property
    def bos(self) -> int | None: ...

    @property
    def eos(self) -> int | None: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: list[int]) -> str: ...

    def __len__(self) -> int: ...
