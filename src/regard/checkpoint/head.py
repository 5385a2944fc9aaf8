"""A checkpoint's trunk under another head than its own."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from torch import Tensor

from regard.checkpoint.keymap import Rule, essential, has_rule, to_theirs
from regard.checkpoint.load import alike


def under(
    head: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    rules: Sequence[Rule],
    others: Sequence[Rule],
) -> dict[str, Tensor]:
    """A checkpoint's tensors without those of other heads, and with new ones for what this head lacks.

    What it has in other shapes it lacks. What is the trunk's stays as it is, right or wrong: putting it into the model
    will tell.

    Args:
        head: new tensors for all that is not the trunk's, under the model's names.
        tensors: what the checkpoint holds, under ``rules``' names.
        expected: the tensors of the model, of which only shapes and kinds of number count.
        rules: the key map for this head.
        others: the key maps for all other heads that there are, one after another.
    """
    found, problems = essential(tensors, rules)
    if problems:
        return dict(tensors)
    kept = {key: tensor for key, tensor in found.items() if has_rule(key, rules) or not has_rule(key, others)}
    shapes = to_theirs({name: expected[name] for name in head}, rules)
    for key, tensor in to_theirs(head, rules).items():
        if key not in kept or not alike(kept[key], shapes[key]):
            kept[key] = tensor
    return kept


def own_rules(names: Collection[str]) -> list[Rule]:
    """The key map of a checkpoint in which all is called as it is here."""
    return [Rule(name, name) for name in names]
