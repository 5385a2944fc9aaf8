"""The linear layer of all blocks: torch's, with faster products where it learns in float32 on a CPU."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

from regard.core.transforms import transformed

LARGE = 2**27
"""Multiplications from which oneDNN is faster: 512 rows through 512 x 512, say."""

ONEDNN = torch.backends.mkldnn.is_available()


class Linear(nn.Linear):
    """``x @ weight.T + bias``.

    In training in float32 on a CPU two of three large products, the forward one and that for the gradient of ``x``, are
    oneDNN's instead of MKL's, which on processors of AMD take longer. oneDNN keeps a kernel for each number of rows:
    where that varies, call :func:`regard.train.memory.keep_few_kernels` first, as training by a recipe does. They
    have no forward-mode derivatives. (For inference, see :func:`regard.blocks.packed.pack`.)
    """

    def forward(self, x: Float[Tensor, "*S I"]) -> Float[Tensor, "*S O"]:
        learns = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        fast = learns and not torch.is_autocast_enabled("cpu") and _large(x, self.weight)
        return _linear(x, self.weight, self.bias) if fast else super().forward(x)


def product(x: Float[Tensor, "*S I"], weight: Float[Tensor, "O I"]) -> Float[Tensor, "*S O"]:
    """``x @ weight.T``, as fast as in a :class:`Linear` that learns: for gradients that are written by hand."""
    return _linear(x, weight, None) if _large(x, weight) else x @ weight.t()


def _large(x: Tensor, weight: Tensor) -> bool:
    """Whether these are large ordinary tensors in float32 on a CPU."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and type(x) is Tensor
        and type(weight) in (Tensor, nn.Parameter)  # and no part of a matrix that lies across processes
        and x.ndim > 1
        and (torch.compiler.is_compiling() or _counts(x, weight) >= LARGE)
        and not transformed()
        and ONEDNN
    )


def _counts(x: Tensor, weight: Tensor) -> int:
    """Multiplications."""
    return x.numel() * len(weight)


@torch.library.custom_op("regard::linear", mutates_args=(), device_types="cpu")
def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As nn.functional.linear; opaque to torch.compile, which has no kernel for weights that change.

    Compiled code does not know how large it is: to ask would be to compile for either case.
    """
    if _counts(x, weight) < LARGE:
        return nn.functional.linear(x, weight, bias)
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return found


@_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    del bias
    return x.new_empty(*x.shape[:-1], len(weight))


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor) -> None:
    del output
    ctx.save_for_backward(*inputs[:2])


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    rows = grad.reshape(-1, len(weight))
    return (
        _linear(grad, weight.t(), None) if ctx.needs_input_grad[0] else None,
        rows.t() @ x.reshape(-1, x.shape[-1]) if ctx.needs_input_grad[1] else None,
        rows.sum(dim=0) if ctx.needs_input_grad[2] else None,
    )


_linear.register_autograd(_gradients, setup_context=_keep)


@register_flop_formula(torch.ops.regard.linear)
def _flops(x: tuple[int, ...], weight: tuple[int, ...], *_: Any, **__: Any) -> int:
    return 2 * torch.Size(x).numel() * weight[0]
