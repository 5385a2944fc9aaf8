"""What a model is made of and what it costs: shapes, parameters, FLOPs and memory, exact, without computing anything.

Build the model on the meta device (``zoo.build(name, device="meta")``) and nothing is allocated.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from regard.core.errors import Unsupported
from regard.core.types import Batch


@dataclass(frozen=True)
class Part:
    """One module of a model and what one forward pass through it costs.

    Attributes:
        name: what its parent calls it; "0-5" for six like parts in a row.
        kind: its class.
        shape: of what it returns; None where it was not run or returns no single tensor.
        parameters: how many it holds, without those that an earlier part holds too.
        tied: how many of its parameters an earlier part holds too.
        flops: of the matrix products in one forward pass, two per multiply-and-add, as torch counts them. Attention
            counts every query against every key, masked or not.
        parts: the modules in it.
        times: how many like parts this one stands for; the figures are of one.
    """

    name: str
    kind: str
    shape: tuple[int, ...] | None
    parameters: int
    tied: int
    flops: int
    parts: tuple["Part", ...] = ()
    times: int = 1

    def walk(self, depth: int = 0) -> Iterator[tuple[int, "Part"]]:
        """All parts from here down with their depth, parents first."""
        yield depth, self
        for part in self.parts:
            yield from part.walk(depth + 1)


@dataclass(frozen=True)
class Memory:
    """Bytes.

    Attributes:
        weights: parameters and buffers as they are stored, shared ones once.
        activations: what one forward pass keeps for its backward pass, besides the weights.
        training: weights, gradients and Adam's two moments (float32 moments); activations come on top.
    """

    weights: int
    activations: int
    training: int


def example(model: nn.Module, length: int, batch: int = 1) -> Batch:
    """Token inputs of the given size on the model's device, one for each kind of tokens that ``forward`` takes.

    Raises:
        Unsupported: the model takes no tokens.
    """
    names = [name for name in inspect.signature(model.forward).parameters if name in ("tokens", "decoder_tokens")]
    if not names:
        raise Unsupported(f"{type(model).__name__} takes no tokens")
    device = next(model.parameters()).device
    return {name: torch.zeros(batch, length, dtype=torch.long, device=device) for name in names}


def parts(model: nn.Module, **inputs: Tensor) -> Part:
    """Run ``model`` once on ``inputs`` and return what it is made of, like layers in a row folded into one part.

    A module that holds and costs nothing is left out.
    """
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, _: object, out: object) -> None:
        if isinstance(out, Tensor):
            shapes[module] = tuple(out.shape)

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            output = model(**inputs)
            if getattr(output, "head", None) is not None:
                shapes[model] = tuple(output.logits.shape)
    finally:
        for hook in hooks:
            hook.remove()
    flops = {path.partition(".")[2]: sum(ops.values()) for path, ops in counter.get_flop_counts().items()}
    flops[""] = counter.get_total_flops()
    return _fold(_part(model, "", "", shapes, flops, set()))


def memory(model: nn.Module, **inputs: Tensor) -> Memory:
    """The bytes ``model`` takes, and those one training step on ``inputs`` would keep."""
    weights = {_storage(t): t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers())}
    learned = [p for p in model.parameters() if p.requires_grad]
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            kept[_storage(tensor)] = tensor
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(**inputs)
        result = output.logits if getattr(output, "head", None) is not None else output
    activations = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del output, result
    stored = sum(weights.values())
    return Memory(stored, activations, stored + sum(p.numel() * (p.element_size() + 8) for p in learned))


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _part(
    module: nn.Module,
    path: str,
    name: str,
    shapes: dict[nn.Module, tuple[int, ...]],
    flops: dict[str, int],
    seen: set[nn.Parameter],
) -> Part:
    known = set(seen)
    seen |= set(module.parameters(recurse=False))
    below = tuple(
        _part(child, f"{path}.{key}" if path else key, key, shapes, flops, seen)
        for key, child in module.named_children()
    )
    new, old = (
        sum(parameter.numel() for parameter in module.parameters() if (parameter in known) is tied)
        for tied in (False, True)
    )
    return Part(name, type(module).__name__, shapes.get(module), new, old, flops.get(path, 0), below)


def _fold(part: Part) -> Part:
    """Runs of like children as one, all the way down; a mere list of modules gives way to its members."""
    folded: list[Part] = []
    for child in map(_fold, part.parts):
        if child.parameters == child.tied == child.flops == 0:
            continue
        if child.parts and child.shape is None and child.flops == 0:
            folded += [replace(member, name=f"{child.name}.{member.name}") for member in child.parts]
            continue
        last = folded[-1] if folded else None
        if last and child.name.isdigit() and replace(last, name="", times=1) == replace(child, name=""):
            folded[-1] = replace(last, name=f"{last.name.split('-')[0]}-{child.name}", times=last.times + 1)
        else:
            folded.append(child)
    return replace(part, parts=tuple(folded))
