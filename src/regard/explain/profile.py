"""Where the time of a training step goes: by part of the model, forward and backward, and what is left for the rest."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from regard.blocks.residual import Block, Stack
from regard.core.linear import Linear

DATA, HEAD, CLIP, OPTIMIZER, REST = "data", "head and loss", "clipping, embeddings", "optimizer", "average, log"
"""What a step does besides running the parts of its model."""


@dataclass
class Times:
    """Seconds, by part.

    Attributes:
        forward: of a part's forward pass; of the other things a step does, all of their time.
        backward: of a part's backward pass.
        steps: how many steps these are the sum of.
    """

    forward: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    backward: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    steps: int = 0

    @property
    def total(self) -> float:
        """Seconds of all steps."""
        return sum(self.forward.values()) + sum(self.backward.values())


class Stopwatch:
    """Times the steps of a training loop that it does not touch, by hooks on its model and optimiser.

    What passes between one mark and the next belongs to the part that ends there. Every moment of a step belongs to one
    part, so the parts add up to the whole.

    Args:
        model: whose blocks' residuals, embeddings and norms are the parts; like parts of all layers are one.
        optimizer: the step that ends each of the loop's.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.times = Times()
        self.last = 0.0
        self.within = DATA

    def begin(self) -> None:
        """A step begins."""
        self.last, self.within = self._now(), DATA
        self.times.steps += 1

    def end(self) -> None:
        """The step has ended."""
        self._mark(self.times.forward, REST)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks are in place within the block."""
        hooks = list(self._hooks())
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _hooks(self) -> Iterator[Any]:
        forward, backward = self.times.forward, self.times.backward
        yield self.model.register_forward_pre_hook(lambda *_: self._mark(forward, DATA))
        for name, module in watched(self.model).items():
            part = family(name)
            yield module.register_forward_hook(lambda *_, part=part: self._mark(forward, part))
            if "." in name:  # not embeddings, whose inputs have no gradients
                yield module.register_full_backward_pre_hook(lambda *_: self._begin_backward())
                yield module.register_full_backward_hook(lambda *_, part=part: self._mark(backward, part))
        yield self.model.register_forward_hook(lambda *_: self._after_forward())
        yield self.optimizer.register_step_pre_hook(lambda *_: self._mark(forward, CLIP))
        yield self.optimizer.register_step_post_hook(lambda *_: self._mark(forward, OPTIMIZER))

    def _after_forward(self) -> None:
        self.within = HEAD

    def _begin_backward(self) -> None:
        if self.within == HEAD:  # from the end of the model's forward pass until here
            self._mark(self.times.forward, HEAD)
            self.within = ""

    def _mark(self, times: dict[str, float], part: str) -> None:
        now = self._now()
        times[part] += now - self.last
        self.last = now

    def _now(self) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


def watched(model: nn.Module) -> dict[str, nn.Module]:
    """The parts that are timed, by path: residuals of blocks, norms of stacks, and other children but the head."""
    found: dict[str, nn.Module] = {}
    for name, child in model.named_children():
        if not isinstance(child, Stack):
            if name != "head":  # which the loss may compute itself: it goes with the loss
                found[name] = child
            continue
        for path, module in child.named_modules(prefix=name):
            if isinstance(module, Block):
                found |= {f"{path}.{key}": residual for key, residual in module.named_children()}
        found[f"{name}.norm"] = child.norm
    return found


def family(path: str) -> str:
    """What all layers call a part: ``encoder.blocks.3.attention`` is ``encoder.attention``."""
    return ".".join(step for step in path.split(".") if step != "blocks" and not step.isdigit())


def flops(model: nn.Module, step: Callable[[], object]) -> dict[str, int]:
    """The FLOPs of one training step, by part, as torch counts them; what no part claims is the head's."""
    with FlopCounterMode(display=False) as counter:
        step()
    counts = {path: sum(ops.values()) for path, ops in counter.get_flop_counts().items()}
    found: Counter[str] = Counter()
    for part in watched(model):
        if "." in part:  # embeddings multiply nothing, and torch takes what the loss does for theirs
            found[family(part)] += sum(count for path, count in counts.items() if path.endswith(f".{part}"))
    found[HEAD] += counter.get_total_flops() - sum(found.values())
    return dict(found)


def peak(dtype: torch.dtype, device: torch.device, size: int = 2048, times: int = 5) -> float:
    """FLOP/s of this machine's fastest product of two square matrices: what everything else is a share of."""
    a = torch.randn(size, size, device=device).to(dtype)
    layer = Linear(size, size, bias=False, device=device, dtype=dtype)
    best = 0.0
    products: list[Callable[[Tensor], Tensor]] = [a.matmul, layer]
    for product in products * times:
        began = time.perf_counter()
        product(a)[0, 0].item()  # waits for a GPU
        best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def table(times: Times, work: Mapping[str, int], most: float) -> list[str]:
    """Lines for a terminal: milliseconds a step, share of it, and share of the peak of what multiplies matrices."""
    rows: list[Sequence[str]] = [("", "forward", "backward", "share", "of peak")]
    parts = [part for part in times.forward if times.forward[part] + times.backward.get(part, 0.0) > 0]
    for part in parts:
        forward, backward = (1e3 * each.get(part, 0.0) / times.steps for each in (times.forward, times.backward))
        seconds = (forward + backward) / 1e3
        rows.append(
            (
                part.replace(".", " "),
                f"{forward:.1f} ms",
                f"{backward:.1f} ms" if backward else "",
                f"{100 * seconds * times.steps / times.total:.1f} %",
                f"{100 * work[part] / seconds / most:.0f} %" if work.get(part) else "",
            )
        )
    step = times.total / times.steps
    rows.append(("one step", f"{1e3 * step:.1f} ms", "", "100 %", f"{100 * sum(work.values()) / step / most:.0f} %"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        [f"{row[0]:<{widths[0]}}", *(f"{a:>{w}}" for a, w in zip(row[1:], widths[1:], strict=True))] for row in rows
    ]
    return ["  ".join(line).rstrip() for line in lines]
