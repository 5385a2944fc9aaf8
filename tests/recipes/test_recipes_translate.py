"""The paper's recipes against the paper."""

from dataclasses import replace

import pytest

from regard import zoo
from regard.recipes import find


@pytest.mark.parametrize(
    ("name", "millions", "dropout", "embed_dim"), [("translate_base", 65, 0.1, 512), ("translate_big", 213, 0.3, 1024)]
)
def test_table_3(name, millions, dropout, embed_dim):
    recipe = find(name)
    model = zoo.build(replace(recipe.model, vocab_size=37_000), device="meta")
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.03)
    assert recipe.model.dropout == dropout
    assert recipe.objective.label_smoothing == 0.1
    assert (recipe.optimizer.betas, recipe.optimizer.eps) == ((0.9, 0.98), 1e-9)
    for step in (1, 4000, 100_000):
        rate = embed_dim**-0.5 * min(step**-0.5, step * 4000**-1.5)
        assert recipe.schedule(step, recipe.num_steps) == pytest.approx(rate)
