"""One batch, several adapters: each row is computed with one of its own, or with none."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.blocks.adapter import Adapted, Learnt
from regard.blocks.experts import MixtureOfExperts
from regard.core.errors import ConfigError, InputError, did_you_mean
from regard.core.types import Decoding, widened


class ByRow(nn.Module):
    """A model with several adapters, of which each row of a batch names one, or none (Sheng et al. 2023).

    The products with frozen matrices are those of the whole batch; only the small ones differ from row to row. It is
    for inference: the adapters are copied.

    Args:
        model: one without an adapter; it is shared, and stays as it is.
        adapters: by name.

    Raises:
        ConfigError: an adapter that does not fit the model, that trained parts of it whole, or that is in a mixture of
            experts, where tokens leave their rows.
    """

    def __init__(self, model: nn.Module, adapters: Mapping[str, Learnt]) -> None:
        super().__init__()
        self.model, self.names = model, tuple(adapters)
        self.config: Any = getattr(model, "config", None)
        experts = [part for part in model.modules() if isinstance(part, MixtureOfExperts)]
        sealed = {id(part) for each in experts for part in each.modules()}
        places = dict.fromkeys(place for each in adapters.values() for place in each.places)
        self.banks: list[Bank] = []
        for place in places:
            layer = dict(model.named_modules()).get(place)
            if not isinstance(layer, nn.Linear) or isinstance(layer, Adapted) or id(layer) in sealed:
                raise ConfigError(f"no linear layer '{place}' of the model can be adapted row by row")
            self.banks.append(Bank(place, layer, list(adapters.values())))
        self.inner = nn.ModuleList(self.banks)
        for name, each in adapters.items():
            if each.adapter.whole:
                raise ConfigError(f"the adapter '{name}' has its own {each.adapter.whole[0]}, which rows cannot share")

    def of(self, rows: Sequence[str | None]) -> Mixed:
        """The model for a batch with such rows: the name of an adapter for each, or None. Raises InputError."""
        for name in rows:
            if name is not None and name not in self.names:
                known = ", ".join(self.names)
                raise InputError(f"no adapter '{name}'; there are {known}{did_you_mean(name, self.names)}")
        numbers = [0 if name is None else 1 + self.names.index(name) for name in rows]
        return Mixed(self, torch.tensor(numbers, device=next(self.model.parameters()).device))

    def forward(self, *, adapters: Sequence[str | None], **inputs: Any) -> Any:
        """What the model makes of the inputs, each row with its adapter. Raises InputError as :meth:`of`."""
        return self.of(adapters)(**inputs)


class Bank(nn.Module):
    """A linear layer and what each of several adapters adds to it, as precise as these; number 0 adds nothing.

    Attributes:
        layer: the ordinary one.
        a: [N R I] with zeros below a smaller rank.
        b: [N O R] times the scale.
        turned: [N O] what the rows of the matrix are multiplied by.
    """

    a: Tensor
    b: Tensor
    turned: Tensor

    def __init__(self, place: str, layer: nn.Linear, adapters: Sequence[Learnt]) -> None:
        super().__init__()
        self.layer = layer
        count, rank = len(adapters) + 1, max(each.adapter.rank for each in adapters)
        found = {n: each.layer(place, layer) for n, each in enumerate(adapters, start=1) if place in each.places}
        kind = functools.reduce(torch.promote_types, (each.a.dtype for each in found.values()), layer.weight.dtype)
        zeros = layer.weight.detach().new_zeros((), dtype=kind)
        self.register_buffer("a", zeros.new_zeros(count, rank, layer.in_features))
        self.register_buffer("b", zeros.new_zeros(count, layer.out_features, rank))
        self.register_buffer("turned", widened(zeros).new_ones(count, layer.out_features))
        for number, each in found.items():
            self.take(number, each)

    @torch.no_grad()
    def take(self, number: int, layer: Adapted) -> None:
        """Copy what an adapted layer has."""
        self.a[number, : len(layer.a)] = layer.a
        self.b[number, :, : len(layer.a)] = layer.b * layer.scale
        if layer.magnitude is not None:
            self.turned[number] = widened(layer.magnitude) / layer.lengths()


class Mixed(nn.Module):
    """The model of one batch, made of a :class:`ByRow`, in which linear layers know whose each row is."""

    def __init__(self, source: ByRow, numbers: Int[Tensor, "B"]) -> None:
        super().__init__()
        self.rows = Rows(numbers)
        self.config = source.config
        self.model: Any = view(source.model, {bank.layer: Chosen(bank, self.rows) for bank in source.banks})
        self.eval()

    def forward(self, **inputs: Any) -> Any:
        """As the model's own. Raises InputError for another number of rows."""
        return self.model(**inputs)

    def begin(self, **inputs: Any) -> Following:
        """As the model's own; rows that are dealt anew keep their adapters, and this batch's own stay as they are."""
        rows = Rows(self.rows.numbers.clone())
        chosen = [part for part in self.model.modules() if isinstance(part, Chosen)]
        own: Any = view(self.model, {part: Chosen(part.bank, rows) for part in chosen})
        return Following(own.begin(**inputs), rows)


