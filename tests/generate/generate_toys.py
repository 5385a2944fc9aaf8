"""Small models to decode with, whose every logit depends on everything that was fed."""

from collections.abc import Callable

import torch
from torch import Tensor

STATES = 997


class Recurrent:
    """Logits are a random function of the whole prefix: a wrong cache, order or row shows at once."""

    def __init__(self, vocab: int, seed: int = 0, spread: float = 2.0) -> None:
        self.table = (
            torch.randn(STATES, vocab, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * spread
        )

    def begin(self, *, max_len: int | None = None, source: Tensor | None = None) -> "RecurrentDecoding":
        return RecurrentDecoding(self.table, source)

    def logits(self, tokens: list[int], source: int = 0) -> Tensor:
        """The logits after a prefix, computed from nothing: the definition that decoding is held against."""
        state = source
        for token in tokens:
            state = (state * 31 + token * 7 + 1) % STATES
        return self.table[state]


class RecurrentDecoding:
    def __init__(self, table: Tensor, source: Tensor | None) -> None:
        self.table, self.state, self.past = table, source, []
        self.rows_fed: list[int] = []
        self.orders: list[Tensor] = []

    def feed(self, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        state = torch.zeros(len(tokens), dtype=torch.long) if self.state is None else self.state
        assert state.shape == tokens.shape[:1], "fed other rows than are held"
        assert ((tokens >= 0) & (tokens < self.table.shape[1])).all()
        self.rows_fed.append(len(tokens))
        states = []
        for place in range(tokens.shape[1]):
            new = (state * 31 + tokens[:, place] * 7 + 1) % STATES
            state = new if valid is None else torch.where(valid[:, place], new, state)
            self.past.append(state)
            states.append(state)
        self.state = state
        return self.table[torch.stack(states, dim=1)]

    def reorder(self, rows: Tensor) -> None:
        self.orders.append(rows)
        self.state, self.past = self.state[rows], [each[rows] for each in self.past]

    def truncate(self, length: int) -> None:
        del self.past[length:]
        self.state = self.past[-1]


class Markov:
    """Logits depend on the last token alone: distributions over short answers can be summed by hand."""

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def begin(self, *, max_len: int | None = None, **inputs: Tensor) -> "Markov":
        return self

    def feed(self, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        return self.table[tokens]

    def reorder(self, rows: Tensor) -> None: ...

    def truncate(self, length: int) -> None: ...


class Uncached:
    """Any function of whole rows as a decoding that remembers the tokens and nothing else.

    ``forward(tokens [N S], sources [N]) -> logits [N S V]``, where ``sources`` are the sentences the rows write about.
    """

    def __init__(self, forward: Callable[[Tensor, Tensor], Tensor], batch: int) -> None:
        self.forward, self.sources = forward, torch.arange(batch)
        self.tokens = torch.empty(batch, 0, dtype=torch.long)

    def feed(self, tokens: Tensor, valid: Tensor | None = None) -> Tensor:
        assert valid is None
        self.tokens = torch.cat([self.tokens, tokens], dim=1)
        return self.forward(self.tokens, self.sources)[:, -tokens.shape[1] :]

    def reorder(self, rows: Tensor) -> None:
        self.tokens, self.sources = self.tokens[rows], self.sources[rows]

    def truncate(self, length: int) -> None:
        self.tokens = self.tokens[:, :length]
