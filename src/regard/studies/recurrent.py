"""What attention is worth: beside models that carry a state along instead."""

from dataclasses import replace
from typing import Any

from regard import zoo
from regard.core.errors import ConfigError
from regard.models.recurrent import RecurrentConfig
from regard.recipes.language import language
from regard.studies.language import SCRATCH
from regard.train.recipe import Recipe, fitted
from regard.train.study import Study, Variant

BASE = language


def cells(base: Recipe) -> Study:
    """A Transformer, an LSTM and a GRU with as many parameters, as deep as each other."""
    base = fitted(base, base.data.open())  # the vocabulary decides how many parameters there are
    total = _parameters(base.model)
    recurrent = [
        Variant(name, replace(base, model=_as_large(cell, base.model, total)))
        for name, cell in (("LSTM", "lstm"), ("GRU", "gru"))
    ]
    return Study(
        "Transformer, LSTM and GRU",
        "Does attention learn more from the same text than a state does, with as many parameters? Vaswani et al. 2017 "
        "say so of translation; Melis et al. 2018 warn that small texts may favour well regularised LSTMs. All have "
        "the same rate, which may be better for one than for another: schedule.lr changes it.",
        [Variant("Transformer", base), *recurrent],
        sets=SCRATCH,
    )


def _parameters(config: Any) -> int:
    model = zoo.skeleton(zoo.family_of(config), config, "auto")
    return sum(parameter.numel() for parameter in model.parameters())


def _as_large(cell: Any, model: Any, total: int) -> RecurrentConfig:
    """The recurrent model as deep as another whose width brings it nearest to so many parameters."""
    shared = ("vocab_size", "num_layers", "max_seq_len", "dropout", "embed_dropout", "tie_head")
    special = ("pad_token", "bos_token", "eos_token")
    if missing := [name for name in (*shared, *special) if not hasattr(model, name)]:
        raise ConfigError(f"{type(model).__name__} has no {missing[0]}: compare a decoder such as gpt2 with cells")
    of_width = RecurrentConfig(cell, **{name: getattr(model, name) for name in (*shared, *special)})
    widths = range(2, 4096, 2)
    sizes = {width: _parameters(replace(of_width, embed_dim=width)) for width in _around(widths, of_width, total)}
    return replace(of_width, embed_dim=min(sizes, key=lambda width: abs(sizes[width] - total)))


def _around(widths: range, config: RecurrentConfig, total: int) -> tuple[int, int]:
    """The two widths next to each other between whose numbers of parameters ``total`` lies."""
    low, high = 0, len(widths) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if _parameters(replace(config, embed_dim=widths[middle])) < total:
            low = middle
        else:
            high = middle
    return widths[low], widths[high]
