"""Blocks whose weights lie on another device and are brought in when they are run: for models larger than a GPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from regard.core.errors import Unsupported


def offload(block: nn.Module, device: torch.device) -> None:
    """Compute the block on ``device``, wherever its weights lie: they are copied there for each pass, and let go of.

    Hidden states, masks and caches never leave the device, so nothing else needs to know. The block is for inference
    alone from then on: a pass with gradients raises Unsupported.
    """
    block.requires_grad_(requires_grad=False)
    at_home: list[list[tuple[dict[str, Any], dict[str, Any]]]] = []

    def bring(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0]
        if torch.is_grad_enabled() and isinstance(x, Tensor) and x.requires_grad:
            raise Unsupported("blocks whose weights lie elsewhere are for inference alone: use torch.no_grad()")
        tables: list[dict[str, Any]] = [each for part in module.modules() for each in (part._parameters, part._buffers)]
        at_home.append([(table, dict(table)) for table in tables])
        for table in tables:
            table.update({name: own.to(device, non_blocking=True) for name, own in table.items() if own is not None})

    def leave(_module: nn.Module, _inputs: tuple[Any, ...], _output: Any) -> None:
        for table, own in at_home.pop() if at_home else ():  # none where ``bring`` refused
            table.update(own)

    block.register_forward_pre_hook(bring)
    block.register_forward_hook(leave, always_call=True)
