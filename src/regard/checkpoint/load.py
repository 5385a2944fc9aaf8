"""Putting a checkpoint's tensors into a model: everything fits, or one error says all that does not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from regard.checkpoint.keymap import Rule, essential, to_ours, to_theirs
from regard.core.errors import CheckpointError, nearest


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """A model's parameters and persistent buffers, each once: a tied one under the first of its names."""
    tied = _tied(model)
    return {name: tensor for name, tensor in _named(model).items() if name not in tied}


def assign(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    where: str | Path,
    rules: Sequence[Rule] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    elsewhere: Mapping[str, torch.device] | None = None,
) -> None:
    """Make ``tensors`` the parameters and buffers of ``model``, which may have been built on the meta device.

    Nothing is copied that need not be: a tensor mapped from a file stays mapped, so that opening a checkpoint costs
    what its pages cost when they are first read. Tied parameters stay tied.

    Args:
        model: what to fill; its own tensors only say which names, shapes and kinds of number are expected.
        tensors: what a checkpoint holds, under the model's names, or under ``rules``' names for them.
        where: the checkpoint, for the error message.
        rules: the key map of a published layout; None = the model's own names.
        dtype: type of all floating-point tensors; as in the checkpoint unless given.
        device: where they go; where they are unless given.
        elsewhere: the modules by name whose tensors go to another device.

    Raises:
        CheckpointError: anything is missing, unexpected, misshapen or retied.
    """
    expected, found = tensors_of(model), reconciled(model, tensors, where, rules)
    others = {f"{module}.": place for module, place in (elsewhere or {}).items()}

    def place(name: str) -> torch.device | str | None:
        return next((other for module, other in others.items() if name.startswith(module)), device)

    new = {id(expected[name]): _like(expected[name], tensor, dtype, place(name)) for name, tensor in found.items()}
    model.load_state_dict({name: new[id(old)] for name, old in _named(model).items()}, assign=True)
    for name, buffer in model.named_buffers():
        if buffer.is_meta:
            raise ValueError(f"{name} is a buffer that checkpoints do not hold: a model on meta cannot be filled")


def reconciled(
    model: nn.Module, tensors: Mapping[str, Tensor], where: str | Path, rules: Sequence[Rule] | None
) -> dict[str, Tensor]:
    """The tensors under the model's names, if they are those of the model. Raises CheckpointError as :func:`assign`."""
    expected = tensors_of(model)
    if rules is None:
        reconcile(expected, tensors, where, tied=_tied(model))
        return dict(tensors)
    shapes = {name: tensor.detach().to("meta") for name, tensor in expected.items()}
    theirs, problems = essential(tensors, rules)
    reconcile(to_theirs(shapes, rules), theirs, where, problems=problems)
    return to_ours(theirs, rules)


def fits(model: nn.Module, tensors: Mapping[str, Tensor], rules: Sequence[Rule] | None) -> bool:
    """Whether :func:`assign` would take these tensors."""
    try:
        reconciled(model, tensors, "", rules)
    except CheckpointError:
        return False
    return True


def reconcile(
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    where: str | Path,
    *,
    tied: Mapping[str, str] | None = None,
    problems: Sequence[str] = (),
) -> None:
    """Compare names, shapes and kinds of number (floating point, integer, ...); widths may differ.

    Args:
        expected: what the model has.
        found: what the checkpoint has.
        where: the checkpoint, for the error message.
        tied: names that the model gives to a tensor it has under another name already, with that name.
        problems: other faults of the checkpoint, to be told with these.

    Raises:
        CheckpointError: they differ. The first line counts the differences and tells the first; if there are more,
            the lines after it tell each, with the nearest name on the other side.
    """
    missing = [name for name in expected if name not in found]
    unexpected = [name for name in found if name not in expected]
    shared = [name for name in expected if name in found]
    misshapen = [name for name in shared if not alike(expected[name], found[name])]
    nearest_found, nearest_expected = Nearest(unexpected), Nearest(missing or expected)
    lines = [f"missing {name!r}{nearest_found(name)}" for name in missing]
    for name in unexpected:
        original = (tied or {}).get(name)
        hint = f": this model has it tied to {original!r}" if original else nearest_expected(name)
        lines.append(f"unexpected {name!r}{hint}")
    lines += [f"misshapen {name!r}: {_show(found[name])}, expected {_show(expected[name])}" for name in misshapen]
    lines += problems
    if not lines:
        return
    counts = [(len(missing), "missing"), (len(unexpected), "unexpected"), (len(misshapen), "misshapen")]
    counts.append((len(problems), "inconsistent"))
    summary = ", ".join(f"{count} {what}" for count, what in counts if count)
    head = f"{where}: the tensors are not this model's ({summary}): {lines[0]}"
    raise CheckpointError("\n  ".join([f"{head}; all of them:", *lines]) if len(lines) > 1 else head)


class Nearest:
    """Finds the name most like another, quickly among thousands: by its letters first, then by its numbers."""

    def __init__(self, names: Iterable[str]) -> None:
        self.by_letters: dict[str, dict[tuple[str, ...], str]] = {}
        for name in names:
            letters, numbers = _parts(name)
            self.by_letters.setdefault(letters, {})[numbers] = name
        self.close: dict[str, list[str]] = {}

    def __call__(self, name: str) -> str:
        """The ending of an error line: `` (nearest: 'x')``, or nothing when no name is close."""
        letters, numbers = _parts(name)
        if letters not in self.close:
            self.close[letters] = nearest(letters, self.by_letters)
        if not self.close[letters]:
            return ""
        choices = self.by_letters[self.close[letters][0]]
        return f" (nearest: {choices.get(numbers) or next(iter(choices.values()))!r})"


def _named(model: nn.Module) -> dict[str, Tensor]:
    """Every name in the model's state, tied ones too."""
    named: dict[str, Tensor] = model.state_dict(keep_vars=True)
    return named


def _tied(model: nn.Module) -> dict[str, str]:
    """Each second name of a tensor, with its first."""
    first: dict[int, str] = {}
    for name, tensor in _named(model).items():
        first.setdefault(id(tensor), name)
    return {name: first[id(tensor)] for name, tensor in _named(model).items() if first[id(tensor)] != name}


def _like(old: Tensor, new: Tensor, dtype: torch.dtype | None, device: torch.device | str | None) -> Tensor:
    """``new`` as what ``old`` is: a parameter or a buffer, of the wanted type and place.

    It lies in memory in its own order, also where a key map has turned it: torch's fused optimisers walk a weight and
    its gradient side by side, without a look at their strides.
    """
    tensor = new.to(device=device, dtype=dtype if new.is_floating_point() else None).contiguous()
    return nn.Parameter(tensor, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else tensor


def alike(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree in shape and in kind of number; widths may differ."""
    kinds = [(t.shape, t.is_floating_point(), t.is_complex(), t.dtype == torch.bool) for t in (a, b)]
    return kinds[0] == kinds[1]


def _show(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _parts(name: str) -> tuple[str, tuple[str, ...]]:
    """A name with its numbers taken out, and the numbers."""
    return re.sub(r"\d+", "#", name), tuple(re.findall(r"\d+", name))
