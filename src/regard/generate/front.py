"""One function for every way to write: greedy, sampling, beam search."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from regard.core.errors import ConfigError, InputError
from regard.core.types import LanguageModel
from regard.generate.beam import Beam, beam_search
from regard.generate.decode import Generated, Pick, check_writes, collect, decode, greedy
from regard.generate.logits import Transform, finish, force, suppress


@torch.inference_mode()
def generate(
    model: LanguageModel,
    prompt: Int[Tensor, "B S"],
    valid: Bool[Tensor, "B S"] | None = None,
    *,
    inputs: Mapping[str, Tensor] | None = None,
    method: Pick | Beam = greedy,
    transforms: Sequence[Transform] = (),
    stop: Collection[int] = (),
    min_tokens: int = 0,
    max_tokens: int = 256,
) -> list[Generated]:
    """Write one answer after each prompt, under the rules that the model's own configuration has (:func:`own_rules`).

    Args:
        model: anything that can ``begin`` a decoding.
        prompt: tokens to go on from; for an encoder-decoder usually its start token alone.
        valid: which of them are real; prompts of unequal length may be padded on either side.
        inputs: what the encoder reads, by the model's own keywords (``tokens``, ``valid``); nothing for a decoder.
        method: ``greedy``, ``sample(seed)`` or ``Beam(...)``.
        transforms: change the scores of next tokens; see :mod:`regard.generate.logits`.
        stop: tokens that end an answer.
        min_tokens: how many tokens an answer has before it may stop.
        max_tokens: how many it has at most.

    Returns:
        One answer a row. For several answers of a beam, or forced words, see :func:`regard.generate.beam.beam_search`;
        for tokens as they come, :func:`regard.generate.decode.decode`; for text, :mod:`regard.generate.text`.

    Raises:
        InputError: the model does not write, the prompt is no tensor, or a row of it has no token.
        ConfigError: options that contradict each other.
    """
    check_writes(model)
    if not isinstance(prompt, Tensor):
        raise InputError(f"prompt is {type(prompt).__name__}, not a tensor of token ids; regard.predict takes texts")
    most = prompt.shape[1] + max_tokens
    transforms = [*own_rules(model, most if min_tokens < max_tokens else None), *transforms]
    decoding = model.begin(max_len=most, **(inputs or {}))
    if isinstance(method, Beam):
        found = beam_search(
            decoding, prompt, valid, beam=method, transforms=transforms, stop=stop,
            min_tokens=min_tokens, max_tokens=max_tokens,
        )  # fmt: skip
        return [answers[0] for answers in found]
    steps = decode(
        decoding, prompt, valid, pick=method, transforms=transforms, stop=stop,
        min_tokens=min_tokens, max_tokens=max_tokens,
    )  # fmt: skip
    return collect(steps, len(prompt))


def own_rules(model: LanguageModel, most: int | None = None) -> list[Transform]:
    """What the model's own configuration says of every answer.

    That is tokens that are ``never`` written; the ``first_token`` after a prompt of one; and the ``last_token`` of an
    answer that fills all ``most`` places of itself and the prompt, where there is such a limit.
    """
    config = getattr(model, "config", None)
    never, first, last = (getattr(config, name, None) for name in ("never", "first_token", "last_token"))
    rules = [suppress(never)] if never else []
    rules += [force(first, at=1)] if first is not None else []
    return [*rules, finish(last, at=most - 1)] if last is not None and most is not None else rules


def start(config: Any) -> int:
    """The token that an encoder-decoder starts to write from. Raises ConfigError where only the caller can say."""
    token = getattr(config, "start_token", config.bos_token)
    if token is None:
        raise ConfigError(
            "this model starts from the token of the language to write: give it to regard.generate as prompt"
        )
    return int(token)


def ends(model: LanguageModel, eos: int | None) -> list[int]:
    """The tokens that end an answer: the tokenizer's, and those that the model's own configuration names."""
    config = getattr(model, "config", None)
    named = [eos, getattr(config, "eos_token", None), *getattr(config, "stop_tokens", ())]
    return [token for token in dict.fromkeys(named) if token is not None]


def numbered(method: Pick | Beam, numbers: Sequence[int]) -> Pick | Beam:
    """The method, with row i of a batch known to it as ``numbers[i]``: so a draw depends on the text, not the batch."""
    if isinstance(method, Beam):
        return method
    known = torch.tensor(numbers)

    def pick(logits: Tensor, rows: Tensor, count: int) -> Tensor:
        return method(logits, known.to(rows.device)[rows], count)

    return pick
