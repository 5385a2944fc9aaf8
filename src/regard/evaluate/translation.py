"""Scoring translations: sacreBLEU's BLEU and chrF with their signatures, and exact match."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from regard.core.errors import InputError
from regard.data.pairs import Pair
from regard.generate.beam import Beam
from regard.generate.decode import Pick
from regard.tasks.translate import BEAM, Translate, score


@dataclass(frozen=True)
class Evaluation:
    """What a model's translations are worth, and under which rules that was found.

    Attributes:
        scores: ``bleu`` and ``chrf``, 0 to 100; ``exact_match``, 0 to 1.
        signatures: sacreBLEU's, by metric: with it the number can be compared to anyone's.
        num_examples: how many pairs were translated.
        seconds: how long that took.
        outputs: the translations, in order.
    """

    scores: dict[str, float]
    signatures: dict[str, str]
    num_examples: int
    seconds: float
    outputs: list[str]


def evaluate(task: Translate, model: Any, pairs: Sequence[Pair], method: Pick | Beam = BEAM) -> Evaluation:
    """Translate the sources of ``pairs`` and compare with their targets.

    Args:
        task: the task that the model was trained for.
        model: an encoder-decoder.
        pairs: (source, target) texts, cased and not tokenised.
        method: how to search, as in :meth:`Translate.predict`.

    Raises:
        InputError: there are no pairs, or a source is too long for the model.
    """
    if not pairs:
        raise InputError("there are no pairs to evaluate on")
    began = time.perf_counter()
    outputs = list(task.predict(model, [source for source, _ in pairs], method))
    seconds = time.perf_counter() - began
    scores, signatures = score(outputs, [target for _, target in pairs])
    return Evaluation(scores, signatures, len(pairs), seconds, outputs)
