"""Adapters: small trained matrices beside the frozen ones of linear layers (Hu et al. 2021; Liu et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from regard.blocks.names import linears_called, parameters_called
from regard.core.dropout import dropout
from regard.core.errors import CheckpointError, ConfigError
from regard.core.linear import Linear
from regard.core.serial import check_fields
from regard.core.types import widened

AdapterName = Literal["lora", "dora"]
TENSORS = ("a", "b", "magnitude")
"""What an adapted layer has beside the weight and the bias of an ordinary one."""


@dataclass(frozen=True)
class Adapter:
    """Which layers have an adapter, and of what kind; all else is frozen.

    Attributes:
        kind: ``lora`` adds ``scale * B A`` to a matrix (Hu et al. 2021, section 4.1); ``dora`` then brings each of its
            rows to a length that is trained too (Liu et al. 2024, section 4.1).
        rank: R, rows of A and columns of B.
        alpha: the scale times the rank.
        stable: the scale is ``alpha / sqrt(rank)`` instead (Kalajdzievski 2023, theorem 3.2).
        dropout: of what A reads, in training.
        targets: the linear layers, by parts of their names: ``q``, ``attention.mix.q``, ``ffn``, ``blocks.0``, with
            ``*`` for any letters; ``all`` is every linear layer of the blocks.
        shared: names of layers that, side by side and adapted, have one A: those that a published layout has in one.
        whole: parts of the model that are trained as they are, such as a new head; None = the recipe knows.
    """

    kind: AdapterName = "lora"
    rank: int = 8
    alpha: float = 16.0
    stable: bool = False
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q", "v")
    shared: tuple[str, ...] = ()
    whole: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.rank < 1:
            raise ConfigError(f"adapter.rank {self.rank} must be at least 1")
        if not 0 < self.alpha < math.inf:
            raise ConfigError(f"adapter.alpha {self.alpha} must be a number above 0")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"adapter.dropout {self.dropout} must be at least 0 and less than 1")
        if not self.targets:
            raise ConfigError("adapter.targets names no layer; 'all' is every linear layer of the blocks")

    @property
    def scale(self) -> float:
        """What B A is multiplied by."""
        return self.alpha / (math.sqrt(self.rank) if self.stable else self.rank)


class Adapted(Linear):
    """A linear layer, whose weight and bias are those of an ordinary one, with an adapter.

    At first it computes what that one does, bit for bit: B is zero, and the lengths are the rows' own.

    Args:
        layer: the ordinary one.
        adapter: what it gets.

    Attributes:
        a: [R I] drawn by :func:`adapt`.
        b: [O R]
        magnitude: [O] the lengths of the rows; None without.
        kept: the layer's own weight while the adapter is merged into it; else None.
    """

    kept: Tensor | None

    def __init__(self, layer: nn.Linear, adapter: Adapter) -> None:
        nn.Module.__init__(self)  # the matrix is there already
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias
        self.scale, self.dropout = adapter.scale, adapter.dropout
        self.a = nn.Parameter(self.weight.new_empty(adapter.rank, layer.in_features))
        self.b = nn.Parameter(self.weight.new_zeros(layer.out_features, adapter.rank))
        self.magnitude = nn.Parameter(lengths(widened(self.weight))) if adapter.kind == "dora" else None
        self.register_buffer("kept", None, persistent=False)
        self.train(layer.training)

    def forward(self, x: Float[Tensor, "*S I"]) -> Float[Tensor, "*S O"]:
        out = super().forward(x)
        if self.kept is not None:
            return out
        read = x if x.dtype == self.a.dtype else x.to(self.a.dtype)
        read = dropout(read, self.dropout) if self.training and self.dropout else read
        added = (F.linear(F.linear(read, self.a), self.b) * self.scale).to(out.dtype)
        if self.magnitude is None:
            return out + added
        turned = widened(self.magnitude) / self.lengths()
        plain = out if self.bias is None else out - self.bias.to(out.dtype)
        return out + (turned - 1).to(out.dtype) * plain + turned.to(out.dtype) * added  # near 1 bfloat16 is coarse

    def summed(self) -> Float[Tensor, "O I"]:
        """The matrix with B A added, in float32 at least; its rows are not yet brought to their lengths."""
        return widened(self.weight) + self.scale * (widened(self.b) @ widened(self.a))

    @torch.no_grad()
    def lengths(self) -> Float[Tensor, "O"]:
        """Those of the rows, taken as constants (Liu et al. 2024, section 4.3)."""
        with torch.autocast("cpu" if self.weight.is_meta else self.weight.device.type, enabled=False):
            return lengths(self.summed())

    @torch.no_grad()
    def merged(self) -> Float[Tensor, "O I"]:
        """The matrix by which an ordinary layer computes the same."""
        if self.kept is not None:
            return self.weight.detach()
        summed = self.summed()
        if self.magnitude is not None:
            summed = summed * (widened(self.magnitude) / lengths(summed))[:, None]
        return summed.to(self.weight.dtype)

    def extra_repr(self) -> str:
        kind = "lora" if self.magnitude is None else "dora"
        return f"{super().extra_repr()}, {kind} of rank {len(self.a)}, scale={self.scale:g}"


def lengths(weight: Float[Tensor, "O I"]) -> Float[Tensor, "O"]:
    """Of the rows of a matrix; of none quite 0, to divide by."""
    return torch.linalg.vector_norm(weight.detach(), dim=1).clamp(min=torch.finfo(weight.dtype).tiny)


def adapt(model: nn.Module, adapter: Adapter, *, seed: int = 0) -> nn.Module:
    """Put an adapter on a model, in place, and freeze all but it and the parts that are trained whole.

    The model stays what it is: its own tensors keep their names, and ``model.adapter`` tells what was added.

    Args:
        model: any; one on the meta device stays there.
        adapter: on which layers, and of what kind.
        seed: A is drawn from it (uniform, as He et al. 2015 with a slope of sqrt(5), which is torch's and peft's way);
            the same on any device.

    Raises:
        ConfigError: a name that matches nothing (with the nearest), a layer whose matrix is tied to another part's, or
            a model that has an adapter already.
    """
    if adapted(model):
        raise ConfigError("the model has an adapter already: merge it for good, or take it off, before another")
    found = [linears_called(model, target, "adapter.targets") for target in adapter.targets]
    layers = {name: layer for each in found for name, layer in each.items()}
    _check_untied(model, layers)
    learning = [part for pattern in adapter.whole or () for part in parameters_called(model, pattern, "adapter.whole")]
    both = [name for name, layer in layers.items() if any(layer.weight is part for part in learning)]
    if both:
        raise ConfigError(f"adapter: '{both[0]}' is one of the targets and of the parts that are trained whole")
    model.requires_grad_(False)
    for parameter in learning:
        parameter.requires_grad_(True)
    made = {name: Adapted(layer, adapter) for name, layer in layers.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in made.values():
            _draw(layer.a)
    for name, layer in made.items():
        layer.weight.requires_grad_(False)
        holder, _, own = name.rpartition(".")
        if own in adapter.shared:
            beside = [made[f"{holder}.{each}"] for each in adapter.shared if f"{holder}.{each}" in made]
            layer.a = next(each.a for each in beside if each.in_features == layer.in_features)
    _exchange(model, {layers[name]: layer for name, layer in made.items()})
    whose: Any = model
    whose.adapter = adapter
    return model


@torch.no_grad()
def _draw(a: nn.Parameter) -> None:
    if not a.is_meta:
        fresh = torch.empty_like(a, device="cpu")
        nn.init.kaiming_uniform_(fresh, a=math.sqrt(5))
        a.copy_(fresh)


def _check_untied(model: nn.Module, layers: Mapping[str, nn.Linear]) -> None:
    """Raise ConfigError for a layer whose matrix also serves elsewhere, where an adapter could not be merged."""
    homes: dict[int, str] = {}
    chosen = {id(layer.weight): name for name, layer in layers.items()}
    for name, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            first = homes.setdefault(id(parameter), name)
            if first != name and own == "weight" and id(parameter) in chosen:
                other = name if chosen[id(parameter)] == first else first
                raise ConfigError(f"adapter.targets: the matrix of '{chosen[id(parameter)]}' is tied to '{other}'")


def _exchange(model: nn.Module, new: Mapping[nn.Linear, nn.Linear]) -> None:
    """Put layers in the places of others, wherever these stand."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Linear) and child in new:
                setattr(module, name, new[child])


