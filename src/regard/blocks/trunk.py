"""One model for several tasks, which share a trunk and have some parts for themselves (Caruana 1997)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Int
from torch import Tensor, nn

from regard.core.errors import ConfigError, InputError, did_you_mean


class SharedTrunk(nn.Module):
    """A model of which each member has parts of its own, such as head or decoder; the others are one and the same.

    A member's model is an ordinary model of its family, put together when it is asked for: nothing is copied, and
    nothing remembers whose turn it is.

    Args:
        build: makes the whole model of one member.
        own: the names of the parts that each has for itself.
        members: the names of those that share the trunk.

    Attributes:
        config: of the models.
        trunk: the parts that are shared.
        own: for each member, its own parts.

    Raises:
        ConfigError: a part that the model does not have, or one that is tied to a part of the trunk.
    """

    def __init__(self, build: Callable[[], nn.Module], own: Sequence[str], members: Sequence[str]) -> None:
        super().__init__()
        models = [build() for _ in members]
        self.trunk = models[0]
        self.config: Any = self.trunk.config
        parts = dict(self.trunk.named_children())
        for name in own:
            if name not in parts:
                raise ConfigError(f"own: the model has no part '{name}'{did_you_mean(name, parts)}")
        self.own = nn.ModuleList(nn.ModuleDict({name: getattr(model, name) for name in own}) for model in models)
        for name in set(own):
            delattr(self.trunk, name)
        shared = {id(parameter): path for path, parameter in self.trunk.named_parameters()}
        for name in own:
            tied = [shared[id(parameter)] for parameter in parts[name].parameters() if id(parameter) in shared]
            if tied:
                raise ConfigError(f"own: '{name}' is tied to {tied[0]}, which all share; untie the two, or own both")

    def of(self, member: int) -> nn.Module:
        """The model of one member, which shares its parameters with this one."""
        model = copy.copy(self.trunk)
        model._modules = {**self.trunk._modules, **self.own[member]._modules}
        return model

    def forward(self, member: Int[Tensor, "B"] | None = None, **inputs: Any) -> Any:
        """What the model of a member makes of the inputs.

        Raises:
            InputError: rows of different members, or of none.
            ConfigError: the model is cut across processes, which may be at different members.
        """
        return self._asked(member)(**inputs)

    def begin(self, *, member: Int[Tensor, "B"] | None = None, **inputs: Any) -> Any:
        """As the models have it, for those that write; raises as ``forward`` does."""
        return self._asked(member).begin(**inputs)

    def _asked(self, member: Tensor | None) -> Any:
        if any(hasattr(parameter, "device_mesh") for parameter in self.parameters()):
            # Processes that run different members would gather the parts of one as if they were the other's.
            raise ConfigError(
                "where members have parts of their own, each process needs the whole model: set parallel.shard, tensor "
                "and pipeline to 1"
            )
        numbers = [] if member is None else member.unique().tolist()
        if len(numbers) != 1 or not 0 <= numbers[0] < len(self.own):
            raise InputError(
                f"member must be one number from 0 to {len(self.own) - 1} in all rows, for {', '.join(self.names)}; "
                f"found {numbers or 'none'}"
            )
        return self.of(numbers[0])

    @property
    def names(self) -> tuple[str, ...]:
        """Of the members, in order."""
        return tuple(self.config.members)


def sharing(build: Callable[[], nn.Module], config: Any) -> nn.Module:
    """The model, or if its configuration says that ``members`` have parts of their ``own``, theirs.

    Raises ConfigError as :class:`SharedTrunk`, and where only one of the two is said.
    """
    if bool(config.own) != bool(config.members):
        raise ConfigError("own names the parts that members have for themselves, so there is none without the other")
    return SharedTrunk(build, config.own, config.members) if config.own else build()
