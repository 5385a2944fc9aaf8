"""From tokens to text while they come: characters whole, and stop strings found wherever token borders lie."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from regard.core.errors import ConfigError
from regard.core.types import Text
from regard.generate.decode import Step

INCOMPLETE = "\ufffd"
"""What a tokenizer decodes the beginning of a character to, until its last byte has come."""


def cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the stop string that is complete first (the longest, if several are), and whether there is one.

    So the answer does not depend on the pieces in which the text came.
    """
    ends = [(at + len(each), at) for each in stop if (at := text.find(each)) >= 0]
    return (text[: min(ends)[1]], True) if ends else (text, False)


class Pieces:
    """Turns the tokens of one answer into pieces of text that are never taken back.

    A piece ends where a character ends, and before anything that may yet become a stop string. The pieces, with the
    last from :meth:`finish`, join to exactly ``cut(text.decode(tokens), stop)[0]``, if decoding more tokens only ever
    adds text: byte-level and SentencePiece tokenizers do. Bytes that are no character appear when it is certain that
    they will not become one.

    Args:
        text: the tokenizer.
        stop: strings that end the answer and are not part of it. Raises ConfigError if one is empty.

    Attributes:
        stopped: whether a stop string has come; no more text follows it.
    """

    def __init__(self, text: Text, stop: Sequence[str] = ()) -> None:
        if not all(stop):
            raise ConfigError("a stop string must have at least one character")
        self.stopped = False
        self._text = text
        self._stop = list(stop)
        self._tokens: list[int] = []  # the last of those whose text is out, for context, and those whose text is not
        self._context = 0  # how many of them are context
        self._out = ""  # what of their text is out
        self._held = ""  # text that may be the beginning of a stop string

    def feed(self, token: int) -> str:
        """Add one token; the text that is now certain, often one word, sometimes nothing."""
        if self.stopped:
            return ""
        self._tokens.append(token)
        decoded = self._text.decode(self._tokens)
        certain = decoded.rstrip(INCOMPLETE)
        if len(certain) <= len(self._out):
            return ""
        fresh, self._out = certain[len(self._out) :], certain
        if certain == decoded:
            # Decoding starts anew from here; the newest tokens stay, as text may depend on what stands before it.
            self._tokens = self._tokens[self._context :]
            self._context = len(self._tokens)
            self._out = self._text.decode(self._tokens)
        return self._release(fresh)

    def finish(self) -> str:
        """What was held back, when no more tokens follow."""
        if self.stopped:
            return ""
        decoded = self._text.decode(self._tokens)
        piece = self._release(decoded[len(self._out) :])
        held, self._held, self._out = self._held, "", decoded
        return piece + held

    def _release(self, fresh: str) -> str:
        text, self.stopped = cut(self._held + fresh, self._stop)
        hold = 0 if self.stopped else max((_begun(text, each) for each in self._stop), default=0)
        self._held = text[len(text) - hold :]
        return text[: len(text) - hold]


def stream(steps: Iterable[Step], text: Text, stop: Sequence[str] = ()) -> Iterator[str]:
    """The pieces of one answer as they come: ``stream(decode(...), tokenizer, stop=["END"])``.

    Args:
        steps: from :func:`~regard.generate.decode.decode`, for a prompt of one row.
        text: the tokenizer.
        stop: strings that end the answer and are not part of it.
    """
    pieces = Pieces(text, stop)
    for step in steps:
        piece = pieces.feed(int(step.tokens))
        if piece:
            yield piece
        if pieces.stopped:
            return
    piece = pieces.finish()
    if piece:
        yield piece


def stop_strings(pieces: Sequence[Pieces]) -> Callable[[Step], Bool[Tensor, "N"]]:
    """For ``decode(until=...)``: feeds each row's tokens to its pieces, and ends the row at a stop string."""

    def until(step: Step) -> Tensor:
        rows, tokens = step.rows.tolist(), step.tokens.tolist()
        for row, token in zip(rows, tokens, strict=True):
            pieces[row].feed(token)
        return torch.tensor([pieces[row].stopped for row in rows], device=step.rows.device)

    return until


def _begun(text: str, stop: str) -> int:
    # How much of the stop string, short of all, the end of the text already holds.
    sizes = range(min(len(text), len(stop) - 1), 0, -1)
    return next((size for size in sizes if text.endswith(stop[:size])), 0)
