"""What Transformers are compared with: language models that read one token after another and keep a state.

LSTM (Hochreiter & Schmidhuber 1997, with the forget gate of Gers et al. 2000) and GRU (Cho et al. 2014), in layers with
dropout between them, as Zaremba et al. 2014 train them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.attention.kernel import KernelName
from regard.attention.position import check_length
from regard.blocks.dropout import Dropout
from regard.blocks.embed import Embedding, Head, check_tokens, check_valid
from regard.blocks.recurrence import CellName, Recurrence, State
from regard.core.errors import ConfigError, InputError
from regard.core.types import Index, Output
from regard.family import Family, check_config, shrink


@dataclass(frozen=True)
class RecurrentConfig:
    """Everything that defines the model; the defaults are the medium LSTM of Zaremba et al. 2014, section 4.1.

    Attributes:
        cell: what is computed at each token.
        vocab_size: V.
        embed_dim: E, of token vectors and of states.
        num_layers: cells above each other.
        max_seq_len: tokens that a text may have; the cells themselves know no limit.
        dropout: of what goes from layer to layer, and into the head; never from token to token.
        embed_dropout: of token vectors.
        tie_head: the head's matrix is the token table (Press & Wolf 2017).
        pad_token: id that fills short rows, if any.
        bos_token: id that begins a text, if any.
        eos_token: id that ends a text, if any.
    """

    cell: CellName = "lstm"
    vocab_size: int = 10_000
    embed_dim: int = 650
    num_layers: int = 2
    max_seq_len: int = 2**20
    dropout: float = 0.5
    embed_dropout: float = 0.5
    tie_head: bool = False
    pad_token: int | None = None
    bos_token: int | None = None
    eos_token: int | None = None

    def __post_init__(self) -> None:
        check_config(self)


class RecurrentModel(nn.Module):
    """Embedding, layers of cells, head.

    Args:
        config: what to build.
        kernel: no matter here: there is no attention.
    """

    def __init__(self, config: RecurrentConfig, *, kernel: KernelName = "auto") -> None:
        super().__init__()
        del kernel
        self.config = config
        self.embed = Embedding(config.vocab_size, config.embed_dim, dropout=config.embed_dropout)
        self.layers = nn.ModuleList(Recurrence(config.embed_dim, config.cell) for _ in range(config.num_layers))
        self.dropout = Dropout(config.dropout)
        self.head = Head(config.vocab_size, config.embed_dim)
        self.tie()

    def tie(self) -> None:
        """Make the head's matrix the token table again, where the configuration says so."""
        if self.config.tie_head:
            self.head.weight = self.embed.weight

    def forward(
        self,
        tokens: Int[Tensor, "B S"],
        valid: Bool[Tensor, "B S"] | None = None,
        *,
        documents: Int[Tensor, "B S"] | None = None,
    ) -> Output:
        """Score every next token.

        Args:
            tokens: ids.
            valid: True = a real token; all are unless given.
            documents: which text each token is of, where a row packs several, one after the other: the state begins
                anew with each.

        Raises:
            InputError: wrong shapes, ids outside the vocabulary, or a sequence that is too long.
        """
        check_tokens(tokens, self.config.vocab_size)
        check_valid(valid, tokens)
        check_documents(documents, tokens)
        index = Index.over(tokens, valid)
        check_length(index, self.config.max_seq_len)
        x = self.embed(tokens, index)
        if valid is None:
            return Output(self._read(x, documents), self.head)
        order = valid.logical_not().argsort(dim=1, stable=True)  # real tokens first, so that no state meets padding
        first = None if documents is None else documents.gather(1, order)
        hidden = self._read(torch.take_along_dim(x, order[..., None], 1), first)
        back = torch.take_along_dim(hidden, order.argsort(dim=1)[..., None], 1)
        return Output(torch.where(valid[..., None], back, 0.0), self.head)

    def _read(self, x: Float[Tensor, "B S E"], documents: Int[Tensor, "B S"] | None) -> Float[Tensor, "B S E"]:
        if documents is not None:
            texts, places = apart(documents)
            rows = x.new_zeros(int(texts.max()) + 1, x.shape[1], x.shape[2]).index_put((texts, places), x)
            return self._read(rows, None)[texts, places]
        for layer in self.layers:
            x = self.dropout(layer(x)[0])
        return x

    def begin(self, *, max_len: int | None = None) -> RecurrentDecoding:
        """Stand ready to write. Raises InputError when ``max_len`` is more than a text may have."""
        if max_len is not None and max_len > self.config.max_seq_len:
            raise InputError(f"max_len {max_len} is more than this model's {self.config.max_seq_len} tokens")
        return RecurrentDecoding(self, max_len or self.config.max_seq_len)


