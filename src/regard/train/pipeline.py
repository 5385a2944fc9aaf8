"""The blocks of a model in stages, each on ranks of its own, through which the batches of a step pass in turn.

Every stage runs the model's own forward pass. Where a block is not its own, something else stands: what receives the
states from the stage before, or what hands them to the one after. So nothing of a family is known here but its stacks,
the batches may have any shapes, and the gradients are those of one process.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from regard.blocks.residual import Stack
from regard.core.errors import ConfigError
from regard.core.types import Batch, Context

TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
RANK = 3
"""How many dimensions a state has: [B S E]."""


class Passed(Exception):
    """The rest of the forward pass happens in the stages behind this one."""


class Stages:
    """One stage among others, seen from a rank of it.

    Args:
        number: of the stage, from 0.
        count: how many there are.
        stride: how many ranks a stage has; the same one of the next stage is so many ranks ahead.
        device: where states live.
    """

    def __init__(self, number: int, count: int, stride: int, device: torch.device) -> None:
        self.number, self.count, self.device = number, count, device
        rank = dist.get_rank()
        self.before, self.after = rank - stride, rank + stride
        # States and gradients pass each other between two ranks, so each direction has a line of its own.
        self.forth, self.back = dist.new_group(), dist.new_group()
        self.anchor = torch.zeros((), device=device, requires_grad=True)  # so that what is received has a gradient
        self.given: list[Tensor] = []
        self.sending: list[tuple[dist.Work | None, Tensor]] = []

    @property
    def last(self) -> bool:
        """Whether this stage ends in the loss."""
        return self.number == self.count - 1

    def cut(self, model: nn.Module) -> None:
        """Leave of a model's blocks those of this stage, in place; what is in no block stays with every stage.

        The stacks are run in the order in which the model holds them.

        Raises:
            ConfigError: there are fewer blocks than stages.
        """
        stacks = [module for module in model.modules() if isinstance(module, Stack)]
        total = sum(len(stack.blocks) for stack in stacks)
        if total < self.count:
            raise ConfigError(f"parallel.pipeline {self.count} is more than the model's {total} blocks")
        begin, end = (total * number // self.count for number in (self.number, self.number + 1))
        start = 0
        for stack in stacks:
            stop = start + len(stack.blocks)
            for place in range(start, stop):
                if place < begin:
                    stack.blocks[place - start] = Receive(self) if place == min(stop, begin) - 1 else Skip()
                elif place >= end:
                    stack.blocks[place - start] = HandOver(self if place == end > start else None)
            if stop <= end and not self.last:
                stack.norm.register_forward_pre_hook(lambda _, states: (self.give(states[0]),))
            start = stop

    def run(self, forward: Callable[[Batch], tuple[Tensor, dict[str, Any]]], batches: Sequence[Batch]) -> list[Any]:
        """The step's batches through this stage, forward and backward in turn (1F1B: Narayanan et al. 2021, 2.2.1).

        A stage runs ahead by as many batches as there are stages behind it, so that all are at work and none holds the
        activations of more.

        Args:
            forward: a batch to its loss and what to report of it.
            batches: the same on all stages.

        Returns:
            what was reported of each batch, on the last stage.
        """
        reports, open_ = [], deque[tuple[list[Tensor], list[Tensor | None]]]()
        todo = iter(batches)
        for ahead in order(len(batches), self.count - 1 - self.number):
            if ahead:
                try:
                    loss, report = forward(next(todo))
                    reports.append(report)
                    open_.append(([loss], [None]))
                except Passed:
                    open_.append((self.given, [torch.zeros_like(each) for each in self.given]))
                    self.given = []
            else:
                torch.autograd.backward(*open_.popleft())
        for work, _ in self.sending:
            if work is not None:
                work.wait()
        self.sending = []
        return reports

    def give(self, states: Tensor) -> Tensor:
        """Send states to the next stage; the gradient of what is returned will have its gradient added."""
        given: Tensor = _Give.apply(states, self.anchor, self)  # type: ignore[no-untyped-call]
        if torch.is_grad_enabled():
            self.given.append(given)
        return given

    def send(self, tensor: Tensor, to: int, group: Any) -> None:
        """Send a tensor without waiting for its arrival."""
        self.sending = [(work, part) for work, part in self.sending if work is not None and not work.is_completed()]
        tensor = tensor.contiguous()
        about = torch.tensor([TYPES.index(tensor.dtype), *tensor.shape], device=self.device)
        for part in (about, tensor):
            self.sending.append((dist.isend(part, to, group=group), part))

    def receive(self, source: int, group: Any) -> Tensor:
        """The next tensor from a rank."""
        about = torch.empty(1 + RANK, dtype=torch.int64, device=self.device)
        dist.recv(about, source, group=group)
        kind, *shape = about.tolist()
        tensor = torch.empty(shape, dtype=TYPES[kind], device=self.device)
        dist.recv(tensor, source, group=group)
        return tensor


def order(count: int, ahead: int) -> Iterator[bool]:
    """What a stage does in turn with ``count`` batches: True is forward, False backward, each from the first on."""
    ahead = min(ahead, count)
    yield from [True] * ahead
    for _ in range(count - ahead):
        yield from (True, False)
    yield from [False] * ahead


class Skip(nn.Module):
    """In place of a block of an earlier stage, when what came out of a later one is what will be received."""

    def forward(self, x: Tensor, ctx: Context) -> Tensor:  # noqa: ARG002 - as a block
        return x


class Receive(nn.Module):
    """In place of a block of the stage before: what came out of it."""

    def __init__(self, stages: Stages) -> None:
        super().__init__()
        self.stages = stages

    def forward(self, x: Tensor, ctx: Context) -> Tensor:  # noqa: ARG002 - as a block
        received: Tensor = _Receive.apply(self.stages.anchor, self.stages)  # type: ignore[no-untyped-call]
        return received


class HandOver(nn.Module):
    """In place of a block of the next stage: the end of this stage's forward pass."""

    def __init__(self, stages: Stages | None) -> None:
        super().__init__()
        self.stages = stages

    def forward(self, x: Tensor, ctx: Context) -> Tensor:  # noqa: ARG002 - as a block
        if self.stages is not None:
            self.stages.give(x)
        raise Passed


class _Give(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, anchor: Tensor, stages: Stages) -> Tensor:  # noqa: ARG004
        ctx.stages = stages
        stages.send(states, stages.after, stages.forth)
        return states.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad + ctx.stages.receive(ctx.stages.after, ctx.stages.back), None, None


class _Receive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, stages: Stages) -> Tensor:  # noqa: ARG004
        ctx.stages = stages
        return stages.receive(stages.before, stages.forth)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None]:
        ctx.stages.send(grad, ctx.stages.before, ctx.stages.back)
        return None, None
