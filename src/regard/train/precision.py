"""The type that matrices are multiplied in while training."""

from contextlib import AbstractContextManager
from typing import Any, Literal

import torch

PrecisionName = Literal["auto", "float32", "bfloat16", "float64"]


def resolve(precision: PrecisionName, device: torch.device) -> Literal["float32", "bfloat16", "float64"]:
    """What ``auto`` means here: bfloat16 where the hardware multiplies in it, else float32; other names as they are."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    able = torch.cpu.get_capabilities()
    return "bfloat16" if able.get("avx512_bf16") or able.get("amx_bf16") else "float32"


def autocast(precision: PrecisionName, device: torch.device) -> AbstractContextManager[Any]:
    """Multiply matrices in this type; weights, norms, softmax and loss stay in float32 (Micikevicius et al. 2018)."""
    return torch.autocast(device.type, torch.bfloat16, enabled=resolve(precision, device) == "bfloat16")


def weights(precision: PrecisionName) -> torch.dtype:
    """The type of the weights: float32, or float64 where everything is computed in it, to compare runs by."""
    return torch.float64 if precision == "float64" else torch.float32
