"""Blocks whose weights lie on another device and are brought in when they are run: for models larger than a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from regard.core.errors import Unsupported


def offload(block: nn.Module, device: torch.device) -> None:
    """Compute the block on ``device``, wherever its weights lie: they are copied there for each pass, and let go of.

    Hidden states, masks and caches never leave the device, so nothing else needs to know. The block is for inference
    alone from then on, by one thread at a time: a pass that records gradients raises Unsupported.
    """
    block.requires_grad_(requires_grad=False)
    block.forward = Away(block, device)


def offloaded(model: nn.Module) -> list[str]:
    """The names of the blocks whose weights lie elsewhere."""
    return [name for name, part in model.named_modules() if isinstance(vars(part).get("forward"), Away)]


class Away:
    """The forward pass of a block whose weights lie elsewhere; a copy of the block has one of its own."""

    def __init__(self, block: nn.Module, device: torch.device) -> None:
        self.block, self.device = block, device

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the block's own. Raises Unsupported where gradients are recorded."""
        if torch.is_grad_enabled():
            raise Unsupported("blocks whose weights lie elsewhere are for inference alone: use torch.no_grad()")
        parts = [*self.block.modules()]
        tables: list[dict[str, Any]] = [each for part in parts for each in (part._parameters, part._buffers)]
        at_home = [dict(table) for table in tables]
        try:
            for table in tables:
                table.update({name: self._brought(own) for name, own in table.items() if own is not None})
            return type(self.block).forward(self.block, *args, **kwargs)
        finally:
            for table, own in zip(tables, at_home, strict=True):
                table.update(own)

    def _brought(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(self.device, non_blocking=self.device.type == "cuda")  # a CPU would not wait for its copy