def adapted(model: nn.Module) -> dict[str, Adapted]:
    """The layers with an adapter, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Adapted)}


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """Put what the adapter learnt into the weights, in place, so that it costs nothing; :func:`unmerge` takes it out.

    Raises ConfigError if it is in already, or there is none.
    """
    for layer in _some(model).values():
        if layer.kept is not None:
            raise ConfigError("the adapter is merged already")
        merged = layer.merged()
        layer.kept = layer.weight.detach().clone()
        layer.weight.copy_(merged)
    return model


@torch.no_grad()
def unmerge(model: nn.Module) -> nn.Module:
    """Undo :func:`merge`: every weight is the one that it was, to the bit. Raises ConfigError if nothing is merged."""
    for layer in _some(model).values():
        if layer.kept is None:
            raise ConfigError("the adapter is not merged")
        layer.weight.copy_(layer.kept)
        layer.kept = None
    return model


@torch.no_grad()
def plain(model: nn.Module, *, merged: bool = True) -> nn.Module:
    """Make a model with an adapter, in place, one without: with what it learnt in the weights, or as it was before.

    All its parameters may learn again. A model that has no adapter stays as it is.
    """
    layers = adapted(model)
    for layer in layers.values():
        weight = layer.merged() if merged else layer.kept
        if weight is not None:
            layer.weight.copy_(weight)
    _exchange(model, {layer: _ordinary(layer) for layer in layers.values()})
    if layers:
        model.requires_grad_(True)
        del model.adapter
    return model


def _ordinary(layer: Adapted) -> Linear:
    bare = Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    bare.weight, bare.bias = layer.weight, layer.bias
    return bare.train(layer.training)


def _some(model: nn.Module) -> dict[str, Adapted]:
    if not (layers := adapted(model)):
        raise ConfigError("the model has no adapter")
    return layers


def check_apart(model: nn.Module) -> None:
    """Raise CheckpointError for a model to save whose adapter is merged: it would be added twice when it is loaded."""
    if any(layer.kept is not None for layer in adapted(model).values()):
        raise CheckpointError(
            "the model to save has its adapter merged: unmerge it first, or merge it for good (plain)"
        )


@dataclass(frozen=True)
class Learnt:
    """An adapter apart from its model.

    Attributes:
        adapter: what it is.
        tensors: what it learnt, under the model's names: of adapted layers, and of the parts that were trained whole.
    """

    adapter: Adapter
    tensors: Mapping[str, Tensor]

    @property
    def places(self) -> tuple[str, ...]:
        """The names of the adapted layers."""
        return tuple(name.removesuffix(".a") for name in self.tensors if name.endswith(".a"))

    @torch.no_grad()
    def layer(self, place: str, layer: nn.Linear) -> Adapted:
        """The adapted layer that an ordinary one of this name becomes. Raises ConfigError where it does not fit."""
        made = Adapted(layer, self.adapter)
        for part in TENSORS:
            tensor, into = self.tensors.get(f"{place}.{part}"), getattr(made, part)
            if (tensor is None) != (into is None) or (tensor is not None and tensor.shape != into.shape):
                raise ConfigError(f"the adapter does not fit the model: {place}.{part}")
            if tensor is not None:
                _take(into, tensor)
        return made


def learnt(model: Any) -> Learnt:
    """The adapter of a model; its tensors are the model's own. Raises ConfigError where there is none."""
    layers = _some(model)
    check_apart(model)
    tensors = {
        f"{name}.{part}": getattr(layer, part)
        for name, layer in layers.items()
        for part in TENSORS
        if getattr(layer, part) is not None
    }
    parts = {id(p) for pattern in model.adapter.whole or () for p in parameters_called(model, pattern, "adapter.whole")}
    tensors |= {name: p for name, p in model.named_parameters() if id(p) in parts and name not in tensors}
    return Learnt(model.adapter, tensors)


@torch.no_grad()
def attach(model: nn.Module, found: Learnt) -> nn.Module:
    """Put an adapter that was learnt on a model, in place. Raises ConfigError as :func:`adapt`, and where it is not."""
    adapt(model, found.adapter)
    named = dict(model.named_parameters(remove_duplicate=False))
    expected = {name: tensor.shape for name, tensor in learnt(model).tensors.items()}
    got = {name: tensor.shape for name, tensor in found.tensors.items()}
    if expected != got:
        odd = sorted(name for name in expected.keys() | got.keys() if expected.get(name) != got.get(name))
        plain(model, merged=False)
        raise ConfigError(f"the adapter does not fit the model: {odd[0]}{f' and {len(odd) - 1} more' * (len(odd) > 1)}")
    parts = {f"{place}.{part}" for place in found.places for part in TENSORS}
    for name, tensor in found.tensors.items():
        if name in parts:
            _take(named[name], tensor)
        else:
            named[name].copy_(tensor)
    return model


def _take(into: Tensor, tensor: Tensor) -> None:
    """Copy what was learnt, which may be more precise than the matrix beside it."""
    into.data = into.data.to(torch.promote_types(into.dtype, tensor.dtype))
    into.copy_(tensor)
