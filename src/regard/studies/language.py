"""What sizes and positions of a language model are worth."""

from dataclasses import replace
from typing import Any

from regard.recipes.language import language
from regard.train.recipe import Recipe
from regard.train.study import Study, Variant

STEPS = 400
"""A study trains many models; with Muon, that is as long as it takes to see which learns more."""


def _base() -> Recipe:
    recipe = language()
    optimizer, schedule = replace(recipe.optimizer, name="muon"), replace(recipe.schedule, lr=0.01, warmup=STEPS // 8)
    return replace(recipe, optimizer=optimizer, schedule=schedule, num_steps=STEPS, valid_every=STEPS // 8)


BASE = _base


SCRATCH = ("start", "missing")
"""Not to be set: weights that were trained in one shape would fit some variants, and mean nothing in others."""


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
        sets=("model.num_heads", *SCRATCH),
    )


def layers(base: Recipe) -> Study:
    """From one layer to eight."""
    return Study(
        "Layers",
        "What is gained by depth, with all else the same? Each layer adds parameters, too.",
        [Variant(f"{count} layer{'s' * (count > 1)}", _with(base, num_layers=count), count) for count in (1, 2, 4, 8)],
        axis="layers",
        sets=("model.num_layers", *SCRATCH),
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
        sets=("model.positions", "model.max_seq_len", *SCRATCH),
    )


def _with(base: Recipe, **changes: Any) -> Recipe:
    return replace(base, model=replace(base.model, **changes))
