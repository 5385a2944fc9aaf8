"""What a family of models is: everything that loading, saving, building and showing need to know about it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from regard.blocks.init import Initializer, embedding, xavier
from regard.checkpoint.keymap import Rule


@dataclass(frozen=True)
class Family:
    """One row for each family; the file that composes the model also says how its checkpoints are read and written.

    Attributes:
        name: the family's own name, written to config.json.
        model_types: the ``model_type`` of published configurations that are this family.
        config: the configuration dataclass.
        build: configuration to module; takes ``kernel=`` too.
        keymap: the published checkpoint's keys, for a configuration.
        from_hf: published configuration to ours. Raises ConfigError for what we cannot express.
        to_hf: ours to the published one. Raises ConfigError for what it cannot express.
        tiny: the configuration with small sizes and everything else the same, for the conformance suite.
        sizes: named configurations.
        matrices: how weights of linear layers are drawn.
        embeddings: how tables are drawn.
    """

    name: str
    model_types: tuple[str, ...]
    config: type
    build: Callable[..., nn.Module]
    keymap: Callable[[Any], Sequence[Rule]]
    from_hf: Callable[[Mapping[str, Any]], Any]
    to_hf: Callable[[Any], dict[str, Any]]
    tiny: Callable[[Any], Any]
    sizes: Mapping[str, Any] = field(default_factory=dict)
    matrices: Initializer = xavier
    embeddings: Initializer = embedding
