"""Learning from targets that stand in the batch: cross-entropy with label smoothing."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.blocks.embed import Head
from regard.core.errors import InputError
from regard.core.types import IGNORE, Batch, Loss

CHUNK = 512
"""How many rows of logits exist at once in :func:`linear_cross_entropy`; from 256 to 2,048 the speed is the same."""


@dataclass(frozen=True)
class Supervise:
    """Cross-entropy between the model's logits and ``batch["targets"]``, wherever a target is not IGNORE.

    Attributes:
        label_smoothing: e, the share of the target's probability spread over the whole vocabulary.
    """

    label_smoothing: float = 0.1

    def prepare(self, batch: Batch, rng: torch.Generator) -> Batch:  # noqa: ARG002
        """The batch as it is: nothing is corrupted."""
        return batch

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """The loss over the batch, with logits only where there is a target. Raises as :func:`cross_entropy`."""
        inputs = {name: value for name, value in batch.items() if name != "targets"}
        output = model(**inputs)
        marked = batch["targets"] != IGNORE
        hidden, targets = output.hidden[marked], batch["targets"][marked]
        if isinstance(output.head, (Head, nn.Linear)) and torch.is_grad_enabled():
            return linear_cross_entropy(hidden, output.head.weight, output.head.bias, targets, self.label_smoothing)
        return cross_entropy(output.head(hidden), targets, self.label_smoothing)


def cross_entropy(logits: Float[Tensor, "N V"], targets: Int[Tensor, "N"], label_smoothing: float = 0.0) -> Loss:
    """Cross-entropy against targets mixed with the uniform distribution over the vocabulary.

    With smoothing e, the loss of one target t is ``(1 - e) * -log p(t) + e / V * (sum over v of -log p(v))``
    (Szegedy et al. 2016, section 7; Vaswani et al. 2017, section 5.4).

    Returns:
        the loss, with the part ``nll``: its sum without smoothing.

    Raises:
        InputError: there is no target.
    """
    count = _count(targets)
    scores = logits.log_softmax(dim=-1)
    nll = -scores.gather(1, targets[:, None]).sum()
    uniform = -scores.mean(dim=-1).sum()
    return Loss(torch.lerp(nll, uniform, label_smoothing), count, {"nll": nll.detach()})


def linear_cross_entropy(
    hidden: Float[Tensor, "N E"],
    weight: Float[Tensor, "V E"],
    bias: Float[Tensor, "V"] | None,
    targets: Int[Tensor, "N"],
    label_smoothing: float = 0.0,
) -> Loss:
    """:func:`cross_entropy` of a linear head's logits, whose N x V table is never held.

    The gradient of softmax is known as soon as the logits are, so the forward pass forms it in their place,
    a chunk of rows at a time. It is 1.1 to 1.4 times as fast as torch's own on a CPU, and holds 512 rows instead of N.
    """
    count = _count(targets)
    loss, nll = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, label_smoothing
    )
    return Loss(loss, count, {"nll": nll.detach()})


def _count(targets: Tensor) -> Tensor:
    if targets.numel() == 0:
        raise InputError("no target carries loss in this batch: every position is padding or ignored")
    return torch.tensor(targets.numel(), device=targets.device)


class _LinearCrossEntropy(torch.autograd.Function):
    """See :func:`linear_cross_entropy`. d loss / d logits = softmax - (1 - e) * onehot - e / V."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        grad_hidden, grad_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        grad_bias = None if bias is None else torch.zeros_like(bias)
        nll, uniform = hidden.new_zeros(()), hidden.new_zeros(())
        for rows, picked, into in zip(
            hidden.split(CHUNK), targets[:, None].split(CHUNK), grad_hidden.split(CHUNK), strict=True
        ):
            logits = nn.functional.linear(rows, weight, bias)
            normalizer = logits.logsumexp(dim=-1)
            nll += (normalizer - logits.gather(1, picked)[:, 0]).sum()
            uniform += (normalizer - logits.mean(dim=-1)).sum()
            slope = logits.sub_(normalizer[:, None]).exp_().sub_(smoothing / len(weight))
            slope.scatter_add_(1, picked, slope.new_full(picked.shape, smoothing - 1))
            torch.mm(slope, weight, out=into)
            grad_weight.addmm_(slope.t(), rows)
            if grad_bias is not None:
                grad_bias += slope.sum(dim=0)
        ctx.save_for_backward(grad_hidden, grad_weight, grad_bias)
        ctx.mark_non_differentiable(nll)
        return torch.lerp(nll, uniform, smoothing), nll

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        return hidden * grad, weight * grad, None if bias is None else bias * grad, None, None
