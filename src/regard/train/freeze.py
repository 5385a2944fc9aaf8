"""Which parameters learn, and when: frozen by name, or thawed from the top down."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from torch import nn

from regard.blocks.embed import Embedding
from regard.blocks.residual import Stack
from regard.core.errors import ConfigError, did_you_mean


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Exclude parameters from training, by the name of theirs or of a part that holds them.

    Args:
        model: whose parameters are frozen, in place.
        patterns: such as ``encoder``, ``decoder.blocks.0`` or ``*.ffn.*``; a tied parameter is frozen by any of its
            names.

    Raises:
        ConfigError: a pattern matches nothing; names the nearest name.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    for pattern in patterns:
        found = [name for name in named if any(fnmatchcase(part, pattern) for part in _holders(name))]
        if not found:
            known = sorted({part for name in named for part in _holders(name)})
            raise ConfigError(f"freeze: no part of the model is called '{pattern}'{did_you_mean(pattern, known)}")
        for name in found:
            named[name].requires_grad_(False)


def _holders(name: str) -> list[str]:
    """A parameter's name and those of the parts that it lies in: ``a``, ``a.b``, ``a.b.weight``."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def depths(model: nn.Module) -> dict[nn.Parameter, int]:
    """How far below the model's output each parameter lies, counted in blocks.

    The last block of each stack lies at 1, the one before it at 2, and so on; embeddings lie below the longest stack,
    also where they serve as head; everything else (heads, final norms) lies at 0.
    """
    found = dict.fromkeys(model.parameters(), 0)
    stacks = [module for module in model.modules() if isinstance(module, Stack)]
    for stack in stacks:
        for depth, block in enumerate(reversed(stack.blocks), start=1):
            found |= dict.fromkeys(block.parameters(), depth)
    lowest = 1 + max((len(stack.blocks) for stack in stacks), default=0)
    for module in model.modules():
        if isinstance(module, Embedding):
            found |= dict.fromkeys(module.parameters(), lowest)
    return found


def thaw(depth: Mapping[nn.Parameter, int], every: int, step: int) -> None:
    """Gradual unfreezing (Howard & Ruder 2018, section 3.3): the head and the last block learn first.

    Every ``every`` steps the next block below joins them, and the embeddings last. Where the last block is frozen for
    good, the highest that is not is the first.

    Args:
        depth: of the parameters that are to learn in the end; their ``requires_grad`` is set.
        every: steps.
        step: of the run, from 1.
    """
    reached = max(1, min(depth.values())) + (step - 1) // every
    for parameter, level in depth.items():
        parameter.requires_grad_(level <= reached)