class RecurrentDecoding:
    """Rows being written: see :class:`regard.core.types.Decoding`.

    The states after every token are kept, so that any number of tokens may be taken back.

    Args:
        model: what writes.
        max_len: tokens that a row may have.
    """

    def __init__(self, model: RecurrentModel, max_len: int) -> None:
        self.model, self.max_len = model, max_len
        self.states: list[list[State]] = []
        self.lengths: list[Tensor] = []

    def feed(self, tokens: Int[Tensor, "N S"], valid: Bool[Tensor, "N S"] | None = None) -> Float[Tensor, "N S V"]:
        """Append tokens to every row; the logits after each of them.

        Raises:
            InputError: wrong shapes, ids outside the vocabulary, another number of rows, or one that grows too long.
        """
        check_tokens(tokens, self.model.config.vocab_size)
        check_valid(valid, tokens)
        if self.lengths and len(self.lengths[-1]) != len(tokens):
            raise InputError(f"tokens has {len(tokens)} rows, but {len(self.lengths[-1])} are being written")
        real = torch.ones_like(tokens, dtype=torch.bool) if valid is None else valid
        before = self.lengths[-1] if self.lengths else tokens.new_zeros(len(tokens))
        lengths = before[:, None] + real.cumsum(dim=1)
        if int(lengths.max()) > self.max_len:
            raise InputError(
                f"a row of {int(lengths.max())} tokens is longer than the {self.max_len} that there may be"
            )
        x = self.model.embed(tokens, Index.over(tokens, valid))
        hidden = [self._step(x[:, place : place + 1], real[:, place : place + 1]) for place in range(tokens.shape[1])]
        self.lengths += lengths.unbind(dim=1)
        return self.model.head(torch.cat(hidden, dim=1))

    def _step(self, x: Float[Tensor, "N 1 E"], real: Bool[Tensor, "N 1"]) -> Float[Tensor, "N 1 E"]:
        """Go on by one token, in the rows in which it is one."""
        states: list[State] = []
        for number, layer in enumerate(cast(Iterable[Recurrence], self.model.layers)):
            before = self.states[-1][number] if self.states else layer.start(x)
            x, after = layer(x, before)
            kept = zip(after, before, strict=True)
            states.append(tuple(torch.where(real, new, old) for new, old in kept))
        self.states.append(states)
        return x

    def reorder(self, rows: Int[Tensor, "N"]) -> None:
        """Row i goes on as old row ``rows[i]``."""
        self.states = [[tuple(part[rows] for part in state) for state in states] for states in self.states]
        self.lengths = [lengths[rows] for lengths in self.lengths]

    def truncate(self, length: int) -> None:
        """Forget everything fed after the first ``length`` places."""
        del self.states[length:], self.lengths[length:]


def check_documents(documents: Tensor | None, tokens: Tensor) -> None:
    """Raise InputError unless ``documents`` is None or integers of the shape of ``tokens``."""
    if documents is None:
        return
    if documents.is_floating_point() or documents.dtype == torch.bool:
        raise InputError(f"documents must be integers, not {documents.dtype}".replace("torch.", ""))
    if documents.shape != tokens.shape:
        raise InputError(f"documents is {list(documents.shape)} but its tokens are {list(tokens.shape)}")


def apart(documents: Int[Tensor, "B S"]) -> tuple[Int[Tensor, "B S"], Int[Tensor, "B S"]]:
    """For each token the number of its text, counted through all rows, and its place in it, both from 0.

    A text ends with its row, or where another document begins.
    """
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    places = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    first = torch.where(begins, places, 0).cummax(dim=1).values
    return (begins.flatten().cumsum(dim=0) - 1).view_as(documents), places - first


def unpublished(config: RecurrentConfig) -> dict[str, object]:
    """Raises ConfigError: nobody agreed on how to publish such models."""
    raise ConfigError(f"there is no published layout for {config.cell} language models")


FAMILY = Family(
    name="recurrent",
    model_types=(),
    config=RecurrentConfig,
    build=RecurrentModel,
    keymap=lambda _config: [],
    from_hf=lambda _theirs: RecurrentConfig(),
    to_hf=unpublished,
    tiny=shrink,
    sizes={
        "lstm-medium": RecurrentConfig(),
        "lstm-large": RecurrentConfig(embed_dim=1500, dropout=0.65, embed_dropout=0.65),
    },
)