class Rows:
    """Whose each row of a batch is: the number of an adapter, or 0."""

    def __init__(self, numbers: Int[Tensor, "B"]) -> None:
        self.numbers = numbers


class Chosen(nn.Module):
    """A linear layer in which each row has its own adapter."""

    def __init__(self, bank: Bank, rows: Rows) -> None:
        super().__init__()
        self.bank, self.rows = bank, rows

    def forward(self, x: Float[Tensor, "B *S I"]) -> Float[Tensor, "B *S O"]:
        bank, numbers = self.bank, self.rows.numbers
        if len(x) != len(numbers):
            raise InputError(f"the batch has {len(x)} rows, but {len(numbers)} adapters are named")
        out = bank.layer(x)
        inner = torch.einsum("b...i,bri->b...r", x.to(bank.a.dtype), bank.a[numbers])
        added = torch.einsum("b...r,bor->b...o", inner, bank.b[numbers].to(inner.dtype)).to(out.dtype)
        turned = bank.turned[numbers].view(len(x), *[1] * (x.ndim - 2), -1)
        plain = out if bank.layer.bias is None else out - bank.layer.bias.to(out.dtype)
        return out + (turned - 1).to(out.dtype) * plain + turned.to(out.dtype) * added


class Following:
    """A decoding whose rows take their adapters with them; see :class:`regard.core.types.Decoding`."""

    def __init__(self, decoding: Decoding, rows: Rows) -> None:
        self.decoding, self.rows = decoding, rows

    def feed(self, tokens: Int[Tensor, "B S"], valid: Bool[Tensor, "B S"] | None = None) -> Float[Tensor, "B S V"]:
        """Append tokens to every row. Raises as the model's own."""
        return self.decoding.feed(tokens, valid)

    def reorder(self, rows: Int[Tensor, "N"]) -> None:
        """Row i goes on as old row ``rows[i]``."""
        self.rows.numbers = self.rows.numbers[rows]
        self.decoding.reorder(rows)

    def truncate(self, length: int) -> None:
        """Forget everything fed after the first ``length`` places."""
        self.decoding.truncate(length)


def view(module: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """A module that shares everything with this one but the layers exchanged for others; nothing is copied."""
    made: dict[nn.Module, nn.Module] = dict(new)

    def of(part: nn.Module) -> nn.Module:
        if part not in made:
            children = {name: None if child is None else of(child) for name, child in part._modules.items()}
            made[part] = part
            if any(children[name] is not child for name, child in part._modules.items()):
                made[part] = copy.copy(part)
                made[part]._modules = children
        return made[part]

    return of(module)
