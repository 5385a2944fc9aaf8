"""An encoder and a decoder that reads what it made: what families of them do with embeddings, blocks and head."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.attention.position import check_length
from regard.blocks.decoding import StackDecoding, shifted
from regard.blocks.embed import Embedding, Head, check_tokens, check_valid
from regard.blocks.heads import last
from regard.blocks.residual import Stack
from regard.core.errors import InputError
from regard.core.types import Context, Index, Output


class EncoderDecoderConfig(Protocol):
    """What the parts that encoder-decoders share ask of a family's configuration."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_seq_len(self) -> int: ...

    @property
    def share_embeddings(self) -> bool: ...

    @property
    def tie_head(self) -> bool: ...

    @property
    def eos_token(self) -> int | None: ...


class Parts(NamedTuple):
    """What an encoder-decoder is made of.

    Attributes:
        encoder_embed: what is read, to vectors.
        encoder: the blocks that read it both ways.
        decoder_embed: what is written, to vectors; None without a decoder, where the head reads the encoder.
        decoder: the blocks that write.
        head: states to scores; None = hidden states alone.
    """

    encoder_embed: Embedding
    encoder: Stack
    decoder_embed: Embedding | None
    decoder: Stack | None
    head: nn.Module | None


class Sides(nn.Module):
    """Encoder and decoder, each with its embedding, and a head that scores states.

    Args:
        config: of the family.
        parts: what it is made of.
    """

    def __init__(self, config: EncoderDecoderConfig, parts: Parts) -> None:
        super().__init__()
        self.config = config
        self.encoder_embed, self.encoder, self.decoder_embed, self.decoder, self.head = parts
        self.tie()

    def tie(self) -> None:
        """Make the tables that the configuration shares one parameter again."""
        if self.decoder_embed is not None and self.config.share_embeddings:
            self.decoder_embed.weight = self.encoder_embed.weight
        if self.decoder_embed is not None and self.config.tie_head and isinstance(self.head, Head):
            self.head.weight = self.decoder_embed.weight

    def encode(
        self, tokens: Int[Tensor, "B S"], valid: Bool[Tensor, "B S"] | None, maps: dict[str, Tensor] | None = None
    ) -> tuple[Float[Tensor, "B S E"], Index]:
        """The memory: the encoder's states and where they stand. Raises InputError for what are no rows of tokens."""
        check_tokens(tokens, self.config.vocab_size)
        check_valid(valid, tokens)
        index = Index.over(tokens, valid)
        check_length(index, self.config.max_seq_len)
        ctx = Context(index, weights=maps, path="encoder")
        return self.encoder(self.encoder_embed(tokens, index), ctx), index

    def decode(
        self,
        tokens: Int[Tensor, "B T"],
        index: Index,
        memory: Float[Tensor, "B S E"],
        memory_index: Index,
        maps: dict[str, Tensor] | None,
    ) -> Float[Tensor, "B T E"]:
        """The decoder's states. Raises InputError for a sequence that is too long."""
        assert self.decoder is not None
        assert self.decoder_embed is not None
        check_length(index, self.config.max_seq_len)
        ctx = Context(index, memory=memory, memory_index=memory_index, weights=maps, path="decoder")
        return self.decoder(self.decoder_embed(tokens, index), ctx)


class EncoderDecoder(Sides):
    """Reads one text both ways and another from left to right; hidden states alone, or what its head makes of them."""

    def forward(
        self,
        tokens: Int[Tensor, "B S"],
        valid: Bool[Tensor, "B S"] | None = None,
        *,
        decoder_tokens: Int[Tensor, "B T"],
        decoder_valid: Bool[Tensor, "B T"] | None = None,
        weights: bool = False,
    ) -> Output:
        """Read ``tokens``, then every beginning of ``decoder_tokens``.

        Args:
            tokens: source ids.
            valid: True = a real token; all are unless given.
            decoder_tokens: target ids, shifted: the first is the start token.
            decoder_valid: as ``valid``.
            weights: record attention maps in ``Output.weights``.

        Raises:
            InputError: wrong shapes, ids outside the vocabulary, or a sequence that is too long.
        """
        check_tokens(decoder_tokens, self.config.vocab_size, "decoder_tokens")
        check_valid(decoder_valid, decoder_tokens, "decoder_valid")
        maps: dict[str, Tensor] | None = {} if weights else None
        read = self.encode(tokens, valid, maps)
        if tokens.shape[0] != decoder_tokens.shape[0]:  # len() would fix the number for export
            raise InputError(f"tokens has {tokens.shape[0]} rows but decoder_tokens has {decoder_tokens.shape[0]}")
        hidden = self.decode(decoder_tokens, Index.over(decoder_tokens, decoder_valid), *read, maps)
        return Output(hidden, self.head, read[0], maps)


class Writer(EncoderDecoder):
    """An encoder-decoder that writes: its head scores every next token."""

    def begin(
        self, *, tokens: Int[Tensor, "B S"], valid: Bool[Tensor, "B S"] | None = None, max_len: int | None = None
    ) -> StackDecoding:
        """Read the source and stand ready to write.

        Raises InputError as ``forward`` does, and when ``max_len`` is more than the model has positions for.
        """
        assert self.decoder is not None
        assert self.decoder_embed is not None
        assert self.head is not None, "a model that writes has a head"
        if max_len is not None and max_len > self.config.max_seq_len:
            raise InputError(f"max_len {max_len} is more than this model's {self.config.max_seq_len} positions")
        limit, read = max_len or self.config.max_seq_len, self.encode(tokens, valid)
        return StackDecoding(self.decoder_embed, self.decoder, self.head, limit, *read)


class Reader(Sides):
    """An encoder-decoder that scores what it reads.

    Where there is a decoder, it reads the same row one token later, and its states are scored (Lewis et al. 2020,
    section 3): of a row, that of its last end token. Else the encoder's are.

    Args:
        config: of the family.
        parts: what it is made of.
        start: what the decoder reads first; None = the row's last token, its language (Liu et al. 2020, section 2.2).
        rows: whether rows are scored, and not tokens.
    """

    def __init__(self, config: EncoderDecoderConfig, parts: Parts, *, start: int | None, rows: bool) -> None:
        super().__init__(config, parts)
        self.start, self.rows = start, rows

    def forward(
        self, tokens: Int[Tensor, "B S"], valid: Bool[Tensor, "B S"] | None = None, *, weights: bool = False
    ) -> Output:
        """Score each row, or each token.

        Args:
            tokens: ids.
            valid: True = a real token; all are unless given.
            weights: record attention maps in ``Output.weights``.

        Raises:
            InputError: wrong shapes, ids outside the vocabulary, or a sequence that is too long.
        """
        maps: dict[str, Tensor] | None = {} if weights else None
        memory, index = self.encode(tokens, valid, maps)
        if self.decoder is None:
            return Output(memory, self.head, memory, maps)
        hidden = self.decode(shifted(tokens, index, self.start), index, memory, index, maps)
        if not self.rows:
            return Output(hidden, self.head, memory, maps)
        eos = self.config.eos_token
        pooled = last(hidden, index, None if eos is None else tokens == eos)
        return Output(hidden, self.head, memory, maps, pooled=pooled, reads="pooled")
