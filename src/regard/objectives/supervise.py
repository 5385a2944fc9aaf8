"""Learning from targets that stand in the batch: cross-entropy, smoothed or focal, and squared error."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from regard.blocks.adapter import Adapted
from regard.blocks.embed import Head
from regard.core.errors import ConfigError, InputError
from regard.core.linear import product
from regard.core.types import IGNORE, Batch, Loss, Output, widened

CHUNK = 256
"""How many rows of logits exist at once in :func:`linear_cross_entropy`; of those that 16 bits hold, twice as many."""


@dataclass(frozen=True)
class Supervise:
    """Cross-entropy between the model's logits and ``batch["targets"]``, wherever a target is not IGNORE.

    Attributes:
        label_smoothing: e, the share of the target's probability spread over the whole vocabulary.
        focal_gamma: how much less the loss counts targets that are already likely; 0 = not at all.
        consistency: a, how much two passes with different dropout are to agree (:meth:`twice`); 0 = one pass. The loss
            in the log has that, too; the held-out one has not.
    """

    label_smoothing: float = 0.1
    focal_gamma: float = 0.0
    consistency: float = 0.0

    def __post_init__(self) -> None:
        smoothing = self.label_smoothing
        if not 0 <= smoothing < 1:
            raise ConfigError(f"objective.label_smoothing {smoothing} must be a share, at least 0 and less than 1")
        for name, none in (("focal_gamma", "plain cross-entropy"), ("consistency", "one pass")):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"objective.{name} {getattr(self, name)} must be a number from 0; 0 is {none}")
        if smoothing and self.focal_gamma:
            raise ConfigError("the focal loss has no smoothed targets: set objective.label_smoothing to 0")

    def fitted(self, task: Any) -> Self:  # noqa: ARG002
        """The objective as it is: the data decide nothing about it."""
        return self

    def prepare(self, batch: Batch, rng: torch.Generator) -> Batch:  # noqa: ARG002
        """The batch as it is: nothing is corrupted."""
        return batch

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        """The loss over the batch, with logits only where there is a target. Raises as :func:`cross_entropy`."""
        inputs = {name: value for name, value in batch.items() if name != "targets"}
        if self.consistency and model.training:
            return self.twice(
                model(**{name: value.repeat_interleave(2, dim=0) for name, value in inputs.items()}), batch["targets"]
            )
        return self.over(model(**inputs), batch["targets"])

    def over(self, output: Output, targets: Int[Tensor, "B *S"]) -> Loss:
        """The loss of what a model has made of a batch; as :meth:`loss`."""
        marked = targets != IGNORE
        features, targets, head = output.features[marked], targets[marked], output.head
        assert head is not None, "what says targets has a head"
        fused = torch.is_grad_enabled() and not self.focal_gamma and not isinstance(head, Adapted)
        if fused and isinstance(head, (Head, nn.Linear)):
            hidden = head.transform(features) if isinstance(head, Head) else features
            loss = linear_cross_entropy(hidden, head.weight, head.bias, targets, self.label_smoothing)
            return loss.plus(output.penalty)
        count = _count(targets)
        chunks = zip(features.split(CHUNK), targets.split(CHUNK), strict=True)
        losses = [self._of(head(rows), picked) for rows, picked in chunks]
        total = torch.stack([loss.sum for loss in losses]).sum()
        nll = torch.stack([loss.parts["nll"] for loss in losses]).sum()
        return Loss(total, count, {"nll": nll}).plus(output.penalty)

    def twice(self, output: Output, targets: Int[Tensor, "B *S"]) -> Loss:
        """The loss of what a model has made of a batch in which each example stands twice, which dropout made differ.

        R-Drop (Liang et al. 2021, equation 4): of a target, ``-log p(t) - log q(t) + a / 2 (KL(p, q) + KL(q, p))``,
        here halved, so that ``a`` = 0 is the loss of one pass. Part ``divergence``: the two terms behind ``a / 2``.
        """
        marked, head = targets != IGNORE, output.head
        assert head is not None, "what says targets has a head"
        count = _count(targets[marked])
        sides = (features[marked].split(CHUNK) for features in (output.features[::2], output.features[1::2]))
        chunks = zip(*sides, targets[marked].split(CHUNK), strict=True)
        # Each chunk's logits are made again for its gradients, so that no two chunks' exist at once.
        found = [checkpoint(self._agreeing, head, *chunk, use_reentrant=False) for chunk in chunks]
        said, nll, apart = (torch.stack(each).sum() for each in zip(*found, strict=True))
        parts = {"nll": nll.detach(), "divergence": apart.detach()}
        return Loss(said + self.consistency / 4 * apart, count, parts).plus(output.penalty)

    def _agreeing(self, head: Any, rows: Tensor, others: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of what both passes say, halved; the same without smoothing; and how far apart they are."""
        p, q = widened(head(rows)), widened(head(others))
        each, other = self._of(p, targets), self._of(q, targets)
        apart = ((p.softmax(dim=-1) - q.softmax(dim=-1)) * (p.log_softmax(dim=-1) - q.log_softmax(dim=-1))).sum()
        return (each.sum + other.sum) / 2, (each.parts["nll"] + other.parts["nll"]) / 2, apart

    def _of(self, logits: Tensor, targets: Tensor) -> Loss:
        if self.focal_gamma:
            return focal(logits, targets, self.focal_gamma)
        return cross_entropy(logits, targets, self.label_smoothing)


