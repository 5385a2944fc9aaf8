"""What parts and sizes of a language model are worth."""

from dataclasses import replace
from typing import Any

from regard import zoo
from regard.core.errors import ConfigError
from regard.models.recurrent import RecurrentConfig
from regard.recipes.language import language
from regard.train.recipe import Recipe, fitted
from regard.train.study import Study, Variant

STEPS = 400
"""A study trains many models; with Muon, that is as long as it takes to see which learns more."""


def _base() -> Recipe:
    recipe = language()
    optimizer, schedule = replace(recipe.optimizer, name="muon"), replace(recipe.schedule, lr=0.01, warmup=STEPS // 8)
    return replace(recipe, optimizer=optimizer, schedule=schedule, num_steps=STEPS, valid_every=STEPS // 8)


BASE = _base


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
    )


def heads(base: Recipe) -> Study:
    """From one head to sixteen, of the same width in all."""
    return Study(
        "Heads",
        "What is gained by cutting the same width into more heads? Vaswani et al. 2017 (table 3, A) find that one is "
        "worst, and too many are worse again.",
        [
            Variant(f"{count} head{'s' * (count > 1)}", _with(base, num_heads=count), count)
            for count in (1, 2, 4, 8, 16)
        ],
        axis="heads",
        sets=("model.num_heads",),
    )


def layers(base: Recipe) -> Study:
    """From one layer to eight."""
    return Study(
        "Layers",
        "What is gained by depth, with all else the same? Each layer adds parameters, too.",
        [Variant(f"{count} layer{'s' * (count > 1)}", _with(base, num_layers=count), count) for count in (1, 2, 4, 8)],
        axis="layers",
        sets=("model.num_layers",),
    )


TIMES = (1, 2, 4)
"""How many times the length that was learnt from, rows are read in."""


def positions(base: Recipe) -> Study:
    """Absolute against relative positions, also on longer text than was learnt from."""
    data: Any = base.data
    lengths = tuple(times * data.seq_len for times in TIMES)
    names = {
        "learned": "learned", "sinusoidal": "sinusoidal", "rotary": "rotary", "ALiBi": "alibi", "T5 buckets": "t5",
        "none": "none",
    }  # fmt: skip
    return Study(
        "Positions",
        "Which scheme learns best, and which still works on text that is longer than what it learnt? Press et al. 2022 "
        "find that sinusoidal vectors fail at once, rotary ones soon, and biases by distance not at all.",
        [Variant(name, _with(base, positions=scheme, max_seq_len=max(lengths))) for name, scheme in names.items()],
        lengths=lengths,
        sets=("model.positions", "model.max_seq_len"),
    )


def _with(base: Recipe, **changes: Any) -> Recipe:
    return replace(base, model=replace(base.model, **changes))


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
