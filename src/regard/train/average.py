"""The weights that are validated and kept: the model's own, their moving average, or the mean of some checkpoints."""

import copy
from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from regard.checkpoint.load import tensors_of
from regard.train.parallel import local


class Average:
    """A model beside the one in training, whose weights are an average of its weights over time.

    Args:
        model: the one in training.
        kind: below 1, the decay of an exponential moving average (Kingma & Ba 2015, section 7.2), which moves faster
            in the first steps; from 2, of how many validations the weights are averaged (Vaswani et al. 2017, section
            6.1); 0 = the model itself.

    Attributes:
        model: the averaged one; its buffers are as in training.
        kept: the weights at the last validations, oldest first.
    """

    def __init__(self, model: nn.Module, kind: float) -> None:
        self.source, self.kind = model, kind
        self.model = copy.deepcopy(model).eval() if kind else model
        self.kept: deque[dict[str, Tensor]] = deque(maxlen=int(kind))

    def step(self, step: int) -> None:
        """Take in the weights after step number ``step``."""
        if 0 < self.kind < 1:
            update_average(self.model, self.source, min(self.kind, step / (step + 10)))

    @torch.no_grad()
    def validated(self) -> None:
        """Take in the weights of a validation; called before it."""
        if self.kind < 1:
            return
        self.kept.append({name: value.detach().clone() for name, value in tensors_of(self.source).items()})
        for name, value in tensors_of(self.model).items():
            held = [tensors[name] for tensors in self.kept]
            mean = torch.stack([local(each) for each in held]).mean(dim=0) if value.is_floating_point() else held[-1]
            local(value).copy_(mean)

    def state(self) -> dict[str, Tensor]:
        """What a run needs beside the averaged weights to go on: ``kept``, numbered."""
        return {f"{i}.{name}": value for i, tensors in enumerate(self.kept) for name, value in tensors.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up what :meth:`state` gave; the averaged weights are the caller's to load."""
        found: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            number, name = key.split(".", 1)
            found.setdefault(int(number), {})[name] = value
        self.kept.extend(tensors for _, tensors in sorted(found.items()))


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Move every averaged weight ``1 - decay`` of the way to the model's (Kingma & Ba 2015, 7.2); copy the buffers."""
    means, weights = ([local(each) for each in which.parameters()] for which in (average, model))
    torch._foreach_lerp_(means, weights, 1 - decay)
    for mean, buffer in zip(average.buffers(), model.buffers(), strict=True):
        mean.copy_(buffer)