OBJECTIVE = Supervise


@torch.no_grad()
def likelihood(model: nn.Module, batches: Iterable[Batch]) -> tuple[float, int]:
    """The negative log-likelihood of the targets in batches, summed, in nats; and how many targets there are."""
    device = next(model.parameters()).device
    nll, count = 0.0, 0
    for batch in batches:
        loss = Supervise(0.0).loss(model, {name: value.to(device) for name, value in batch.items()})
        nll, count = nll + float(loss.sum), count + int(loss.count)
    return nll, count


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
    scores = widened(logits).log_softmax(dim=-1)
    nll = -scores.gather(1, targets[:, None]).sum()
    uniform = -scores.mean(dim=-1).sum()
    return Loss(torch.lerp(nll, uniform, label_smoothing), count, {"nll": nll.detach()})


def focal(logits: Float[Tensor, "N V"], targets: Int[Tensor, "N"], gamma: float) -> Loss:
    """The focal loss of one target t, ``-(1 - p(t)) ** gamma * log p(t)`` (Lin et al. 2017, equation 4), summed.

    Returns:
        the loss, with the part ``nll``: cross-entropy, its sum with a gamma of 0.

    Raises:
        InputError: there is no target.
    """
    count = _count(targets)
    hit = widened(logits).log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
    doubt = (-torch.expm1(hit)).clamp(min=torch.finfo(hit.dtype).tiny)  # at 0, the slope of a root is infinite
    return Loss(-(doubt**gamma * hit).sum(), count, {"nll": -hit.detach().sum()})


def squared_error(outputs: Float[Tensor, "*S"], targets: Float[Tensor, "*S"]) -> Loss:
    """The squared error, summed; a target that is not a number carries no loss. Raises InputError if none does."""
    marked = ~targets.isnan()
    found = targets[marked]
    return Loss((outputs[marked] - found).square().sum(), _count(found))


