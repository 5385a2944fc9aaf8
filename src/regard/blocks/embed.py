"""From token ids to vectors, and back to scores over the vocabulary."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from regard.attention.position import PositionScheme
from regard.blocks.dropout import Dropout
from regard.core.errors import InputError
from regard.core.types import Index


class Embedding(nn.Module):
    """Token vectors, scaled, plus those of their types, plus positions, then norm and dropout.

    Sources: Vaswani et al. 2017, sections 3.4 (scale) and 5.4 (dropout); types: Devlin et al. 2019, section 3.

    Args:
        vocab_size: V.
        embed_dim: E.
        positions: the scheme; none unless given.
        num_types: how many types a token may be of (which of two texts it is in); 0 = there are none.
        scale: what the vectors are multiplied by; sqrt(E) in the paper.
        pad_token: the id whose vector learns nothing from being looked up.
        norm: applied to the sum.
        dropout: applied last, in training.
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        *,
        positions: PositionScheme | None = None,
        num_types: int = 0,
        scale: float = 1.0,
        pad_token: int | None = None,
        norm: nn.Module | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, embed_dim))
        nn.init.normal_(self.weight, std=embed_dim**-0.5)
        self.types = Table(num_types, embed_dim) if num_types else None
        self.positions = positions or PositionScheme()
        self.norm = norm or nn.Identity()
        self.scale, self.pad_token, self.dropout = scale, pad_token, Dropout(dropout)

    def forward(
        self, tokens: Int[Tensor, "B S"], index: Index, types: Int[Tensor, "B S"] | None = None
    ) -> Float[Tensor, "B S E"]:
        """[B S E]; tokens are of type 0 unless ``types`` says. Raises InputError beyond the scheme's last position."""
        x = F.embedding(tokens, self.weight, padding_idx=self.pad_token)
        if self.scale != 1.0:
            x = x * self.scale
        if self.types is not None:
            x = x + (self.types.weight[0] if types is None else self.types(types))
        return self.dropout(self.norm(self.positions.embed(x, index)))

    def extra_repr(self) -> str:
        vocab_size, embed_dim = self.weight.shape
        return f"vocab_size={vocab_size}, embed_dim={embed_dim}, scale={self.scale:g}"


class Table(nn.Module):
    """One trained vector for each of a few things."""

    def __init__(self, count: int, embed_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count, embed_dim))
        nn.init.normal_(self.weight, std=embed_dim**-0.5)

    def forward(self, things: Int[Tensor, "*S"]) -> Float[Tensor, "*S E"]:
        return F.embedding(things, self.weight)

    def extra_repr(self) -> str:
        return f"count={self.weight.shape[0]}"


class Head(nn.Module):
    """Hidden states to logits. ``weight`` may be an embedding's (tied, Press & Wolf 2017).

    Args:
        vocab_size: V.
        embed_dim: of what the matrix reads.
        bias: what is added to the logits: a trained one, a fixed one (a buffer, as Marian's checkpoints have), or none.
        transform: a layer that hidden states go through first, as in BERT; none unless given.
    """

    bias: Tensor | None

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        *,
        bias: Literal["trained", "fixed"] | None = None,
        transform: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.transform = transform or nn.Identity()
        self.weight = nn.Parameter(torch.empty(vocab_size, embed_dim))
        nn.init.normal_(self.weight, std=embed_dim**-0.5)
        if bias == "trained":
            self.bias = nn.Parameter(torch.zeros(vocab_size))
        else:
            self.register_buffer("bias", torch.zeros(vocab_size) if bias == "fixed" else None)

    def forward(self, hidden: Float[Tensor, "*S E"]) -> Float[Tensor, "*S V"]:
        return F.linear(self.transform(hidden), self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"vocab_size={self.weight.shape[0]}, bias={self.bias is not None}"


def check_tokens(tokens: Tensor, vocab_size: int, name: str = "tokens") -> None:
    """Raise InputError, naming the argument, unless ``tokens`` is a non-empty [B S] of ids below ``vocab_size``."""
    if not isinstance(tokens, Tensor):
        raise InputError(f"{name} must be a tensor of integer ids, not {type(tokens).__name__}")
    if tokens.dtype not in (torch.int64, torch.int32):
        raise InputError(f"{name} must be integer ids, not {tokens.dtype}".replace("torch.", ""))
    if tokens.ndim != 2 or 0 in tokens.shape:
        raise InputError(f"{name} must be [batch, sequence] with at least one of each, not {list(tokens.shape)}")
    if torch.compiler.is_compiling() or tokens.is_meta:
        return
    low, high = tokens.aminmax()
    if int(low) < 0 or int(high) >= vocab_size:
        bad = int(low) if int(low) < 0 else int(high)
        raise InputError(f"{name} has id {bad}; this model's vocabulary has ids 0 to {vocab_size - 1}")


def check_valid(valid: Tensor | None, tokens: Tensor, name: str = "valid") -> None:
    """Raise InputError, naming the argument, unless ``valid`` is None or booleans of the shape of ``tokens``."""
    if valid is None:
        return
    if valid.dtype != torch.bool:
        raise InputError(f"{name} must be bool (True = a real token), not {valid.dtype}".replace("torch.", ""))
    if valid.shape != tokens.shape:
        raise InputError(f"{name} is {list(valid.shape)} but its tokens are {list(tokens.shape)}")


def check_types(types: Tensor | None, tokens: Tensor, num_types: int) -> None:
    """Raise InputError unless ``types`` is None or integers below ``num_types`` of the shape of ``tokens``."""
    if types is None:
        return
    if types.dtype not in (torch.int64, torch.int32) or types.shape != tokens.shape:
        kind = str(types.dtype).removeprefix("torch.")
        raise InputError(
            f"types must be integers of the shape of tokens, {list(tokens.shape)}, not {kind} {list(types.shape)}"
        )
    if torch.compiler.is_compiling() or types.is_meta:
        return
    low, high = types.aminmax()
    if int(low) < 0 or int(high) >= num_types:
        raise InputError(f"types must be 0 to {num_types - 1}; found {int(low if low < 0 else high)}")