def linear_cross_entropy(
    hidden: Float[Tensor, "N E"],
    weight: Float[Tensor, "V E"],
    bias: Float[Tensor, "V"] | None,
    targets: Int[Tensor, "N"],
    label_smoothing: float = 0.0,
) -> Loss:
    """:func:`cross_entropy` of a linear head's logits, whose N x V table is never held.

    The gradient of softmax is known as soon as the logits are, so the forward pass forms it in their place,
    a chunk of rows at a time.
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


class _Space:
    """Room for the logits of a chunk and their gradients, where products are in 16 bits and all else is not.

    Large tensors that are made anew for each chunk cost more than what is computed in them.
    """

    def __init__(self, rows: int, table: Tensor, kind: torch.dtype) -> None:
        self.table = table
        self.wide = table.new_empty(rows, len(table), dtype=kind)
        self.narrow = table.new_empty(rows, len(table))
        self.share = torch.empty_like(table)

    def logits(self, rows: Tensor) -> Tensor:
        """``rows @ table.T``, in the wide type."""
        torch.mm(rows, self.table.t(), out=self.narrow[: len(rows)])
        return self.wide[: len(rows)].copy_(self.narrow[: len(rows)])

    def gradients(self, slope: Tensor, rows: Tensor, into: Tensor, grad_weight: Tensor) -> None:
        """Put the gradient of the rows ``into``, and add that of the table to ``grad_weight``."""
        slope = self.narrow[: len(rows)].copy_(slope)
        into.copy_(slope @ self.table)
        torch.mm(slope.t(), rows, out=self.share)
        for total, share in zip(grad_weight.split(CHUNK), self.share.split(CHUNK), strict=True):
            total.add_(share)  # a few rows at a time, as the sum of two types goes by way of a copy


class _LinearCrossEntropy(torch.autograd.Function):
    """See :func:`linear_cross_entropy`. d loss / d logits = softmax - (1 - e) * onehot - e / V.

    The last term is the same for all logits, so its share of the gradients is added once, at the end. Under
    autocast the three products are computed in its type, and everything else in the type of the weight.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        size, kind, device = len(weight), weight.dtype, weight.device.type
        narrow = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else kind
        table, chunk = weight.to(narrow), CHUNK * 4 // min(4, narrow.itemsize)
        grad_hidden, grad_weight = torch.empty_like(hidden, dtype=kind), torch.zeros_like(weight)
        grad_bias = torch.zeros_like(weight[:, 0])
        nll, uniform = weight.new_zeros(()), weight.new_zeros(())
        space = None if narrow == kind else _Space(min(chunk, len(hidden)), table, kind)
        for rows, picked, into in zip(
            hidden.to(narrow).split(chunk), targets[:, None].split(chunk), grad_hidden.split(chunk), strict=True
        ):
            logits = product(rows, table) if space is None else space.logits(rows)
            if bias is not None:
                logits += bias
            # Softmax in place: a second table of this size would not stay near.
            top, hit = logits.amax(dim=-1, keepdim=True), logits.gather(1, picked)
            middle = logits.mean(dim=-1, keepdim=True) if smoothing else hit
            slope = logits.sub_(top).exp_()
            total = slope.sum(dim=-1, keepdim=True)
            slope /= total
            normalizer = top + total.log()
            nll += (normalizer - hit).sum()
            uniform += (normalizer - middle).sum()
            slope.scatter_add_(1, picked, slope.new_full(picked.shape, smoothing - 1))
            if bias is not None:
                grad_bias += slope.sum(dim=0)
            if space is None:
                into.copy_(product(slope, table.t()))
                torch.addmm(grad_weight, slope.t(), rows, out=grad_weight)  # in one pass over the large table
            else:
                space.gradients(slope, rows, into, grad_weight)
        grad_hidden -= smoothing * weight.mean(dim=0)
        grad_weight -= smoothing / size * hidden.sum(dim=0)
        grad_bias -= smoothing / size * len(hidden)
        ctx.save_for_backward(grad_hidden.to(hidden.dtype), grad_weight, grad_bias)
        ctx.mark_non_differentiable(nll)
        return torch.lerp(nll, uniform, smoothing), nll

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias = ctx.saved_tensors
        if grad.device.type == "cpu" and grad == 1:  # as in training: a second table is spared where memory is fullest
            return hidden, weight, bias if ctx.needs_input_grad[2] else None, None, None
        return hidden * grad, weight * grad, bias * grad if ctx.needs_input_grad[2] else None, None, None
